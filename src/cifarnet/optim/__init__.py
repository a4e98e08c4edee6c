"""What `torch.optim` lacks: Muon for filters, schedules as pure functions of the step, and averages of the weights."""

from cifarnet.optim.averaging import ExponentialMovingAverage
from cifarnet.optim.fused import use_fused
from cifarnet.optim.groups import param_groups
from cifarnet.optim.muon import Muon
from cifarnet.optim.orthogonal import newton_schulz
from cifarnet.optim.schedules import Schedule, constant, cosine, from_torch, linear, one_cycle, tabulate

__all__ = [
    "ExponentialMovingAverage",
    "Muon",
    "Schedule",
    "constant",
    "cosine",
    "from_torch",
    "linear",
    "newton_schulz",
    "one_cycle",
    "param_groups",
    "tabulate",
    "use_fused",
]
