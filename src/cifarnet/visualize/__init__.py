"""Figures, drawn without pyplot and readable without colour.

Each function returns a `matplotlib.figure.Figure`; save it with ``savefig``. Functions that draw one panel also take
``ax=``, so that several of them fit into a figure of yours.
"""

from cifarnet.visualize.architecture import plot_architecture
from cifarnet.visualize.curves import plot_runs, plot_schedule, plot_training_curves
from cifarnet.visualize.evaluation_figures import plot_class_scores, plot_confusion_matrix, plot_reliability
from cifarnet.visualize.network import plot_feature_maps, plot_filters, plot_grad_cam
from cifarnet.visualize.pictures import plot_augmentations, plot_predictions, plot_top_losses

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
