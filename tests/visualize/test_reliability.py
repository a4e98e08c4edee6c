from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from judged import DARK, inks, judged, panels
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cifarnet.errors import InputError
from cifarnet.inference import Evaluation, wilson_interval
from cifarnet.visualize import plot_reliability


def check_diagram(place: Axes, evaluation: Evaluation) -> None:
    above, below = panels(place)
    bins = [(i, one) for i, one in enumerate(evaluation.reliability_bins) if one.num_images]
    solid = [bar for bar in above.patches if isinstance(bar, Rectangle) and bar.get_fill()]
    hatched = [bar for bar in above.patches if isinstance(bar, Rectangle) and bar.get_hatch()]
    bars = [bar for bar in solid if bar not in hatched]
    intervals = [line.get_segments()[0] for line in above.collections if isinstance(line, LineCollection)]
    assert len(bars) == len(hatched) == len(intervals) == len(bins) > 0
    for (i, one), bar, gap, interval in zip(bins, bars, hatched, intervals, strict=True):
        assert one.confidence is not None
        assert bar.get_x() + bar.get_width() / 2 == pytest.approx((i + 0.5) / 15)
        assert bar.get_height() == pytest.approx(one.num_correct / one.num_images)
        assert gap.get_y() == pytest.approx(bar.get_height())
        assert gap.get_y() + gap.get_height() == pytest.approx(one.confidence)
        assert np.asarray(interval)[:, 1] == pytest.approx(wilson_interval(one.num_correct, one.num_images))
    counts = [bar.get_height() for bar in below.patches if isinstance(bar, Rectangle)]
    assert counts == [one.num_images for one in evaluation.reliability_bins]
    assert [text.get_text() for text in below.texts] == [f"{one.num_images:,}" for _, one in bins]
    assert f"calibration error {100 * evaluation.expected_calibration_error:.1f} %" in above.get_title()


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_bars_gaps_and_counts_are_those_of_the_bins(num_classes: int) -> None:
    evaluation, _, _ = judged(num_classes, skill=1.0)
    (place,) = panels(plot_reliability(evaluation).axes[0])
    check_diagram(place, evaluation)


def test_the_calibrated_evaluation_stands_beside_it_with_its_temperature() -> None:
    evaluation, data, classifier = judged(10, skill=1.0)
    classifier.calibrate(data)
    calibrated = classifier.evaluate(data)
    left, right = panels(plot_reliability(evaluation, calibrated=calibrated).axes[0])
    check_diagram(left, evaluation)
    check_diagram(right, calibrated)
    assert panels(left)[0].get_title().startswith("before: ")
    title = panels(right)[0].get_title()
    assert title.startswith("calibrated: ")
    assert title.endswith(f"temperature {classifier.temperature:.2f}")
    assert calibrated.temperature == classifier.temperature != 1


def test_a_single_bin_and_one_image_are_enough() -> None:
    evaluation, _, _ = judged(10, num_images=1, skill=100.0)
    (place,) = panels(plot_reliability(evaluation).axes[0])
    check_diagram(place, evaluation)


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure() -> None:
    evaluation, _, _ = judged(10)
    with matplotlib.rc_context(DARK):
        own = plot_reliability(evaluation)
        figure = Figure(facecolor="black")
        assert plot_reliability(evaluation, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})


def test_evaluations_of_other_images_are_refused() -> None:
    evaluation, _, _ = judged(10)
    with pytest.raises(InputError, match="not of the same images; evaluate both on the same data"):
        plot_reliability(evaluation, calibrated=judged(10, num_images=200)[0])
    with pytest.raises(InputError, match="expected an Evaluation, got float"):
        plot_reliability(evaluation, calibrated=1.5)  # type: ignore[arg-type]
