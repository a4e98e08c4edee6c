from __future__ import annotations

from typing import Any, cast

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from cifarnet import EpochRecord, History
from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_training_curves


def record(epoch: int, **values: Any) -> EpochRecord:
    fields: dict[str, Any] = {
        "epoch": epoch,
        "global_step": 10 * epoch,
        "learning_rate": 1e-3,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 1 - 0.5 / epoch,
        "val_loss": 1.0 + (epoch - 3) ** 2,
        "val_accuracy": 0.8 - 0.1 * abs(epoch - 2),
        "test_loss": None,
        "test_accuracy": None,
        "train_s": 1.0,
        "eval_s": 0.1,
        "images_per_s": 100.0,
    }
    return History.from_list([{**fields, **values}])[0]


def panels(figure: Figure) -> tuple[Axes, Axes]:
    loss, accuracy = (cast("Axes", panel) for panel in figure.axes[0].child_axes)
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    return loss, accuracy


def curves(panel: Axes) -> dict[str, list[float]]:
    """Values by legend label; what has none, such as the marks of the best epoch, is left out."""
    lines = {str(line.get_label()): line for line in panel.get_lines()}
    return {name: list(np.asarray(line.get_ydata())) for name, line in lines.items() if not name.startswith("_")}


@pytest.mark.parametrize("num_epochs", [1, 10, 100])
def test_every_epoch_is_drawn_at_its_value(num_epochs: int) -> None:
    history = History(record(epoch) for epoch in range(1, num_epochs + 1))
    figure = plot_training_curves(history)
    figure.draw_without_rendering()
    for panel, quantity in zip(panels(figure), ("loss", "accuracy"), strict=True):
        assert curves(panel) == {
            "training (while learning)": history[f"train_{quantity}"],
            "validation": history[f"val_{quantity}"],
        }
        for line in panel.get_lines():
            if not str(line.get_label()).startswith("_"):
                assert list(np.asarray(line.get_xdata())) == list(range(1, num_epochs + 1))
        assert all(float(tick).is_integer() for tick in panel.get_xticks())
        assert panel.get_xlabel() == "epoch"
    texts = [text.get_text() for text in panels(figure)[1].get_yticklabels()]
    assert all(text.endswith(" %") for text in texts)


def test_the_best_epoch_is_marked_in_what_it_is_best_in() -> None:
    history = [record(epoch) for epoch in range(1, 6)]
    loss, accuracy = panels(plot_training_curves(history))
    assert accuracy.get_title("right") == "best validation: epoch 2, 80.0 %"
    assert loss.get_title("right") == ""
    star = accuracy.get_lines()[-1]
    assert (star.get_marker(), list(np.asarray(star.get_xdata()))) == ("*", [2])
    loss, accuracy = panels(plot_training_curves(history, monitor="val_loss"))
    assert loss.get_title("right") == "best validation: epoch 3, 1.000"
    assert accuracy.get_title("right") == ""


def test_test_images_are_drawn_and_choose_nothing() -> None:
    history = [
        record(epoch, val_loss=None, val_accuracy=None, test_loss=1.0, test_accuracy=0.5 + epoch / 100)
        for epoch in (1, 2, 3)
    ]
    for panel in panels(plot_training_curves(history)):
        assert list(curves(panel)) == ["training (while learning)", "test"]
        assert panel.get_title("right") == ""
        assert not [line for line in panel.get_lines() if line.get_marker() == "*"]


def test_curves_are_told_apart_without_colour() -> None:
    history = [record(epoch, test_loss=1.0, test_accuracy=0.5) for epoch in (1, 2, 3)]
    loss, _ = panels(plot_training_curves(history))
    lines = [line for line in loss.get_lines() if not str(line.get_label()).startswith("_")]
    assert len(lines) == len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 3
    legend = loss.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training (while learning)", "validation", "test"]


def test_gaps_and_numbers_that_are_none_are_left_out() -> None:
    history = [record(1), record(2, val_loss=None, val_accuracy=None), record(3, train_loss=float("nan"))]
    loss, accuracy = panels(plot_training_curves(history))
    assert np.isnan(curves(loss)["validation"][1])
    assert np.isnan(curves(loss)["training (while learning)"][2])
    assert curves(accuracy)["validation"][2] == record(3).val_accuracy


def test_it_draws_into_the_axes_it_is_given() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_training_curves([record(1), record(2)], ax=right) is figure
    assert len(right.child_axes) == 2
    assert not left.child_axes
    assert left.axison


def test_a_dark_style_leaves_everything_legible() -> None:
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white", "xtick.color": "white"}):
        own = plot_training_curves([record(1), record(2)])
        figure = Figure(facecolor="black")
        plot_training_curves([record(1), record(2)], ax=figure.subplots())
    for drawn, ink in ((own, "#222222"), (figure, "#EEEEEE")):
        for panel in panels(drawn):
            texts = [panel.xaxis.label, panel.yaxis.label, *panel.get_xticklabels(), *panel.get_yticklabels()]
            assert {to_hex(text.get_color()) for text in texts} == {ink.lower()}
            assert to_hex(panel.get_facecolor(), keep_alpha=True).endswith("00")


def test_nothing_to_draw_and_a_misspelt_monitor_are_refused() -> None:
    with pytest.raises(InputError, match="no epoch to draw; train at least one"):
        plot_training_curves([])
    for wrong in ("history.csv", [{"epoch": 1}]):
        with pytest.raises(InputError, match=r"expected what Trainer.fit returned"):
            plot_training_curves(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ax must be one matplotlib Axes, got Figure"):
        plot_training_curves([record(1)], ax=Figure())  # type: ignore[arg-type]
    with pytest.raises(SettingError, match='"val_acuracy"; did you mean "val_accuracy"'):
        plot_training_curves([record(1)], monitor="val_acuracy")
