"""One whole run of a recipe under the clock."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cifarnet.bench.timing import synchronize
from cifarnet.checkpoint import Checkpointer
from cifarnet.checkpoint.background import BackgroundWriter, snapshot
from cifarnet.checkpoint.state_dict import unwrapped_state_dict
from cifarnet.datasets import DatasetSplits
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.recipes import Recipe, fit_to_images
from cifarnet.training import Trainer

__all__ = ["Trial", "run_trial", "warm_up"]

#: Plain values of one run.
Trial = dict[str, Any]

_WARM_UP_STEPS = 64  # enough for a CUDA graph to be captured and replayed


def warm_up(trainer: Trainer, recipe: Recipe, data: DatasetSplits) -> None:
    """Train and evaluate a little, so that the first run under the clock finds what every later one does.

    Args:
        trainer: Used up by this.
        recipe: What it was built for.
        data: Some of which is used.
    """
    num_images = min(len(data.train), _WARM_UP_STEPS * recipe.batch_size)
    next(trainer.epochs(data.train.subset(range(num_images)), max_epochs=1, batch_size=recipe.batch_size))
    trainer.evaluate(data.test.subset(range(min(len(data.test), EVAL_BATCH_SIZE))), tta=recipe.tta)
    _ = data.train.fingerprint  # a run asks for it, and the data keep it: a tenth of a second for CIFAR-10


def run_trial(build: Callable[..., Trainer], recipe: Recipe, data: DatasetSplits, *, seed: int, saves: bool) -> Trial:
    """One run.

    Args:
        build: Makes a trainer of ``seed=``.
        recipe: Says how long it trains.
        data: Images to learn from, and to be judged by once at the end.
        seed: The run's.
        saves: Whether ``last`` and ``best`` are saved beside the training after every epoch.

    Returns:
        What was measured, see `measure_accuracy`.
    """
    gc.collect()  # a trainer before this one may lie in a cycle, and hold memory
    with ExitStack() as stack:
        started = perf_counter()
        trainer = build(seed=seed, fitted=False)
        records = trainer.epochs(data.train, max_epochs=recipe.max_epochs, batch_size=recipe.batch_size)
        synchronize(trainer.device)
        begun = perf_counter()
        fit_to_images(trainer, data.train)
        if saves:
            directory = stack.enter_context(TemporaryDirectory())
            checkpointer = stack.enter_context(Checkpointer(directory))
            with closing(BackgroundWriter("last", "best")) as writer:
                for _ in records:
                    _save(trainer, checkpointer, writer)
        else:
            for _ in records:
                pass
        synchronize(trainer.device)
        train_s = perf_counter() - begun
    clock = perf_counter()
    evaluation = trainer.evaluate(data.test)
    eval_s = perf_counter() - clock
    clock = perf_counter()
    augmented = None if recipe.tta is None else trainer.evaluate(data.test, tta=recipe.tta)
    eval_tta_s = perf_counter() - clock
    first, *others = [record.train_s for record in trainer.history]
    return {
        "seed": seed,
        "saves": saves,
        "backend": "cuda-graph" if trainer.uses_cuda_graph else "eager",
        "build_s": begun - started,
        "train_s": train_s,
        "preparation_s": (
            max(0.0, first - statistics.median(others)) if others and len(set(recipe.sizes)) < 2 else None
        ),
        "eval_s": eval_s,
        "accuracy": evaluation.accuracy,
        "eval_tta_s": None if augmented is None else eval_tta_s,
        "accuracy_tta": None if augmented is None else augmented.accuracy,
        "num_correct": evaluation.num_correct,
        "loss": evaluation.loss,
    }


def _save(trainer: Trainer, checkpointer: Checkpointer, writer: BackgroundWriter) -> None:
    """As `Trainer.fit` does when an epoch is the best so far."""
    state = snapshot(trainer.state_dict())
    weights = snapshot(unwrapped_state_dict(trainer.model))
    writer.put(
        last=partial(checkpointer.save_state, state),
        best=partial(checkpointer.save_best, weights, {"model": type(trainer.model).__name__}),
    )
