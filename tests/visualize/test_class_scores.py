from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import pytest
from judged import DARK, LONG, inks, judged, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cifarnet.inference import ClassScores, Evaluation
from cifarnet.visualize import plot_class_scores


def bars(panel: Axes) -> dict[int, list[float]]:
    """Widths of the three bars of each row, from the top."""
    found: dict[int, list[tuple[float, float]]] = {}
    for bar in panel.patches:
        assert isinstance(bar, Rectangle)
        middle = bar.get_y() + bar.get_height() / 2
        found.setdefault(round(middle), []).append((middle, bar.get_width()))
    return {row: [width for _, width in sorted(three)] for row, three in found.items()}


def ranked(evaluation: Evaluation) -> Sequence[ClassScores]:
    return sorted(evaluation.per_class, key=lambda one: (one.num_images == 0, one.f1))


@pytest.mark.parametrize("num_classes", [2, 10, 40])
def test_bars_are_precision_recall_and_f1_from_the_worst_class_on(num_classes: int) -> None:
    evaluation, _, _ = judged(num_classes)
    (panel,) = panels(plot_class_scores(evaluation).axes[0])
    expected = ranked(evaluation)
    assert [label.get_text() for label in panel.get_yticklabels()] == [one.name for one in expected]
    assert expected[-1].num_images == 0
    drawn = bars(panel)
    assert len(drawn) == num_classes
    for row, one in enumerate(expected):
        assert drawn[row] == pytest.approx([one.precision, one.recall, one.f1])
        numbers = [t.get_text() for t in panel.texts if t.get_position()[1] == row]
        assert numbers == [
            f"{100 * one.f1:.1f} %" if one.num_predicted or one.num_images else "-",
            f"{one.num_images or 'none'}",
        ]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first is on top
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["precision", "recall", "F1"]


def test_of_a_hundred_classes_the_ends_are_drawn_and_the_rest_counted() -> None:
    evaluation, _, _ = judged(100, num_images=3000, names=LONG)
    figure = plot_class_scores(evaluation)
    (panel,) = panels(figure.axes[0])
    expected = ranked(evaluation)[:-1]  # the last one has no images
    drawn = bars(panel)
    assert sorted(drawn) == [*range(15), *range(16, 31)]
    for row, one in [*zip(range(15), expected[:15], strict=True), *zip(range(16, 31), expected[-15:], strict=True)]:
        assert drawn[row][2] == pytest.approx(one.f1)
    assert {"69 classes between", "1 without images"} <= {text.get_text() for text in panel.texts}
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert len(set(names)) == 30
    assert all(len(name) <= 28 for name in names)


def test_more_classes_make_a_taller_figure_of_equal_rows() -> None:
    heights = [plot_class_scores(judged(k)[0]).get_figheight() for k in (10, 20, 30)]
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0])
    assert heights[1] > heights[0]


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure() -> None:
    evaluation, _, _ = judged(10)
    with matplotlib.rc_context(DARK):
        own = plot_class_scores(evaluation)
        figure = Figure(facecolor="black")
        assert plot_class_scores(evaluation, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})
