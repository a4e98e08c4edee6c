"""Whatever somebody calls an image becomes the pixels that a network was trained on."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from cifarnet import Classifier
from cifarnet.errors import InputError
from cifarnet.images import to_pixels

RGB = np.random.default_rng(5).integers(0, 256, (9, 14, 3), dtype=np.uint8)
CHW = torch.from_numpy(RGB).permute(2, 0, 1)
GREY = RGB[:, :, 0]
RGBA = np.dstack([RGB, np.random.default_rng(6).integers(0, 256, (9, 14), dtype=np.uint8)])


def test_every_way_to_hold_one_image_gives_the_same_pixels(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.png")
    ways: list[Any] = [
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        Image.fromarray(RGB),
        RGB,
        np.ascontiguousarray(RGB.transpose(2, 0, 1)),
        RGB[:, ::-1][:, ::-1],  # negative strides there and back
        CHW,
        CHW.permute(1, 2, 0),
        tv_tensors.Image(CHW),
        RGB / 255,
        (RGB / 255).astype(np.float32),
        (RGB / 255).astype(np.float16),
        (RGB / 255).astype(">f4"),
        CHW / 255,
        (CHW / 255).double().requires_grad_(),
    ]
    for way in ways:
        pixels = to_pixels(way)
        assert type(pixels) is torch.Tensor
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, CHW), type(way)


def test_what_was_given_is_left_as_it_was() -> None:
    array = RGB.copy()
    array.flags.writeable = False
    pixels = to_pixels(array)
    pixels.zero_()
    assert (array == RGB).all()
    tensor = CHW.clone()
    to_pixels(tensor).zero_()
    assert torch.equal(tensor, CHW)


def test_annotations_can_be_resolved() -> None:
    assert set(typing.get_type_hints(to_pixels)) == {"image", "channels", "return"}
    assert "images" in typing.get_type_hints(Classifier.predict)


def test_grey_becomes_colour_and_colour_grey_as_pillow_does_it() -> None:
    grey = torch.from_numpy(GREY)
    for way in (GREY, GREY[:, :, None], grey, grey[None], Image.fromarray(GREY)):
        assert torch.equal(to_pixels(way), grey.expand(3, -1, -1))
        assert torch.equal(to_pixels(way, channels=1), grey[None])
    as_grey = torch.from_numpy(np.array(Image.fromarray(RGB).convert("L")))[None]
    for way in (RGB, CHW, Image.fromarray(RGB)):
        assert torch.equal(to_pixels(way, channels=1), as_grey)


def test_transparency_is_laid_on_white_wherever_it_comes_from(tmp_path: Path) -> None:
    Image.fromarray(RGBA).save(tmp_path / "image.png")
    expected = to_pixels(tmp_path / "image.png")
    clear = torch.zeros(4, 9, 14)
    for way in (RGBA, torch.from_numpy(RGBA), torch.from_numpy(RGBA).permute(2, 0, 1) / 255):
        assert torch.equal(to_pixels(way), expected)
    assert (to_pixels(clear) == 255).all()


def test_as_many_channels_as_the_network_takes_are_left_as_they_are() -> None:
    five = torch.randint(0, 256, (5, 9, 14), dtype=torch.uint8)
    assert torch.equal(to_pixels(five, channels=5), five)
    assert torch.equal(to_pixels(five.permute(1, 2, 0), channels=5), five)
    assert torch.equal(to_pixels(RGBA, channels=4), torch.from_numpy(RGBA).permute(2, 0, 1))
    with pytest.raises(InputError, match=r"takes 5 channels, the image has 3 \(shape \(3, 9, 14\)\)"):
        to_pixels(RGB, channels=5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.astype(np.float32), r"got float32 \(9, 14, 3\) with min 0 and max 255. Divide by 255 or pass uint8"),
        (CHW.float() / 127.5 - 1, r"float32 \(3, 9, 14\) with min -1 and max 1. It looks normalised"),
        (torch.full((3, 8, 8), 1.01), "max 1.01. Divide by 255"),
        (torch.full((3, 8, 8), float("nan")), r"float32 \(3, 8, 8\) with NaN or infinity"),
        (np.full((8, 8), np.inf), "with NaN or infinity"),
        (RGB.astype(np.int64), r"got int64 \(9, 14, 3\). array.astype\(np.uint8\) suits"),
        (RGB.astype(np.uint16), r"got uint16 \(9, 14, 3\). \(array >> 8 \* \(array.itemsize - 1\)\).astype"),
        (GREY > 100, r"got bool \(9, 14\). 255 \* array.astype\(np.uint8\) makes a mask a picture"),
        (CHW.int(), r"got int32 \(3, 9, 14\). image.to\(torch.uint8\) suits"),
        (torch.ones(8, 8, dtype=torch.bool), "got bool"),
        (np.array([["a"]]), "got <U1"),
        (CHW[None], r"got a batch, uint8 \(1, 3, 9, 14\). Give its images as a list: list\(images\)"),
        (torch.zeros(3), r"got float32 \(3,\)"),
        (torch.tensor(3.0), r"got float32 \(\)"),
        (torch.zeros(3, 0, 8), r"got float32 \(3, 0, 8\)"),
        (torch.zeros(2, 9, 14), r"float32 \(2, 9, 14\), where neither end is the channels"),
        (torch.zeros(3, 9, 4), r"float32 \(3, 9, 4\), where either end may be the channels"),
        ([RGB], "expected a path, bytes, a file, a Pillow image, an array or a tensor, got list"),
        (None, "got NoneType. Give one of these"),
        (b"png", "the picture: not a picture that Pillow reads"),
        ((image for image in [RGB]), r"got generator. Give its images as a list: list\(images\)"),
        ("a" * 5000 + ".png", "no such file"),
        (CHW.float().to_sparse(), r"a tensor without pixels to read, torch.sparse_coo on cpu"),
        (torch.empty(3, 8, 8, device="meta"), r"a tensor without pixels to read, torch.strided on meta"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "got complex64"),
        ("no/such.png", r"no/such.png: no such file"),
    ],
)
def test_what_is_no_image_is_refused_naming_shape_dtype_and_range(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_pixels(image)


def test_rounding_a_little_past_the_range_is_forgiven() -> None:
    pixels = to_pixels(torch.tensor([1 + 1e-6, -1e-7]).expand(3, 2, 2))
    assert pixels[0].tolist() == [[255, 0], [255, 0]]


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 6), max_size=5),
    dtype=st.sampled_from(["uint8", "float32", "float64", "int16", "bool", "complex64"]),
    value=st.floats(width=32),
    as_tensor=st.booleans(),
)
def test_any_array_gives_pixels_or_a_typed_error(shape: list[int], dtype: str, value: float, as_tensor: bool) -> None:
    with np.errstate(all="ignore"):
        array = np.full(shape, np.float32(value)).astype(dtype)
    try:
        pixels = to_pixels(torch.from_numpy(array) if as_tensor else array)
    except InputError:
        return
    assert pixels.dtype == torch.uint8
    assert pixels.ndim == 3
    assert pixels.shape[0] == 3
