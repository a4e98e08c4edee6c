"""Many training steps in one CUDA graph, so that next to nothing is left for the host to do.

An epoch is cut into *windows*, whose images are augmented and preprocessed all at once, in a few large kernels. A
window is cut into *units* of `STEPS_PER_GRAPH` steps; what is left of the epoch is a smaller unit, and its last batch,
which is smaller too, another. Images of another size, which an epoch may have, need units of their own. The steps of a
unit read images, labels and learning rates from buffers that are filled before it is run, and nothing from the host, so
that they can be captured once and replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Images, Labels, Logits
from cifarnet.engine.batches import Batches, BatchSource
from cifarnet.engine.eager import EagerBackend
from cifarnet.engine.settings import StepSettings
from cifarnet.engine.step import forward, prepared, update
from cifarnet.engine.sums import RunningSums
from cifarnet.engine.waiting import waits_for_device
from cifarnet.transforms import draws_per_image

__all__ = ["STEPS_PER_GRAPH", "CudaGraphBackend", "what_cannot_be_captured"]

#: Steps a unit: more of them leave less to the host, take longer to capture, and let a signal wait for longer.
STEPS_PER_GRAPH = 16

#: Images of a window, in bytes, and how many of them are augmented at once.
WINDOW_BYTES = 2**29
CHUNK = 4096

#: Records what a function does on the device without doing it; what it returns does it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

#: Runs a function, and says why it cannot be captured: an empty string where nothing is known against it.
Probe = Callable[[Callable[[], None]], str]

#: What makes torch's optimizers read learning rates and count steps on the device.
_FLAGS: dict[type[torch.optim.Optimizer], dict[str, bool]] = {
    torch.optim.Adam: {"capturable": True, "fused": True, "foreach": False},
    torch.optim.AdamW: {"capturable": True, "fused": True, "foreach": False},
    torch.optim.NAdam: {"capturable": True, "foreach": True},
    torch.optim.RAdam: {"capturable": True, "foreach": True},
    torch.optim.RMSprop: {"capturable": True, "foreach": True},
    torch.optim.SGD: {"fused": True, "foreach": False},
}


def what_cannot_be_captured(settings: StepSettings) -> str | None:
    """Name a part of a step that draws or decides on the host, or that nobody knows.

    Args:
        settings: Of the step.

    Returns:
        Such as ``"the transform RandAugment"``; ``None`` where all can be captured.
    """
    if settings.replica is not None:
        return f"the exchange between {settings.replica.ranks.world_size} processes"
    if settings.mix is not None:
        return f"mix={type(settings.mix).__name__}"
    foreign = next((step for step in settings.transforms.steps if not draws_per_image(step)), None)
    if foreign is not None:
        return f"the transform {type(foreign).__name__}"
    if _flags(settings.optimizer) is None:
        return f"the optimizer {type(settings.optimizer).__name__}"
    return None


def _flags(optimizer: torch.optim.Optimizer) -> dict[str, bool] | None:
    """`_FLAGS` of torch's optimizers; ours need none, and say of themselves that they can be captured."""
    if vars(type(optimizer)).get("can_be_captured", False):  # a class derived from it may change how it steps
        return {}
    return _FLAGS.get(type(optimizer))


