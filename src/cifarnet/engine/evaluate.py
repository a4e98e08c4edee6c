"""Loss and accuracy of a network on images that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cifarnet.engine.batches import BatchSource
from cifarnet.engine.device import Precision
from cifarnet.engine.sums import RunningSums
from cifarnet.metrics import Evaluation
from cifarnet.transforms import Preprocess

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: BatchSource,
    *,
    preprocess: Preprocess,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    precision: Precision,
) -> Evaluation:
    """Score a network in evaluation mode; its mode is put back afterwards.

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
    was_training = model.training
    model.eval()
    try:
        for step, batch in enumerate(batches.in_order()):
            images = batch.images if batch.images.is_floating_point() else preprocess(batch.images)
            with precision.autocast():
                logits = model(precision.prepare(images))
            logits = logits.to(precision.weights)
            sums.add(loss_fn(logits, batch.labels), logits, batch.labels, step)
    finally:
        model.train(was_training)
    totals = sums.read()
    return Evaluation(totals.mean_loss, totals.num_correct, totals.num_images)
