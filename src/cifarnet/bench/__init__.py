"""Measurements that anybody can repeat: each function returns plain values, which ``cifarnet bench`` prints."""

from cifarnet.bench.accuracy import measure_accuracy
from cifarnet.bench.formats import FORMATS, format_report
from cifarnet.bench.inference import measure_inference
from cifarnet.bench.saving import measure_saving
from cifarnet.bench.start import measure_start
from cifarnet.bench.training import measure_training

__all__ = [
    "FORMATS",
    "format_report",
    "measure_accuracy",
    "measure_inference",
    "measure_saving",
    "measure_start",
    "measure_training",
]
