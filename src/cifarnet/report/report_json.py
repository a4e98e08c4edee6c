"""``report.json``: settings, environment and metrics of a run, and the files of a run read together."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarnet._files import to_path, write_atomic
from cifarnet._validation import finite_json
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.data import ImageDataset
from cifarnet.errors import CheckpointError, DataError, SettingError
from cifarnet.inference import Evaluation
from cifarnet.inference.device import describe_machine
from cifarnet.models import count_flops
from cifarnet.recipes import Recipe
from cifarnet.training import Trainer
from cifarnet.training.history import History
from cifarnet.transforms.tta import current_tta_name

__all__ = ["Run", "build_report", "load_report", "load_run", "save_report"]

#: Keys that earlier versions wrote in the metrics of a report, each with the key of today.
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
    """Collect what is needed to assess and to repeat a run.

    Args:
        trainer: Trainer after `Trainer.fit`.
        recipe: Recipe of the run.
        train: Training set.
        val: Validation set, if any.
        test: Test set of ``evaluation``. ``None`` if the run used none.
        evaluation: Evaluation of the final weights on ``test``.
        evaluation_tta: The same with test-time augmentation, if the recipe has one.
        evaluation_calibrated: The same with the temperature fitted on ``val``, if there is one.
        command: Command line of the run.
        version: Version of cifarnet.

    Returns:
        Plain values for `save_report`.
    """
    records = list(trainer.history)
    size = trainer.transforms.preprocess.size
    selected = trainer.best.selected_by(last_epoch=len(records))
    machine = describe_machine(trainer.precision)
    test_scores = {} if evaluation is None else _test_scores(evaluation, evaluation_tta, evaluation_calibrated)
    test_watched = "each epoch, as the published curve did; nothing was selected by it"
    if test is None or not recipe.watch_test:
        test_watched = "never" if test is None else "at the end"
    report = {
        "format": 1,
        "recipe": asdict(recipe),
        "seed": trainer.seed,
        "command": command,
        "data": {
            "name": train.name if test is None else test.name,
            **{key: _describe_data(data) for key, data in (("train", train), ("val", val), ("test", test))},
        },
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "flops_per_image": count_flops(trainer.model, (train.images.shape[1], size, size)),
        "backend": "cuda-graph" if trainer.uses_cuda_graph else "eager",
        "world_size": trainer.group.world_size,
        "selected_by": selected,
        "changed_on_resume": trainer.resume_differences,
        "test_watched": test_watched,
        "metrics": {
            "train_accuracy": records[-1].train_accuracy,
            "val_accuracy": None if val is None else records[selected["epoch"] - 1].val_accuracy,
            **test_scores,
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


def _describe_data(data: ImageDataset | None) -> dict[str, Any] | None:
    return None if data is None else {"num_images": len(data), "fingerprint": data.fingerprint}


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
        **_calibration(evaluation),  # always at temperature 1, so that runs are comparable
        "calibrated": calibrated and {"temperature": calibrated.temperature, **_calibration(calibrated)},
    }


def _calibration(evaluation: Evaluation) -> dict[str, float]:
    return {
        "test_log_loss": evaluation.log_loss,
        "test_brier": evaluation.brier,
        "test_calibration_error": evaluation.expected_calibration_error,
    }


def save_report(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report as a whole or not at all.

    Args:
        report: Report from `build_report`.
        path: Usually ``runs/NAME/report.json``.
    """
    write_atomic(to_path(path), (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def load_report(path: str | Path) -> dict[str, Any]:
    """Read a report that `save_report` of this or an earlier version wrote.

    Args:
        path: The file.

    Returns:
        The report with the keys of this version.

    Raises:
        DataError: If the file is not a report.
        OSError: If the file cannot be read.
    """
    try:
        report = json.loads(to_path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise DataError(f"{path} is not JSON ({error}); give a report.json") from error
    if not isinstance(report, dict) or report.get("format") != 1:
        raise DataError(f"{path} is not a report of this version (format 1); give a report.json")
    metrics, recipe = report.get("metrics"), report.get("recipe")
    for scores in (metrics, metrics.get("calibrated") if isinstance(metrics, dict) else None):
        if isinstance(scores, dict):
            for earlier, key in _RENAMED.items():
                if earlier in scores:
                    scores.setdefault(key, scores.pop(earlier))
    if isinstance(recipe, dict) and "tta" in recipe:
        recipe["tta"] = current_tta_name(recipe["tta"])
    return report


@dataclass(frozen=True)
class Run:
    """Best weights of a run and the record of its training.

    Args:
        classifier: Classifier with the best weights.
        report: Content of ``report.json``. Without that file, what ``last.safetensors`` records.
        history: Epochs of the run. Empty if unknown.
        recipe: Recipe of the run. ``None`` if unknown.
        remarks: Sentences about what is missing or contradictory.
    """

    classifier: Classifier
    report: Mapping[str, Any]
    history: History
    recipe: Recipe | None
    remarks: tuple[str, ...]


def load_run(path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "auto") -> Run:
    """Load the best weights of a run, and its report or else its last checkpoint.

    Args:
        path: Directory of the run, or its ``best.safetensors``.
        model: Network of the run if it is not one of the library's, see `Classifier.load`.
        device: Device of the network, see `Classifier.load`.

    Returns:
        The run. Only the weights are required; ``remarks`` list what else is missing.

    Raises:
        CheckpointError: If the weights cannot be read, see `Classifier.load`.
        DataError: If ``report.json`` is not a report.
        SettingError: If there is no such device.
    """
    path = to_path(path)
    classifier = Classifier.load(path, model=model, device=device)
    directory = path if path.is_dir() else path.parent
    history, recipe, remarks = History(), None, []
    if (directory / "report.json").exists():
        report = load_report(directory / "report.json")
        if classifier.selected_by and report.get("selected_by") != classifier.selected_by:
            remarks.append("report.json describes other weights than those in best.safetensors.")
    else:
        remarks.append(
            "The run has no report.json, which cifarnet train writes. The page shows what its files contain."
        )
        report = _read_last_checkpoint(directory, remarks)
    try:
        if "history" in report:
            history = History.from_list(report["history"])
        elif (directory / "history.csv").exists():
            history = History.load_csv(directory / "history.csv")
    except (DataError, AttributeError, TypeError, UnicodeDecodeError) as error:
        remarks.append(f"The history cannot be read: {error}.")
    values = report.get("recipe", classifier.metadata.get("recipe"))
    try:
        recipe = None if values is None else Recipe.from_dict(values)
    except (TypeError, SettingError) as error:  # from a newer version, or edited by hand
        remarks.append(f"This version of cifarnet cannot read the recipe: {error}.")
    return Run(classifier, report, history, recipe, tuple(remarks))


def _read_last_checkpoint(directory: Path, remarks: list[str]) -> dict[str, Any]:
    """Return what ``last.safetensors`` records of a run, as far as possible under the keys of a report."""
    try:
        state = Checkpointer(directory).read_last() or {}
    except CheckpointError as error:
        remarks.append(f"The last checkpoint cannot be read: {error}.")
        return {}
    environment, known = state.get("environment", {}), ("settings", "history")
    return {**environment, "versions": environment, **{key: state[key] for key in known if key in state}}


def _peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory of the process, on CUDA that of torch, or ``None`` if the system does not record it."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_reserved(device) / 1e6, 1)
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak / 1e3, 1)  # bytes on macOS, KiB elsewhere