class CudaGraphBackend:
    """Steps as `EagerBackend` does them, many in a CUDA graph.

    A unit is run as it is the first time, when kernels are loaded and the optimizer makes its state, and captured the
    second time; on CUDA, one unit is run once more before, to see whether its steps wait for the device: a capture that
    breaks leaves torch's allocator and generator in disorder, so none is begun that must. Foreign batches come from the
    host one by one, and are trained on eagerly.

    Args:
        settings: What a step is made of. Groups of the optimizer get the flags and the tensors that capturing needs.
        steps_per_graph: Steps a unit.
        capture: In the place of a CUDA graph, for tests.
        probe: In the place of a look at whether the host waits for the device, for tests.
    """

    name: str = "cuda-graph"

    def __init__(
        self,
        settings: StepSettings,
        *,
        steps_per_graph: int = STEPS_PER_GRAPH,
        capture: Capture | None = None,
        probe: Probe | None = None,
    ) -> None:
        self.steps_per_graph = steps_per_graph
        self._settings = settings
        self._device = settings.optimizer.param_groups[0]["params"][0].device  # with its index, as all tensors tell it
        self._eager = EagerBackend(settings)
        self._capture: Capture | None = self._capture_cuda_graph if capture is None else capture
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pool: Any = None  # of the memory that all graphs share: one runs at a time
        self._units: dict[tuple[int, int, int], _Unit] = {}  # by steps, images a step, side in pixels
        self._captured: list[Any] = []  # what must be as it was, or the graphs do something else than the steps
        self._probe: Probe | None = waits_for_device if self._device.type == "cuda" else probe
        for group in settings.optimizer.param_groups:
            group.update(_flags(settings.optimizer) or {})
        self._count_on_device()

    def epoch(
        self, batches: BatchSource, epoch: int, *, first_step: int, multipliers: Sequence[float], sums: RunningSums
    ) -> Iterator[int]:
        """Train for the rest of an epoch; see `EagerBackend.epoch`.

        Args:
            batches: Where the images come from.
            epoch: Counted from 0.
            first_step: Steps of the epoch that are done already.
            multipliers: Of the base learning rates, one a step of the whole epoch.
            sums: Loss and counts are added to them.
        """
        self._count_on_device()
        captures = isinstance(batches, Batches) and self._capture is not None
        self.name = CudaGraphBackend.name if captures else EagerBackend.name
        if not isinstance(batches, Batches):
            yield from self._eager.epoch(batches, epoch, first_step=first_step, multipliers=multipliers, sums=sums)
            return
        self._eager.set_modes()
        tables = self._tables(batches.num_steps, first_step, multipliers)
        if self._frozen(sums) != self._captured:
            self._forget()
        window_steps = self._window_steps(batches)
        for window in range(first_step // window_steps * window_steps, batches.num_steps, window_steps):
            images, labels = self._window(batches, epoch, window, window_steps)
            for step, count, size in self._units_of(batches, max(window, first_step), window + window_steps):
                with self._on_stream():
                    unit = self._units.get((count, size, images.shape[-1]))
                    unit = unit or self._new_unit(count, size, images, sums)
                    rows = slice(
                        (step - window) * batches.batch_size, (step - window) * batches.batch_size + count * size
                    )
                    unit.fill(images[rows], labels[rows], step, [table[step : step + count] for table in tables])
                    self._run(unit, randomness.step_seed(self._settings.seed, epoch, step))
                for counting in (self._settings.average, self._settings.lookahead):
                    if counting is not None:
                        counting.num_updates += count
                yield step + count
            del images, labels  # before there are those of the next
        self._captured = self._frozen(sums)  # now that the optimizer has made its state

    def _tables(self, num_steps: int, first_step: int, multipliers: Sequence[float]) -> list[Tensor]:
        """What the steps of an epoch read, on the device.

        Learning rates ``(num_steps, groups)``, weights of the average ``(num_steps,)``, rows of the lookahead's table
        ``(num_steps, 2)``.
        """
        groups, average = self._settings.optimizer.param_groups, self._settings.average
        lookahead = self._settings.lookahead
        for group in groups:
            if not isinstance(group["lr"], Tensor) or group["lr"].device != self._device:
                group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32).to(self._device)
        per_step = torch.tensor(multipliers, dtype=torch.float64).expand(num_steps)
        base = torch.tensor([group["initial_lr"] for group in groups], dtype=torch.float64)
        done = 0 if average is None else average.num_updates - first_step
        weights = [0.0 if average is None else average.weight_at(max(0, done + step)) for step in range(num_steps)]
        begun = 0 if lookahead is None else lookahead.num_updates - first_step
        pulls = torch.zeros(num_steps, 2) if lookahead is None else lookahead.table[begun : begun + num_steps]
        tables = ((per_step[:, None] * base).float(), torch.tensor(weights, dtype=torch.float64), pulls)
        return [table.to(self._device, non_blocking=True) for table in tables]

    def _count_on_device(self) -> None:
        """Where the flags want the counters of an optimizer that has stepped before it was given to us, or loaded."""
        for parameter, state in self._settings.optimizer.state.items():
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    def _frozen(self, sums: RunningSums) -> list[Any]:
        """What a graph has once for all: where its tensors lie, and every setting that is a number of the host."""
        settings = self._settings
        tensors = [
            *settings.model.parameters(),
            *settings.model.buffers(),
            *(value for state in settings.optimizer.state.values() for value in state.values()),
            *(group["lr"] for group in settings.optimizer.param_groups),
            *(() if settings.lookahead is None else settings.lookahead.weights.values()),
            *(() if settings.average is None else settings.average.weights.values()),
            *sums.tensors,
        ]
        return [
            [tensor.data_ptr() for tensor in tensors if isinstance(tensor, Tensor)],
            [parameter.requires_grad for parameter in settings.model.parameters()],
            [_plain({**group, "lr": None, "initial_lr": None}) for group in settings.optimizer.param_groups],
            [_plain(vars(module)) for module in settings.model.modules()],
        ]

    def _forget(self) -> None:
        """Capture anew, as after loading a state, or where a layer was frozen between two epochs."""
        self._units.clear()
        self._pool = None

    def _window_steps(self, batches: Batches) -> int:
        side = self._settings.transforms.preprocess.size  # no epoch has larger images
        pixel_bytes = self._settings.precision.weights.itemsize
        unit_bytes = self.steps_per_graph * batches.batch_size * batches.channels * side**2 * pixel_bytes
        return self.steps_per_graph * max(1, WINDOW_BYTES // unit_bytes)

    def _window(self, batches: Batches, epoch: int, start: int, num_steps: int) -> tuple[Images, Labels]:
        """Images of these steps as the network takes them, in the epoch's order.

        A window begins and ends where it always does, whatever step is trained next: sums over an image's pixels could
        differ in the last bit with the number of images beside it.
        """
        order = batches.order(epoch)[start * batches.batch_size : (start + num_steps) * batches.batch_size]
        images: Tensor | None = None
        for first in range(0, len(order), CHUNK):
            batch = batches.select(order[first : first + CHUNK])
            with randomness.scope(self._settings.seed, epoch, batch.ids):
                chunk = self._settings.precision.prepare(prepared(self._settings, batch.images))
            if images is None:
                images = _channels_last((len(order), *chunk.shape[1:]), chunk)
            images[first : first + CHUNK] = chunk
        assert images is not None
        return images, batches.select(order).labels

    def _units_of(self, batches: Batches, step: int, end: int) -> Iterator[tuple[int, int, int]]:
        """First step, number of steps and images a step of each unit from ``step`` to ``end``."""
        num_whole, rest = divmod(batches.num_images, batches.batch_size)
        while step < min(end, num_whole):
            last = min((step // self.steps_per_graph + 1) * self.steps_per_graph, num_whole)
            yield step, last - step, batches.batch_size
            step = last
        if rest and step == num_whole < end:
            yield step, 1, rest

    def _new_unit(self, count: int, size: int, images: Images, sums: RunningSums) -> _Unit:
        unit, side = _Unit(self._settings, count, size, images, sums), images.shape[-1]
        if any(key[2] != side for key in self._units):  # of an epoch before: their memory would lie idle
            self._forget()
        self._units[count, size, side] = unit
        return unit

    def _run(self, unit: _Unit, seed: int) -> None:
        is_due = unit.replay is None and unit.has_run and self._capture is not None
        if is_due and self._probe is None:
            assert self._capture is not None
            try:
                unit.replay = self._capture(unit.steps)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._give_up(str(error).splitlines()[0])
        randomness.seed_torch(seed, self._device)  # a graph draws from where the generator is when it is replayed
        if is_due and self._probe is not None:
            probe, self._probe = self._probe, None
            if reason := probe(unit.steps):
                self._give_up(reason)
        else:
            (unit.replay or unit.steps)()
        unit.has_run = True

    def _give_up(self, reason: str) -> None:
        warnings.warn(f"a step cannot be captured in a CUDA graph ({reason}); training eagerly", stacklevel=2)
        self._capture = None
        self.name = EagerBackend.name

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Work on the stream that is captured; before and after, everybody else's work on the device is in order."""
        if self._stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            caller.wait_stream(self._stream)

    def _capture_cuda_graph(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # A checkpoint may be written meanwhile, by a thread that waits for its copies: that is its own affair.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            function()
        return graph.replay


class _Unit:
    """Some steps with a batch of one size, and the buffers that they read."""

    def __init__(self, settings: StepSettings, count: int, size: int, like: Images, sums: RunningSums) -> None:
        self._settings = settings
        self._count = count
        self._size = size
        self._sums = sums
        device = like.device
        self._images = _channels_last((count * size, *like.shape[1:]), like)
        self._labels = torch.empty(count * size, dtype=torch.int64, device=device)
        self._step = torch.empty((), dtype=torch.int64, device=device)
        self._rates = torch.empty(count, len(settings.optimizer.param_groups), device=device)
        self._averaging = torch.empty(count, dtype=torch.float64, device=device)
        self._pulls = torch.empty(count, 2, dtype=torch.float64, device=device)
        self.has_run = False
        self.replay: Callable[[], None] | None = None

    def fill(self, images: Images, labels: Labels, step: int, tables: Sequence[Tensor]) -> None:
        """What the next run reads; ``step`` is its first, the tables have a row for each."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._step.fill_(step)
        for buffer, table in zip((self._rates, self._averaging, self._pulls), tables, strict=True):
            buffer.copy_(table)

    def steps(self) -> None:
        """Train on what is in the buffers."""
        settings = self._settings
        for i in range(self._count):
            part = slice(i * self._size, (i + 1) * self._size)
            for group, rate in zip(settings.optimizer.param_groups, self._rates[i], strict=True):
                group["lr"].copy_(rate)
            update(
                settings,
                self._images[part],
                self._labels[part],
                self._sums,
                self._step + i,
                loss_and_logits=self._loss_and_logits,
                lookahead_row=None if settings.lookahead is None else self._pulls[i],
                averaging_weight=None if settings.average is None else self._averaging[i],
            )
        settings.optimizer.zero_grad()  # gradients would keep memory that belongs to the graph

    def _loss_and_logits(self, images: Images, labels: Tensor) -> tuple[Tensor, Logits]:
        return forward(self._settings, images, labels)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and names, alone or in tuples."""
    return {
        key: value
        for key, value in values.items()
        if all(isinstance(one, bool | int | float | str) for one in (value if isinstance(value, tuple) else (value,)))
    }


def _channels_last(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
