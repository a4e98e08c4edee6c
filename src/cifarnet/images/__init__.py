"""Pictures in, uint8 pixels out: from files, Pillow, arrays and tensors."""

from cifarnet._resize import check_size, crop_square, resize_images
from cifarnet.images.convert import ImageLike, to_pixels
from cifarnet.images.decode import ImageSource, decode_image

__all__ = [
    "ImageLike",
    "ImageSource",
    "check_size",
    "crop_square",
    "decode_image",
    "resize_images",
    "to_pixels",
]
