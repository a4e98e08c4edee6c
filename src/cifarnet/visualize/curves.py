"""Loss and accuracy over the epochs of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifarnet.errors import InputError
from cifarnet.training.history import EpochRecord, History
from cifarnet.visualize.canvas import BLUE, GREEN, GREY, VERMILION, clear, divide, figure_of, ink_on, open_axes

__all__ = ["plot_training_curves"]

# Marker and line style tell the curves apart in black and white.
_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "val": {"color": VERMILION, "marker": "s", "linestyle": "--"},
    "test": {"color": GREEN, "marker": "^", "linestyle": ":"},
}
_NAMES = {"train": "training (while learning)", "val": "validation", "test": "test"}


def plot_training_curves(
    history: Iterable[EpochRecord], *, monitor: str = "val_accuracy", ax: Axes | None = None
) -> Figure:
    """Draw loss and accuracy over the epochs, side by side, and mark the best epoch.

    Training values are measured as they are trained: on augmented images with dropout on, averaged over the epoch. So
    they may lie below those of validation. The best epoch is marked where there are validation images; where there are
    none nothing is marked, as test images choose nothing.

    Args:
        history: What `Trainer.fit` returned, or records of `Trainer.epochs`; at least one.
        monitor: What the best epoch is best in: ``"val_accuracy"`` or ``"val_loss"``.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        InputError: If there is no epoch.
        SettingError: If ``monitor`` is neither of the two.

    Example:
        >>> from cifarnet import History
        >>> history = History.load_csv("runs/reference/history.csv")  # doctest: +SKIP
        >>> plot_training_curves(history).savefig("curves.png")  # doctest: +SKIP
    """
    history = History(history)
    if not all(isinstance(record, EpochRecord) for record in history):
        raise InputError("expected what Trainer.fit returned, or its records; History.load_csv(path) reads a file")
    best = history.best(monitor)
    if not len(history):
        raise InputError("the history has no epoch to draw; train at least one")
    ax = open_axes(ax, width=8, height=3.2)
    ink = ink_on(ax)
    loss, accuracy = divide(ax, 1, 2, gap_x=0.3)[0]
    for panel, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        _draw_curves(panel, history, quantity, ink)
        if best is not None:
            _mark_best(panel, best, monitor, quantity, ink)
    accuracy.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    loss.legend(frameon=False, labelcolor=ink, fontsize=9)
    return figure_of(ax)


def _draw_curves(panel: Axes, history: History, quantity: str, ink: str) -> None:
    epochs = [record.epoch for record in history]
    for split, style in _STYLES.items():
        values = history[f"{split}_{quantity}"]
        if any(value is not None for value in values):
            shown = [float("nan") if value is None else value for value in values]
            every = max(1, len(epochs) // 12)  # a marker at each of 100 epochs would hide the line
            panel.plot(epochs, shown, label=_NAMES[split], markersize=4, markevery=every, linewidth=1.5, **style)
    panel.set_ylabel(quantity)
    panel.set_xlabel("epoch")
    clear(panel, ink, size=10)
    panel.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.margins(y=0.1)
    panel.grid(axis="y", linewidth=0.5, alpha=0.4)


def _mark_best(panel: Axes, best: EpochRecord, monitor: str, quantity: str, ink: str) -> None:
    panel.axvline(best.epoch, color=GREY, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
    if monitor == f"val_{quantity}":
        value = best.metrics[monitor]
        panel.plot(best.epoch, value, "*", color=_STYLES["val"]["color"], markersize=13, markeredgecolor="white")
        text = f"{100 * value:.1f} %" if quantity == "accuracy" else f"{value:.3f}"
        # Beside the title, where no curve can run through it.
        panel.set_title(f"best validation: epoch {best.epoch}, {text}", loc="right", fontsize=8, color=ink)
