"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifarnet._validation import check_count
from cifarnet.errors import InputError, SettingError
from cifarnet.optim.schedules import Schedule, tabulate
from cifarnet.visualize.lines import Chart

__all__ = ["plot_schedule"]


def plot_schedule(
    schedule: Schedule | Mapping[str, Schedule],
    *,
    total_steps: int,
    learning_rate: float = 1.0,
    num_epochs: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the learning rate of every step of a run.

    Args:
        schedule: One of `cifarnet.optim`, or any ``(step, total_steps) -> multiplier``; or several by name.
        total_steps: How many optimizer steps the run has.
        learning_rate: The base learning rate, which a schedule multiplies; with 1, the multipliers are drawn.
        num_epochs: How many epochs these steps are, drawn as a second axis above; without, there is none.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If there is no schedule, or one is no function.
        SettingError: If a number is out of range, or a schedule gives a negative multiplier or one that is not finite.

    Example:
        >>> from cifarnet import optim
        >>> schedules = {"linear": optim.linear(warmup=0.1), "cosine": optim.cosine()}
        >>> figure = plot_schedule(schedules, total_steps=7820, learning_rate=1e-3, num_epochs=10)
        >>> figure.savefig("schedules.png")  # doctest: +SKIP
    """
    check_count("total_steps", total_steps, "10 epochs of 50,000 images in batches of 64 are 7,820")
    if num_epochs is not None:
        check_count("num_epochs", num_epochs, "leave it out for steps alone")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise SettingError(f"learning_rate must be finite and above 0, got {learning_rate}; 1 draws the multipliers")
    schedules = schedule if isinstance(schedule, Mapping) else {"": schedule}
    for name, one in schedules.items():
        if not callable(one):
            raise InputError(f"schedule {name!r} is a {type(one).__name__}, no function; optim.linear() gives one")
    if not schedules:
        raise InputError("there is no schedule to draw; give at least one")
    tables = {name: tabulate(one, total_steps) * learning_rate for name, one in schedules.items()}
    chart = Chart(ax, beside=isinstance(schedule, Mapping))
    for name, table in tables.items():
        chart.draw(name, range(total_steps), table.tolist())
    panel = chart.panel
    panel.set_xlabel("step")
    panel.set_ylabel("learning rate" if learning_rate != 1 else "multiplier of the learning rate")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_ylim(0, 1.06 * max(float(table.max()) for table in tables.values()) or 1)
    chart.finish(range(len(tables)))
    if num_epochs is not None:
        steps = total_steps / num_epochs
        above = panel.secondary_xaxis("top", functions=(partial(_scale, by=1 / steps), partial(_scale, by=steps)))
        above.set_xlabel("epochs done", color=chart.ink, fontsize=chart.size)
        above.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        above.tick_params(colors=chart.ink, labelsize=chart.size)
        above.spines[:].set_color(chart.ink)
    return chart.figure


def _scale(values: npt.ArrayLike, *, by: float) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64) * by
