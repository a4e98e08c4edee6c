from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sample_evaluation import LONG_NAMES, make_evaluation

from cifarnet import Evaluation
from cifarnet.inference import ClassScores, wilson_interval
from cifarnet.visualize import plot_class_scores, plot_confusion_matrix, plot_reliability


def shares(ax: Axes) -> np.ma.MaskedArray:
    return np.ma.asarray(ax.get_images()[0].get_array())


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_matrix_has_shares_counts_and_names(num_classes: int) -> None:
    evaluation, _, _ = make_evaluation(num_classes)
    ax = plot_confusion_matrix(evaluation).axes[0]
    drawn = shares(ax)
    for i, row in enumerate(evaluation.confusion_matrix):
        if sum(row):
            assert drawn[i].tolist() == pytest.approx([count / sum(row) for count in row])
        else:
            assert np.ma.getmaskarray(drawn)[i].all()  # grey: no images of this class
    assert not sum(evaluation.confusion_matrix[-1])
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "predicted class")
    if num_classes <= 10:
        written = {(round(y), round(x)): int(t.get_text()) for t in ax.texts for x, y in [t.get_position()]}
        assert written == {(i, j): count for (i, j), count in np.ndenumerate(evaluation.confusion_matrix) if count}
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            assert [label.get_text() for label in labels] == list(evaluation.classes)


def test_a_matrix_of_100_classes_has_names_and_no_counts() -> None:
    evaluation, _, _ = make_evaluation(100, names=LONG_NAMES)
    ax = plot_confusion_matrix(evaluation).axes[0]
    assert not ax.texts
    names = {int(tick): label.get_text() for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    assert len(set(names.values())) == len(names) >= 50
    assert all(len(name) <= 22 and name.endswith(LONG_NAMES[tick][-6:]) for tick, name in names.items())


def title_of(figure: Figure) -> list[str]:
    return figure.axes[0].get_title("left").splitlines()


def test_the_title_has_the_most_frequent_confusion() -> None:
    evaluation, _, _ = make_evaluation(10)
    others = {(i, j): n for (i, j), n in np.ndenumerate(evaluation.confusion_matrix) if i != j}
    (true, predicted), count = max(others.items(), key=lambda item: item[1])
    first, second = title_of(plot_confusion_matrix(evaluation))
    assert first == f"400 images, {100 * evaluation.accuracy:.1f} % correct"
    total = sum(evaluation.confusion_matrix[true])
    assert second == f"most often: kind {true} predicted as kind {predicted} ({count} of {total})"
    perfect, _, _ = make_evaluation(10, skill=100.0)
    assert title_of(plot_confusion_matrix(perfect)) == ["400 images, 100.0 % correct"]


def ranked(evaluation: Evaluation) -> Sequence[ClassScores]:
    return sorted(evaluation.per_class, key=lambda one: (one.num_images == 0, one.f1))


@pytest.mark.parametrize("num_classes", [2, 40])
def test_class_scores_start_with_the_lowest_f1(num_classes: int) -> None:
    evaluation, _, _ = make_evaluation(num_classes)
    panel = plot_class_scores(evaluation).axes[0]
    expected = ranked(evaluation)
    assert [label.get_text() for label in panel.get_yticklabels()] == [one.name for one in expected]
    for bars, score in zip(panel.containers, ("precision", "recall", "f1"), strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx([getattr(one, score) for one in expected])
    notes = [label.get_text() for label in panel.child_axes[0].get_yticklabels()]
    assert notes[0] == f"F1 {100 * expected[0].f1:.1f} %, {expected[0].num_images} images"
    assert notes[-1] == "no images"
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first is on top
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["precision", "recall", "F1"]


def test_class_scores_of_100_classes_show_both_ends() -> None:
    evaluation, _, _ = make_evaluation(100, num_images=3000, names=LONG_NAMES)
    panel = plot_class_scores(evaluation).axes[0]
    expected = [*ranked(evaluation)[:15], *ranked(evaluation)[-16:-1]]  # the last one has no images
    assert [bar.get_width() for bar in panel.containers[2]] == pytest.approx([one.f1 for one in expected])
    assert panel.get_xlabel() == "classes not shown: 1 without images, 69 in the middle"
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert len(set(names)) == 30
    assert all(len(name) <= 28 for name in names)


def check_diagram(panels: Sequence[Axes], evaluation: Evaluation) -> None:
    above, below = panels
    bins = [(i, one) for i, one in enumerate(evaluation.reliability_bins) if one.num_images]
    patches = [bar for bar in above.patches if isinstance(bar, Rectangle)]
    gaps = [bar for bar in patches if bar.get_hatch()]
    bars = [bar for bar in patches if not bar.get_hatch()]
    (intervals,) = (lines.get_segments() for lines in above.collections if isinstance(lines, LineCollection))
    assert len(bars) == len(gaps) == len(intervals) == len(bins) > 0
    for (i, one), bar, gap, interval in zip(bins, bars, gaps, intervals, strict=True):
        assert one.confidence is not None
        assert bar.get_x() + bar.get_width() / 2 == pytest.approx((i + 0.5) / 15)
        assert bar.get_height() == pytest.approx(one.num_correct / one.num_images)
        assert gap.get_y() == pytest.approx(bar.get_height())
        assert gap.get_y() + gap.get_height() == pytest.approx(one.confidence)
        assert np.asarray(interval)[:, 1] == pytest.approx(wilson_interval(one.num_correct, one.num_images))
    counts = [bar.get_height() for bar in below.patches if isinstance(bar, Rectangle)]
    assert counts == [one.num_images for one in evaluation.reliability_bins]
    assert [text.get_text() for text in below.texts if text.get_text()] == [f"{one.num_images:,}" for _, one in bins]
    assert f"calibration error {100 * evaluation.expected_calibration_error:.1f} %" in above.get_title()


@pytest.mark.parametrize(("num_classes", "num_images"), [(2, 400), (100, 400), (10, 1)])
def test_the_reliability_diagram_shows_the_bins(num_classes: int, num_images: int) -> None:
    evaluation, _, _ = make_evaluation(num_classes, num_images=num_images, skill=1.0)
    check_diagram(plot_reliability(evaluation).axes, evaluation)


def test_two_evaluations_are_drawn_side_by_side() -> None:
    evaluation, data, classifier = make_evaluation(10, skill=1.0)
    classifier.calibrate(data)
    calibrated = classifier.evaluate(data)
    before, after, *below = plot_reliability(evaluation, calibrated=calibrated).axes
    check_diagram((before, below[0]), evaluation)
    check_diagram((after, below[1]), calibrated)
    assert before.get_title().startswith("before: ")
    assert after.get_title().startswith("calibrated: ")
    assert after.get_title().endswith(f"temperature {classifier.temperature:.2f}")
    assert calibrated.temperature == classifier.temperature != 1
