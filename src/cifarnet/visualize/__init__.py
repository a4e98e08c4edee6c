"""Figures to publish: drawn without pyplot, on a new figure or on ``ax=``, told apart without colour too.

Each function returns a `matplotlib.figure.Figure`; save it with ``savefig``. With ``ax=`` it draws in the place of
those axes, so that several figures fit into one of your own.
"""

from cifarnet.visualize.architecture import plot_architecture
from cifarnet.visualize.augmentations import plot_augmentations
from cifarnet.visualize.curves import plot_training_curves
from cifarnet.visualize.predictions import plot_predictions

__all__ = ["plot_architecture", "plot_augmentations", "plot_predictions", "plot_training_curves"]
