"""Several runs compared."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifarnet._validation import check_choice
from cifarnet.errors import InputError
from cifarnet.training.history import History
from cifarnet.visualize.canvas import percent
from cifarnet.visualize.lines import Chart

__all__ = ["plot_runs"]

#: What can be compared, and what it is called on the axis.
_METRICS = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "train_accuracy": "training accuracy (while learning)",
    "train_loss": "training loss (while learning)",
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
    "learning_rate": "learning rate",
    "images_per_s": "training images a second",
    "train_s": "seconds of training an epoch",
    "eval_s": "seconds of evaluation an epoch",
}


def plot_runs(runs: Mapping[str, History], *, metric: str = "val_accuracy", ax: Axes | None = None) -> Figure:
    """Draw one number of several runs over their epochs.

    Lines are told apart by colour, dashes and marker. Names stand beside them in the order in which the lines end,
    from the top, each with its value at the end, which need not be its best.

    Args:
        runs: Name of each run, and what `Trainer.fit` returned; about eight are easy to tell apart.
        metric: A field of `EpochRecord`, such as ``"val_accuracy"``, ``"train_loss"`` or ``"images_per_s"``.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If there is no run, or one has no such number.
        SettingError: If ``metric`` is unknown.

    Example:
        >>> from cifarnet import History
        >>> names = ("reference", "no dropout")
        >>> runs = {name: History.load_csv(f"runs/{name}/history.csv") for name in names}  # doctest: +SKIP
        >>> plot_runs(runs).savefig("runs.png")  # doctest: +SKIP
    """
    check_choice("metric", metric, tuple(_METRICS))
    _check_runs(runs)
    chart = Chart(ax, beside=True)
    ends: list[float] = []
    for name, history in runs.items():
        points = [(record.epoch, getattr(record, metric)) for record in history if getattr(record, metric) is not None]
        if not points:
            raise InputError(f'run "{name}" has no {metric}; leave it out, or choose a metric that all runs have')
        chart.draw(name, *zip(*points, strict=True))
        ends.append(points[-1][1])
    chart.panel.set_xlabel("epoch")
    chart.panel.set_ylabel(_METRICS[metric])
    chart.panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    chart.panel.set_xlim(0.5, max(history[-1].epoch for history in runs.values()) + 0.5)
    if metric.endswith("accuracy"):
        chart.panel.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    chart.finish(
        sorted(range(len(ends)), key=lambda i: (math.isnan(ends[i]), -ends[i])),
        [percent(end) if metric.endswith("accuracy") else f"{end:,.4g}" for end in ends],
    )
    return chart.figure


def _check_runs(runs: object) -> None:
    if not isinstance(runs, Mapping) or not all(isinstance(history, History) for history in runs.values()):
        raise InputError("expected a dictionary of names and histories; trainer.fit or History.load_csv gives one")
    if not runs:
        raise InputError("there are no runs to draw; give at least one")
