"""Data that training and evaluation accept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from cifarnet import randomness
from cifarnet._types import Json
from cifarnet.data import DatasetSplits, ImageDataset
from cifarnet.data.images import decode_image
from cifarnet.errors import DataError
from cifarnet.inference.loader import EVAL_BATCH_SIZE, IterableLoader, Loader, TensorLoader

__all__ = ["Data", "describe_data", "open_data", "open_evaluation_loader"]

#: An `ImageDataset`, a map-style data set of (image, label), or an iterable of ``(images, labels)`` batches.
Data = ImageDataset | Dataset[Any] | Iterable[tuple[Tensor, Tensor]]

_CPU = torch.device("cpu")
#: Number of images that are read twice. A random transform that changes one image in ten stays undetected in 3 of a
#: million data sets.
_NUM_READ_TWICE = 64


def open_data(data: Data, *, batch_size: int, shuffle: bool) -> ImageDataset | Iterable[tuple[Tensor, Tensor]]:
    """Convert user-supplied data into images in memory or an iterable of batches.

    A map-style data set of (image, label), such as a data set of torchvision or a `torch.utils.data.Subset`, is read
    into memory once if its images are PIL images or uint8 tensors of one size. If its images are floating tensors or
    its transform is random, a ``DataLoader`` reads them in every epoch. To detect a random transform, the first 64
    images are read twice.

    Args:
        data: Data set or iterable.
        batch_size: Images per batch of that ``DataLoader``.
        shuffle: Whether that ``DataLoader`` shuffles.

    Returns:
        An `ImageDataset`, or an iterable of batches.

    Raises:
        DataError: If ``data`` is a pair of data sets, is empty, or its images differ in size.
    """
    if isinstance(data, DatasetSplits):
        raise DataError("Expected images, got DatasetSplits. Pass its .train or .test")
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, Subset) and isinstance(data.dataset, ImageDataset):
        return data.dataset.subset(list(data.indices))
    is_map_style = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    if not is_map_style or not hasattr(data, "__len__"):
        return cast("Iterable[tuple[Tensor, Tensor]]", data)
    items: Any = data
    if not len(items):
        raise DataError(f"The {type(data).__name__} is empty. Pass at least one image")
    with randomness.kept_generators(_CPU):
        first = items[0]
        if not (isinstance(first, tuple | list) and len(first) == 2):
            raise DataError(f"The {type(data).__name__} returns {type(first).__name__} items. Return (image, label)")
        if isinstance(first[0], Tensor) and first[0].is_floating_point():
            return DataLoader(items, batch_size=batch_size, shuffle=shuffle)
        if _is_random(items):
            return DataLoader(items, batch_size=batch_size, shuffle=shuffle, collate_fn=_to_batch)
        return _read_into_memory(items)


def _is_random(items: Any) -> bool:
    """Return whether one of the first 64 images changes if it is read again with another seed."""
    readings = []
    for seed in (0, 1):
        randomness.seed_torch(seed, _CPU)
        readings.append([_to_uint8(items[index][0]) for index in range(min(len(items), _NUM_READ_TWICE))])
    return not all(map(torch.equal, *readings))


def _to_batch(items: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    images = [_to_uint8(image) for image, _ in items]
    for index, image in enumerate(images):
        if image.shape != images[0].shape:
            raise DataError(
                f"Image {index} has shape {tuple(image.shape)}, image 0 has {tuple(images[0].shape)}. Resize the "
                "images to one size"
            )
    return torch.stack(images), torch.tensor([int(label) for _, label in items], device="cpu")


def _read_into_memory(data: Any) -> ImageDataset:
    images, labels = _to_batch([data[index] for index in range(len(data))])
    source = data
    while isinstance(source, Subset):
        source = source.dataset
    names = getattr(source, "classes", None)
    if not names:  # a subset may lack the last classes
        all_labels = labels.tolist() if source is data else [int(source[i][1]) for i in range(len(source))]
        names = range(max(all_labels) + 1)
    return ImageDataset(images, labels, classes=tuple(map(str, names)), name=type(source).__name__)


def _to_uint8(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(image))[None] if image.mode == "L" else decode_image(image)
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        return image
    raise DataError(
        f"An image is a {type(image).__name__}. Return a PIL image, a uint8 tensor (C, H, W) or a floating tensor"
    )


def describe_data(data: Any) -> dict[str, Json] | None:
    """Return name, size and fingerprint of images; ``None`` for an iterable of batches."""
    if not isinstance(data, ImageDataset):
        return None
    return {"name": data.name, "num_images": len(data), "fingerprint": data.fingerprint}


def open_evaluation_loader(data: Data, device: torch.device) -> Loader:
    """Return a loader of the images in their own order, in batches of `EVAL_BATCH_SIZE` images.

    Args:
        data: Data set or iterable of batches.
        device: Device that the images are moved to.
    """
    opened = open_data(data, batch_size=EVAL_BATCH_SIZE, shuffle=False)
    if not isinstance(opened, ImageDataset):
        return IterableLoader(opened, device=device)
    return TensorLoader(opened.images, opened.labels, opened.ids, batch_size=EVAL_BATCH_SIZE, device=device, seed=0)
