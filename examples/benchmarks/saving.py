#!/usr/bin/env python3
"""Cost of saving a run during training, and time to read the checkpoint.

    saving.py --data DIR

Parts with a save and parts without one train in turns. A part is two epochs of `--steps` steps. In a part with a save,
the first epoch is a new best one: `last` and `best` are copied at its end, and written during the second. So an epoch
must take longer than a write.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import count as counter
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cifarnet import Checkpointer
from cifarnet.cli.data_source import load_data
from cifarnet.recipes import build_trainer, get_recipe
from measurement import build_parser, count, make_report, publish, summarize


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--steps", type=count, default=50, help="steps per epoch (default: 50)")
    parser.add_argument("--rounds", type=count, default=10, help="parts with a save, and as many without (default: 10)")
    args = parser.parse_args()
    recipe, data = get_recipe(args.recipe), load_data(args.data)
    num_images = args.steps * recipe.batch_size
    if len(data.train) < num_images:
        sys.exit(f"--steps {args.steps} needs {num_images:,} images, and there are {len(data.train):,}")
    trainer = build_trainer(recipe, data.train, device=args.device, precision=args.precision)
    epochs = counter()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with TemporaryDirectory() as directory:
        checkpointer = Checkpointer(directory, save_every_s=float("inf"))
        records = trainer.epochs(
            data.train.subset(range(num_images)),
            data.test.subset([0]),
            max_epochs=2 + 4 * args.rounds,
            batch_size=recipe.batch_size,
            checkpointer=checkpointer,
            monitor="val_part",
            metrics={"part": lambda *_: epoch if (epoch := next(epochs)) % 4 == 2 else -1},
        )
        for part in range(-1, 2 * args.rounds):
            clock = perf_counter()
            next(records), next(records)
            if part >= 0:  # the first one is a warm-up
                seconds[part % 2 == 0].append(perf_counter() - clock)
        records.close()
        writes, reads = [], []
        for _ in range(args.rounds):
            clock = perf_counter()
            checkpointer.save(trainer)
            writes.append(perf_counter() - clock)
            checkpointer.read_last()
            reads.append(perf_counter() - clock - writes[-1])
        size = checkpointer.last_path.stat().st_size
    saved, plain = summarize(seconds[True]), summarize(seconds[False])
    epoch_s = plain["median"] * len(data.train) / (2 * num_images)
    cost_s = saved["median"] - plain["median"]
    results = {
        "recipe": recipe.name,
        "steps": 2 * args.steps,
        "part_s": plain,
        "part_with_save_s": saved,
        "epoch_s": epoch_s,
        "cost_s": cost_s,
        "share_of_an_epoch": cost_s / epoch_s,
        "last_bytes": size,
        "write_s": summarize(writes),
        "read_s": summarize(reads),
    }
    report = make_report("saving", trainer.precision, results, data=data.train)
    publish(report, format_table(report), args.json)


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report as a table in Markdown."""
    is_old = "copy_s" in report
    write = "write of `last` and `best`, beside the training" if is_old else "write of `last` alone"
    rows = [
        *([("copy of the state, between two steps", report["copy_s"])] if is_old else []),
        (write, report["write_s"]),
        (f"{report['steps']} steps", report["part_s"]),
        (f"{report['steps']} steps with a save", report["part_with_save_s"]),
        (f"reading `last` ({report['last_bytes'] / 1e6:.1f} MB), hash included", report["read_s"]),
    ]
    lines = ["| | median | range | n |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {x['median']:.3f} s | {x['min']:.3f} to {x['max']:.3f} s | {x['n']} |" for name, x in rows]
    times = report.get("times_each_byte_is_read")
    lines += [
        "",
        f"Saving every epoch costs {report['share_of_an_epoch']:.1%} of an epoch of {report['epoch_s']:.1f} s"
        + ("." if times is None else f"; each byte is read {times:.2f} times."),
        f"{report['hardware']}, {report['precision']}, torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
