"""Report of a run as one self-contained HTML page."""

from __future__ import annotations

import copy
import io
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

import cifarnet
from cifarnet import randomness
from cifarnet._files import check_target, write_atomic
from cifarnet.data import ImageDataset
from cifarnet.errors import CifarnetError
from cifarnet.inference import Evaluation
from cifarnet.inference.device import describe_machine
from cifarnet.models import summarize_model
from cifarnet.report.report_json import Run

__all__ = ["Page", "build_page", "save_page"]

#: Characters that HTML cannot hold or that are invisible: controls except tab and newline, and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Page:
    """Page about a run.

    Args:
        html: The whole document.
        sections: Ids of its sections, in order.
        left_out: Reason for each section without content.
        remarks: Sentences about what is missing or contradictory.
        evaluation: The metrics on the page.
    """

    html: str
    sections: tuple[str, ...]
    left_out: Mapping[str, str]
    remarks: tuple[str, ...]
    evaluation: Evaluation


def build_page(run: Run, test: ImageDataset) -> Page:
    """Build one self-contained HTML page about a run.

    The function evaluates the network on the test images and draws all figures. The page loads nothing, contains no
    script, and escapes every text from outside (class names, paths, commands). The same run gives the same bytes.

    Args:
        run: Run from `load_run`.
        test: Test images with the classes of the network.

    Returns:
        The page. A section without content states the reason.

    Raises:
        DataError: If the images have other classes.
        NonFiniteError: If the network gives NaN or infinity.

    Example:
        >>> from cifarnet import load_cifar10
        >>> page = build_page(load_run("runs/reference"), load_cifar10("data").test)  # doctest: +SKIP
        >>> save_page(page, "report.html")  # doctest: +SKIP
    """
    evaluation = uncalibrated = run.classifier.evaluate(test)
    if run.classifier.temperature != 1:
        plain = copy.copy(run.classifier)
        plain.temperature = 1.0
        uncalibrated = plain.evaluate(test)
    preprocess = run.classifier.preprocess
    layers = summarize_model(run.classifier.model, (len(preprocess.mean), preprocess.size, preprocess.size))
    sample = randomness.permutation(0, 0, test.ids)[:9]  # the images of plot_predictions, in all sections
    left_out, figures = _find_unrecorded(run), {}
    for section, plot in _plots(run, test, evaluation, uncalibrated, test.images[sample], layers.image_shape).items():
        try:
            if section not in left_out:
                figures[section] = _draw(plot)
        except CifarnetError as error:  # the network has no such layer, for example
            left_out[section] = str(error)
    remarks = (*run.remarks, *_find_contradictions(run, test, evaluation))
    html = _render(
        run=run,
        test=test,
        evaluation=evaluation,
        uncalibrated=uncalibrated,
        confusions=_confusions(evaluation),
        figures=figures,
        left_out=left_out,
        remarks=remarks,
        layers=layers,
        labels=test.labels[sample].tolist(),
        predictions=run.classifier.predict(list(test.images[sample]), top_k=1),
        machine=describe_machine(run.classifier.precision),
        version=cifarnet.__version__,
    )
    return Page(html, tuple(re.findall('<section id="([a-z-]+)"', html)), left_out, remarks, evaluation)


def save_page(page: Page, path: str | Path) -> Path:
    """Write a page to a file, as a whole or not at all.

    Args:
        page: Page from `build_page`.
        path: Target, ending in ``.html``. An older file is replaced.

    Returns:
        The path of the file.

    Raises:
        OSError: If the file cannot be written.
        SettingError: If the name ends otherwise, or its folder does not exist.
    """
    target = check_target(path, ".html", name="report")
    write_atomic(target, page.html.encode())
    return target


