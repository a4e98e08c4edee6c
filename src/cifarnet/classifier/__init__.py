"""Classifier: a trained network with its preprocessing and its class names."""

from cifarnet.classifier.classifier import Classifier
from cifarnet.classifier.prediction import Prediction

__all__ = ["Classifier", "Prediction"]
