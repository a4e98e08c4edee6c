"""Training loop: a generator that trains, evaluates, selects and saves, and yields a record per epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnet import randomness
from cifarnet._types import Labels, Logits
from cifarnet.checkpoint import Checkpointer
from cifarnet.errors import DeviceMemoryError
from cifarnet.inference.evaluate import evaluate_loss
from cifarnet.inference.loader import Batch
from cifarnet.inference.out_of_memory import out_of_memory_advice
from cifarnet.training.checkpointing import CheckpointSaver, restore_run
from cifarnet.training.cuda_graph import GraphedUpdate, windows
from cifarnet.training.history import EpochRecord
from cifarnet.training.progress import Progress
from cifarnet.training.run_data import RunData, check_batch
from cifarnet.training.signals import GracefulShutdown, StopRequestedError, WatchedLoader
from cifarnet.training.state import check_finite
from cifarnet.training.step import train_step, update

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["Metric", "run_epochs"]

#: ``(logits, labels) -> value`` over all images of an evaluation.
Metric = Callable[[Logits, Labels], float | Tensor]


def run_epochs(
    trainer: Trainer,
    data: RunData,
    *,
    checkpointer: Checkpointer | None,
    resume: bool,
    init_from: Any,
    monitor: str,
    patience: int | None,
    metrics: Mapping[str, Metric],
    bar: Progress,
) -> Generator[EpochRecord, None, None]:
    """Train to the end of the run, and yield the record of each epoch; see `Trainer.epochs`."""
    state, group = trainer.state, trainer.group
    with (
        trainer.prepared_for_run(),
        GracefulShutdown(group) as shutdown,
        CheckpointSaver(checkpointer, trainer, data) as saver,
    ):
        group.check_equal(
            {
                "max_epochs": data.max_epochs,
                "number of validation batches": None if data.val is None else data.val.num_steps,
                "number of test batches": None if data.test is None else data.test.num_steps,
                "checkpointer": checkpointer is not None,
                "resume": resume,
                "monitor": monitor,
                "patience": patience,
                "metrics": sorted(metrics),
            }
        )
        restore_run(trainer, data, saver, checkpointer, resume=resume, init_from=init_from, monitor=monitor)
        graph = GraphedUpdate(trainer) if trainer.uses_cuda_graph else None
        bar.start(state, patience)
        try:
            while state.epoch < data.max_epochs and not state.best.is_stale(patience):
                with _training(trainer, data):
                    _train_epoch(trainer, data, saver, shutdown, bar, graph)
                    record = _finish_epoch(trainer, data, shutdown, metrics)
                is_best = data.val is not None and state.best.update(record, state.evaluated_weights)
                saver.after_epoch(is_best=is_best)
                is_closed = False
                try:
                    with shutdown.suspended():
                        yield record
                except GeneratorExit:  # `break` or an error in the loop body of the caller
                    is_closed = True
                if group.all_reduce_max(is_closed) == [True]:  # one process ends the loop of all
                    break
                shutdown.check()
        except StopRequestedError as request:
            bar.show_line(saver.stop())
            group.wait()  # torchrun ends the others when one process exits with an error
            raise request.outcome from None
        except Exception as error:
            if shutdown.requested is None or data.train.starts_anywhere:
                raise
            bar.show_line(saver.stop(in_step=True))  # the signal ended the workers of the DataLoader too
            raise shutdown.requested.outcome from error
        saver.finish()
        group.wait()
    state.put_best_weights()


@contextmanager
def _training(trainer: Trainer, data: RunData) -> Iterator[None]:
    """Isolate the random state of the caller and explain what runs out or gets lost."""

    def advice() -> str:
        size = data.batch_size
        what = "A batch" if size is None else f"batch_size={size}"
        remedy = "Use smaller batches" if size is None or size < 2 else f"Use {size // 2} or accumulate_grad_batches=2"
        return f"{what} does not fit into the memory of {trainer.device}. {remedy}"

    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),  # the caller may be in torch.no_grad
            randomness.isolated(trainer.device, deterministic=trainer.deterministic),
            trainer.group.explained_loss(),
            out_of_memory_advice(trainer.device, advice),
        ):
            yield
    except DeviceMemoryError:
        trainer.optimizer.zero_grad(set_to_none=True)
        raise


def _train_epoch(
    trainer: Trainer,
    data: RunData,
    saver: CheckpointSaver,
    shutdown: GracefulShutdown,
    bar: Progress,
    graph: GraphedUpdate | None,
) -> None:
    """Train from the current step to the end of the epoch."""
    state = trainer.state
    started = time.perf_counter() - state.train_s
    trainer.wrap_network()
    trainer.set_training_mode()
    if len(trainer.optimizer.param_groups) > len(state.base_lrs):  # the caller may add some between epochs
        trainer.prepare_optimizer()
        trainer.identity.add_groups()
    if graph is not None:
        graph.drop_outdated(trainer)
    randomness.seed_torch(randomness.step_seed(trainer.seed, state.epoch, -1), trainer.device)  # for a sampler
    batches = data.train.epoch(state.epoch, state.step) if graph is None else windows(trainer, data.train)
    for batch in batches:
        check_batch(trainer, data, batch)
        multiplier = data.multiplier(state.epoch, state.step)
        train_step(trainer, batch, step=state.step, multiplier=multiplier, update=graph or update)
        state.complete_step(time.perf_counter() - started)
        bar.show_step(state)
        saver.after_step()
        shutdown.check()
    check_batch(trainer, data, None)
    check_finite(trainer)  # synchronizes with the device
    state.train_s = time.perf_counter() - started


def _finish_epoch(
    trainer: Trainer, data: RunData, shutdown: GracefulShutdown, metrics: Mapping[str, Metric]
) -> EpochRecord:
    """Evaluate and record the epoch."""
    state, clock = trainer.state, time.perf_counter()
    # On a CPU, each process has the running statistics of its own images.
    trainer.group.broadcast([*trainer.model.buffers(), *(trainer.ema.weights.values() if trainer.ema else ())])
    totals = state.metric_totals()
    values = {"train_loss": totals.mean_loss, "train_accuracy": totals.accuracy}
    for split, loader, stream in (("val", data.val, -2), ("test", data.test, -3)):
        if loader is not None:
            # User-supplied code that draws must draw the same after a stop in the middle of the evaluation.
            randomness.seed_torch(randomness.step_seed(trainer.seed, state.epoch, stream), trainer.device)
            values |= _evaluate(trainer, WatchedLoader(loader, shutdown), split, metrics)
    record = EpochRecord(
        epoch=state.epoch + 1,
        global_step=state.global_step,
        learning_rate=float(trainer.optimizer.param_groups[0]["lr"]),
        train_s=state.train_s,
        eval_s=time.perf_counter() - clock,
        images_per_s=totals.num_images / state.train_s,
        metrics=values,
    )
    state.complete_epoch(record)
    return record


def _evaluate(trainer: Trainer, loader: WatchedLoader, split: str, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Return loss, accuracy and the caller's metrics. All processes evaluate everything, and rank 0 decides."""
    all_logits: list[Logits] = []
    all_labels: list[Labels] = []

    def keep(logits: Logits, batch: Batch) -> None:
        all_logits.append(logits)
        all_labels.append(batch.labels)

    with trainer.state.evaluated():
        totals = evaluate_loss(
            trainer.model,
            loader,
            preprocess=trainer.preprocess,
            loss_fn=trainer.loss_fn,
            precision=trainer.precision,
            observe=keep if metrics else None,
        )
    values = {f"{split}_loss": totals.mean_loss, f"{split}_accuracy": totals.accuracy}
    for name, metric in metrics.items():
        values[f"{split}_{name}"] = float(metric(torch.cat(all_logits), torch.cat(all_labels)))
    agreed: dict[str, float] = trainer.group.broadcast_from_first(lambda: values)
    return agreed
