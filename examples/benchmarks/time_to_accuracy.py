#!/usr/bin/env python3
"""Time to accuracy of a recipe: whole runs with the seeds 0, 1, ..., timed as the speed records are.

    time_to_accuracy.py --data DIR                                              three runs of the reference recipe
    time_to_accuracy.py --data DIR --recipe fast94 --runs 40 --target 0.94      does the mean reach 94 %?

A warm-up before the first run loads kernels and compiles. The data are on the device before the clock starts. The clock
includes what the network computes from the images before training, all epochs and the capture of CUDA graphs. The test
images are evaluated once after each run and choose nothing. With `--target`, a one-sided t test says whether the mean
accuracy of all possible runs is above it. It uses test-time augmentation if the recipe has it, as the speed records do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cifarnet import DatasetSplits, Trainer
from cifarnet.cli.data_source import load_data
from cifarnet.inference import resolve_device, resolve_precision
from cifarnet.recipes import Recipe, build_trainer, get_recipe
from cifarnet.recipes.builders import fit_to_images
from measurement import (
    build_parser,
    count,
    make_report,
    max_rss_mb,
    p_value,
    peak_memory_mb,
    publish,
    summarize,
    summarize_accuracies,
    synchronize,
)

WARM_UP_STEPS = 64  # enough to capture and replay a CUDA graph


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--runs", type=count, default=3, help="seeds 0 to RUNS - 1; a claim needs 40 (default: 3)")
    parser.add_argument("--epochs", type=count, help="instead of those of the recipe")
    parser.add_argument("--target", type=fraction, help="fraction that the mean accuracy must reach, such as 0.94")
    parser.add_argument("--no-cuda-graph", action="store_true", help="run the steps one by one on CUDA")
    args = parser.parse_args()
    recipe = get_recipe(args.recipe)
    recipe = replace(recipe, max_epochs=args.epochs or recipe.max_epochs)
    device = resolve_device(args.device)
    data, before = load_data(args.data), max_rss_mb()
    options = {"device": device, "precision": args.precision, "cuda_graph": not args.no_cuda_graph}
    build = partial(build_trainer, recipe, data.train, **options)
    clock = time.perf_counter()
    warm_up(build(seed=args.runs), recipe, data)
    warm_up_s = time.perf_counter() - clock
    trials = [train(build(seed=seed, fitted=False), recipe, data) for seed in range(args.runs)]
    results = {
        "recipe": recipe.name,
        "epochs": recipe.max_epochs,
        "batch_size": recipe.batch_size,
        "tta": recipe.tta,
        "target": args.target,
        "warm_up_s": warm_up_s,
        "peak_memory_mb": peak_memory_mb(device, before),
        **summarize_trials(trials, args.target, len(data.test)),
    }
    precision = resolve_precision(args.precision, device)
    report = make_report("accuracy", precision, results, data=data.train, test_data=data.test)
    publish(report, format_table(report), args.json)


def fraction(text: str) -> float:
    """Parse a fraction."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1), got {value}. 0.94 is 94 %")
    return value


def warm_up(trainer: Trainer, recipe: Recipe, data: DatasetSplits) -> None:
    """Train and evaluate a little, so that the first timed run has what the later ones have."""
    num_images = min(len(data.train), WARM_UP_STEPS * recipe.batch_size)
    next(trainer.epochs(data.train.subset(range(num_images)), max_epochs=1, batch_size=recipe.batch_size))
    trainer.evaluate(data.test.subset(range(min(len(data.test), 500))), tta=recipe.tta)
    _ = data.train.fingerprint  # computed once, 0.1 s


