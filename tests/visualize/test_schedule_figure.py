from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from judged import DARK, inks, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifarnet import optim
from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_schedule


def chart(figure: Figure) -> Axes:
    return panels(panels(figure.axes[0])[0])[0]


@pytest.mark.parametrize("total_steps", [1, 7, 2000])
def test_a_line_is_the_learning_rate_of_every_step(total_steps: int) -> None:
    schedule = optim.one_cycle(warmup=0.25)
    panel = chart(plot_schedule(schedule, total_steps=total_steps, learning_rate=0.3))
    (line,) = panel.get_lines()
    assert list(np.asarray(line.get_xdata())) == list(range(total_steps))
    expected = [0.3 * schedule(step, total_steps) for step in range(total_steps)]
    assert list(np.asarray(line.get_ydata())) == pytest.approx(expected)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("step", "learning rate")
    assert panel.get_legend() is None


def test_several_schedules_are_named_in_their_order() -> None:
    schedules = {"linear": optim.linear(), "cosine": optim.cosine(), "flat": optim.constant()}
    panel = chart(plot_schedule(schedules, total_steps=50))
    legend = panel.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(schedules)
    assert panel.get_ylabel() == "multiplier of the learning rate"
    for line, schedule in zip(panel.get_lines(), schedules.values(), strict=True):
        assert list(np.asarray(line.get_ydata())) == pytest.approx([schedule(step, 50) for step in range(50)])


def test_epochs_stand_above_where_their_steps_do() -> None:
    figure = plot_schedule(optim.cosine(), total_steps=400, num_epochs=10)
    figure.draw_without_rendering()
    panel = chart(figure)
    (above,) = panels(panel)
    assert above.get_xlabel() == "epochs done"
    low, high = panel.get_xlim()
    assert above.get_xlim() == pytest.approx((low / 40, high / 40))
    assert all(float(tick).is_integer() for tick in above.get_xticks())


def test_it_draws_into_the_axes_it_is_given_and_on_a_dark_figure() -> None:
    with matplotlib.rc_context(DARK):
        own = plot_schedule({"a": optim.linear()}, total_steps=9, num_epochs=3)
        figure = Figure(facecolor="black")
        assert plot_schedule({"a": optim.linear()}, total_steps=9, num_epochs=3, ax=figure.subplots()) is figure
    assert (inks(own), inks(figure)) == ({"#222222"}, {"#eeeeee"})


def test_wrong_numbers_and_what_is_no_schedule_are_refused() -> None:
    with pytest.raises(SettingError, match="total_steps must be at least 1, got 0"):
        plot_schedule(optim.linear(), total_steps=0)
    with pytest.raises(SettingError, match="num_epochs must be at least 1, got 0"):
        plot_schedule(optim.linear(), total_steps=5, num_epochs=0)
    with pytest.raises(SettingError, match="learning_rate must be finite and above 0, got -1"):
        plot_schedule(optim.linear(), total_steps=5, learning_rate=-1)
    with pytest.raises(SettingError, match=r"the schedule gives -1\.0 at step 0 of 5"):
        plot_schedule(lambda step, total: -1.0, total_steps=5)
    with pytest.raises(InputError, match="schedule 'a' is a str, no function"):
        plot_schedule({"a": "linear"}, total_steps=5)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no schedule to draw"):
        plot_schedule({}, total_steps=5)
