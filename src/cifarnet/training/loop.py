"""Training loop: a generator that trains, evaluates, selects and saves, and yields a record per epoch."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from cifarnet import randomness
from cifarnet.inference.evaluate import evaluate_loss, predict_batches
from cifarnet.inference.loader import Batch
from cifarnet.training.checkpointing import CheckpointSaver
from cifarnet.training.cuda_graph import GraphedUpdate, windows
from cifarnet.training.history import EpochRecord
from cifarnet.training.preparation import isolated, prepare_network, prepare_optimizer, prepared
from cifarnet.training.progress import Progress
from cifarnet.training.resume import restore_run
from cifarnet.training.run_settings import RunSettings, check_batch
from cifarnet.training.signals import GracefulShutdown, StopRequestedError
from cifarnet.training.state import check_finite
from cifarnet.training.step import train_step, update

if TYPE_CHECKING:
    from cifarnet.training.trainer import Trainer

__all__ = ["run_epochs"]


def run_epochs(trainer: Trainer, run: RunSettings, bar: Progress) -> Generator[EpochRecord, None, None]:
    """Train to the end of the run, and yield the record of each epoch; see `Trainer.epochs`."""
    state, group = trainer.state, trainer.group
    with prepared(trainer), GracefulShutdown(group) as shutdown, CheckpointSaver(trainer, run) as saver:
        restore_run(trainer, run, saver)
        graph = GraphedUpdate(trainer) if trainer.uses_cuda_graph else None
        bar.start()
        try:
            while state.epoch < run.max_epochs and not state.best.is_stale(run.patience):
                with isolated(trainer, run):
                    for _ in shutdown.checked(_train_epoch(trainer, run, graph)):
                        bar.show_step()
                        saver.after_step()
                    record = _finish_epoch(trainer, run, shutdown)
                is_best = run.val is not None and state.best.update(record, state.evaluated_weights)
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
            if shutdown.requested is None or run.train.starts_anywhere:
                raise
            bar.show_line(saver.stop(in_step=True))  # the signal ended the workers of the DataLoader too
            raise shutdown.requested.outcome from error
        saver.finish()
        group.wait()
    state.put_best_weights()


def _train_epoch(trainer: Trainer, run: RunSettings, graph: GraphedUpdate | None) -> Iterator[None]:
    """Train from the current step to the end of the epoch, and yield after each step."""
    state = trainer.state
    started = time.perf_counter() - state.train_s
    prepare_network(trainer)
    if len(trainer.optimizer.param_groups) > len(state.base_lrs):  # the caller may add some between epochs
        prepare_optimizer(trainer)
        trainer.identity.add_groups()
    if graph is not None:
        graph.drop_outdated(trainer)
    randomness.seed_torch(randomness.step_seed(trainer.seed, state.epoch, -1), trainer.device)  # for a sampler
    batches = run.train.epoch(state.epoch, state.step) if graph is None else windows(trainer, run.train)
    for batch in batches:
        check_batch(trainer, run, batch)
        train_step(trainer, batch, multiplier=run.multiplier(state.epoch, state.step), update=graph or update)
        state.complete_step(time.perf_counter() - started)
        yield
    check_batch(trainer, run, None)
    check_finite(trainer)  # synchronizes with the device
    state.train_s = time.perf_counter() - started


def _finish_epoch(trainer: Trainer, run: RunSettings, shutdown: GracefulShutdown) -> EpochRecord:
    """Evaluate and record the epoch."""
    state, clock = trainer.state, time.perf_counter()
    # On a CPU, the running statistics of each process are those of its images.
    trainer.group.broadcast([*trainer.model.buffers(), *(trainer.ema.weights.values() if trainer.ema else ())])
    totals = state.metric_totals()
    values = {"train_loss": totals.mean_loss, "train_accuracy": totals.accuracy}
    for split, loader, stream in (("val", run.val, -2), ("test", run.test, -3)):
        if loader is not None:
            # User-supplied code that draws must draw the same in a resumed run.
            randomness.seed_torch(randomness.step_seed(trainer.seed, state.epoch, stream), trainer.device)
            batches = loader.in_order()
            if run.train.starts_anywhere:  # otherwise the whole epoch would be trained again
                batches = shutdown.checked(batches)
            values |= _evaluate(trainer, run, split, batches)
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


def _evaluate(trainer: Trainer, run: RunSettings, split: str, batches: Iterable[Batch]) -> dict[str, float]:
    """Return loss, accuracy and the caller's metrics. All processes evaluate everything, and rank 0 decides."""
    model, precision = trainer.model, trainer.precision
    with trainer.state.evaluated():
        predictions = predict_batches(model, batches, preprocess=trainer.preprocess, precision=precision)
        totals = evaluate_loss(model, predictions, loss_fn=trainer.loss_fn, precision=precision)
    values = {f"{split}_loss": totals.mean_loss, f"{split}_accuracy": totals.accuracy}
    for name, metric in run.metrics.items():
        values[f"{split}_{name}"] = float(metric(torch.cat(predictions.logits), torch.cat(predictions.labels)))
    agreed: dict[str, float] = trainer.group.broadcast_from_first(lambda: values)
    return agreed
