"""A backend that trains in a process of its own, a part each time it is told to."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cifarnet import randomness
from cifarnet.bench.memory import PeakMemory
from cifarnet.bench.timing import synchronize, timed
from cifarnet.data import DatasetSplits, ImageDataset
from cifarnet.errors import CifarnetError, SettingError
from cifarnet.inference import resolve_device
from cifarnet.inference.loader import TensorLoader
from cifarnet.recipes import Recipe, build_trainer
from cifarnet.training import Trainer

__all__ = ["BackendProcess", "Job"]

#: Parts before the clock: CUDA graphs run the last, shorter unit of a part in the first and capture it in the second.
WARM_UP_PARTS = 2


@dataclass(frozen=True)
class Job:
    """What a contender does.

    Args:
        recipe: What it trains.
        load: Gives the data.
        backend: Computes the steps.
        num_steps: Steps a part.
        num_parts: Parts that may be asked for.
        device: See `Trainer`.
        precision: See `Trainer`.
    """

    recipe: Recipe
    load: Callable[[], DatasetSplits]
    backend: str
    num_steps: int
    num_parts: int
    device: str
    precision: str


class BackendProcess:
    """The process of a backend, warmed up; it ends with the ``with`` block.

    Args:
        job: What it does.

    Raises:
        Exception: What its own process raised.
        CifarnetError: If its process ends.
    """

    def __init__(self, job: Job) -> None:
        self.name = job.backend
        self._job = job
        context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job))
        started = perf_counter()
        self._process.start()
        theirs.close()  # or the end of that process would not be seen here
        try:
            #: Megabytes resident once all is imported.
            self.imported_mb: float | None = self._receive()
            self._receive()
            self._start_s = perf_counter() - started
            self._facts: dict[str, Any] = self._receive()
        except BaseException:
            self.__exit__()
            raise
        self._parts: list[float] = []

    def __enter__(self) -> BackendProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # which it takes for the end
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def images_per_s(self) -> float:
        """Train a part."""
        self._connection.send("part")
        self._parts.append(self._receive())
        return self._job.num_steps * self._job.recipe.batch_size / self._parts[-1]

    def describe(self) -> dict[str, Any]:
        """Backend, precision, times and memory; no part can be asked for after it."""
        self._connection.send("end")
        answer = self._receive()
        typical = sorted(self._parts)[len(self._parts) // 2]
        warm_up_s = self._facts["warm_up_s"]
        return {
            "backend": self._facts["backend"],
            "precision": self._facts["precision"],
            "workers": None,
            "start_s": self._start_s,
            "preparation_s": max(0.0, warm_up_s - WARM_UP_PARTS * typical),
            "data_path_share": None if answer["data_path_s"] is None else answer["data_path_s"] / typical,
            "peak_memory_mb": answer["peak_memory_mb"],
        }

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise CifarnetError(
                f"the process that trains by {self.name} ended with exit code {self._process.exitcode}; is there "
                "memory enough for it?"
            ) from None
        if isinstance(answer, Exception):
            answer.add_note(f"raised in the process that trains by {self.name}")
            raise answer
        return answer


def _serve(connection: Connection, job: Job) -> None:
    """What the process does; it compiles anew, whatever torch has on disk of what it compiled before."""
    try:
        with TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            _train_on_request(connection, job)
    except (EOFError, KeyboardInterrupt):
        return  # nobody asks any more
    except Exception as error:
        connection.send(error)


def _train_on_request(connection: Connection, job: Job) -> None:
    device = resolve_device(job.device)
    memory = PeakMemory(device)
    connection.send(memory.resident_before)
    train, needed = job.load().train, job.num_steps * job.recipe.batch_size
    if len(train) < needed:
        raise SettingError(
            f"{job.num_steps} steps of {job.recipe.batch_size} images need {needed:,}, there are {len(train):,}"
        )
    train = train.subset(range(needed))
    trainer = build_trainer(job.recipe, train, device=device, precision=job.precision)
    trainer.cuda_graph = job.backend != "eager"
    told = False

    def tell_first_step(*_: object) -> None:
        nonlocal told
        if not told:
            told = True
            synchronize(device)
            connection.send("first step")

    hook = trainer.optimizer.register_step_post_hook(tell_first_step)
    records = trainer.epochs(train, max_epochs=WARM_UP_PARTS + job.num_parts, batch_size=job.recipe.batch_size)
    train_part = partial(next, records)  # an epoch of the part's images: at its end it waits for the device
    warm_up_s = sum(timed(train_part) for _ in range(WARM_UP_PARTS))
    hook.remove()
    backend = "cuda-graph" if trainer.uses_cuda_graph else "eager"
    connection.send({"backend": backend, "precision": trainer.precision.name, "warm_up_s": warm_up_s})
    while connection.recv() == "part":
        connection.send(timed(train_part))
    peak_mb = memory.read()
    in_windows = trainer.uses_cuda_graph  # where the images of many steps are prepared together
    data_path_s = None if in_windows else _time_data_path(trainer, train, job.recipe.batch_size)
    connection.send({"peak_memory_mb": peak_mb, "data_path_s": data_path_s})


def _time_data_path(trainer: Trainer, train: ImageDataset, batch_size: int) -> float:
    """Seconds for what a part does with its images before the network takes them, and nothing else; median of three."""
    batches = TensorLoader(train.images, train.labels, train.ids, batch_size=batch_size, device=trainer.device, seed=0)

    def prepare() -> None:
        for batch in batches.epoch(0):
            with randomness.scope(0, 0, batch.ids):
                trainer.precision.prepare(trainer.transforms.train(batch.images))
        synchronize(trainer.device)

    prepare()  # kernels are loaded
    return statistics.median(timed(prepare) for _ in range(3))
