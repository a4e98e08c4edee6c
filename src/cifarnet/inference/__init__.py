"""Devices, batches, evaluation and metrics that training and the classifier share."""

from __future__ import annotations

from cifarnet.inference.calibration import TEMPERATURE_RANGE, check_temperature, fit_temperature
from cifarnet.inference.device import Precision, describe_device, describe_machine, resolve_device, resolve_precision
from cifarnet.inference.evaluate import predict_logits
from cifarnet.inference.evaluation import NUM_BINS, NUM_TOP_LOSSES, ClassScores, ConfidenceBin, Evaluation, TopLoss
from cifarnet.inference.metrics import top_k_accuracy, true_class_ranks, wilson_interval

__all__ = [
    "NUM_BINS",
    "NUM_TOP_LOSSES",
    "TEMPERATURE_RANGE",
    "ClassScores",
    "ConfidenceBin",
    "Evaluation",
    "Precision",
    "TopLoss",
    "check_temperature",
    "describe_device",
    "describe_machine",
    "fit_temperature",
    "predict_logits",
    "resolve_device",
    "resolve_precision",
    "top_k_accuracy",
    "true_class_ranks",
    "wilson_interval",
]
