"""Muon, learning-rate schedules as pure functions of the step, and moving averages of the weights."""

from cifarnet.optim.ema import ExponentialMovingAverage
from cifarnet.optim.groups import param_groups, use_fused
from cifarnet.optim.muon import Muon
from cifarnet.optim.schedules import Schedule, constant, cosine, from_torch, linear, one_cycle

__all__ = [
    "ExponentialMovingAverage",
    "Muon",
    "Schedule",
    "constant",
    "cosine",
    "from_torch",
    "linear",
    "one_cycle",
    "param_groups",
    "use_fused",
]
