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
from numbers import Real
from typing import Final, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cifarnet._types import Images, Labels
from cifarnet._validation import check_count
from cifarnet.errors import DataError, SettingError
from cifarnet.randomness import draw, scope

__all__ = ["DatasetSplits", "ImageDataset", "check_classes", "check_split"]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images in memory. The tensors never change.

    Args:
        images: uint8, shape ``(N, C, H, W)``, on the CPU, at least one.
        labels: Class indices in ``[0, K)``, int64, shape ``(N,)``.
        classes: The ``K >= 2`` class names, each once, in the order of the labels.
        ids: Identity of each image, int64, shape ``(N,)``, all distinct. ``0 .. N-1`` by default.
            It decides the augmentation and the order of an image, so `split` and `subset` keep it.
        name: Name of the data in reports.

    Attributes:
        images: The images.
        labels: The labels.
        classes: The class names, a tuple.
        ids: The identities of the images.
        name: The name, which you may change.

    Raises:
        DataError: If a shape, dtype or range is another.

    Example:
        >>> data = ImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("a", "b"))
        >>> image, label = data[1]
        >>> len(data), tuple(image.shape), label
        (4, (3, 8, 8), 1)
    """

    def __init__(
        self, images: Images, labels: Labels, classes: Sequence[str], *, ids: Tensor | None = None, name: str = "images"
    ) -> None:
        ids = torch.arange(len(labels), device="cpu") if ids is None else ids
        _check_tensor("images", images, torch.uint8, "Use (x * 255).round().to(torch.uint8) for floats in [0, 1]")
        if images.ndim != 4 or 0 in images.shape:
            raise DataError(f"images must have the shape (N, C, H, W), N at least 1, got {tuple(images.shape)}")
        check_classes(classes)
        if len(classes) < 2:
            raise DataError(f"A classifier needs at least two classes, got {list(classes)!r}. Add images of another")
        for key, column in (("labels", labels), ("ids", ids)):
            _check_tensor(key, column, torch.int64, f"Use torch.as_tensor({key}, dtype=torch.int64)")
            if column.shape != (len(images),):
                raise DataError(f"{key} must have the shape ({len(images)},), got {tuple(column.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(classes):
            raise DataError(f"labels must be in [0, {len(classes)}), got {low} to {high}. Give every class a name")
        if len(np.unique(ids.numpy())) < len(ids):  # torch.unique takes 0.16 s for 50,000 ids, numpy 2 ms
            raise DataError("ids must be distinct, got one more than once")
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
            DataError: If it is a slice.
        """
        if isinstance(index, slice):
            raise DataError("An index gives one image. Use data.subset(range(500)) for several")
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} images")
        return self.images[i].clone(), int(self.labels[i])  # a transform may write into its input

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageDataset({self.name!r}, {len(self):,} images of {shape}, {len(self.classes)} classes)"

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of the labels."""
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
        """Copy some of the images, in the order of the indices. They keep their ids and the name.

        Args:
            indices: Positions in ``[0, N)``, at least one, all distinct.

        Returns:
            The chosen images.

        Raises:
            DataError: If there are none, one is out of range, or one comes twice.

        Example:
            >>> data = ImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("a", "b"))
            >>> data.subset([3, 1]).ids.tolist()
            [3, 1]
        """
        chosen = torch.as_tensor(indices, device="cpu")
        if chosen.ndim != 1 or chosen.numel() == 0 or chosen.is_floating_point() or chosen.dtype == torch.bool:
            raise DataError(f"indices must be integers, at least one, got {chosen.dtype} {tuple(chosen.shape)}")
        low, high = int(chosen.min()), int(chosen.max())
        if low < 0 or high >= len(self):
            raise DataError(f"indices must be in [0, {len(self)}), got {low} to {high}")
        rows = chosen.to(torch.int64)
        return ImageDataset(self.images[rows], self.labels[rows], self.classes, ids=self.ids[rows], name=self.name)

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
            raise SettingError(f"val_fraction={val_fraction} gives no validation image. Use a larger one")
        return self.subset((~is_val).nonzero()[:, 0]), self.subset(is_val.nonzero()[:, 0])


@dataclass(frozen=True)
class DatasetSplits:
    """Training, test and perhaps validation images of a data set.

    Args:
        train: Training images.
        test: Test images. They choose nothing.
        val: Validation images, which choose the best epoch. ``None`` if the data set has none.
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
    check_count("seed", seed, "Use seed=0, for example", least=0)
    if not isinstance(val_fraction, Real) or not 0 < val_fraction < 1:
        raise SettingError(f"val_fraction must be in (0, 1), got {val_fraction!r}. Use 0.1, for example")


def check_classes(classes: object) -> None:
    """Check that class names are a sequence of distinct, non-empty strings.

    Args:
        classes: Class names in the order of the labels.

    Raises:
        DataError: If they are a string, a set or another collection without an order, or a name is missing or used
            twice.
    """
    if not isinstance(classes, Sequence) or isinstance(classes, str | bytes):
        raise DataError(f"classes must be a list or tuple of names, got {type(classes).__name__}. Use ['cat', 'dog']")
    if not all(isinstance(name, str) and name.strip() for name in classes) or len(set(classes)) < len(classes):
        raise DataError(f"classes must be distinct, non-empty strings, got {list(classes)!r}. Rename one of them")


def _check_tensor(key: str, value: object, dtype: torch.dtype, remedy: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype or value.device.type != "cpu":
        got = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"{key} must be a tensor of {dtype} on the CPU, got {got}. {remedy}")
