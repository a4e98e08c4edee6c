"""What it costs to save a run while it trains, and to read it again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cifarnet._validation import check_count
from cifarnet.bench.timing import summarize, timed
from cifarnet.checkpoint import Checkpointer
from cifarnet.checkpoint.background import BackgroundWriter, snapshot
from cifarnet.checkpoint.state_dict import unwrapped_state_dict
from cifarnet.datasets import ImageDataset
from cifarnet.errors import SettingError
from cifarnet.inference import describe_machine
from cifarnet.recipes import Recipe, build_trainer

__all__ = ["format_saving", "measure_saving"]

_COUNTERS = Path("/proc/self/io")  # Linux alone has them


def measure_saving(
    recipe: Recipe,
    train: ImageDataset,
    *,
    num_steps: int = 100,
    rounds: int = 10,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Train with and without a save in turns; then read the checkpoint.

    A part is ``num_steps`` steps. Every other part begins with what `Trainer.fit` does when an epoch is the best so
    far: it copies state and weights, and writes ``last`` and ``best`` in a thread while the training goes on. The
    difference of the medians is what a save costs, and its share of an epoch what saving every epoch costs. A part
    has to take longer than a write.

    Args:
        recipe: What is trained.
        train: At least ``num_steps`` batches are taken of it; an epoch is all of it.
        num_steps: Steps a part.
        rounds: Parts with a save, and as many without.
        device: See `Trainer`.
        precision: See `Trainer`.

    Returns:
        Plain values; times in seconds.

    Raises:
        SettingError: If a value is outside its range, or there are too few images.
    """
    check_count("num_steps", num_steps, "100 is the default")
    check_count("rounds", rounds, "10 is the default")
    needed = num_steps * recipe.batch_size
    if len(train) < needed:
        raise SettingError(f"{num_steps} steps of {recipe.batch_size} images need {needed:,}, there are {len(train):,}")
    trainer = build_trainer(recipe, train, device=device, precision=precision)
    parts: dict[bool, list[float]] = {False: [], True: []}
    copies: list[float] = []
    writes: list[float] = []
    with (
        TemporaryDirectory() as directory,
        Checkpointer(directory) as checkpointer,
        closing(BackgroundWriter("last", "best")) as writer,
    ):

        def write(save: Any, *content: Any) -> None:
            writes[-1] += timed(partial(save, *content))

        records = trainer.epochs(train.subset(range(needed)), max_epochs=2 * rounds + 1, batch_size=recipe.batch_size)
        next(records)  # the first part is slower, and the first save needs something to save
        for part in range(2 * rounds):
            saves = part % 2 == 0
            started = perf_counter()
            if saves:
                state = snapshot(trainer.state_dict())
                weights = snapshot(unwrapped_state_dict(trainer.model))
                copies.append(perf_counter() - started)
                writes.append(0.0)
                writer.put(
                    last=partial(write, checkpointer.save_state, state),
                    best=partial(write, checkpointer.save_best, weights, {"recipe": recipe.name}),
                )
                del state, weights
            next(records)
            parts[saves].append(perf_counter() - started)
            writer.wait()
        size = checkpointer.last_path.stat().st_size
        reads, num_read = _read_times(checkpointer, rounds)
    saved, plain = summarize(parts[True]), summarize(parts[False])
    epoch_s = plain["median"] * len(train) / needed
    cost_s = saved["median"] - plain["median"]
    return {
        "kind": "saving",
        "recipe": recipe.name,
        "steps": num_steps,
        "part_s": plain,
        "part_with_save_s": saved,
        "copy_s": summarize(copies),
        "write_s": summarize(writes),
        "epoch_s": epoch_s,
        "cost_s": cost_s,
        "share_of_an_epoch": cost_s / epoch_s,
        "last_bytes": size,
        "read_s": summarize(reads),
        "times_each_byte_is_read": None if num_read is None else num_read / size,
        **describe_machine(trainer.precision),
    }


def format_saving(document: Mapping[str, Any]) -> str:
    """The measurement of `measure_saving` as a table in Markdown.

    Args:
        document: What it gave.
    """
    rows = [
        ("copy of the state, between two steps", document["copy_s"]),
        ("write of `last` and `best`, beside the training", document["write_s"]),
        (f"{document['steps']} steps", document["part_s"]),
        (f"{document['steps']} steps with a save", document["part_with_save_s"]),
        (f"reading `last` ({document['last_bytes'] / 1e6:.1f} MB), hash included", document["read_s"]),
    ]
    lines = ["| | median | range | n |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {x['median']:.3f} s | {x['min']:.3f} to {x['max']:.3f} s | {x['n']} |" for name, x in rows]
    times = document["times_each_byte_is_read"]
    lines += [
        "",
        f"Saving every epoch costs {document['share_of_an_epoch']:.1%} of an epoch of {document['epoch_s']:.1f} s"
        + (f"; each byte is read {times:.2f} times." if times is not None else "."),
        f"{document['hardware']}, {document['precision']}, torch {document['versions']['torch']}.",
    ]
    return "\n".join(lines)


def _read_times(checkpointer: Checkpointer, rounds: int) -> tuple[list[float], float | None]:
    """Seconds of each reading, and bytes that the system was asked for in one, where it counts them."""
    before = _bytes_read()
    times = [timed(checkpointer.read_last) for _ in range(rounds)]
    return times, None if before is None else ((_bytes_read() or 0) - before) / rounds


def _bytes_read() -> int | None:
    if not os.access(_COUNTERS, os.R_OK):
        return None
    counters = dict(line.split(": ") for line in _COUNTERS.read_text().splitlines())
    return int(counters["rchar"])
