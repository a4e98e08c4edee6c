"""Time to accuracy: whole runs of a recipe, timed as the speed records are.

Data lie on the device before the clock starts; the clock is a wall clock that waits for the device; augmentation is on
it, evaluation has one of its own. Building is reported apart. What compiling and capturing cost is on the clock of
every run, and reported too. All runs are kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cifarnet._validation import check_count
from cifarnet.bench.cold import measure_cold
from cifarnet.bench.memory import PeakMemory
from cifarnet.bench.script import run_script
from cifarnet.bench.student import mean_interval, p_mean_at_most
from cifarnet.bench.timing import summarize, timed
from cifarnet.bench.trial import run_trial, warm_up
from cifarnet.data import DatasetSplits
from cifarnet.errors import SettingError
from cifarnet.inference import describe_machine, resolve_device, resolve_precision, wilson_interval
from cifarnet.recipes import Recipe, build_trainer

__all__ = ["format_accuracy", "measure_accuracy"]


def measure_accuracy(
    recipe: Recipe,
    data: DatasetSplits,
    *,
    runs: int = 3,
    target: float | None = None,
    saves: bool = False,
    script: Sequence[str] = (),
    cold: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    cuda_graph: bool = True,
) -> dict[str, Any]:
    """Train the recipe with the seeds 0, 1, ... and evaluate the test images once after each run.

    Before them, some steps that are not counted load kernels and fill the compiler's cache: ``warm_up_s``. Of each run

    - ``build_s``: initial weights, optimizer, data to the device;
    - ``train_s``: what the network takes from the images first (`fit_to_images`) and all epochs, compiling and
      capturing included; with saves also until the last file is on the disk;
    - ``preparation_s``: what the first epoch took beyond the median of the others, which is compiling and capturing;
      ``None`` where there is but one, or where later ones have larger images;
    - ``eval_s``, ``accuracy``: of the test images, once, with their way to the device;
    - ``eval_tta_s``, ``accuracy_tta``: the same with the recipe's test-time augmentation, if it has one.

    Args:
        recipe: What is trained.
        data: What it is trained and judged on; the test images select nothing.
        runs: Seeds. A claim of accuracy wants 40.
        target: Accuracy that the mean shall reach, a fraction; ``p_value`` is of the one-sided t-test for it, of
            accuracies with test-time augmentation where the recipe has one, as in the speed records.
        saves: Train each seed a second time, saving ``last`` and ``best`` beside the training after every epoch.
        script: A Python file and its arguments, trained with the same seeds. Run with ``--epochs``, ``--batch-size``,
            ``--seed`` and ``--device`` besides, its last line shall be a JSON object with ``train_s`` and ``history``,
            whose last entry has ``test_accuracy``. Empty: none.
        cold: Options of ``cifarnet train`` for a cold run, see `measure_cold`; ``None`` does none.
        device: See `Trainer`.
        precision: See `Trainer`.
        cuda_graph: See `Trainer`.

    Returns:
        Plain values; times in seconds, memory in megabytes beyond what there was before, see `PeakMemory`.

    Raises:
        SettingError: If a value is outside its range.
        CifarnetError: If the script or the cold run fails.
    """
    check_count("runs", runs, "40 allow a claim")
    if target is not None and not 0 < target < 1:
        raise SettingError(f"target must be in (0, 1), got {target}; 0.94 is that of the speed records")
    resolved = resolve_device(device)
    memory = PeakMemory(resolved)
    build = partial(build_trainer, recipe, data.train, device=resolved, precision=precision, cuda_graph=cuda_graph)
    warm_up_s = timed(lambda: warm_up(build(seed=runs), recipe, data))
    trials = [
        run_trial(build, recipe, data, seed=seed, saves=with_saves)
        for seed in range(runs)
        for with_saves in ((False, True) if saves else (False,))
    ]
    peak_mb = memory.read()
    plain = [trial for trial in trials if not trial["saves"]]
    saved = [trial for trial in trials if trial["saves"]]
    accuracies = [trial["accuracy"] for trial in plain]
    augmented = [trial["accuracy_tta"] for trial in plain if recipe.tta is not None]
    prepared = [trial for trial in plain if trial["preparation_s"] is not None]
    return {
        "kind": "accuracy",
        "recipe": recipe.name,
        "epochs": recipe.max_epochs,
        "batch_size": recipe.batch_size,
        "backend": plain[0]["backend"],
        "accuracy": _describe_accuracy(accuracies, num_images=len(data.test)),
        "tta": recipe.tta,
        "accuracy_tta": _describe_accuracy(augmented, num_images=len(data.test)) if augmented else None,
        "target": target,
        "p_value": None if target is None else p_mean_at_most(augmented or accuracies, target),
        "train_s": summarize([trial["train_s"] for trial in plain]),
        "train_without_preparation_s": (
            summarize([trial["train_s"] - trial["preparation_s"] for trial in prepared]) if prepared else None
        ),
        "preparation_s": summarize([trial["preparation_s"] for trial in prepared]) if prepared else None,
        "train_with_saves_s": summarize([trial["train_s"] for trial in saved]) if saved else None,
        "build_s": summarize([trial["build_s"] for trial in plain]),
        "eval_s": summarize([trial["eval_s"] for trial in plain]),
        "eval_tta_s": summarize([trial["eval_tta_s"] for trial in plain]) if augmented else None,
        "warm_up_s": warm_up_s,
        "peak_memory_mb": peak_mb,
        "trials": trials,
        "script": _run_script(script, recipe, runs, str(resolved), len(data.test)) if script else None,
        "cold": None if cold is None else measure_cold(cold),
        **describe_machine(resolve_precision(precision, resolved)),
    }


def _run_script(script: Sequence[str], recipe: Recipe, runs: int, device: str, num_images: int) -> dict[str, Any]:
    trials = []
    for seed in range(runs):
        options = {"epochs": recipe.max_epochs, "batch-size": recipe.batch_size, "seed": seed, "device": device}
        words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
        answer, _ = run_script([*script, *words], "history")
        accuracy = float(answer["history"][-1]["test_accuracy"])
        trials.append({"seed": seed, "train_s": float(answer["train_s"]), "accuracy": accuracy})
    return {
        "name": Path(script[0]).name,
        "accuracy": _describe_accuracy([trial["accuracy"] for trial in trials], num_images=num_images),
        "train_s": summarize([trial["train_s"] for trial in trials]),
        "trials": trials,
    }


def _describe_accuracy(accuracies: Sequence[float], *, num_images: int) -> dict[str, Any]:
    """Mean and its 95 % interval: over runs where they differ, else over images: a sample too."""
    over_runs = mean_interval(accuracies)
    interval = over_runs or wilson_interval(round(accuracies[0] * num_images), num_images)
    return {
        "mean": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "interval": list(interval),
        "interval_of": "runs, Student" if over_runs else "images, Wilson",
        "n": len(accuracies),
    }


def format_accuracy(document: Mapping[str, Any]) -> str:
    """The measurement of `measure_accuracy` as a table in Markdown.

    Args:
        document: What it gave.
    """
    script, cold, memory = document["script"], document["cold"], document["peak_memory_mb"]
    lines = ["| | mean or median | 95 % interval or range | n |", "| --- | --- | --- | --- |"]
    lines.append(_accuracy_row("test accuracy", document["accuracy"]))
    if document["accuracy_tta"] is not None:
        name = f"test accuracy with test-time augmentation ({document['tta']})"
        lines.append(_accuracy_row(name, document["accuracy_tta"]))
    rows = [
        ("training", document["train_s"]),
        ("of it the first epoch beyond the others: compiling, capturing", document["preparation_s"]),
        ("training without that", document["train_without_preparation_s"]),
        ("training, saving every epoch", document["train_with_saves_s"]),
        ("evaluation of the test images", document["eval_s"]),
        ("evaluation with test-time augmentation", document["eval_tta_s"]),
        ("building", document["build_s"]),
    ]
    lines += [_seconds_row(name, seconds) for name, seconds in rows if seconds is not None]
    if script is not None:
        lines.append(_accuracy_row(f"test accuracy of {script['name']}", script["accuracy"]))
        lines.append(_seconds_row(f"training of {script['name']}", script["train_s"]))
    if cold is not None:
        lines.append(f"| cold, from start to saved run | {cold['total_s']:.3f} s | | 1 |")
        lines.append(f"| cold, from start to the first step | {cold['to_training_s']:.3f} s | | 1 |")
    if memory is not None:
        lines.append(f"| peak memory | {memory:,.0f} MB | | |")
    lines += ["", _conclusion(document)]
    lines.append(
        f"Recipe {document['recipe']}, {document['epochs']} epochs of batches of {document['batch_size']} images, "
        f"{document['backend']}, {document['hardware']}, {document['precision']}, torch "
        f"{document['versions']['torch']}."
    )
    return "\n".join(lines)


def _accuracy_row(name: str, accuracy: Mapping[str, Any]) -> str:
    low, high = accuracy["interval"]
    return (
        f"| {name} | {accuracy['mean']:.2%} | {low:.2%} to {high:.2%} ({accuracy['interval_of']}) | {accuracy['n']} |"
    )


def _seconds_row(name: str, seconds: Mapping[str, Any]) -> str:
    spread = f"{seconds['min']:.3f} to {seconds['max']:.3f} s"
    return f"| {name} | {seconds['median']:.3f} s | {spread} | {seconds['n']} |"


def _conclusion(document: Mapping[str, Any]) -> str:
    target, p_value = document["target"], document["p_value"]
    warm_up = f"The warm-up before took {document['warm_up_s']:.1f} s."
    if target is None:
        return warm_up
    if p_value is None:
        return f"Too few different runs to say whether the mean reaches {target:.2%}. {warm_up}"
    of = "" if document.get("accuracy_tta") is None else " with test-time augmentation"
    return f"One-sided t-test for a mean above {target:.2%}{of}: p = {p_value:.2g}. {warm_up}"
