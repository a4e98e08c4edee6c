"""Test-time augmentation: the mean of the logits of an image and of its flipped and shifted copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch.nn import functional as F

from cifarnet._types import Images, Logits
from cifarnet._validation import check_choice
from cifarnet.errors import DataError

__all__ = ["TTA", "TTA_NAMES", "average_logits", "check_tta", "current_tta_name"]

#: Test-time augmentations.
TTA = Literal["flip", "flip+shift"]
TTA_NAMES: tuple[TTA, ...] = get_args(TTA)

#: Names in files of earlier versions.
_EARLIER_NAMES = {"none": None, "mirror": "flip", "multi-crop": "flip+shift"}


def check_tta(tta: TTA | None) -> None:
    """Refuse an unknown test-time augmentation.

    Args:
        tta: Name of the test-time augmentation; ``None`` without it.

    Raises:
        SettingError: If the name is unknown.
    """
    if tta is not None:
        check_choice("tta", tta, TTA_NAMES)


def current_tta_name(name: Any) -> Any:
    """Translate the name of a test-time augmentation in a file of an earlier version.

    Args:
        name: Name in a file. An unknown name and a value of another type are returned unchanged.

    Example:
        >>> current_tta_name("mirror")
        'flip'
    """
    return _EARLIER_NAMES.get(name, name) if isinstance(name, str) else name


def average_logits(predict: Callable[[Images], Logits], images: Images, tta: TTA) -> Logits:
    """Average the logits of each image and of its copies (Jordan, 2024, arXiv:2404.00498, section 3.5).

    ``"flip"`` gives the image and its horizontal flip equal weights. ``"flip+shift"`` gives this pair half of the
    weight. The other half goes to the image shifted by (+1, +1) and by (-1, -1) pixels with a reflected edge, and to
    the flips of these two. ``"flip"`` costs twice the time of one prediction, ``"flip+shift"`` six times.

    Args:
        predict: Network; called with batches of the shape of ``images``.
        images: Preprocessed images, shape ``(N, C, H, W)``, at least 2x2 pixels for ``"flip+shift"``.
        tta: ``"flip"`` or ``"flip+shift"``.

    Returns:
        Weighted means of the logits, shape ``(N, K)``, in their dtype.

    Raises:
        SettingError: If ``tta`` is unknown.
        DataError: If the images are too small.

    Example:
        >>> import torch
        >>> left = lambda images: images[:, 0, 0]  # the two pixels of the first row as logits
        >>> average_logits(left, torch.tensor([[[[1.0, 3.0]]]]), "flip")
        tensor([[2., 2.]])
    """
    check_tta(tta)
    if tta == "flip+shift" and min(images.shape[-2:]) < 2:
        raise DataError(
            f'tta="flip+shift" needs images of at least 2x2 pixels, got {images.shape[-2]}x{images.shape[-1]}. '
            'Use tta="flip"'
        )
    unshifted = (predict(images) + predict(images.flip(-1))) / 2
    if tta == "flip":
        return unshifted
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")  # (N, C, H + 2, W + 2)
    down, up = padded[..., :-2, :-2], padded[..., 2:, 2:]
    shifted = predict(down) + predict(down.flip(-1)) + predict(up) + predict(up.flip(-1))
    return unshifted / 2 + shifted / 8
