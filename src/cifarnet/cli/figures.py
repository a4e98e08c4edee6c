"""The figures that a run leaves in its directory."""

from __future__ import annotations

from pathlib import Path

from cifarnet.classifier import Classifier
from cifarnet.data import ImageDataset
from cifarnet.training.history import History

__all__ = ["save_figures"]


def save_figures(directory: Path, classifier: Classifier, history: History, test: ImageDataset) -> list[str]:
    """Draw curves, predictions and architecture.

    Args:
        directory: Of the run.
        classifier: Its best weights.
        history: What it did.
        test: Images to show predictions for.

    Returns:
        The names of the files.
    """
    from cifarnet import visualize  # matplotlib: the other commands do without

    figures = {
        "training_curves.png": visualize.plot_training_curves(history),
        "predictions.png": visualize.plot_predictions(classifier, test),
        "architecture.png": visualize.plot_architecture(classifier.model),
    }
    for name, figure in figures.items():
        figure.savefig(directory / name)
    return list(figures)
