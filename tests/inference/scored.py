"""Evaluations of given logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarnet import Evaluation, Preprocess
from cifarnet.inference import resolve_precision
from cifarnet.inference.evaluate import evaluate
from cifarnet.inference.loader import Batch

FLOAT64 = resolve_precision("float64", torch.device("cpu"))


class LogitsLoader:
    """Loader whose images are the logits, so that `nn.Flatten` is the network. Ids start at 1000."""

    def __init__(self, logits: Tensor, labels: Tensor, batch_size: int) -> None:
        self.columns = (logits[:, :, None, None].double(), labels, torch.arange(len(labels)) + 1000)
        self.batch_size = batch_size

    def in_order(self) -> Iterator[Batch]:
        yield from map(Batch, *(torch.split(column, self.batch_size) for column in self.columns))


def scored(
    logits: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 7,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    temperature: float = 1.0,
    classes: tuple[str, ...] = (),
) -> Evaluation:
    return evaluate(
        nn.Flatten(),
        LogitsLoader(logits, labels, batch_size),
        preprocess=Preprocess(),
        loss_fn=loss_fn,
        precision=FLOAT64,
        classes=classes,
        temperature=temperature,
    )


@st.composite
def answers(draw: st.DrawFn, *, least: int = 1) -> tuple[Tensor, Tensor]:
    """Draw logits and labels: hardly or absurdly confident, mostly right or mostly wrong, with missing classes."""
    num_classes = draw(st.sampled_from([2, 3, 10, 100]))
    num_images = draw(st.integers(least, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels = torch.randint(draw(st.integers(1, num_classes)), (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(num_images), labels] += draw(st.sampled_from([-2.0, 0.0, 1.0, 4.0]))
    return logits * draw(st.sampled_from([1e-3, 0.3, 1.0, 5.0, 1e3])), labels
