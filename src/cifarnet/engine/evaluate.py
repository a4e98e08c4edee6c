"""Loss and accuracy of a network on images that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images, Logits
from cifarnet.engine.batches import BatchSource
from cifarnet.engine.device import Precision
from cifarnet.engine.sums import RunningSums
from cifarnet.metrics import Evaluation
from cifarnet.models import evaluation_mode
from cifarnet.transforms import Preprocess

__all__ = ["evaluate", "predict_logits"]


def predict_logits(model: nn.Module, images: Images, *, preprocess: Preprocess, precision: Precision) -> Logits:
    """Score every class for a batch, as evaluation does it.

    Args:
        model: On the precision's device, in its dtype, in the mode that is wanted.
        images: uint8 is preprocessed, floating images are taken as they are; shape ``(N, C, H, W)``.
        preprocess: What the network needs.
        precision: Number format.

    Returns:
        Shape ``(N, K)``, in the dtype of the weights.
    """
    images = images if images.is_floating_point() else preprocess(images)
    with precision.autocast():
        logits: Logits = model(precision.prepare(images))
    return logits.to(precision.weights)  # a loss or a probability from bf16 has 3 digits


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: BatchSource,
    *,
    preprocess: Preprocess,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    precision: Precision,
) -> Evaluation:
    """Score a network in evaluation mode; the mode of each of its modules is put back afterwards.

    Args:
        model: On the precision's device, in its dtype.
        batches: Every image once; uint8 is preprocessed, floating images are taken as they are.
        preprocess: What the network needs.
        loss_fn: ``(logits, labels) -> mean loss``.
        precision: Number format.

    Returns:
        Loss and accuracy.
    """
    sums = RunningSums(precision.device)
    # cuDNN's timing of kernels could pick others in another process, and count an image otherwise.
    with evaluation_mode(model), randomness.isolated(precision.device, autotune=False):
        for step, batch in enumerate(batches.in_order()):
            logits = predict_logits(model, batch.images, preprocess=preprocess, precision=precision)
            sums.add(loss_fn(logits, batch.labels), logits, batch.labels, step)
    totals = sums.read()
    return Evaluation(totals.mean_loss, totals.num_correct, totals.num_images)
