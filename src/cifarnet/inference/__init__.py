"""Devices, batches, evaluation and metrics that training and the classifier share."""

from __future__ import annotations

from cifarnet.inference.calibration import fit_temperature
from cifarnet.inference.device import Precision, resolve_device, resolve_precision
from cifarnet.inference.evaluate import predict_logits
from cifarnet.inference.evaluation import ClassScores, ConfidenceBin, Evaluation, TopLoss
from cifarnet.inference.metrics import top_k_accuracy, wilson_interval

__all__ = [
    "ClassScores",
    "ConfidenceBin",
    "Evaluation",
    "Precision",
    "TopLoss",
    "fit_temperature",
    "predict_logits",
    "resolve_device",
    "resolve_precision",
    "top_k_accuracy",
    "wilson_interval",
]
