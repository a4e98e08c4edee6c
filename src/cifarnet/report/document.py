"""``report.json``: what a run was, where it ran, and what came of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cifarnet._files import to_path, write_atomic
from cifarnet.data import ImageDataset
from cifarnet.errors import InputError
from cifarnet.inference import Evaluation, describe_machine
from cifarnet.models import count_flops
from cifarnet.recipes import Recipe
from cifarnet.training import Trainer
from cifarnet.training.history import finite_json
from cifarnet.transforms.tta import current_tta_name

__all__ = ["build_report", "load_report", "save_report"]

#: Keys of earlier versions in the metrics of a report.
_RENAMED = {"test_interval": "test_accuracy_interval", "test_nll": "test_log_loss"}


def build_report(
    trainer: Trainer,
    recipe: Recipe,
    *,
    train: ImageDataset,
    val: ImageDataset | None,
    test: ImageDataset | None = None,
    evaluation: Evaluation | None = None,
    evaluation_tta: Evaluation | None = None,
    evaluation_calibrated: Evaluation | None = None,
    command: str,
    version: str,
) -> dict[str, Any]:
    """Collect what others need to judge a run, and to repeat it.

    Args:
        trainer: After `Trainer.fit`.
        recipe: What it trained.
        train: The images it learnt from.
        val: The images it was selected by, if any.
        test: The images of ``evaluation``; ``None`` for a run that never saw them.
        evaluation: Of the weights that the run ended with; given with ``test``.
        evaluation_tta: The same with the recipe's test-time augmentation, if it has one.
        evaluation_calibrated: The same with the temperature found on ``val``, if there is one.
        command: What was typed.
        version: Of this library.

    Returns:
        Plain values, for `save_report`.
    """
    records = list(trainer.history)
    size = trainer.transforms.preprocess.size
    selected = trainer.best.selected_by(last_epoch=len(records))
    machine = describe_machine(trainer.precision)
    report = {
        "format": 1,
        "recipe": asdict(recipe),
        "seed": trainer.seed,
        "command": command,
        "data": {
            "name": train.name if test is None else test.name,
            "train": {"num_images": len(train), "fingerprint": train.fingerprint},
            "val": None if val is None else {"num_images": len(val), "fingerprint": val.fingerprint},
            "test": None if test is None else {"num_images": len(test), "fingerprint": test.fingerprint},
        },
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "flops_per_image": count_flops(trainer.model, (train.images.shape[1], size, size)),
        "backend": "cuda-graph" if trainer.uses_cuda_graph else "eager",
        "world_size": trainer.group.world_size,
        "selected_by": selected,
        "changed_on_resume": trainer.resume_differences,
        "test_watched": _when_tested(recipe, test),
        "metrics": {
            "train_accuracy": records[-1].train_accuracy,
            "val_accuracy": None if val is None else records[selected["epoch"] - 1].val_accuracy,
            **({} if evaluation is None else _test_scores(evaluation, evaluation_tta, evaluation_calibrated)),
        },
        "durations": {
            "train_s": sum(record.train_s for record in records),
            "eval_s": sum(record.eval_s for record in records),
        },
        "peak_memory_mb": _peak_memory_mb(trainer.device),
        **machine,
        "versions": {"cifarnet": version, **machine["versions"]},
        "history": trainer.history.to_list(),
    }
    return dict(finite_json(report))


def _when_tested(recipe: Recipe, test: ImageDataset | None) -> str:
    if test is None:
        return "never"
    return "each epoch, as the published curve did; nothing was selected by it" if recipe.watch_test else "at the end"


def _test_scores(evaluation: Evaluation, with_tta: Evaluation | None, calibrated: Evaluation | None) -> dict[str, Any]:
    return {
        "test_accuracy": evaluation.accuracy,
        "test_accuracy_interval": list(evaluation.accuracy_interval),
        "test_accuracy_tta": None if with_tta is None else with_tta.accuracy,
        "test_loss": evaluation.loss,
        "test_num_correct": evaluation.num_correct,
        "test_num_images": evaluation.num_images,
        "test_top_k": evaluation.k,
        "test_top_k_accuracy": evaluation.top_k_accuracy,
        **_calibration(evaluation),  # at temperature 1 always, so that runs compare
        "calibrated": None
        if calibrated is None
        else {"temperature": calibrated.temperature, **_calibration(calibrated)},
    }


def _calibration(evaluation: Evaluation) -> dict[str, float]:
    return {
        "test_log_loss": evaluation.log_loss,
        "test_brier": evaluation.brier,
        "test_calibration_error": evaluation.expected_calibration_error,
    }


def save_report(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report, whole or not at all.

    Args:
        report: From `build_report`.
        path: Usually ``runs/NAME/report.json``.
    """
    write_atomic(to_path(path), (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def load_report(path: str | Path) -> dict[str, Any]:
    """Read what `save_report` wrote, in this or an earlier version.

    Args:
        path: The file.

    Raises:
        InputError: If it is not a report.
        OSError: If it cannot be read.
    """
    try:
        report = json.loads(to_path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the latter where it nests too deep
        raise InputError(f"{path} is not JSON ({error}); give a report.json") from error
    if not isinstance(report, dict) or report.get("format") != 1:
        raise InputError(f"{path} is not a report of this version (format 1); give a report.json")
    return _with_current_keys(report)


def _with_current_keys(report: dict[str, Any]) -> dict[str, Any]:
    """Rename what earlier versions wrote in another way."""
    metrics, recipe = report.get("metrics"), report.get("recipe")
    for scores in (metrics, metrics.get("calibrated") if isinstance(metrics, dict) else None):
        if isinstance(scores, dict):
            for earlier, key in _RENAMED.items():
                if earlier in scores:
                    scores.setdefault(key, scores.pop(earlier))
    if isinstance(recipe, dict) and "tta" in recipe:
        recipe["tta"] = current_tta_name(recipe["tta"])
    return report


def _peak_memory_mb(device: torch.device) -> float | None:
    """Most memory the process held (on CUDA: most that torch held there); ``None`` where nobody counts."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_reserved(device) / 1e6, 1)
    try:
        import resource  # POSIX alone has it
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak / 1e3, 1)  # bytes there, KiB elsewhere
