"""`ImageDataset`: labelled uint8 images in memory, and how to hold some of them out.

CIFAR-10 is 184 MB as uint8, so all of it lives in one tensor, and a batch is one copy by index. It is still a plain
``torch.utils.data.Dataset``.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cifarnet._types import Images, Labels
from cifarnet.errors import InputError, SettingError, SettingTypeError
from cifarnet.randomness import draw, scope

__all__ = ["DatasetSplits", "ImageDataset", "check_split"]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images in memory; the tensors are never changed once made.

    Args:
        images: uint8, shape ``(N, C, H, W)``, on the CPU, at least one.
        labels: Class indices in ``[0, K)``, int64, shape ``(N,)``.
        classes: The ``K >= 2`` class names, each once, in the order of the labels.
        ids: The identity of each image, int64, shape ``(N,)``, each once; ``0 .. N-1`` if not given.
            Augmentation and order are keyed by it, so `split` and `subset` hand it on.
        name: What reports call the data.

    Attributes:
        images: As above.
        labels: As above.
        classes: As above, a tuple.
        ids: As above.
        name: As above; it may be set.

    Raises:
        InputError: If a shape, dtype or range differs from the above.

    Example:
        >>> data = ImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("a", "b"))
        >>> image, label = data[1]
        >>> len(data), tuple(image.shape), label
        (4, (3, 8, 8), 1)
    """

    def __init__(
        self,
        images: Images,
        labels: Labels,
        classes: Sequence[str],
        *,
        ids: Tensor | None = None,
        name: str = "images",
    ) -> None:
        ids = torch.arange(len(labels)) if ids is None else ids
        _check_images(images)
        _check_classes(classes)
        _check_labels(labels, len(images), len(classes))
        _check_ids(ids, len(images))
        self.images: Final[Images] = images.contiguous()
        self.labels: Final[Labels] = labels.contiguous()
        self.classes: Final[tuple[str, ...]] = tuple(classes)
        self.ids: Final[Tensor] = ids.contiguous()
        self.name = name  # no part of what the data is: a loader may learn it last

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> tuple[Tensor, int]:
        """One image, uint8 ``(C, H, W)``, and its label; negative indices count from the end.

        Raises:
            IndexError: If there is no such image.
            InputError: If it is a slice.
        """
        if isinstance(index, slice):
            raise InputError(
                "an ImageDataset gives one image an index; several are a data set: data.subset(range(500))"
            )
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} of {len(self)} images; indices go from 0 to {len(self) - 1}")
        return self.images[i], int(self.labels[i])

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageDataset({self.name!r}, {len(self):,} images of {shape}, {len(self.classes)} classes)"

    @property
    def class_counts(self) -> dict[str, int]:
        """How many images each class has, in the order of the labels."""
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over images, labels and class names (not ids or name), as 64 hex digits."""
        header = {"images": list(self.images.shape), "labels": len(self), "classes": self.classes}
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        digest.update(self.images.numpy().data)
        digest.update(self.labels.numpy().astype("<i8", copy=False).data)  # one byte order on every machine
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | Tensor) -> ImageDataset:
        """Copy some of the images, in the order given; they keep their ids and the name.

        Args:
            indices: Positions in ``[0, N)``, each at most once, at least one.

        Returns:
            The chosen images.

        Raises:
            InputError: If there are none, one is out of range, or one comes twice.

        Example:
            >>> data = ImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("a", "b"))
            >>> data.subset([3, 1]).ids.tolist()
            [3, 1]
        """
        chosen = torch.as_tensor(indices)
        if chosen.ndim != 1 or chosen.numel() == 0:
            raise InputError(f"expected at least one index in a row, got shape {tuple(chosen.shape)}")
        if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
            raise InputError(f"expected integer indices, got {chosen.dtype}; mask.nonzero()[:, 0] gives them")
        low, high = int(chosen.min()), int(chosen.max())
        if low < 0 or high >= len(self):
            raise InputError(f"expected indices in [0, {len(self)}), got {low} to {high}")
        chosen = chosen.to(torch.int64)
        return ImageDataset(
            self.images[chosen], self.labels[chosen], self.classes, ids=self.ids[chosen], name=self.name
        )

    def split(self, val_fraction: float, *, seed: int) -> tuple[ImageDataset, ImageDataset]:
        """Hold out a stratified share of the images for validation.

        Which images are held out is a function of the seed and their ids alone: not of their order here, of
        torch's generator, or of the platform. Each class gives its share by largest remainder, and keeps at
        least one image for training. Both parts keep the order that the images have here.

        Args:
            val_fraction: The share held out, in ``(0, 1)``.
            seed: Which of the many such splits.

        Returns:
            The training part and the validation part.

        Raises:
            SettingError: If ``val_fraction`` is outside ``(0, 1)``, or so small that nothing is held out.

        Example:
            >>> data = ImageDataset(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) % 2, ("a", "b"))
            >>> train, val = data.split(0.1, seed=0)
            >>> train.class_counts, val.class_counts
            ({'a': 18, 'b': 18}, {'a': 2, 'b': 2})
        """
        check_split(val_fraction, seed)
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        held_counts = _held_out_counts(counts, val_fraction)
        if not sum(held_counts):
            raise SettingError(
                f"val_fraction {val_fraction} of {len(self)} images holds none out; give a larger one or more "
                "images (every class keeps at least one image for training)"
            )
        held_out = torch.zeros(len(self), dtype=torch.bool)
        order = self._split_order(seed)
        for label, count in enumerate(held_counts):
            held_out[order[self.labels[order] == label][:count]] = True
        return self.subset((~held_out).nonzero()[:, 0]), self.subset(held_out.nonzero()[:, 0])

    def _split_order(self, seed: int) -> Tensor:
        """Positions sorted by a hash of (seed, id)."""
        with scope(seed, 0, self.ids):
            high, low = (draw("split", num_images=len(self), columns=2) * 2**24).to(torch.int64).unbind(1)
        # One draw has 24 bits, which collide among 50,000 images; two of them practically never do.
        return torch.argsort((high << 24) | low, stable=True)


@dataclass(frozen=True)
class DatasetSplits:
    """The two parts in which a data set is published.

    Args:
        train: Images to train and validate on.
        test: Images that choose nothing.
    """

    train: ImageDataset
    test: ImageDataset


def _held_out_counts(counts: list[int], val_fraction: float) -> list[int]:
    """How many images of each class are held out: largest remainder, one image a class kept for training."""
    quotas = [count * val_fraction for count in counts]
    limits = [max(count - 1, 0) for count in counts]
    held = [min(math.floor(quota), limit) for quota, limit in zip(quotas, limits, strict=True)]
    wanted = min(math.floor(sum(counts) * val_fraction + 0.5), sum(limits))
    while sum(held) < wanted:
        with_room = [k for k in range(len(counts)) if held[k] < limits[k]]
        held[max(with_room, key=lambda k: quotas[k] - held[k])] += 1
    return held


def check_split(val_fraction: float, seed: int) -> None:
    """Refuse what `ImageDataset.split` would refuse of any data.

    Args:
        val_fraction: Share that shall be held out, in ``(0, 1)``.
        seed: An int of 0 or more.

    Raises:
        SettingError: If ``val_fraction`` is outside ``(0, 1)``, or the seed is no whole number.
    """
    for name, value, kinds in (("val_fraction", val_fraction, (int, float)), ("seed", seed, (int,))):
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise SettingTypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not 0 < val_fraction < 1:
        raise SettingError(
            f"val_fraction must be in (0, 1), got {val_fraction}; 0.1 gives the usual 45,000/5,000 split"
        )


def _check_images(images: Images) -> None:
    if not isinstance(images, Tensor):
        raise InputError(f"expected a uint8 tensor (N, C, H, W), got {type(images).__name__}")
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"expected uint8 images (N, C, H, W), at least one, got {images.dtype} {tuple(images.shape)}; "
            "floats in [0, 1] become (x * 255).round().to(torch.uint8)"
        )
    if images.device.type != "cpu":
        raise InputError(f"expected images in main memory, got device {images.device}; use images.cpu()")


def _check_classes(classes: Sequence[str]) -> None:
    if not all(isinstance(name, str) for name in classes):
        raise InputError(f"expected class names as strings, got {list(classes)!r}")
    if len(classes) < 2:
        raise InputError(f"expected at least two classes to tell apart, got {list(classes)!r}")
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise InputError(f"expected each class name once, got {twice!r} more than once")


def _check_labels(labels: Labels, num_images: int, num_classes: int) -> None:
    _check_column("labels", labels, num_images)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(f"expected labels in [0, {num_classes}), got {low} to {high}; give every class a name")


def _check_ids(ids: Tensor, num_images: int) -> None:
    _check_column("ids", ids, num_images)
    distinct = len(np.unique(ids.numpy()))  # of 50,000 ids, torch.unique takes 0.16 s and this 2 ms
    if distinct < num_images:
        raise InputError(f"expected each id once, got {distinct} different ones for {num_images} images")


def _check_column(what: str, column: object, num_images: int) -> None:
    if not isinstance(column, Tensor) or column.dtype != torch.int64 or column.device.type != "cpu":
        got = f"{column.dtype} on {column.device}" if isinstance(column, Tensor) else type(column).__name__
        raise InputError(f"expected {what} as an int64 tensor in main memory, got {got}")
    if column.shape != (num_images,):
        raise InputError(f"expected {what} of shape ({num_images},), got {tuple(column.shape)}")
