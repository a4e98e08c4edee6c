"""Labelled uint8 images in memory, and their split into training and validation images.

CIFAR-10 is 184 MB as uint8, so it fits into one tensor, and a batch is one copy by index. `ImageDataset` is still a
plain ``torch.utils.data.Dataset``.
"""

from __future__ import annotations

import hashlib
import json
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

__all__ = ["DatasetSplits", "ImageDataset", "check_classes", "check_split"]


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
        ids = torch.arange(len(labels), device="cpu") if ids is None else ids
        _check_images(images)
        check_classes(classes)
        if len(classes) < 2:
            raise InputError(f"A classifier needs at least two classes, got {list(classes)!r}. Add images of another")
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
        """Return a copy of one image, uint8 ``(C, H, W)``, and its label. Negative indices count from the end.

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
        return self.images[i].clone(), int(self.labels[i])  # a transform may write into its input

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

    @cached_property
    def image_hashes(self) -> Tensor:
        """Hash of the pixels of each image, int64, shape ``(N,)``. Images with equal pixels have equal hashes."""
        return _hash_images(self.images)

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
        chosen = torch.as_tensor(indices, device="cpu")
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
        """Split into training and validation images.

        The pixels of an image and the seed decide on which side it is. If you add or remove images, the others stay on
        their side, so that a longer training never learns from images that were used for validation before. Equal
        images are on one side. Both parts keep the order of the images.

        The share of each class is ``val_fraction`` on average: 5,000 of 50,000 images, give or take 67 (one standard
        deviation). A class that would have no training image keeps one. A class that should have at least one
        validation image has one.

        Args:
            val_fraction: Expected share of validation images, in ``(0, 1)``.
            seed: Seed of the split.

        Returns:
            Training images and validation images.

        Raises:
            SettingError: If ``val_fraction`` is outside ``(0, 1)``, or a part is empty.

        Example:
            >>> from cifarnet import make_synthetic
            >>> train, val = make_synthetic(num_train=1000).train.split(0.1, seed=0)
            >>> len(train) + len(val), 70 < len(val) < 130
            (1000, True)
        """
        check_split(val_fraction, seed)
        hashes = self.image_hashes
        with scope(seed, 0, hashes ^ (hashes >> 32)):  # a draw reads 32 bits
            draws = draw("split", num_images=len(self))[:, 0]
        is_val = draws < val_fraction
        for label, count in enumerate(self.class_counts.values()):
            of_class = (self.labels == label).nonzero()[:, 0]
            if not count:
                continue
            if count * val_fraction >= 1 and not is_val[of_class].any():
                is_val[of_class[draws[of_class].argmin()]] = True
            if is_val[of_class].all():
                is_val[of_class[draws[of_class].argmax()]] = False
        if not is_val.any():
            raise SettingError(
                f"val_fraction {val_fraction} of {len(self)} images gives no validation image. Use a larger one or "
                "more images, because every class keeps one image for training"
            )
        return self.subset((~is_val).nonzero()[:, 0]), self.subset(is_val.nonzero()[:, 0])


@dataclass(frozen=True)
class DatasetSplits:
    """The parts in which a data set is published.

    Args:
        train: Training images.
        test: Test images, which choose nothing.
        val: Validation images, which choose the best epoch; ``None`` if the data set has none.
    """

    train: ImageDataset
    test: ImageDataset
    val: ImageDataset | None = None


def _hash_images(images: Images) -> Tensor:
    """Return 64 bits per image, int64, shape ``(N,)``. 60,000 images of CIFAR-10 take 0.15 s on two CPU cores."""
    rows = images.flatten(1)
    if rows.shape[1] % 8:
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 8))
    words = rows.view(torch.int64)  # (N, W)
    keys = torch.from_numpy(np.random.Philox(0).random_raw(2 * words.shape[1]).view(np.int64)).view(2, -1)
    hashes = []
    for some in torch.split(words, 500):  # small enough for the cache of a processor
        mixed = some ^ keys[0]
        mixed ^= mixed >> 32
        mixed *= keys[1] | 1
        mixed ^= mixed >> 29
        hashes.append(mixed.sum(dim=1))
    return torch.cat(hashes)


def check_split(val_fraction: float, seed: int) -> None:
    """Check the arguments of `ImageDataset.split`.

    Args:
        val_fraction: Expected share of validation images.
        seed: Seed of the split.

    Raises:
        SettingError: If ``val_fraction`` is outside ``(0, 1)``, or the seed is not a whole number.
    """
    for name, value, kinds in (("val_fraction", val_fraction, (int, float)), ("seed", seed, (int,))):
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise SettingTypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not 0 < val_fraction < 1:
        raise SettingError(
            f"val_fraction must be in (0, 1), got {val_fraction}. 0.1 gives about 45,000 and 5,000 images of CIFAR-10"
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


def check_classes(classes: object) -> None:
    """Refuse anything but a sequence of distinct, non-empty class names.

    Args:
        classes: Class names in the order of the labels.

    Raises:
        InputError: If they are a string, a set or another collection without an order, or a name is missing or used
            twice.
    """
    if not isinstance(classes, Sequence) or isinstance(classes, str | bytes):
        raise InputError(
            f"classes must be a list or tuple of names in the order of the labels, got {type(classes).__name__}. "
            'Use ["cat", "dog"], for example'
        )
    if not all(isinstance(name, str) and name.strip() for name in classes):
        raise InputError(f"Class names must be non-empty strings, got {list(classes)!r}. Name every class")
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise InputError(f"Class names must be distinct, got {twice!r} more than once. Rename one of them")


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
