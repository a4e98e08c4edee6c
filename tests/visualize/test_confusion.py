from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pytest
from judged import DARK, LONG, inks, judged, told
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from cifarnet.errors import InputError
from cifarnet.visualize import plot_confusion_matrix


def shares(ax: Axes) -> np.ma.MaskedArray:
    return np.ma.asarray(ax.get_images()[0].get_array())


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_each_row_has_the_shares_of_a_true_class(num_classes: int) -> None:
    evaluation, _, _ = judged(num_classes)
    ax = plot_confusion_matrix(evaluation).axes[0]
    drawn = shares(ax)
    for i, row in enumerate(evaluation.confusion_matrix):
        if sum(row):
            assert drawn[i].tolist() == pytest.approx([count / sum(row) for count in row])
        else:
            assert np.ma.getmaskarray(drawn)[i].all()  # grey: no images of this class
    assert not sum(evaluation.confusion_matrix[-1])
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "taken for")


@pytest.mark.parametrize("num_classes", [2, 10])
def test_counts_stand_in_the_squares_and_names_on_both_sides(num_classes: int) -> None:
    evaluation, _, _ = judged(num_classes)
    figure = plot_confusion_matrix(evaluation)
    ax = figure.axes[0]
    written = {(round(y), round(x)): t.get_text() for t in ax.texts for x, y in [t.get_position()]}
    assert written == {
        (i, j): f"{count}" for i, row in enumerate(evaluation.confusion_matrix) for j, count in enumerate(row) if count
    }
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(evaluation.classes)


def test_a_hundred_classes_have_names_and_no_counts() -> None:
    evaluation, _, _ = judged(100, names=LONG)
    ax = plot_confusion_matrix(evaluation).axes[0]
    assert not ax.texts
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(names)) == len(names) >= 50
    assert all(len(name) <= 22 for name in names)
    ticks = [int(tick) for tick in ax.get_yticks()]
    assert all(name.endswith(LONG[tick][-6:]) for name, tick in zip(names, ticks, strict=True))


def test_the_title_names_the_classes_confused_most_often() -> None:
    evaluation, _, _ = judged(10)
    others = {(i, j): n for i, row in enumerate(evaluation.confusion_matrix) for j, n in enumerate(row) if i != j}
    (true, taken), count = max(others.items(), key=lambda item: item[1])
    first, second = plot_confusion_matrix(evaluation).axes[0].get_title("left").splitlines()
    assert first == f"400 images, {100 * evaluation.accuracy:.1f} % right"
    total = sum(evaluation.confusion_matrix[true])
    assert second == f"most often: kind {true} taken for kind {taken} ({count} of {total})"
    long, _, _ = judged(2, names=LONG[:2], skill=0.5)
    figure = plot_confusion_matrix(long)
    figure.draw_without_rendering()
    lines = figure.axes[0].get_title("left").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["most", "taken"]
    assert lines[2].endswith(")")
    assert figure.axes[0]._left_title.get_window_extent().x1 < figure.bbox.x1  # type: ignore[attr-defined]
    perfect, _, _ = judged(10, skill=100.0)
    assert plot_confusion_matrix(perfect).axes[0].get_title("left") == "400 images, 100.0 % right"


def test_a_dark_figure_leaves_everything_legible() -> None:
    evaluation, _, _ = judged(100)  # no counts, which stand on squares of their own colours
    with matplotlib.rc_context(DARK):
        own = plot_confusion_matrix(evaluation)
        figure = Figure(facecolor="black")
        assert plot_confusion_matrix(evaluation, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})


def test_counts_can_be_read_on_every_square() -> None:
    evaluation, _, _ = judged(10)
    ax = plot_confusion_matrix(evaluation).axes[0]
    image, drawn = ax.get_images()[0], shares(ax)
    for text in ax.texts:
        column, row = map(round, text.get_position())
        ground = image.to_rgba(drawn[row : row + 1, column : column + 1])[0, 0]
        dark, light = sorted((luminance(ground), luminance(to_rgba(text.get_color()))))
        assert (light + 0.05) / (dark + 0.05) >= 3.5
    assert {to_hex(text.get_color()) for text in ax.texts} == {"#ffffff", "#222222"}


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of WCAG 2.1, whose contrast of large letters is at least 3."""
    shares = np.asarray(colour[:3])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_names_are_no_mathematics() -> None:
    evaluation, _, _ = judged(3, names=(r"$\frac$", "a $x_1$ b", "c"))
    figure = plot_confusion_matrix(evaluation)
    figure.draw_without_rendering()
    assert r"$\frac$" in told(figure.axes[0])


def test_what_is_no_evaluation_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected an Evaluation, got list; classifier.evaluate"):
        plot_confusion_matrix([[1, 2], [3, 4]])  # type: ignore[arg-type]
