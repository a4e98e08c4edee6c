"""CUDA graph of a training step, which leaves almost no work to the host.

Images are augmented in *windows* of many steps by a few large kernels. The step itself, `update`, is captured once per
shape of its batch and replayed. It reads images, labels, learning rates and its index from buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._types import Images
from cifarnet.inference.loader import Batch, Loader, TensorLoader
from cifarnet.models.registry import is_known
from cifarnet.optim import Muon
from cifarnet.training.step import update
from cifarnet.transforms.augment import draws_per_image

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["GraphedUpdate", "can_be_captured", "prepare_optimizer", "windows"]

#: Images that are augmented at once. The pixel indices of a padded window stay below 2**31.
WINDOW_IMAGES = 8192

#: Function that records the device work of another function, and returns a function that repeats it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

#: Flags that make torch's optimizers read learning rates and count steps on the device.
_FLAGS: dict[type[torch.optim.Optimizer], dict[str, bool]] = {
    torch.optim.Adam: {"capturable": True, "fused": True, "foreach": False},
    torch.optim.AdamW: {"capturable": True, "fused": True, "foreach": False},
    torch.optim.SGD: {"fused": True, "foreach": False},
    Muon: {},
}


def can_be_captured(trainer: Trainer) -> bool:
    """Return whether a CUDA graph can hold a step, because its parts are known to read nothing from the device."""
    return (
        trainer.device.type == "cuda"
        and trainer.group.world_size == 1
        and is_known(trainer.model)
        and type(trainer.loss_fn) is nn.CrossEntropyLoss
        and type(trainer.optimizer) in _FLAGS
    )


def prepare_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer read learning rates and count steps on the device."""
    for group in optimizer.param_groups:
        group.update(_FLAGS.get(type(optimizer), {}))
    for parameter, state in optimizer.state.items():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


def windows(trainer: Trainer, loader: Loader) -> Iterator[Batch]:
    """Yield the rest of the epoch as preprocessed batches, augmented many steps at a time.

    Every draw is a hash of (seed, epoch, image), so the images do not depend on the window. Transforms that draw once
    per batch, and batches of a user-supplied iterable, are yielded as they are.
    """
    state = trainer.state
    if not isinstance(loader, TensorLoader) or not all(map(draws_per_image, trainer.transforms.steps)):
        yield from loader.epoch(state.epoch, state.step)
        return
    size = loader.batch_size
    order = loader.order(state.epoch)[state.step * size :]
    for window in torch.split(order, max(1, WINDOW_IMAGES // size) * size) if len(order) else ():
        batch = loader.select(window)
        with randomness.scope(trainer.seed, state.epoch, batch.ids):
            images = trainer.transforms.train(batch.images)
        yield from map(Batch, *(torch.split(part, size) for part in (images, batch.labels, batch.ids)))


class GraphedUpdate:
    """`cifarnet.training.step.update`, captured per shape of the batch and replayed.

    The first batch of a shape is trained eagerly, when kernels are loaded and the optimizer makes its state, the second
    one is captured. A graph is captured again if what it read from the host has changed, such as a weight decay.

    Args:
        trainer: Trainer whose optimizer `prepare_optimizer` has prepared.
        capture: Replacement of a CUDA graph, for tests on a CPU.
    """

    def __init__(self, trainer: Trainer, capture: Capture | None = None) -> None:
        self._capture = self._capture_cuda_graph if capture is None else capture
        self._steps: dict[Any, _CapturedStep] = {}
        self._pool: Any = None
        device = trainer.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._lrs: list[Tensor] = []

    def __call__(self, trainer: Trainer, images: Images, labels: Tensor, step: int, num_images: int) -> None:
        """Train on a batch, as `update` does."""
        key = (images.shape, images.dtype, labels.shape, labels.dtype)
        if key not in self._steps:
            self._steps[key] = _CapturedStep(images, labels)
        captured = self._steps[key]
        captured.images.copy_(images)
        captured.labels.copy_(labels)
        captured.step.fill_(step)

        def function() -> None:
            update(trainer, captured.images, captured.labels, captured.step, num_images)
            trainer.optimizer.zero_grad()  # gradients would keep memory that belongs to the graph

        with self._learning_rates_on_device(trainer), self._on_stream(trainer):
            if captured.replay is not None:
                captured.replay()
                return
            if captured.read_from_host is None:  # the first batch of this shape
                function()
            else:
                with randomness.kept_generators(trainer.device):  # the replay draws
                    captured.replay = self._capture(function)
                captured.replay()
            captured.read_from_host = _read_from_host(trainer)

    @contextmanager
    def _on_stream(self, trainer: Trainer) -> Iterator[None]:
        """Work on the stream that is captured, in order with all other work on the device."""
        if self._stream is None:
            yield
            return
        caller = torch.cuda.current_stream(trainer.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    @contextmanager
    def _learning_rates_on_device(self, trainer: Trainer) -> Iterator[None]:
        """Put tensors that the graphs read in the place of the learning rates."""
        groups = trainer.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        self._lrs += [torch.zeros((), dtype=torch.float32, device=trainer.device) for _ in groups[len(self._lrs) :]]
        for group, rate, tensor in zip(groups, rates, self._lrs, strict=True):
            group["lr"] = tensor.fill_(float(rate))
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def drop_outdated(self, trainer: Trainer) -> None:
        """Forget all graphs if the caller has changed something that they hold, between two epochs."""
        now = _read_from_host(trainer)
        if any(step.read_from_host not in (None, now) for step in self._steps.values()):
            self._steps.clear()
            self._pool = None

    def _capture_cuda_graph(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # A thread may be writing a checkpoint at the same time and wait for its copies.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        return graph.replay


class _CapturedStep:
    """Buffers that a captured step reads, and its graph."""

    def __init__(self, images: Images, labels: Tensor) -> None:
        self.images = torch.empty_like(images, memory_format=torch.channels_last)
        self.labels = torch.empty_like(labels)
        self.step = torch.zeros((), dtype=torch.int64, device=labels.device)
        self.replay: Callable[[], None] | None = None
        self.read_from_host: Any = None


def _read_from_host(trainer: Trainer) -> Any:
    """Return the addresses of tensors and the settings of the host that a graph keeps from its capture."""
    optimizer, modules = trainer.optimizer, [*trainer.model.modules()]
    if isinstance(trainer.loss_fn, nn.Module):
        modules.append(trainer.loss_fn)
    states = (value for state in optimizer.state.values() for value in state.values())
    tensors = [tensor for module in modules for tensor in (*module.parameters(False), *module.buffers(False))]
    tensors += [*trainer.state.metrics.tensors, *(value for value in states if isinstance(value, Tensor))]
    plain = bool | int | float | str | None  # training mode, momentum of a batch norm, label smoothing and the like
    return (
        [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors],
        [{**group, "params": None, "lr": None} for group in optimizer.param_groups],
        [{key: value for key, value in vars(module).items() if isinstance(value, plain)} for module in modules],
        (trainer.max_grad_norm, trainer.accumulate_grad_batches),
    )
