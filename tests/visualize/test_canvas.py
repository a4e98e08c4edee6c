from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image

from cifarnet.visualize.canvas import divide, open_axes

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
visualize.plot_predictions(Classifier(CifarCNN(), Preprocess(), data.test.classes), data.test).savefig("p.pdf")
visualize.plot_architecture(CifarCNN()).savefig("m.svg")
classifier = Classifier(CifarCNN(), Preprocess(), data.test.classes)
visualize.plot_confusion_matrix(classifier.evaluate(data.test)).savefig("c.svg")
visualize.plot_grad_cam(classifier, data.test.images[0]).savefig("g.png")
import sys
print("matplotlib.pyplot" in sys.modules, settings() == before, len(before) > 200)
"""


def test_figures_need_no_display_no_pyplot_and_no_settings(tmp_path: object) -> None:
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


def test_a_notebook_shows_a_figure_as_a_picture() -> None:
    ax = open_axes(None, width=2, height=1)
    show = ax.figure._repr_png_  # type: ignore[union-attr]
    with Image.open(io.BytesIO(show())) as picture:
        assert picture.size == (300, 150)


@pytest.mark.parametrize(("rows", "columns", "gap"), [(1, 1, 0.0), (2, 3, 0.1), (4, 1, 0.5)])
def test_panels_fill_the_axes_and_do_not_overlap(rows: int, columns: int, gap: float) -> None:
    figure = Figure()
    ax = figure.subplots()
    panels = divide(ax, rows, columns, gap_x=gap, gap_y=gap)
    figure.draw_without_rendering()
    outer = ax.get_position()
    boxes = [[panel.get_position() for panel in row] for row in panels]
    assert (len(boxes), len(boxes[0])) == (rows, columns)
    assert boxes[0][0].x0 == pytest.approx(outer.x0)
    assert boxes[0][0].y1 == pytest.approx(outer.y1)
    assert boxes[-1][-1].x1 == pytest.approx(outer.x1)
    assert boxes[-1][-1].y0 == pytest.approx(outer.y0)
    for row in boxes:
        for left, right in itertools.pairwise(row):
            assert right.x0 - left.x1 == pytest.approx(gap * left.width)
    for above, below in itertools.pairwise(boxes):
        assert above[0].y0 - below[0].y1 == pytest.approx(gap * above[0].height)
