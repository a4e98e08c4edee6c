"""One of several equal copies of a network that train together, each on its own part of every batch.

The loss is that of the whole batch: logits are exchanged (a few kilobytes), each process computes the loss from all of
them, and its backward pass goes on through its own. What that leaves in the parameters is this process's share of the
gradient, and the sum over processes is the gradient, whatever the loss is and however unequal the parts are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cifarnet._checks import check_choice
from cifarnet._types import Logits
from cifarnet.engine.ranks import Ranks

__all__ = ["BATCH_NORMS", "Replica"]

#: Whose images batch norm takes mean and variance of in training, those of all processes or each its own.
BATCH_NORMS = ("synchronised", "local")


class Replica:
    """This process's copy.

    Args:
        model: On its device.
        ranks: Of the processes.
        batch_norm: One of `BATCH_NORMS`.

    Raises:
        SettingError: If ``batch_norm`` is unknown.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, *, batch_norm: str = "synchronised") -> None:
        check_choice("batch_norm", batch_norm, BATCH_NORMS)
        self.ranks = ranks
        self._model = model
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        # One with a forward pass of its own, such as nn.SyncBatchNorm, sees to it by itself.
        plain = [norm for norm in norms if type(norm).forward is _BatchNorm.forward]
        self._synchronised = plain if batch_norm == "synchronised" else []
        self._local = [norm for norm in norms if norm not in self._synchronised]
        self._share = 1.0

    @contextmanager
    def normalising(self, num_images: int) -> Iterator[None]:
        """Within the block, batch norm sees the images of all processes.

        Args:
            num_images: Of the whole batch.
        """
        part, counts = self.ranks.part(num_images), self.ranks.counts(num_images)
        self._share = (part.stop - part.start) / num_images if counts else 0.0
        for norm in self._synchronised:
            norm.__dict__["forward"] = partial(_normalise, norm, self.ranks, counts)
        try:
            yield
        finally:
            for norm in self._synchronised:
                del norm.__dict__["forward"]

    def gather(self, logits: Logits, num_images: int) -> Logits:
        """Logits of the whole batch, from those of each process's part.

        Args:
            logits: Of this process's part, shape ``(n, K)``.
            num_images: Of the whole batch.

        Returns:
            Shape ``(num_images, K)``; a gradient goes back to this process's part alone.
        """
        whole: Tensor = _Gather.apply(logits, self.ranks, num_images)
        return whole

    def combine(self) -> None:
        """Gradients of the whole batch, and of statistics that each process has of its own the mean over images."""
        statistics = [
            tensor
            for norm in self._local
            if norm.training
            for tensor in (norm.running_mean, norm.running_var)
            if tensor is not None
        ]
        for tensor in statistics:
            tensor *= self._share
        gradients = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        self.ranks.add_up([*gradients, *statistics])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ranks: Ranks, num_images: int) -> Tensor:
        ctx.part, ctx.counts = ranks.part(num_images), ranks.counts(num_images)
        whole = logits.new_zeros(num_images, *logits.shape[1:])
        if ctx.counts:
            whole[ctx.part] = logits
        ranks.add_up([whole])  # to zeros: exact
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        own = gradients[0][ctx.part]
        return own if ctx.counts else torch.zeros_like(own), None, None


def _normalise(norm: _BatchNorm, ranks: Ranks, counts: bool, x: Tensor) -> Tensor:
    """Batch norm in training as `torch.nn` does it, over the images of all processes.

    Args:
        norm: Its running statistics are updated.
        ranks: Of the processes.
        counts: Whether this process's images are taken into account.
        x: Shape ``(N, C)`` or ``(N, C, ...)``.
    """
    if not norm.training or x.numel() == x.shape[1]:  # a single value has no variance: torch says so
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    y, mean, variance, count = _Normalise.apply(x, norm.weight, norm.bias, norm.eps, ranks, counts)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        unbiased = variance * (count / (count - 1))
        for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            running.lerp_(now.to(running.dtype), momentum)
    normalised: Tensor = y
    return normalised


class _Normalise(torch.autograd.Function):
    """Ioffe and Szegedy, 2015, arXiv:1502.03167; means over the images of all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.ndim)]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        variance, mean = torch.var_mean(x.to(dtype), dims, correction=0)
        # A row a process: count, mean and variance, so that no difference of large squares is taken.
        table = torch.zeros(ranks.world_size, 1 + 2 * len(mean), dtype=dtype, device=x.device)
        if counts:
            table[ranks.rank] = torch.cat((mean.new_tensor([x.numel() / len(mean)]), mean, variance))
        ranks.add_up([table])
        shares = table[:, :1] / table[:, 0].sum()  # (processes, 1)
        means, variances = table[:, 1:].chunk(2, dim=1)
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.ranks, ctx.counts, ctx.count = eps, ranks, counts, table[:, 0].sum()
        ctx.mark_non_differentiable(mean, variance, ctx.count)
        ctx.set_materialize_grads(False)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, ctx.count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        dtype, shape = mean.dtype, (1, -1, *[1] * (x.ndim - 2))
        dims = [0, *range(2, x.ndim)]
        gradient = gradients[0].to(dtype)
        scale = (variance + ctx.eps).rsqrt()
        normalised = (x.to(dtype) - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = gradient.sum(dims), (gradient * normalised).sum(dims)
        sums = torch.stack((of_bias, of_weight))  # of this process's images; the parameters' are added up later
        ctx.ranks.add_up([sums])
        # Images that do not count have no part in mean and variance.
        along_mean, along_scale = (sums / ctx.count * ctx.counts).view(2, *shape)
        of_x = (gradient - along_mean - normalised * along_scale) * scale.view(shape)
        of_x = of_x if weight is None else of_x * weight.to(dtype).view(shape)
        return (
            of_x.to(x.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            of_bias.to(weight.dtype) if weight is not None else None,
            None,
            None,
            None,
        )
