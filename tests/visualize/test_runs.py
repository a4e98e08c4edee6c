from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
from judged import DARK, inks, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarnet import History
from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_runs


def history(end: float, *, num_epochs: int = 5, **values: Any) -> History:
    """A run whose validation accuracy ends at ``end``."""
    fields: dict[str, Any] = {
        "learning_rate": 0.1, "train_loss": 2 - end, "train_accuracy": 0.5, "val_loss": None, "test_loss": None,
        "test_accuracy": None, "train_s": 1.0, "eval_s": 0.1, "images_per_s": 100.0 * end,
    }  # fmt: skip
    records = []
    for epoch in range(1, num_epochs + 1):
        place = {"epoch": epoch, "global_step": epoch, "val_accuracy": end * epoch / num_epochs}
        records.append(History.from_list([{**fields, **place, **values}])[0])
    return History(records)


def chart(figure: Figure) -> Axes:
    return panels(panels(figure.axes[0])[0])[0]


def names(panel: Axes) -> list[str]:
    legend = panel.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("num_epochs", [1, 100])
def test_every_run_is_drawn_at_its_values_and_named_in_the_order_they_end(num_epochs: int) -> None:
    runs = {"a": history(0.3, num_epochs=num_epochs), "b": history(0.9), "c": history(0.6)}
    panel = chart(plot_runs(runs))
    for line, (name, run) in zip(panel.get_lines(), runs.items(), strict=True):
        assert line.get_label() == name
        assert list(np.asarray(line.get_ydata())) == run["val_accuracy"]
        assert list(np.asarray(line.get_xdata())) == list(range(1, len(run) + 1))
    assert names(panel) == ["b: 90.0 %", "c: 60.0 %", "a: 30.0 %"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("epoch", "validation accuracy")
    assert panel.get_xlim()[1] == max(5, num_epochs) + 0.5


@pytest.mark.parametrize(("metric", "axis", "end"), [
    ("train_loss", "training loss (while learning)", "1.5"),
    ("images_per_s", "training images a second", "50"),
    ("learning_rate", "learning rate", "0.1"),
])  # fmt: skip
def test_any_number_of_the_records_can_be_compared(metric: str, axis: str, end: str) -> None:
    panel = chart(plot_runs({"a": history(0.5)}, metric=metric))
    assert panel.get_ylabel() == axis
    assert names(panel) == [f"a: {end}"]
    assert list(np.asarray(panel.get_lines()[0].get_ydata())) == history(0.5)[metric]


def test_many_runs_are_told_apart_without_colour() -> None:
    panel = chart(plot_runs({f"run {i}": history(0.1 * i) for i in range(1, 10)}))
    looks = {(line.get_marker(), str(line.get_linestyle()), str(getattr(line, "_unscaled_dash_pattern", "")))
             for line in panel.get_lines()}  # fmt: skip
    assert len(looks) == 9
    assert len({line.get_marker() for line in panel.get_lines()[:8]}) == 8


def test_names_stand_beside_the_lines_within_the_figure() -> None:
    long = {f"a remarkably long name of a run, this is number {i}": history(0.1 * i) for i in range(1, 9)}
    figure = plot_runs(long)
    figure.draw_without_rendering()
    legend = chart(figure).get_legend()
    assert legend is not None
    box, lines = legend.get_window_extent(), chart(figure).get_window_extent()
    assert box.x0 > lines.x1
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= figure.bbox.y0
    assert len(set(names(chart(figure)))) == 8


def test_runs_without_the_number_and_misspelt_metrics_are_refused() -> None:
    with pytest.raises(InputError, match='run "b" has no val_accuracy; leave it out'):
        plot_runs({"a": history(0.5), "b": history(0.5, val_accuracy=None)})
    with pytest.raises(SettingError, match='metric "val_acuracy" is unknown; did you mean "val_accuracy"'):
        plot_runs({"a": history(0.5)}, metric="val_acuracy")
    with pytest.raises(InputError, match="no runs to draw"):
        plot_runs({})
    for wrong in (history(0.5), {"a": [1, 2]}):
        with pytest.raises(InputError, match="expected a dictionary of names and histories"):
            plot_runs(wrong)  # type: ignore[arg-type]


def test_gaps_and_numbers_that_are_none_keep_their_place() -> None:
    records = list(history(0.5))
    records[1] = History.from_list([{**records[1].to_dict(), "val_accuracy": None}])[0]
    line = chart(plot_runs({"a": History(records)})).get_lines()[0]
    assert list(np.asarray(line.get_xdata())) == [1, 3, 4, 5]
    diverged = {"nan": history(float("nan")), "fine": history(0.5)}
    assert names(chart(plot_runs(diverged))) == ["fine: 50.0 %", "nan: nan %"]


def test_names_are_no_mathematics_and_a_dark_figure_is_legible() -> None:
    with matplotlib.rc_context(DARK):
        own = plot_runs({r"$\frac$": history(0.5)})
        figure = Figure(facecolor="black")
        assert plot_runs({"a": history(0.5)}, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})
