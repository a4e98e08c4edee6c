"""Running metrics of an evaluation, kept on the device and read once at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cifarnet._types import Logits
from cifarnet.errors import InputError
from cifarnet.inference.evaluation import NUM_BINS, NUM_TOP_LOSSES, Evaluation, guesses_counted
from cifarnet.inference.loader import Batch
from cifarnet.inference.metrics import true_class_ranks
from cifarnet.inference.records import ConfidenceBin, TopLoss
from cifarnet.inference.running import MetricTotals

__all__ = ["EvaluationAccumulator"]


class EvaluationAccumulator:
    """Confusion matrix, calibration and top losses. Memory does not grow with the number of images.

    Args:
        num_classes: Logits per image, ``K``.
        device: Device that holds the metrics.
        temperature: Divisor of the logits before the softmax.
    """

    def __init__(self, num_classes: int, device: torch.device, *, temperature: float) -> None:
        self._num_classes = num_classes
        self._temperature = temperature
        # mps does not support float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # true class in the top k; invalid labels
        self._sums = torch.zeros(2, dtype=self._dtype, device=device)  # negative log-likelihood, Brier score
        self._bin_counts = torch.zeros(2, NUM_BINS, dtype=torch.int64, device=device)  # images, correct predictions
        self._bin_sums = torch.zeros(NUM_BINS, dtype=self._dtype, device=device)  # confidence
        self._edges = torch.arange(1, NUM_BINS, dtype=self._dtype, device=device) / NUM_BINS
        self._bins = torch.arange(NUM_BINS, device=device)
        self._classes = torch.arange(num_classes, device=device)
        self._top_losses = torch.zeros(4, 0, dtype=torch.int64, device=device)  # index, id, label, prediction
        self._top_loss_sums = torch.zeros(2, 0, dtype=self._dtype, device=device)  # loss, probability
        self._num_images = 0

    def add(self, logits: Logits, batch: Batch) -> None:
        """Add one batch without synchronizing with the device.

        Args:
            logits: Logits of the batch, shape ``(N, K)``.
            batch: Batch with the labels and ids of the same images.
        """
        num_images = len(batch.labels)
        # Labels that were never on the CPU are unchecked. An index out of range makes all later CUDA calls fail.
        labels = batch.labels.clamp(0, self._num_classes - 1)
        predicted = logits.argmax(dim=1)
        right = predicted == labels
        among = (true_class_ranks(logits, labels) < guesses_counted(self._num_classes)) | right
        self._counts += torch.stack((among.sum(), (labels != batch.labels).sum()))
        self._confusion.index_add_(0, labels * self._num_classes + predicted, torch.ones_like(labels))

        likelihoods = (logits.to(self._dtype) / self._temperature).log_softmax(dim=1)  # (N, K)
        shares = likelihoods.exp()
        losses = -likelihoods.gather(1, labels[:, None])[:, 0]
        confidences = shares.gather(1, predicted[:, None])[:, 0]
        truth = (self._classes == labels[:, None]).to(self._dtype)  # (N, K)
        self._sums += torch.stack((losses.sum(), (shares - truth).square().sum()))

        # (m / 15, (m + 1) / 15], as in Guo et al. (2017). Masks, because index_add_ on a GPU sums in any order.
        inside = torch.bucketize(confidences, self._edges)[:, None] == self._bins  # (N, NUM_BINS)
        self._bin_counts += torch.stack((inside.sum(dim=0), (inside & right[:, None]).sum(dim=0)))
        self._bin_sums += confidences[:, None].masked_fill(~inside, 0).sum(dim=0)

        indices = torch.arange(self._num_images, self._num_images + num_images, device=labels.device)
        self._keep_top_losses(torch.stack((indices, batch.ids, labels, predicted)), torch.stack((losses, confidences)))
        self._num_images += num_images

    def _keep_top_losses(self, images: Tensor, values: Tensor) -> None:
        images = torch.cat((self._top_losses, images), dim=1)
        values = torch.cat((self._top_loss_sums, values), dim=1)
        # A stable sort keeps the first of equal losses. NaN comes before every number.
        order = values[0].sort(descending=True, stable=True).indices[:NUM_TOP_LOSSES]
        self._top_losses, self._top_loss_sums = images[:, order], values[:, order]

    def read(self, totals: MetricTotals, *, classes: Sequence[str], tta: str | None) -> Evaluation:
        """Synchronize with the device and return the evaluation.

        Args:
            totals: Loss and counts of the same images.
            classes: Class names; empty if they are unknown.
            tta: Test-time augmentation; ``None`` without it.

        Raises:
            InputError: If a label is outside ``[0, K)``, or there are class names but not ``K``.
        """
        num_top_k, num_unknown = self._counts.tolist()
        if num_unknown:
            raise InputError(
                f"{num_unknown:,} labels are not classes of the network. Labels must be in [0, {self._num_classes}). "
                "Leave these images out"
            )
        log_loss, brier = (self._sums / self._num_images).tolist()
        bins = zip(*self._bin_counts.tolist(), self._bin_sums.tolist(), strict=True)
        top_losses = zip(*self._top_losses.tolist(), *self._top_loss_sums.flip(0).tolist(), strict=True)
        return Evaluation(
            loss=totals.mean_loss,
            confusion_matrix=tuple(map(tuple, self._confusion.view(-1, self._num_classes).tolist())),
            num_top_k=num_top_k,
            log_loss=log_loss,
            brier=brier,
            reliability_bins=tuple(
                ConfidenceBin(count, right, total / count if count else None) for count, right, total in bins
            ),
            top_losses=tuple(TopLoss(*one) for one in top_losses),
            classes=tuple(classes),
            temperature=self._temperature,
            tta=tta,
        )
