"""A trained network together with all that is needed to use it right."""

from cifarnet.classifier.classifier import Classifier
from cifarnet.classifier.prediction import Prediction

__all__ = ["Classifier", "Prediction"]
