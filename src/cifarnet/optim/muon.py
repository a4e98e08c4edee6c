"""Muon for filters and matrices, and beside it SGD or AdamW for everything else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from cifarnet._validation import check_choice, check_count, did_you_mean
from cifarnet.errors import SettingError
from cifarnet.optim.updates import ADJUSTMENTS, NS_DTYPES, UPDATES

__all__ = ["Muon"]

#: Settings of groups that train otherwise, beside their learning rate.
_OTHERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
}
_OF_EVERY_GROUP = ("params", "param_names", "algorithm", "lr", "initial_lr", "fused")


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are brought near 1 before it is taken from the weights.

    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/. A convolution's filters are the rows of a matrix
    ``(C_out, C_in * H * W)``, a linear layer's weights are one as they are. With weights ``W`` and gradients ``G``::

        M = momentum * M + (1 - momentum) * G
        U = momentum * M + (1 - momentum) * G      (nesterov; M without)
        W = W * sqrt(C_out) / norm(W)              (normalize_weights, as the fast CIFAR-10 runs do)
        W = W * (1 - lr * weight_decay) - lr * adjustment * newton_schulz(U)

    Matrices of one shape go through `newton_schulz` together. On 2-D weights this is `torch.optim.Muon`, whose
    ``weight_decay`` is 0.1 by default, but for the last bits.

    Biases, norms and the layer before the logits are no matter for Muon: a group with ``"algorithm": "sgd"`` or
    ``"adamw"`` trains as `torch.optim.SGD` or `torch.optim.AdamW` does. `param_groups` makes such groups.

    Args:
        params: Parameters of two dimensions or more, or groups, ``{"params": [...], "lr": 0.1, ...}``. The keywords
            below are the defaults of groups that train by Muon; others take ``lr`` alone, and have ``momentum`` 0.9,
            ``nesterov`` and no ``weight_decay`` (sgd), ``betas``, ``eps`` and a ``weight_decay`` of 0.01 (adamw).
        lr: Learning rate; a 0-d tensor is read on its device at each step.
        momentum: In ``[0, 1)``.
        nesterov: Whether to look a step ahead.
        ns_steps: Of `newton_schulz`; the fast runs take 3.
        ns_dtype: Number format of the products in `newton_schulz`: ``"bfloat16"``, ``"float32"``, ``"float64"`` or
            ``"auto"``, which is bfloat16 if the device computes it faster than the format of the weights.
        weight_decay: Decoupled from the gradient, as the formula says.
        adjust_lr_fn: Scales the step of an ``(A, B)`` matrix, with torch's names: ``"original"`` by
            ``sqrt(max(1, A / B))``, ``"spectral_unclamped"`` by ``sqrt(A / B)``, ``"match_rms_adamw"`` by
            ``0.2 * sqrt(max(A, B))``, ``"none"`` not at all, as the fast CIFAR-10 runs do.
        normalize_weights: Whether each weight gets the norm ``sqrt(C_out)`` before its step.

    Raises:
        SettingError: If a value is outside its range, a group has a setting that its algorithm does not know, or Muon
            is given a parameter of fewer than two dimensions.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> groups = [{"params": [layer.weight]}, {"params": [layer.bias], "algorithm": "sgd", "lr": 1.0}]
        >>> optimizer = Muon(groups, lr=0.1)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> [(group["algorithm"], group["lr"]) for group in optimizer.param_groups]
        [('muon', 0.1), ('sgd', 1.0)]
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float | Tensor,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        weight_decay: float = 0.0,
        adjust_lr_fn: str = "original",
        normalize_weights: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "weight_decay": weight_decay,
            "adjust_lr_fn": adjust_lr_fn,
            "normalize_weights": normalize_weights,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters that train by the group's ``"algorithm"``.

        Args:
            param_group: As in the constructor.

        Raises:
            SettingError: See the constructor.
        """
        algorithm = param_group.get("algorithm", "muon")
        check_choice("algorithm", algorithm, ("muon", *_OTHERS))
        muons = {key: value for key, value in self.defaults.items() if key != "lr"}
        own = _OTHERS.get(algorithm, muons)
        for key in param_group:
            if key not in own and key not in _OF_EVERY_GROUP:
                raise SettingError(f'a group with algorithm "{algorithm}" has no {key}; {did_you_mean(key, list(own))}')
        # torch keeps counters of steps on the device where a group says fused.
        group = {"algorithm": algorithm, "lr": self.defaults["lr"], "fused": True, **own, **param_group}
        _check(group)
        super().add_param_group(group)
        for key in muons.keys() - own.keys():
            del self.param_groups[-1][key]  # torch gave Muon's settings to it
        if algorithm == "muon":
            for parameter in self.param_groups[-1]["params"]:
                _check_matrix(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters that have a gradient.

        Args:
            closure: Computes the loss and the gradients, if they are not there yet.

        Returns:
            What the closure gave.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                UPDATES[group["algorithm"]](params, [self.state[parameter] for parameter in params], group)
        return loss


def _check(group: dict[str, Any]) -> None:
    if not 0 <= float(group["lr"]) < math.inf:
        raise SettingError(f"lr must be finite and not negative, got {float(group['lr'])}; 0.02 suits Muon")
    for key, least, end, remedy in (("momentum", 0, 1, "0.95 is usual"), ("weight_decay", 0, math.inf, "0 is none")):
        if not least <= group.get(key, 0) < end:
            raise SettingError(f"{key} must be in [{least}, {end}), got {group[key]}; {remedy}")
    if group["algorithm"] == "muon":
        check_count("ns_steps", group["ns_steps"], "5 are usual, 3 in the fast runs")
        check_choice("ns_dtype", group["ns_dtype"], ("auto", *NS_DTYPES))
        check_choice("adjust_lr_fn", group["adjust_lr_fn"], ADJUSTMENTS)


def _check_matrix(parameter: Tensor) -> None:
    if parameter.ndim < 2 or parameter.is_complex():
        shape = "x".join(map(str, parameter.shape)) or "one number"
        raise SettingError(
            f"Muon trains filters and matrices of real numbers, got a parameter of {shape}, {parameter.dtype}; give "
            'it to a group with "algorithm": "sgd" or "adamw", as param_groups does'
        )
