"""Prediction of the class of one image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from cifarnet._resize import resize_images
from cifarnet._types import Images, Logits
from cifarnet.data import ImageLike, to_pixels
from cifarnet.errors import DataError
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.transforms import Preprocess

__all__ = ["Prediction", "is_list", "load_batches", "rank_classes"]


@dataclass(frozen=True)
class Prediction:
    """Most probable classes of one image.

    Args:
        label: Name of the most probable class.
        probability: Softmax probability of that class, in ``[0, 1]``. It equals the expected accuracy only if the
            network is calibrated, see `Classifier.calibrate`.
        top: Names and probabilities of the most probable classes, in descending order.

    Example:
        >>> print(Prediction("cat", 0.71, (("cat", 0.71), ("dog", 0.2))))
        cat 71.0%, dog 20.0%
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return ", ".join(f"{label} {probability:.1%}" for label, probability in self.top)


def is_list(images: ImageLike | Sequence[ImageLike]) -> TypeGuard[Sequence[ImageLike]]:
    """Return whether the argument is a list of images, not a single image."""
    return isinstance(images, Sequence) and not isinstance(images, str | bytes)


def load_batches(images: ImageLike | Sequence[ImageLike], preprocess: Preprocess) -> Iterator[Images]:
    """Yield batches of uint8 images of the size that the network takes, shape ``(N, C, size, size)``, on the CPU.

    Args:
        images: An image that `cifarnet.data.to_pixels` accepts, or a list of such images.
        preprocess: Preprocessing of the network.

    Raises:
        DataError: If a value is not an image.
    """
    items: Sequence[ImageLike] = images if is_list(images) else [images]  # type: ignore[list-item]
    for start in range(0, len(items), EVAL_BATCH_SIZE):
        pixels = []
        for i, image in enumerate(items[start : start + EVAL_BATCH_SIZE], start):
            try:
                pixels.append(resize_images(to_pixels(image, channels=len(preprocess.mean)), preprocess.size))
            except DataError as error:
                if not is_list(images) or isinstance(image, str | Path):  # the error names the file
                    raise
                raise DataError(f"Image {i} of the list: {error}") from error
        yield torch.stack(pixels)


def rank_classes(logits: Logits, temperature: float, top_k: int, class_name: Callable[[int], str]) -> list[Prediction]:
    """Return the most probable classes of each image.

    Args:
        logits: Finite logits, shape ``(N, K)``.
        temperature: Divisor of the logits before the softmax.
        top_k: Largest number of classes in a prediction.
        class_name: Function from the index of a class to its name.
    """
    # A stable sort of the logits: the first of equal classes wins, as in `evaluate`, at any temperature.
    classes = logits.sort(dim=1, descending=True, stable=True).indices
    ranked = (logits / temperature).softmax(dim=1).gather(1, classes)
    predictions = []
    for row, order in zip(ranked.tolist(), classes.tolist(), strict=True):
        top = tuple((class_name(i), p) for i, p in zip(order[:top_k], row[:top_k], strict=True))
        predictions.append(Prediction(*top[0], top))
    return predictions
