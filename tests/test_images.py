from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

from cifarnet.errors import InputError, SettingError, SettingTypeError
from cifarnet.images import decode_image, resize_images

RGB = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "gif", "jpg"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_file_in_any_format_becomes_uint8_chw(tmp_path: Path, suffix: str, as_text: bool) -> None:
    path = tmp_path / f"picture.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(RGB).save(path, **options)
    pixels = decode_image(str(path) if as_text else path)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 6, 9)
    assert pixels.is_contiguous()
    if suffix not in ("gif", "jpg"):  # which lose some
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), RGB)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_mode_without_transparency_becomes_the_rgb_that_pillow_makes(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    assert np.array_equal(decode_image(image).permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, mode: str) -> None:
    grey = np.array([[0, 256, 257], [32768, 65279, 65535]], np.uint16)
    image = Image.fromarray(grey if mode == "I;16" else grey.astype(np.int32))
    assert image.mode == mode
    path = tmp_path / ("grey.png" if mode == "I;16" else "grey.tiff")
    image.save(path)
    for source in (image, path):
        assert decode_image(source).tolist() == [[[0, 1, 1], [128, 254, 255]]] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.png"
    if mode in ("P", "L"):
        Image.new(mode, (2, 2), 0).save(path, transparency=0)
        source: Any = path
    else:
        source = Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode)
    assert set(decode_image(source).flatten().tolist()) == {255}


def test_half_transparent_black_is_grey() -> None:
    assert set(decode_image(Image.new("RGBA", (2, 2), (0, 0, 0, 127))).flatten().tolist()) == {128}


def test_the_cameras_orientation_is_applied() -> None:
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    Image.fromarray(RGB).save(stored, "PNG", exif=exif)
    with Image.open(stored) as image:
        turned = decode_image(image)
    assert np.array_equal(turned.permute(1, 2, 0).numpy(), np.rot90(RGB, -1))


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_pillow_image_is_left_as_it_was() -> None:
    image = Image.new("LA", (4, 3), (9, 9))
    decode_image(image)
    assert image.mode == "LA"
    assert image.getpixel((0, 0)) == (9, 9)


def test_bad_sources_are_refused_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.png: no such file; expected a picture that Pillow reads"):
        decode_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="is a folder"):
        decode_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"text.png: not a picture that Pillow reads \(UnidentifiedImageError"):
        decode_image(tmp_path / "text.png")
    with pytest.raises(InputError, match="expected a path, a file, bytes or a Pillow image, got ndarray"):
        decode_image(RGB)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the picture: floating-point pixels have no agreed range"):
        decode_image(Image.new("F", (2, 2)))


@pytest.mark.parametrize("limit", [40, 20], ids=["Pillow warns", "Pillow refuses"])
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=r"bomb.png: .*decompression bomb"):
        decode_image(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"the picture: 9 x 6 pixels are more than .* may be a decompression bomb"):
        decode_image(Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(tmp_path / "bomb.png").shape == (3, 6, 9)


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_picture_with_too_many_pixels_is_refused_where_warnings_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RGB).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(InputError, match="9 x 6 pixels are more than 40"):
        decode_image(tmp_path / "bomb.png")


def stored(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, suffix)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), data=st.data())
def test_a_damaged_file_gives_a_typed_error_or_a_picture(suffix: str, data: st.DataObject) -> None:
    content = bytearray(stored(suffix))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
        try:
            pixels = decode_image(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 (whether it raises depends on the damage)
            return
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3


class TestResize:
    @pytest.mark.parametrize("shape", [(3, 20, 20), (5, 3, 20, 20), (2, 1, 33, 33)])
    @pytest.mark.parametrize("size", [2, 8, 32, 50])
    def test_shape_and_dtype(self, shape: tuple[int, ...], size: int) -> None:
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        resized = resize_images(images, size)
        assert resized.shape == (*shape[:-2], size, size)
        assert resized.dtype == torch.uint8
        assert resized.is_contiguous()
        assert images.min() <= resized.min()
        assert resized.max() <= images.max()

    def test_the_right_size_is_not_copied(self) -> None:
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        assert resize_images(images, 32) is images

    @pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (20, 31)])
    def test_what_is_not_square_loses_its_margins(self, height: int, width: int) -> None:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        top, left = (height - 20) // 2, (width - 20) // 2
        assert torch.equal(resize_images(image, 20), image[:, top : top + 20, left : left + 20])

    def test_one_image_and_a_batch_give_the_same(self) -> None:
        images = torch.randint(0, 256, (7, 3, 45, 61), dtype=torch.uint8)
        together = resize_images(images, 32)
        assert torch.equal(together, torch.stack([resize_images(image, 32) for image in images]))

    def test_it_is_torchvisions_antialiased_bilinear(self) -> None:
        image = torch.randint(0, 256, (3, 90, 90), dtype=torch.uint8)
        assert torch.equal(resize_images(image, 32), F.resize(image, [32, 32], antialias=True))
        assert not torch.equal(resize_images(image, 32), F.resize(image, [32, 32], antialias=False))

    @pytest.mark.parametrize(
        "images",
        [torch.zeros(3, 4, 4).int(), torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(0, 3, 4, 4, dtype=torch.uint8)],
    )
    def test_other_tensors_are_refused(self, images: torch.Tensor) -> None:
        with pytest.raises(InputError, match=r"expected uint8 or floating images .*, got torch\.\w+ \("):
            resize_images(images, 4)

    @pytest.mark.parametrize(("size", "error"), [(1, SettingError), (-1, SettingError), ("32", SettingTypeError)])
    def test_a_size_that_is_none_is_refused(self, size: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="size must be"):
            resize_images(torch.zeros(3, 4, 4, dtype=torch.uint8), size)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_range(format: str) -> None:
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(content, format)
    for image in (Image.open(content), Image.fromarray(np.full((4, 4), 40_000, np.int32))):
        assert image.mode in ("I;16", "I")
        assert set(decode_image(image).flatten().tolist()) == {156}  # 40,000 / 257


def test_bytes_and_open_files_are_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (5, 4), (1, 2, 3)).save(path)
    expected = decode_image(path)
    assert torch.equal(decode_image(path.read_bytes()), expected)
    assert torch.equal(decode_image(io.BytesIO(path.read_bytes())), expected)
    with path.open("rb") as file:
        assert torch.equal(decode_image(file), expected)
    for broken in (b"no picture", io.BytesIO(b"")):
        with pytest.raises(InputError, match="the picture: not a picture that Pillow reads"):
            decode_image(broken)