def train(trainer: Trainer, recipe: Recipe, data: DatasetSplits) -> dict[str, Any]:
    """Train and evaluate one run under the clock."""
    records = trainer.epochs(data.train, max_epochs=recipe.max_epochs, batch_size=recipe.batch_size)
    synchronize(trainer.device)
    clock = [time.perf_counter()]
    fit_to_images(trainer, data.train)
    epochs_s = [record.train_s for record in records]
    synchronize(trainer.device)
    clock.append(time.perf_counter())
    evaluation = trainer.evaluate(data.test)
    clock.append(time.perf_counter())
    augmented = None if recipe.tta is None else trainer.evaluate(data.test, tta=recipe.tta)
    clock.append(time.perf_counter())
    return {
        "seed": trainer.seed,
        "backend": "cuda-graph" if trainer.uses_cuda_graph else "eager",
        "train_s": clock[1] - clock[0],
        "preparation_s": max(0.0, epochs_s[0] - statistics.median(epochs_s[1:])) if len(epochs_s) > 1 else None,
        "eval_s": clock[2] - clock[1],
        "accuracy": evaluation.accuracy,
        "eval_tta_s": None if augmented is None else clock[3] - clock[2],
        "accuracy_tta": None if augmented is None else augmented.accuracy,
        "num_correct": evaluation.num_correct,
        "loss": evaluation.loss,
    }


def summarize_trials(trials: list[dict[str, Any]], target: float | None, num_images: int) -> dict[str, Any]:
    """Summarize accuracies and seconds, and test the target."""
    prepared = [trial for trial in trials if trial["preparation_s"] is not None]
    accuracies = [trial["accuracy"] for trial in trials]
    augmented = [trial["accuracy_tta"] for trial in trials if trial["accuracy_tta"] is not None]
    without = [trial["train_s"] - trial["preparation_s"] for trial in prepared]
    return {
        "backend": trials[0]["backend"],
        "accuracy": summarize_accuracies(accuracies, num_images),
        "accuracy_tta": summarize_accuracies(augmented, num_images) if augmented else None,
        "p_value": None if target is None else p_value(augmented or accuracies, target),
        "train_s": summarize([trial["train_s"] for trial in trials]),
        "preparation_s": summarize([trial["preparation_s"] for trial in prepared]) if prepared else None,
        "train_without_preparation_s": summarize(without) if prepared else None,
        "eval_s": summarize([trial["eval_s"] for trial in trials]),
        "eval_tta_s": summarize([trial["eval_tta_s"] for trial in trials]) if augmented else None,
        "trials": trials,
    }


def format_table(report: Mapping[str, Any]) -> str:
    """Return the report as a table in Markdown."""
    lines = ["| | mean or median | 95 % interval or range | n |", "| --- | --- | --- | --- |"]
    names = {"accuracy": "test accuracy", "accuracy_tta": f"test accuracy with {report['tta']}"}
    for key, name in names.items():
        if (one := report[key]) is not None:
            low, high = one["interval"]
            lines.append(
                f"| {name} | {one['mean']:.2%} | {low:.2%} to {high:.2%} ({one['interval_of']}) | {one['n']} |"
            )
    names = {
        "train_s": "training",
        "preparation_s": "of it, the first epoch beyond the others",
        "train_without_preparation_s": "training without that",
        "eval_s": "evaluation of the test images",
        "eval_tta_s": f"evaluation with {report['tta']}",
    }
    for key, name in names.items():
        if (one := report[key]) is not None:
            lines.append(f"| {name} | {one['median']:.3f} s | {one['min']:.3f} to {one['max']:.3f} s | {one['n']} |")
    lines += [f"| peak memory | {report['peak_memory_mb']:,.0f} MB | | |", ""]
    if report["target"] is not None and report["p_value"] is None:
        lines.append(f"The runs have no spread, so no test says whether the mean reaches {report['target']:.2%}.")
    elif report["target"] is not None:
        lines.append(f"One-sided t test for a mean above {report['target']:.2%}: p = {report['p_value']:.2g}.")
    lines.append(
        f"Recipe {report['recipe']}, {report['epochs']} epochs, batches of {report['batch_size']} images, "
        f"{report['backend']}, {report['hardware']}, {report['precision']}, torch {report['versions']['torch']}. "
        f"The warm-up took {report['warm_up_s']:.1f} s."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
