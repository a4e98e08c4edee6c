"""Scores of a classifier, and how far they can be trusted."""

from __future__ import annotations

from cifarnet.metrics.calibration import TEMPERATURE_RANGE, check_temperature, fit_temperature
from cifarnet.metrics.evaluation import NUM_BINS, NUM_WORST, Evaluation, guesses_counted
from cifarnet.metrics.records import ClassScores, ConfidenceBin, WorstPrediction
from cifarnet.metrics.scores import top_k_accuracy, true_class_ranks, wilson_interval

__all__ = [
    "NUM_BINS",
    "NUM_WORST",
    "TEMPERATURE_RANGE",
    "ClassScores",
    "ConfidenceBin",
    "Evaluation",
    "WorstPrediction",
    "check_temperature",
    "fit_temperature",
    "guesses_counted",
    "top_k_accuracy",
    "true_class_ranks",
    "wilson_interval",
]
