"""Figures to publish: drawn without pyplot, on a new figure or on ``ax=``, told apart without colour too.

Each function returns a `matplotlib.figure.Figure`; save it with ``savefig``. With ``ax=`` it draws in the place of
those axes, so that several figures fit into one of your own.
"""

from cifarnet.visualize.architecture import plot_architecture
from cifarnet.visualize.augmentations import plot_augmentations
from cifarnet.visualize.class_scores import plot_class_scores
from cifarnet.visualize.confusion import plot_confusion_matrix
from cifarnet.visualize.curves import plot_training_curves
from cifarnet.visualize.feature_maps import plot_feature_maps
from cifarnet.visualize.filters import plot_filters
from cifarnet.visualize.grad_cam import plot_grad_cam
from cifarnet.visualize.predictions import plot_predictions
from cifarnet.visualize.reliability import plot_reliability
from cifarnet.visualize.runs import plot_runs
from cifarnet.visualize.schedules import plot_schedule
from cifarnet.visualize.top_losses import plot_top_losses

__all__ = [
    "plot_architecture",
    "plot_augmentations",
    "plot_class_scores",
    "plot_confusion_matrix",
    "plot_feature_maps",
    "plot_filters",
    "plot_grad_cam",
    "plot_predictions",
    "plot_reliability",
    "plot_runs",
    "plot_schedule",
    "plot_top_losses",
    "plot_training_curves",
]
