from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from sample_evaluation import DARK, LONG_NAMES, make_classifier, make_evaluation, text_colours

from cifarnet import CifarCNN, DatasetSplits, EpochRecord, History, build_transforms, optim, visualize
from cifarnet.visualize import _style

PROBE = """
import os
os.environ.pop("DISPLAY", None)
import matplotlib
def settings():  # but the backend: asking for it imports pyplot
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
before = settings()
from cifarnet import CifarCNN, Classifier, Preprocess, build_transforms, make_synthetic, visualize
data = make_synthetic(num_train=4, num_test=4)
visualize.plot_augmentations(build_transforms(), data.train).savefig("a.png")
classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
visualize.plot_predictions(classifier, data.test).savefig("p.pdf")
visualize.plot_confusion_matrix(classifier.evaluate(data.test)).savefig("c.svg")
import sys
print("matplotlib.pyplot" in sys.modules, settings() == before, len(before) > 200)
"""


def test_figures_need_no_display_no_pyplot_and_no_settings(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE],
        capture_output=True,
        text=True,
        check=True,
        cwd=str(tmp_path),
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
    )
    assert result.stdout.split() == ["False", "True", "True"]
    assert result.stderr == ""


def test_notebooks_show_a_figure_as_a_picture() -> None:
    figure = _style.new_figure(2, 1)
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:  # type: ignore[attr-defined]
        assert picture.size == (300, 150)


NAMES = (r"$\frac$", "a $x_1$ b", *(f"kind {i}" for i in range(8)))  # an error if one is read as mathematics
MANY = (*NAMES, *LONG_NAMES[10:])  # so many that no counts are drawn on the squares


def run() -> History:
    metrics = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.2, "val_accuracy": 0.4}
    return History(EpochRecord(epoch, epoch, 0.1, 1.0, 0.1, 100.0, metrics) for epoch in (1, 2, 3))


Draw = Callable[..., Figure]
ON_AXES: dict[str, Draw] = {
    "runs": lambda data, **ax: visualize.plot_runs({NAMES[0]: run()}, **ax),
    "schedule": lambda data, **ax: visualize.plot_schedule(
        {NAMES[0]: optim.linear()}, total_steps=9, num_epochs=3, **ax
    ),
    "confusion_matrix": lambda data, **ax: visualize.plot_confusion_matrix(make_evaluation(100, names=MANY)[0], **ax),
    "class_scores": lambda data, **ax: visualize.plot_class_scores(make_evaluation(10, names=NAMES)[0], **ax),
    "filters": lambda data, **ax: visualize.plot_filters(CifarCNN(), **ax),
    "augmentations": lambda data, **ax: visualize.plot_augmentations(build_transforms(), data.train, **ax),
}
OF_PANELS: dict[str, Draw] = {
    "training_curves": lambda data: visualize.plot_training_curves(run()),
    "reliability": lambda data: visualize.plot_reliability(make_evaluation(10)[0]),
    "predictions": lambda data: visualize.plot_predictions(
        make_classifier(names=NAMES), [data.test.images[0]], top_k=10
    ),
    "top_losses": lambda data: visualize.plot_top_losses(*make_evaluation(10, names=NAMES)[:2], num_images=25),
    "feature_maps": lambda data: visualize.plot_feature_maps(make_classifier(names=NAMES), data.test.images[0]),
    "grad_cam": lambda data: visualize.plot_grad_cam(
        make_classifier(names=NAMES), data.test.images[0], target=NAMES[0]
    ),
}


@pytest.mark.parametrize("name", ON_AXES)
def test_figures_of_one_panel_draw_on_axes(name: str, synthetic: DatasetSplits) -> None:
    figure = Figure(facecolor="black")
    left, right = figure.subplots(1, 2)
    with matplotlib.rc_context(DARK):
        assert ON_AXES[name](synthetic, ax=right) is figure
    assert right.has_data()
    assert not left.has_data()
    left.set_axis_off()
    assert text_colours(figure) == {"#eeeeee"}


@pytest.mark.parametrize("name", [*ON_AXES, *OF_PANELS])
def test_a_new_figure_is_legible_in_any_style(name: str, synthetic: DatasetSplits) -> None:
    with matplotlib.rc_context(DARK):
        figure = {**ON_AXES, **OF_PANELS}[name](synthetic)
    assert text_colours(figure) == {"#222222"}
    assert all(to_rgba(ax.get_facecolor())[3] == 0 or not ax.axison or ax.get_images() for ax in figure.axes)


def draw(title: str) -> bytes:
    figure: Any = _style.new_figure(2, 1)
    figure.suptitle(title)
    return bytes(figure._repr_png_())


def letters(family: str) -> set[int]:
    path = font_manager.findfont(font_manager.FontProperties(family=[family]))
    return set(font_manager.get_font(path).get_charmap())


def test_letters_are_drawn_with_a_fallback_font(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = chr(min(code for code in letters("STIXGeneral") - letters("DejaVu Sans") if code > 0x2000))
    monkeypatch.setattr(_style, "_FALLBACK_FONTS", ("A font that is not installed", "STIXGeneral"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw(f"a {letter}")
    monkeypatch.setattr(_style, "_FALLBACK_FONTS", ())
    with pytest.warns(UserWarning, match="Glyph .* missing from font"):
        assert draw(f"a {letter}") != drawn


def test_latin_greek_cyrillic_and_check_marks_are_drawn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("✓ cat ✗ d\u00f6g \u0436\u0434\u0438 \u03c6 \u00df")
