"""Everything that a run left behind, read for a page about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarnet._files import to_path
from cifarnet.checkpoint import Checkpointer
from cifarnet.classifier import Classifier
from cifarnet.errors import CheckpointError, InputError, SettingError
from cifarnet.recipes import Recipe
from cifarnet.report.document import load_report
from cifarnet.training.history import History

__all__ = ["Run", "load_run"]


@dataclass(frozen=True)
class Run:
    """A trained network, and whatever is known of how it came about.

    Args:
        classifier: The best weights.
        directory: Where the run lies.
        report: What `load_report` read; empty where there is none.
        history: Of the report, else of ``last.safetensors``, else of ``history.csv``; empty without any of them.
        recipe: What was trained; ``None`` where nobody wrote it down.
        settings: What ``last.safetensors`` says of the run, where there is no report: seed, optimizer, data and more.
        environment: Likewise: device, precision, versions.
        remarks: What is missing or does not agree, in sentences.
    """

    classifier: Classifier
    directory: Path
    report: Mapping[str, Any]
    history: History
    recipe: Recipe | None
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    remarks: tuple[str, ...]

    def fact(self, *keys: str) -> Any:
        """A value of the report, however deep it lies; ``None`` where it has none, as older reports have not all.

        Args:
            keys: The way to it.
        """
        value: Any = self.report
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def load_run(path: str | Path, *, model: nn.Module | None = None, device: str | torch.device = "auto") -> Run:
    """Read a run: its best weights, and its report or else its last checkpoint.

    Args:
        path: Its directory, or its ``best.safetensors``.
        model: The network, where it is none of the library's, see `Classifier.load`.
        device: Where the network shall be, see `Classifier.load`.

    Returns:
        The run. Only the weights must be there; what else is missing, its ``remarks`` say.

    Raises:
        CheckpointError: If the weights cannot be read, as `Classifier.load` says.
        InputError: If there is a ``report.json`` that is none.
        SettingError: If there is no such device.
    """
    path = to_path(path)
    classifier = Classifier.load(path, model=model, device=device)
    directory = path if path.is_dir() else path.parent
    remarks: list[str] = []
    report: Mapping[str, Any] = {}
    state: Mapping[str, Any] = {}
    if (directory / "report.json").exists():
        report = load_report(directory / "report.json")
        remarks += _contradictions(report, classifier)
    else:
        remarks.append("The run has no report.json, which cifarnet train writes: this page shows what its files say.")
        state = _read_last(directory, remarks)
    return Run(
        classifier,
        directory,
        report,
        _read_history(directory, report, state, remarks),
        _read_recipe(report.get("recipe", classifier.metadata.get("recipe")), remarks),
        _mapping(state.get("settings", state.get("run"))),
        _mapping(state.get("environment")),
        tuple(remarks),
    )


def _contradictions(report: Mapping[str, Any], classifier: Classifier) -> list[str]:
    """A report is written when training ends; the weights may have been trained on since."""
    told, own = report.get("selected_by"), classifier.selected_by
    if own and told != own:
        return [
            f"report.json is about other weights (selected by {_selection(told)}) than best.safetensors holds "
            f"({_selection(own)}): what it says of training, durations and data may not be about these."
        ]
    return []


def _selection(chosen: Any) -> str:
    known = _mapping(chosen)
    return f"{known.get('monitor')}, epoch {known.get('epoch')}" if known else "nobody knows what"


def _read_last(directory: Path, remarks: list[str]) -> Mapping[str, Any]:
    try:
        return Checkpointer(directory).read_last() or {}
    except CheckpointError as error:
        remarks.append(f"Its last checkpoint cannot be read: {error}.")
        return {}


def _read_history(directory: Path, report: Mapping[str, Any], state: Mapping[str, Any], remarks: list[str]) -> History:
    sources: dict[str, Callable[[], History]] = {}
    if "history" in report:
        sources["report.json"] = lambda: History.from_list(report["history"])
    if "history" in state:
        sources["last.safetensors"] = lambda: History.from_list(state["history"])
    if (directory / "history.csv").exists():
        sources["history.csv"] = lambda: History.load_csv(directory / "history.csv")
    for name, read in sources.items():
        try:
            return read()
        except (InputError, AttributeError, TypeError, UnicodeDecodeError) as error:
            remarks.append(f"The history of {name} cannot be read: {error}.")
    return History()


def _read_recipe(values: Any, remarks: list[str]) -> Recipe | None:
    if values is None:
        return None
    try:
        return Recipe.from_dict(values)
    except (TypeError, SettingError) as error:  # of a newer release, or edited by hand
        remarks.append(f"The recipe is none of this version of cifarnet: {error}.")
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
