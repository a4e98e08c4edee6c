"""Loss and accuracy of a network on images that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet.engine.batches import BatchSource
from cifarnet.engine.device import Precision
from cifarnet.engine.sums import RunningSums
from cifarnet.metrics import Evaluation
from cifarnet.transforms import Preprocess

__all__ = ["evaluate", "evaluation_mode"]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for the block, and each of its modules back into its own.

    Args:
        model: Parts of it may be in evaluation mode for good, such as frozen batch norms.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
            images = batch.images if batch.images.is_floating_point() else preprocess(batch.images)
            with precision.autocast():
                logits = model(precision.prepare(images))
            logits = logits.to(precision.weights)
            sums.add(loss_fn(logits, batch.labels), logits, batch.labels, step)
    totals = sums.read()
    return Evaluation(totals.mean_loss, totals.num_correct, totals.num_images)
