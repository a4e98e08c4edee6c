from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from sample_evaluation import DARK, LONG_NAMES, make_classifier, make_evaluation, text_colours
from torch import nn

from cifarnet import (
    CifarCNN,
    Classifier,
    DatasetSplits,
    EpochRecord,
    History,
    ImageDataset,
    Preprocess,
    build_transforms,
    optim,
    visualize,
)
from cifarnet.errors import DataError, SettingError
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


def test_letters_are_drawn_with_a_fallback_font(monkeypatch: pytest.MonkeyPatch) -> None:
    figure: Any = _style.new_figure(2, 1)
    figure.suptitle("\u20d2")  # in STIXGeneral and not in DejaVu Sans
    monkeypatch.setattr(_style, "_FALLBACK_FONTS", ())
    with pytest.warns(UserWarning, match="Glyph .* missing from font"):
        drawn = figure._repr_png_()
    monkeypatch.setattr(_style, "_FALLBACK_FONTS", ("A font that is not installed", "STIXGeneral"))
    assert figure._repr_png_() != drawn


FLAT = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), Preprocess(8), ("a", "b"), device="cpu")


def refused(data: ImageDataset) -> list[tuple[str, Callable[[], Figure]]]:
    """Return messages, each with the call that it refuses."""
    image, record, bare = data.images[0], run()[0], History([EpochRecord(1, 1, 0.1, 1.0, 0.1, 100.0, {})])
    evaluation, evaluated, _ = make_evaluation(10)
    other, schedule, classifier = make_evaluation(10, num_images=200)[0], optim.linear(), make_classifier()
    return [
        ("at least one EpochRecord. Pass what Trainer.fit", lambda: visualize.plot_training_curves([])),
        ("at least one EpochRecord", lambda: visualize.plot_training_curves("history.csv")),  # type: ignore[arg-type]
        ('did you mean "val_accuracy"', lambda: visualize.plot_training_curves([record], monitor="val_acuracy")),
        ('Run "b" has no val_loss. Leave', lambda: visualize.plot_runs({"a": run(), "b": bare}, metric="val_loss")),
        ('did you mean "val_accuracy"', lambda: visualize.plot_runs({"a": run()}, metric="val_acuracy")),
        ("runs is empty", lambda: visualize.plot_runs({})),
        ("total_steps must be at least 1, got 0", lambda: visualize.plot_schedule(schedule, total_steps=0)),
        ("num_epochs must be at least 1", lambda: visualize.plot_schedule(schedule, total_steps=5, num_epochs=0)),
        (r"gives -1\.0 at step 0 of 5", lambda: visualize.plot_schedule(lambda step, total: -1.0, total_steps=5)),
        ("schedule is empty", lambda: visualize.plot_schedule({}, total_steps=5)),
        ("not of the same images", lambda: visualize.plot_reliability(evaluation, calibrated=other)),
        ('Layer "conv" is not a convolution', lambda: visualize.plot_filters(CifarCNN(), layer="conv")),
        ("Linear has no nn.Conv2d", lambda: visualize.plot_filters(nn.Linear(2, 2))),
        ("num_maps must be at least 1, got 0", lambda: visualize.plot_feature_maps(classifier, image, num_maps=0)),
        ("no module with feature maps", lambda: visualize.plot_feature_maps(FLAT, image)),
        ("columns must be at least 1, got 0", lambda: visualize.plot_grad_cam(classifier, image, columns=0)),
        ("2 classes", lambda: visualize.plot_predictions(FLAT, data)),
        ("got Tensor. .*for a batch", lambda: visualize.plot_predictions(classifier, image)),  # type: ignore[arg-type]
        ("images is empty", lambda: visualize.plot_predictions(classifier, [])),
        ("num_images must be at least 1", lambda: visualize.plot_predictions(classifier, [image], num_images=0)),
        ("same data set, in the same order", lambda: visualize.plot_top_losses(evaluation, evaluated.subset([0, 1]))),
        ("Pass transforms.augment", lambda: visualize.plot_augmentations(build_transforms(size=16).train, data)),
    ]


def test_figures_refuse_wrong_arguments(synthetic: DatasetSplits) -> None:
    for message, plot in refused(synthetic.test):
        with pytest.raises((DataError, SettingError), match=message):
            plot()