def _find_unrecorded(run: Run) -> dict[str, str]:
    """Return the sections about which the files of the run contain nothing, each with the reason."""
    unrecorded = [] if run.report.get("command") else ["command"]
    unrecorded += [] if len(run.history) else ["curves", "history", "schedule"]
    if run.recipe is None:
        unrecorded += ["schedule"] if run.report.get("settings") else ["schedule", "recipe"]
    return dict.fromkeys(unrecorded, "the files of the run do not record it")


def _find_contradictions(run: Run, test: ImageDataset, evaluation: Evaluation) -> list[str]:
    metrics, data = run.report.get("metrics"), run.report.get("data")
    recorded = data.get("test") if isinstance(data, Mapping) else None
    if isinstance(recorded, Mapping) and recorded.get("fingerprint") != test.fingerprint:
        return ["The test images of this page are not those of the run: their fingerprints differ, see Environment."]
    num_correct = metrics.get("test_num_correct") if isinstance(metrics, Mapping) else None
    if num_correct not in (None, evaluation.num_correct):
        return [f"The run counted {num_correct} correct images, this page {evaluation.num_correct}: rounding differs."]
    return []


def _plots(
    run: Run,
    test: ImageDataset,
    evaluation: Evaluation,
    uncalibrated: Evaluation,
    sample: Tensor,
    shape: tuple[int, int, int],
) -> dict[str, Callable[[], Any]]:
    """Return the function that draws the figure of each section."""
    from cifarnet import visualize

    classifier, network = run.classifier, run.classifier.model
    monitor = str(classifier.selected_by.get("monitor"))
    monitor = monitor if monitor.startswith("val_") else "val_accuracy"
    calibrated = None if evaluation is uncalibrated else evaluation
    return {
        "curves": lambda: visualize.plot_training_curves(run.history, monitor=monitor),
        "classes": lambda: visualize.plot_class_scores(evaluation),
        "confusion": lambda: visualize.plot_confusion_matrix(evaluation),
        "calibration": lambda: visualize.plot_reliability(uncalibrated, calibrated=calibrated),
        "losses": lambda: visualize.plot_top_losses(evaluation, test),
        "predictions": lambda: visualize.plot_predictions(classifier, test),
        "grad-cam": lambda: visualize.plot_grad_cam(classifier, list(sample[:6]), columns=3),
        "filters": lambda: visualize.plot_filters(network),
        "maps": lambda: visualize.plot_feature_maps(classifier, sample[0]),
        "network": lambda: visualize.plot_architecture(network, shape),
        "schedule": lambda: _plot_schedule(run),
    }


def _plot_schedule(run: Run) -> Any:
    from cifarnet.visualize import plot_schedule

    recipe, last = run.recipe, run.history[-1]
    assert recipe is not None, "see _find_unrecorded"
    epochs = max(recipe.max_epochs, last.epoch)
    steps = last.global_step * epochs // last.epoch
    return plot_schedule(recipe.multiplier, total_steps=steps, learning_rate=recipe.learning_rate, num_epochs=epochs)


def _draw(plot: Callable[[], Any]) -> dict[str, Any]:
    """Return a figure as data URI, and its size in CSS pixels."""
    figure, content = plot(), io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    uri = f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"
    return {"uri": uri, "width": width, "height": height}


def _confusions(evaluation: Evaluation) -> list[tuple[int, int, int]]:
    """Return ``(number of images, true class, predicted class)``, most frequent first."""
    matrix = enumerate(evaluation.confusion_matrix)
    pairs = [(count, i, j) for i, row in matrix for j, count in enumerate(row) if i != j and count]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))


def _render(**values: Any) -> str:
    from jinja2 import ChainableUndefined, Environment  # only this function needs it

    environment = Environment(autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _format_number
    template = files("cifarnet.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    html = environment.from_string(template).render(values)
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), html)


def _format_number(value: Any, spec: str = ",") -> str:
    """Format a number, or text in its place, because a report can be old or edited by hand."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format(value, spec).replace("%", "\N{NO-BREAK SPACE}%")
    return str(value or "not recorded")  # jinja2 gives a false value for a missing key
