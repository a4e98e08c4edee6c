from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cifarnet import EpochRecord, History, optim
from cifarnet.visualize import plot_runs, plot_schedule, plot_training_curves


def record(epoch: int, **metrics: float | None) -> EpochRecord:
    values = {
        "train_loss": 2.0 / epoch,
        "train_accuracy": 1 - 0.5 / epoch,
        "val_loss": 1.0 + (epoch - 3) ** 2,
        "val_accuracy": 0.8 - 0.1 * abs(epoch - 2),
        **metrics,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return EpochRecord(epoch, 10 * epoch, 1e-3, 1.0, 0.1, 100.0, given)


def run(end: float, num_epochs: int = 5) -> History:
    """Return a history whose validation accuracy ends at ``end``."""
    return History(record(epoch, val_accuracy=end * epoch / num_epochs) for epoch in range(1, num_epochs + 1))


def lines_of(panel: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in panel.get_lines() if not str(line.get_label()).startswith("_")}


def values_of(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_ydata()))


def legend_of(panel: Axes) -> list[str]:
    legend = panel.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def looks(panel: Axes) -> set[Any]:
    """Return the lines' markers and styles, which are distinct without colour."""
    return {(line.get_marker(), line.get_linestyle()) for line in lines_of(panel).values()}


@pytest.mark.parametrize("num_epochs", [1, 100])
def test_training_curves_show_every_epoch(num_epochs: int) -> None:
    history = History(record(epoch, test_loss=1.0, test_accuracy=0.5) for epoch in range(1, num_epochs + 1))
    figure = plot_training_curves(history)
    figure.draw_without_rendering()
    names = ["training (running mean)", "validation", "test"]
    for panel, quantity in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("epoch", quantity)
        assert list(lines_of(panel)) == names
        for line, split in zip(lines_of(panel).values(), ("train", "val", "test"), strict=True):
            assert values_of(line) == history[f"{split}_{quantity}"]
            assert list(np.asarray(line.get_xdata())) == list(range(1, num_epochs + 1))
        assert all(float(tick).is_integer() for tick in panel.get_xticks())
        assert len(looks(panel)) == 3
    assert legend_of(figure.axes[0]) == names
    assert all(label.get_text().endswith(" %") for label in figure.axes[1].get_yticklabels())


def test_training_curves_mark_the_best_epoch() -> None:
    history = [record(epoch) for epoch in range(1, 6)]
    loss, accuracy = plot_training_curves(history).axes
    assert accuracy.get_title("right") == "best validation: epoch 2, 80.0 %"
    assert loss.get_title("right") == ""
    (star,) = (line for line in accuracy.get_lines() if line.get_marker() == "*")
    assert list(np.asarray(star.get_xdata())) == [2]
    loss, accuracy = plot_training_curves(history, monitor="val_loss").axes
    assert loss.get_title("right") == "best validation: epoch 3, 1.000"
    assert accuracy.get_title("right") == ""


def test_test_images_choose_no_best_epoch() -> None:
    test = {"val_loss": None, "val_accuracy": None, "test_loss": 1.0, "test_accuracy": 0.5}
    for panel in plot_training_curves([record(epoch, **test) for epoch in (1, 2, 3)]).axes:
        assert list(lines_of(panel)) == ["training (running mean)", "test"]
        assert panel.get_title("right") == ""
        assert not [line for line in panel.get_lines() if line.get_marker() == "*"]


def test_epochs_without_validation_are_left_out() -> None:
    history = [record(1), record(2, val_loss=None, val_accuracy=None), record(3, train_loss=float("nan"))]
    loss, _ = plot_training_curves(history).axes
    assert list(np.asarray(lines_of(loss)["validation"].get_xdata())) == [1, 3]
    assert np.isnan(values_of(lines_of(loss)["training (running mean)"])[2])


@pytest.mark.parametrize("num_epochs", [1, 100])
def test_runs_are_named_in_the_order_of_last_values(num_epochs: int) -> None:
    runs = {"a": run(0.3, num_epochs), "b": run(0.9), "c": run(0.6), "diverged": run(float("nan"))}
    panel = plot_runs(runs).axes[0]
    for line, history in zip(lines_of(panel).values(), runs.values(), strict=True):
        np.testing.assert_array_equal(values_of(line), history["val_accuracy"])
        assert list(np.asarray(line.get_xdata())) == list(range(1, len(history) + 1))
    assert legend_of(panel) == ["b: 90.0 %", "c: 60.0 %", "a: 30.0 %", "diverged: nan %"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("epoch", "validation accuracy")
    assert panel.get_xlim()[1] == max(5, num_epochs) + 0.5
    assert len(looks(plot_runs({f"run {i}": run(0.1 * i) for i in range(1, 10)}).axes[0])) == 9


@pytest.mark.parametrize(("metric", "label", "end"), [
    ("images_per_s", "training images per second", "100"),
    ("val_top5", "validation top5", "0.9"),
    ("my_metric", "my metric", "2"),
])  # fmt: skip
def test_runs_compare_any_column(metric: str, label: str, end: str) -> None:
    history = History(record(epoch, val_top5=0.9, my_metric=2.0) for epoch in range(1, 6))
    panel = plot_runs({"a": history}, metric=metric).axes[0]
    assert panel.get_ylabel() == label
    assert legend_of(panel) == [f"a: {end}"]
    assert values_of(panel.get_lines()[0]) == history[metric]


@pytest.mark.parametrize("total_steps", [1, 2000])
def test_schedules_are_drawn_at_every_step(total_steps: int) -> None:
    schedules = {"linear": optim.linear(), "cosine": optim.cosine(), "flat": optim.constant()}
    panel = plot_schedule(schedules, total_steps=total_steps, learning_rate=0.3).axes[0]
    for line, schedule in zip(panel.get_lines(), schedules.values(), strict=True):
        assert list(np.asarray(line.get_xdata())) == list(range(total_steps))
        assert values_of(line) == pytest.approx([0.3 * schedule(step, total_steps) for step in range(total_steps)])
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("step", "learning rate")
    assert legend_of(panel) == list(schedules)
    assert len(looks(panel)) == 3


def test_a_second_axis_shows_epochs_above_steps() -> None:
    figure: Figure = plot_schedule(optim.cosine(), total_steps=400, num_epochs=10)
    figure.draw_without_rendering()
    assert figure.axes[0].get_ylabel() == "multiplier of the learning rate"
    assert figure.axes[0].get_legend() is None
    (above,) = figure.axes[0].child_axes
    assert above.get_xlabel() == "epochs done"
    low, high = figure.axes[0].get_xlim()
    assert above.get_xlim() == pytest.approx((low / 40, high / 40))
    assert all(float(tick).is_integer() for tick in above.get_xticks())
