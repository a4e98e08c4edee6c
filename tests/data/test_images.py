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

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
    def test_an_opaque_mode_becomes_the_rgb_of_pillow(self, mode: str) -> None:
        image = Image.fromarray(RGB).convert(mode)
        assert np.array_equal(decode_image(image).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize("mode", ["I;16", "I"])
    def test_sixteen_bits_are_scaled_not_clipped(self, mode: str) -> None:
        grey = np.array([[0, 256, 257], [32768, 65279, 65535]], np.uint16)
        image = Image.fromarray(grey if mode == "I;16" else grey.astype(np.int32))
        assert image.mode == mode
        for source in (image, encode(image, "PNG" if mode == "I;16" else "TIFF")):
            assert decode_image(source).tolist() == [[[0, 1, 1], [128, 254, 255]]] * 3

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L"])
    def test_transparency_becomes_white(self, mode: str) -> None:
        if mode in ("P", "L"):
            source: Any = encode(Image.new(mode, (2, 2), 0), "PNG", transparency=0)
        else:
            source = Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode)
        assert (decode_image(source) == 255).all()
        assert (decode_image(Image.new("RGBA", (2, 2), (0, 0, 0, 127))) == 128).all()

    def test_the_orientation_of_the_camera_is_applied(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned a quarter clockwise
        turned = decode_image(encode(Image.fromarray(RGB), "PNG", exif=exif))
        assert np.array_equal(turned.permute(1, 2, 0).numpy(), np.rot90(RGB, -1))

    @pytest.mark.parametrize("limit", [100, 50], ids=["Pillow warns", "Pillow refuses"])
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_too_many_pixels_are_refused_before_decoding(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        content = encode(Image.fromarray(RGB), "PNG")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for source in (content, Image.fromarray(RGB)):
            with pytest.raises(DataError, match=r"the picture: .*decompression bomb"):
                decode_image(source)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert torch.equal(decode_image(content), CHW)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("no/such.png", r"no/such.png: no such file\. Check the path"),
            ("a" * 5000 + ".png", r"not a picture that Pillow reads \(OSError"),
            (Path(__file__).parent, r"data: not a picture that Pillow reads \(IsADirectoryError"),
            (Path(__file__), r"test_images.py: not a picture that Pillow reads .* Save it again as PNG"),
            (b"no picture", "the picture: not a picture that Pillow reads"),
            (Image.new("F", (2, 2)), "the range of floating-point pixels is unknown"),
        ],
    )
    def test_other_sources_are_refused(self, source: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            decode_image(source)

    @settings(max_examples=150, deadline=None)
    @given(format=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), data=st.data())
    def test_a_damaged_file_gives_input_error_or_a_picture(self, format: str, data: st.DataObject) -> None:
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
            str(tmp_path / "image.png"),
            Image.fromarray(RGB),
            RGB,
            np.ascontiguousarray(RGB.transpose(2, 0, 1)),
            CHW,
            CHW.permute(1, 2, 0),
            tv_tensors.Image(CHW),
            RGB / 255,
            (RGB / 255).astype(np.float16),
            (RGB / 255).astype(">f4"),
            CHW / 255,
            (CHW / 255).double().requires_grad_(),
        ]
        for way in ways:
            pixels = to_pixels(way)
            assert type(pixels) is torch.Tensor
            assert torch.equal(pixels, CHW), type(way)

    def test_the_input_stays_unchanged(self) -> None:
        tensor = CHW.clone()
        to_pixels(tensor).zero_()
        assert torch.equal(tensor, CHW)

    def test_grey_and_colour_are_converted_as_pillow_does(self) -> None:
        grey = torch.from_numpy(GREY)
        for way in (GREY, GREY[:, :, None], grey, grey[None], Image.fromarray(GREY)):
            assert torch.equal(to_pixels(way), grey.expand(3, -1, -1))
            assert torch.equal(to_pixels(way, channels=1), grey[None])
        as_grey = torch.from_numpy(np.array(Image.fromarray(RGB).convert("L")))[None]
        for way in (RGB, CHW, Image.fromarray(RGB)):
            assert torch.equal(to_pixels(way, channels=1), as_grey)

    def test_transparency_becomes_white_from_every_source(self) -> None:
        expected = to_pixels(encode(Image.fromarray(RGBA), "PNG"))
        for way in (RGBA, torch.from_numpy(RGBA), torch.from_numpy(RGBA).permute(2, 0, 1) / 255):
            assert torch.equal(to_pixels(way), expected)
        assert (to_pixels(torch.zeros(4, 9, 14)) == 255).all()

    def test_the_channels_of_the_network_stay(self) -> None:
        five = torch.randint(0, 256, (5, 9, 14), dtype=torch.uint8)
        assert torch.equal(to_pixels(five, channels=5), five)
        assert torch.equal(to_pixels(five.permute(1, 2, 0), channels=5), five)
        assert torch.equal(to_pixels(RGBA, channels=4), torch.from_numpy(RGBA).permute(2, 0, 1))
        with pytest.raises(DataError, match=r"takes 5 channels, got an image of shape \(3, 9, 14\)"):
            to_pixels(RGB, channels=5)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (RGB.astype(np.float32), r"got float32 \(9, 14, 3\) with min 0 and max 255. Divide by 255"),
            (CHW.float() / 127.5 - 1, r"float32 \(3, 9, 14\) with min -1 and max 1"),
            (torch.full((3, 8, 8), float("nan")), "with min nan and max nan"),
            (np.full((8, 8), np.inf), "with min inf and max inf"),
            (RGB.astype(np.int64), r"got int64 \(9, 14, 3\)\. Convert values in 0 to 255 to uint8"),
            (GREY > 100, r"got bool \(9, 14\)"),
            (CHW.int(), r"got int32 \(3, 9, 14\)\. Convert values in 0 to 255 to uint8"),
            (np.array([["a"]]), "got <U1"),
            (CHW[None], r"got a batch, uint8 \(1, 3, 9, 14\)\. Give its images as a list"),
            (torch.zeros(3, 0, 8), r"got float32 \(3, 0, 8\)"),
            (torch.zeros(2, 9, 14), r"float32 \(2, 9, 14\)\. Give a Pillow image"),
            (torch.zeros(3, 9, 4), r"float32 \(3, 9, 4\)\. Give a Pillow image"),
            ([RGB], "expected a path, bytes, a file, a Pillow image, an array or a tensor, got list"),
            (None, r"got NoneType\. Give one of these, or a list of them"),
        ],
    )
    def test_other_images_are_refused_naming_shape_and_range(self, image: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            to_pixels(image)

    def test_rounding_a_little_past_the_range_is_forgiven(self) -> None:
        assert to_pixels(torch.tensor([1 + 1e-6, -1e-7]).expand(3, 2, 2))[0].tolist() == [[255, 0], [255, 0]]


class TestResize:
    @pytest.mark.parametrize("size", [2, 8, 50])
    def test_resize_keeps_dtype_and_range(self, size: int) -> None:
        images = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
        resized = resize_images(images, size)
        assert resized.shape == (5, 3, size, size)
        assert resized.dtype == torch.uint8
        assert resized.is_contiguous()
        assert images.min() <= resized.min() <= resized.max() <= images.max()

    def test_the_right_size_is_not_copied(self) -> None:
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        assert resize_images(images, 32) is images

    @pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (20, 31)])
    def test_an_image_that_is_not_square_loses_its_margins(self, height: int, width: int) -> None:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        top, left = (height - 20) // 2, (width - 20) // 2
        assert torch.equal(resize_images(image, 20), image[:, top : top + 20, left : left + 20])
        assert torch.equal(crop_square(image), resize_images(image, 20))

    def test_one_image_and_a_batch_give_the_same(self) -> None:
        images = torch.randint(0, 256, (7, 3, 45, 61), dtype=torch.uint8)
        assert torch.equal(resize_images(images, 32), torch.stack([resize_images(image, 32) for image in images]))

    def test_resize_is_torchvisions_antialiased_bilinear(self) -> None:
        image = torch.randint(0, 256, (3, 90, 90), dtype=torch.uint8)
        assert torch.equal(resize_images(image, 32), F.resize(image, [32, 32], antialias=True))

    @pytest.mark.parametrize("images", [torch.zeros(3, 4, 4).int(), torch.zeros(4, 4), torch.zeros(0, 3, 4, 4)])
    def test_resize_refuses_other_tensors(self, images: torch.Tensor) -> None:
        with pytest.raises(DataError, match=r"expected uint8 or float images \(N, C, H, W\), got torch\.\w+ \("):
            resize_images(images, 4)

    @pytest.mark.parametrize("size", [1, -1, "32"])
    def test_resize_refuses_a_wrong_size(self, size: Any) -> None:
        with pytest.raises(SettingError, match="size must be"):
            resize_images(torch.zeros(3, 4, 4), size)
