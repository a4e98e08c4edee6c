"""Comparison of an exported file with the library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cifarnet._resize import resize_images
from cifarnet._types import Images
from cifarnet.classifier import Classifier
from cifarnet.errors import CifarnetError, NonFiniteError
from cifarnet.inference import predict_logits
from cifarnet.models._modules import evaluation_mode

__all__ = ["draw_images", "largest_difference", "library_probabilities", "reason"]


def draw_images(shape: tuple[int, int, int]) -> Images:
    """Draw 72 images of coarse and fine noise, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.randint(0, 256, (36, *shape), dtype=torch.uint8, generator=generator)
    coarse = torch.randint(0, 256, (36, shape[0], 4, 4), dtype=torch.uint8, generator=generator)
    return torch.cat([resize_images(coarse, shape[1]), fine])[torch.randperm(72, generator=generator)]


def largest_difference(run: Callable[[Images], Tensor], classifier: Classifier, images: Images) -> float:
    """Return the largest difference of a probability, over batches of 1, 2, 5 and 64 images."""
    largest = []
    for batch in (images[:1], images[1:3], images[3:8], *torch.split(images[8:], 64)):
        if not len(batch):
            continue
        expected = library_probabilities(classifier, batch)
        try:
            given = run(batch)
        except Exception as error:
            raise CifarnetError(f"the exported file does not accept {len(batch)} images: {reason(error)}") from error
        if given.shape != expected.shape or given.dtype != torch.float32:
            raise CifarnetError(
                f"the exported file gives {given.dtype} of shape {tuple(given.shape)} for {len(batch)} images, the "
                f"library {tuple(expected.shape)}; forward must suit any number of images"
            )
        largest.append((given.double() - expected).abs().max())
    return float(torch.stack(largest).max())  # NaN stays NaN


def library_probabilities(classifier: Classifier, images: Images) -> Tensor:
    """Return the probabilities of the library in float64, shape ``(N, K)``."""
    with torch.no_grad(), evaluation_mode(classifier.model):
        logits = predict_logits(
            classifier.model,
            images.to(classifier.device),
            preprocess=classifier.preprocess,
            precision=classifier.precision,
        )
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(
            f"the network gives NaN or infinity in {classifier.precision.name}; its weights may be broken: "
            "export those of another epoch"
        )
    return (logits.cpu().double() / classifier.temperature).softmax(dim=1)


def reason(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
