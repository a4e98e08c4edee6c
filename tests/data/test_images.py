"""Every kind of image becomes the pixels that a network was trained on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from cifarnet._resize import crop_square, resize_images
from cifarnet.data import to_pixels
from cifarnet.data.images import decode_image
from cifarnet.errors import DataError, SettingError

RGB = np.random.default_rng(5).integers(0, 256, (9, 14, 3), dtype=np.uint8)
CHW = torch.from_numpy(RGB).permute(2, 0, 1)
GREY = RGB[:, :, 0]
RGBA = np.dstack([RGB, np.random.default_rng(6).integers(0, 256, (9, 14), dtype=np.uint8)])


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


class TestDecode:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "gif", "jpg"])
    def test_a_file_in_any_format_becomes_uint8_chw(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"picture.{suffix}"
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(RGB).save(path, **options)
        pixels = decode_image(path)
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (3, 9, 14)
        assert pixels.is_contiguous()
        if suffix not in ("gif", "jpg"):  # which lose some
            assert torch.equal(pixels, CHW)
        with path.open("rb") as file:
            for source in (str(path), path.read_bytes(), file, Image.open(io.BytesIO(path.read_bytes()))):
                assert torch.equal(decode_image(source), pixels)

    @pytest.mark.parametrize("mode", ["I;16", "I"])
    def test_sixteen_bits_are_scaled_not_clipped(self, mode: str) -> None:
        grey = np.array([[0, 256, 257], [32768, 65279, 65535]], np.uint16)
        image = Image.fromarray(grey if mode == "I;16" else grey.astype(np.int32))
        assert image.mode == mode
        for source in (image, encode(image, "PNG" if mode == "I;16" else "TIFF")):
            assert decode_image(source).tolist() == [[[0, 1, 1], [128, 254, 255]]] * 3

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
    def test_other_modes_become_rgb_on_white(self, mode: str) -> None:
        image = Image.fromarray(RGB).convert(mode)
        assert np.array_equal(decode_image(image).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
        if mode in ("P", "L"):
            assert (decode_image(encode(Image.new(mode, (2, 2), 0), "PNG", transparency=0)) == 255).all()
        for alpha, value in ((0, 255), (127, 128)):
            assert (decode_image(Image.new("RGBA", (2, 2), (0, 0, 0, alpha))) == value).all()

    def test_the_orientation_of_the_camera_is_applied(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned a quarter clockwise
        turned = decode_image(encode(Image.fromarray(RGB), "PNG", exif=exif))
        assert np.array_equal(turned.permute(1, 2, 0).numpy(), np.rot90(RGB, -1))

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_too_many_pixels_are_refused_before_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = encode(Image.fromarray(RGB), "PNG")
        for limit in (100, 50):  # Pillow warns above its limit, and refuses twice as many pixels
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            with pytest.raises(DataError, match=r"the picture: .*decompression bomb"):
                decode_image(content)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert torch.equal(decode_image(content), CHW)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("no/such.png", r"no/such.png: no such file\. Check the path"),
            (Path(__file__).parent, r"data: not a picture that Pillow reads \(IsADirectoryError"),
            (Path(__file__), r"test_images.py: not a picture that Pillow reads .* Save it again as PNG"),
            (Image.new("F", (2, 2)), "the range of floating-point pixels is unknown"),
        ],
    )
    def test_other_sources_are_refused(self, source: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            decode_image(source)

    @settings(max_examples=150, deadline=None)
    @given(format=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), data=st.data())
    def test_a_damaged_file_gives_a_data_error_or_a_picture(self, format: str, data: st.DataObject) -> None:
        content = bytearray(encode(Image.fromarray(RGB), format))
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        try:
            pixels = decode_image(bytes(content[: data.draw(st.integers(1, len(content)))]))
        except DataError:
            return
        assert pixels.dtype == torch.uint8
        assert pixels.shape[0] == 3


class TestToPixels:
    def test_every_way_to_hold_one_image_gives_the_same_pixels(self, tmp_path: Path) -> None:
        Image.fromarray(RGB).save(tmp_path / "image.png")
        ways: list[Any] = [
            tmp_path / "image.png",
            Image.fromarray(RGB),
            RGB,
            np.ascontiguousarray(RGB.transpose(2, 0, 1)),
            CHW,
            tv_tensors.Image(CHW),
            RGB / 255,
            (RGB / 255).astype(">f4"),
            CHW / 255,
            (CHW / 255).double().requires_grad_(),
        ]
        for way in ways:
            pixels = to_pixels(way)
            assert type(pixels) is torch.Tensor
            assert torch.equal(pixels, CHW), type(way)
            pixels.zero_()  # a copy

    def test_grey_and_colour_are_converted_as_pillow_does(self) -> None:
        grey = torch.from_numpy(GREY)
        for way in (GREY, GREY[:, :, None], grey, grey[None], Image.fromarray(GREY)):
            assert torch.equal(to_pixels(way), grey.expand(3, -1, -1))
            assert torch.equal(to_pixels(way, channels=1), grey[None])
        as_grey = torch.from_numpy(np.array(Image.fromarray(RGB).convert("L")))[None]
        for way in (RGB, CHW, Image.fromarray(RGB)):
            assert torch.equal(to_pixels(way, channels=1), as_grey)

    def test_the_channels_of_the_network_stay(self) -> None:
        five = torch.randint(0, 256, (5, 9, 14), dtype=torch.uint8)
        assert torch.equal(to_pixels(five, channels=5), five)
        assert torch.equal(to_pixels(five.permute(1, 2, 0), channels=5), five)
        assert torch.equal(to_pixels(RGBA, channels=4), torch.from_numpy(RGBA).permute(2, 0, 1))
        assert torch.equal(to_pixels(RGBA), to_pixels(encode(Image.fromarray(RGBA), "PNG")))
        with pytest.raises(DataError, match=r"takes 5 channels, got an image of shape \(3, 9, 14\)"):
            to_pixels(RGB, channels=5)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (RGB.astype(np.float32), r"got float32 \(9, 14, 3\) with min 0 and max 255. Divide by 255"),
            (torch.full((3, 8, 8), float("nan")), "with min nan and max nan"),
            (RGB.astype(np.int64), r"got int64 \(9, 14, 3\)\. Convert values in 0 to 255 to uint8"),
            (CHW.int(), r"got int32 \(3, 9, 14\)\. Convert values in 0 to 255 to uint8"),
            (CHW[None], r"got a batch, uint8 \(1, 3, 9, 14\)\. Give its images as a list"),
            (torch.zeros(3, 9, 4), r"float32 \(3, 9, 4\)\. Give a Pillow image"),
            ([RGB], "expected a path, bytes, a file, a Pillow image, an array or a tensor, got list"),
        ],
    )
    def test_other_images_are_refused_naming_shape_and_range(self, image: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            to_pixels(image)


class TestResize:
    @pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (20, 31)])
    def test_an_image_that_is_not_square_loses_its_margins(self, height: int, width: int) -> None:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        top, left = (height - 20) // 2, (width - 20) // 2
        assert torch.equal(resize_images(image, 20), image[:, top : top + 20, left : left + 20])
        assert torch.equal(crop_square(image), resize_images(image, 20))

    def test_resize_is_torchvisions_antialiased_bilinear(self) -> None:
        images = torch.randint(0, 256, (7, 3, 90, 90), dtype=torch.uint8)
        resized = resize_images(images, 32)
        assert torch.equal(resized, F.resize(images, [32, 32], antialias=True))
        assert torch.equal(resized[6], resize_images(images[6], 32))
        assert resize_images(resized, 32) is resized
        with pytest.raises(SettingError, match="size must be"):
            resize_images(images, 1)

    @pytest.mark.parametrize("images", [torch.zeros(3, 4, 4).int(), torch.zeros(4, 4), torch.zeros(0, 3, 4, 4)])
    def test_resize_refuses_other_tensors(self, images: torch.Tensor) -> None:
        with pytest.raises(DataError, match=r"expected uint8 or float images \(N, C, H, W\), got torch\.\w+ \("):
            resize_images(images, 4)
