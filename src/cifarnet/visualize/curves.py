"""Training curves, several runs in one chart, and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cifarnet._validation import check_count
from cifarnet.errors import DataError
from cifarnet.optim.schedules import Schedule, tabulate
from cifarnet.training.history import EpochRecord, History
from cifarnet.visualize import _style
from cifarnet.visualize._style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

__all__ = ["plot_runs", "plot_schedule", "plot_training_curves"]

# Lines differ in marker and line style too, so that they are readable without colour.
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, GREY)
_MARKERS = "os^DvPX"
_LINE_STYLES = ("-", "--", ":", "-.")
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_LABELS = {
    "train_s": "training time per epoch (s)",
    "eval_s": "evaluation time per epoch (s)",
    "images_per_s": "training images per second",
}


def plot_training_curves(history: Iterable[EpochRecord], *, monitor: str = "val_accuracy") -> Figure:
    """Draw loss and accuracy over the epochs, side by side, and mark the best epoch.

    Training values are running means over the epoch, on augmented images and with dropout. So they may be worse than
    those of validation. Without validation images no epoch is marked, because test images choose nothing.

    Args:
        history: Result of `Trainer.fit`, or records of `Trainer.epochs`; at least one.
        monitor: Metric of the best epoch, ``"val_accuracy"`` or ``"val_loss"``.

    Returns:
        A figure of two panels.

    Raises:
        DataError: If there is no epoch.
        SettingError: If no run can be selected by ``monitor``.

    Example:
        >>> from cifarnet import History
        >>> history = History.load_csv("runs/reference/history.csv")  # doctest: +SKIP
        >>> plot_training_curves(history).savefig("curves.png")  # doctest: +SKIP
    """
    history = History(history)
    if not len(history) or not all(isinstance(record, EpochRecord) for record in history):
        raise DataError(
            "history must have at least one EpochRecord. Pass what Trainer.fit or History.load_csv returns."
        )
    best = history.best(monitor)
    figure = _style.new_figure(8, 3.2)
    for panel, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for i, (split, name) in enumerate(_SPLITS.items()):
            points = _points(history, f"{split}_{quantity}")
            if points:
                _draw_line(panel, i, f"{name} (running mean)" if split == "train" else name, points)
        if best is not None:
            panel.axvline(best.epoch, color=GREY, linewidth=1, linestyle=":", zorder=0)
            if monitor == f"val_{quantity}":
                value = best.metrics[monitor]
                panel.plot(best.epoch, value, "*", color=VERMILION, markersize=13, markeredgecolor="white")
                text = _style.percent(value) if quantity == "accuracy" else f"{value:.3f}"
                panel.set_title(f"best validation: epoch {best.epoch}, {text}", loc="right")
        if quantity == "loss":
            panel.legend(frameon=False)
        _finish_epochs(panel, history[-1].epoch, quantity)
    return figure


def plot_runs(runs: Mapping[str, History], *, metric: str = "val_accuracy", ax: Axes | None = None) -> Figure:
    """Draw one metric of several runs over their epochs.

    The legend has the runs in the order of their last values, each with that value, which need not be its best.

    Args:
        runs: History of each run by name. About eight are easy to distinguish.
        metric: Column of the histories, such as ``"val_accuracy"``, ``"images_per_s"`` or a metric of your own.
        ax: Axes to draw on; ``None`` makes a new figure. The legend is right of them: a figure of yours needs
            ``layout="constrained"``.

    Returns:
        The figure.

    Raises:
        DataError: If there is no run, or one has no values of the metric.
        SettingError: If ``metric`` is unknown.

    Example:
        >>> from cifarnet import History
        >>> names = ("reference", "no dropout")
        >>> runs = {name: History.load_csv(f"runs/{name}/history.csv") for name in names}  # doctest: +SKIP
        >>> plot_runs(runs).savefig("runs.png")  # doctest: +SKIP
    """
    if not runs:
        raise DataError("runs is empty. Pass at least one history.")
    lines = {name: _points(history, metric) for name, history in runs.items()}
    for name, points in lines.items():
        if not points:
            raise DataError(f'Run "{name}" has no {metric}. Leave it out, or choose a metric that all runs have.')
    is_share = metric.endswith("accuracy")
    ends = {name: points[-1][1] for name, points in lines.items()}
    ax = _style.open_axes(ax, width=7.5, height=3.4)
    drawn = []
    for i, (name, points) in enumerate(lines.items()):
        end = _style.percent(ends[name]) if is_share else f"{ends[name]:,.4g}"
        drawn.append(_draw_line(ax, i, f"{_style.shorten(name, 26)}: {end}", points))
    order = np.argsort([-end for end in ends.values()], kind="stable")  # NaN is last
    _draw_legend(ax, [drawn[i] for i in order])
    split, _, quantity = metric.partition("_")
    label = f"{_SPLITS[split]} {quantity}" if split in _SPLITS else metric
    _finish_epochs(ax, max(points[-1][0] for points in lines.values()), _LABELS.get(metric, label.replace("_", " ")))
    return _style.figure_of(ax)


def plot_schedule(
    schedule: Schedule | Mapping[str, Schedule],
    *,
    total_steps: int,
    learning_rate: float = 1.0,
    num_epochs: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the learning rate at every step of a run.

    Args:
        schedule: Schedule of `cifarnet.optim`, any ``(step, total_steps) -> multiplier``, or several by name.
        total_steps: Number of optimizer steps of the run.
        learning_rate: Base learning rate. With 1 the multipliers are drawn.
        num_epochs: Number of epochs of these steps, for a second axis above; ``None`` for no such axis.
        ax: Axes to draw on; ``None`` makes a new figure. The legend of several schedules is right of them.

    Returns:
        The figure.

    Raises:
        DataError: If there is no schedule.
        SettingError: If a count is below 1, or a multiplier is negative or not finite.

    Example:
        >>> from cifarnet import optim
        >>> schedules = {"linear": optim.linear(warmup=0.1), "cosine": optim.cosine()}
        >>> figure = plot_schedule(schedules, total_steps=7820, learning_rate=1e-3, num_epochs=10)
        >>> figure.savefig("schedules.png")  # doctest: +SKIP
    """
    check_count("total_steps", total_steps, "10 epochs of 50,000 images in batches of 64 are 7,820")
    schedules = schedule if isinstance(schedule, Mapping) else {"": schedule}
    if not schedules:
        raise DataError("schedule is empty. Pass at least one schedule.")
    ax = _style.open_axes(ax, width=7.5 if len(schedules) > 1 else 5.5, height=3.4)
    tables = {name: tabulate(one, total_steps) * learning_rate for name, one in schedules.items()}
    lines = [
        _draw_line(ax, i, _style.shorten(name, 26), list(enumerate(table.tolist())))
        for i, (name, table) in enumerate(tables.items())
    ]
    if isinstance(schedule, Mapping):
        _draw_legend(ax, lines)
    ax.set(xlabel="step", ylabel="learning rate" if learning_rate != 1 else "multiplier of the learning rate")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(axis="y", linewidth=0.5, alpha=0.4)
    _style.finish(ax)
    if num_epochs is not None:
        check_count("num_epochs", num_epochs, "leave it out for steps alone")
        steps = total_steps / num_epochs
        above = ax.secondary_xaxis("top", functions=(lambda x: np.divide(x, steps), lambda x: np.multiply(x, steps)))
        above.set_xlabel("epochs done", color=_style.ink_on(ax), fontsize=9)
        above.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        above.tick_params(colors=_style.ink_on(ax), labelsize=9)
        above.spines[:].set_color(_style.ink_on(ax))
    return _style.figure_of(ax)


