"""What `torch.optim` lacks: schedules as pure functions of the step, and an average of the weights."""

from cifarnet.optim.averaging import ExponentialMovingAverage
from cifarnet.optim.schedules import Schedule, constant, cosine, from_torch, linear, one_cycle, tabulate

__all__ = [
    "ExponentialMovingAverage",
    "Schedule",
    "constant",
    "cosine",
    "from_torch",
    "linear",
    "one_cycle",
    "tabulate",
]
