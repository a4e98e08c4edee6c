"""Evaluation of predictions, computed on their device with one synchronization at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cifarnet._types import Labels, Logits
from cifarnet.errors import DataError
from cifarnet.inference.evaluation import (
    NUM_BINS,
    NUM_GUESSES,
    NUM_TOP_LOSSES,
    ConfidenceBin,
    Evaluation,
    TopLoss,
)
from cifarnet.inference.metrics import true_class_ranks

__all__ = ["Predictions", "summarize_predictions"]


class Predictions(NamedTuple):
    """Logits of a data set on the device, in batches.

    Attributes:
        logits: Logits per batch, shape ``(N, K)``.
        labels: Class indices per batch, shape ``(N,)``.
        ids: Image ids per batch, shape ``(N,)``.
    """

    logits: list[Logits]
    labels: list[Labels]
    ids: list[Tensor]


def summarize_predictions(
    predictions: Predictions, *, loss: float, classes: Sequence[str], temperature: float, tta: str | None
) -> Evaluation:
    """Compute confusion matrix, calibration and top losses, and synchronize with the device.

    Args:
        predictions: Predictions of all images.
        loss: Mean loss of the same images.
        classes: Class names; empty if they are unknown.
        temperature: Divisor of the logits before the softmax.
        tta: Test-time augmentation; ``None`` without it.

    Raises:
        DataError: If a label is outside ``[0, K)``, or there are class names but not ``K``.
    """
    batches = zip(predictions.logits, predictions.labels, strict=True)
    sums, images = zip(*(_summarize_batch(*batch, temperature) for batch in batches), strict=True)
    counts, scores, confusion, bin_counts, bin_sums = (sum(column) for column in zip(*sums, strict=True))
    labels, predicted, losses, confidences = (torch.cat(column) for column in zip(*images, strict=True))
    num_top_k, num_unknown = counts.tolist()
    if num_unknown:
        raise DataError(
            f"{num_unknown:,} labels are not classes of the network. Labels must be in [0, {len(confusion)}). "
            "Leave these images out"
        )
    # A stable sort keeps the first of equal losses. NaN comes before every number.
    top = losses.sort(descending=True, stable=True).indices[:NUM_TOP_LOSSES]
    ids = torch.cat(predictions.ids)
    columns = (column.tolist() for column in (top, *(x[top] for x in (ids, labels, predicted, confidences, losses))))
    log_loss, brier = (scores / len(labels)).tolist()
    return Evaluation(
        loss=loss,
        confusion_matrix=tuple(map(tuple, confusion.tolist())),
        num_top_k=num_top_k,
        log_loss=log_loss,
        brier=brier,
        reliability_bins=tuple(
            ConfidenceBin(count, right, total / count if count else None)
            for count, right, total in zip(*bin_counts.tolist(), bin_sums.tolist(), strict=True)
        ),
        top_losses=tuple(TopLoss(*one) for one in zip(*columns, strict=True)),
        classes=tuple(classes),
        temperature=temperature,
        tta=tta,
    )


def _summarize_batch(
    logits: Logits, labels: Labels, temperature: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return sums over a batch, and values of each image, without synchronizing with the device."""
    num_classes, device = logits.shape[1], logits.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # mps does not support float64
    # Labels that were never on the CPU are unchecked. An index out of range makes all later CUDA calls fail.
    given, labels = labels, labels.clamp(0, num_classes - 1)
    predicted = logits.argmax(dim=1)
    right = predicted == labels
    among = (true_class_ranks(logits, labels) < NUM_GUESSES) | right
    counts = torch.stack((among.sum(), (labels != given).sum()))
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    confusion.index_add_(0, labels * num_classes + predicted, torch.ones_like(labels))

    likelihoods = (logits.to(dtype) / temperature).log_softmax(dim=1)  # (N, K)
    shares = likelihoods.exp()
    losses = -likelihoods.gather(1, labels[:, None])[:, 0]
    confidences = shares.gather(1, predicted[:, None])[:, 0]
    truth = (torch.arange(num_classes, device=device) == labels[:, None]).to(dtype)  # (N, K)
    scores = torch.stack((losses.sum(), (shares - truth).square().sum()))  # negative log-likelihood, Brier score

    # (m / 15, (m + 1) / 15], as in Guo et al. (2017). Masks, because index_add_ on a GPU sums in any order.
    edges = torch.arange(1, NUM_BINS, dtype=dtype, device=device) / NUM_BINS
    bins = torch.arange(NUM_BINS, device=device)
    inside = torch.bucketize(confidences, edges)[:, None] == bins  # (N, NUM_BINS)
    bin_counts = torch.stack((inside.sum(dim=0), (inside & right[:, None]).sum(dim=0)))
    bin_sums = confidences[:, None].masked_fill(~inside, 0).sum(dim=0)
    sums = (counts, scores, confusion.view(num_classes, num_classes), bin_counts, bin_sums)
    return sums, (labels, predicted, losses, confidences)