def _points(history: History, metric: str) -> list[tuple[int, float]]:
    """Return epoch and value for the epochs that have the metric."""
    values = zip(history, history[metric], strict=True)
    return [(record.epoch, value) for record, value in values if value is not None]


def _draw_line(ax: Axes, index: int, label: str, points: Sequence[tuple[int, float]]) -> Line2D:
    (line,) = ax.plot(
        *zip(*points, strict=True),
        label=label,
        color=_COLOURS[index % len(_COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
        markersize=4,
        markevery=max(1, len(points) // 10),  # a marker at each of 1,000 points would hide the line
        linewidth=1.5,
    )
    return line


def _draw_legend(ax: Axes, lines: Sequence[Line2D]) -> None:
    """Write the names right of the axes, where no line can cross them."""
    place = (1.01, 1.03)
    ax.legend(handles=lines, loc="upper left", bbox_to_anchor=place, borderaxespad=0, handlelength=3.2, frameon=False)


def _finish_epochs(ax: Axes, last_epoch: int, label: str) -> None:
    ax.set(xlabel="epoch", ylabel=label, xlim=(0.5, last_epoch + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if label.endswith("accuracy"):
        _style.set_percent(ax.yaxis)
    ax.grid(axis="y", linewidth=0.5, alpha=0.4)
    _style.finish(ax)
