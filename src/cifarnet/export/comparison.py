"""What an exported file computes, compared with the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cifarnet._types import Images
from cifarnet.classifier import Classifier
from cifarnet.data import resize_images
from cifarnet.errors import ExportError, InputError, NonFiniteLogitsError
from cifarnet.export.portable import reason
from cifarnet.inference import predict_logits
from cifarnet.models import evaluation_mode
from cifarnet.transforms import Preprocess

__all__ = ["TOLERANCE", "check_images", "draw_images", "in_batches", "largest_difference", "library_probabilities"]

#: How far a probability of an exported file may be from the library's, in float32 on the CPU. Other kernels sum in
#: another order: some 1e-6 is usual, and what is wrong differs by 0.01 and more.
TOLERANCE = 1e-4

#: Sizes of the first batches; those behind them are of 64.
_FIRST_BATCHES = (1, 2, 5)
_BATCH_SIZE = 64
_MAX_BATCH_VALUES = 2**23  # a network of large images still fits into memory


def draw_images(preprocess: Preprocess) -> Images:
    """Images to compare on where there are none: noise, coarse and fine, the same on every machine.

    Args:
        preprocess: Says of which size and how many channels.

    Returns:
        uint8, shape ``(N, C, size, size)``; 72 of them, fewer if they are large.
    """
    channels, size = len(preprocess.mean), preprocess.size
    num_images = sum(_FIRST_BATCHES) + _batch_size(channels * size * size)
    generator = torch.Generator().manual_seed(0)
    fine = torch.randint(0, 256, (num_images // 2, channels, size, size), dtype=torch.uint8, generator=generator)
    few = (num_images - len(fine), channels, 4, 4)
    coarse = resize_images(torch.randint(0, 256, few, dtype=torch.uint8, generator=generator), size)
    return torch.cat([coarse, fine])[torch.randperm(num_images, generator=generator)]


def in_batches(images: Images) -> Iterator[Images]:
    """One image, two, five, then as many at a time as are quick.

    Args:
        images: Shape ``(N, ...)``.
    """
    start = 0
    for size in _FIRST_BATCHES:
        yield images[start : start + size]
        start += size
        if start >= len(images):
            return
    yield from torch.split(images[start:], _batch_size(images[0].numel()))


def library_probabilities(classifier: Classifier, images: Images, *, temperature: float = 1.0) -> Tensor:
    """What the library gives for a batch.

    Args:
        classifier: With its own precision, on its own device.
        images: uint8 of the network's size, shape ``(N, C, size, size)``.
        temperature: Divides the logits.

    Returns:
        float64 on the CPU, shape ``(N, K)``.

    Raises:
        NonFiniteLogitsError: If the network gives NaN or infinity.
    """
    with torch.no_grad(), evaluation_mode(classifier.model):
        logits = predict_logits(
            classifier.model,
            images.to(classifier.device),
            preprocess=classifier.preprocess,
            precision=classifier.precision,
        )
    if not bool(logits.isfinite().all()):
        raise NonFiniteLogitsError(
            f"the network gives NaN or infinity in {classifier.precision.name}; its weights may be broken: "
            "export those of another epoch"
        )
    return (logits.cpu().double() / temperature).softmax(dim=1)


def largest_difference(
    run: Callable[[Images], Tensor], classifier: Classifier, images: Images, *, temperature: float = 1.0
) -> float:
    """The largest difference between a probability of a file and the library's.

    Args:
        run: The file: uint8 ``(N, C, size, size)`` to probabilities ``(N, K)``.
        classifier: The library.
        images: uint8, shape ``(N, C, size, size)``, at least one.
        temperature: Divides the classifier's logits.

    Returns:
        At least 0; NaN if the file gives NaN.

    Raises:
        ExportError: If the file cannot take a batch, or gives something of another shape or dtype.
        NonFiniteLogitsError: If the classifier's network gives NaN or infinity.
    """
    differences = []
    for batch in in_batches(images):
        expected = library_probabilities(classifier, batch, temperature=temperature)
        try:
            given = run(batch)
        except Exception as error:
            raise ExportError(f"the exported file does not take {len(batch)} images: {reason(error)}") from error
        if given.shape != expected.shape or given.dtype != torch.float32:
            raise ExportError(
                f"the exported file gives {given.dtype} of shape {tuple(given.shape)} for {len(batch)} images, the "
                f"library {tuple(expected.shape)}; the network's forward may fix the number of images"
            )
        differences.append((given.double() - expected).abs().max())
    return float(torch.stack(differences).max())  # a NaN stays one


def check_images(images: Images, preprocess: Preprocess) -> None:
    """Refuse images that an exported file does not take.

    Raises:
        InputError: If they are not uint8 of the network's size, or there are none.
    """
    wanted = (len(preprocess.mean), preprocess.size, preprocess.size)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != wanted or not len(images):
        raise InputError(
            f"expected uint8 images of shape (N, {wanted[0]}, {wanted[1]}, {wanted[2]}), got {images.dtype} "
            f"{tuple(images.shape)}; data.resize_images makes them of others, or leave images= out"
        )


def _batch_size(values: int) -> int:
    return max(1, min(_BATCH_SIZE, _MAX_BATCH_VALUES // values))
