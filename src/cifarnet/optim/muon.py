"""Muon, with SGD and AdamW for other parameter groups in the same optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cifarnet._hardware import is_bf16_faster
from cifarnet._validation import check_choice, check_count, did_you_mean
from cifarnet.errors import SettingError

__all__ = ["Muon", "newton_schulz"]

#: Defaults of groups with another algorithm, in addition to their learning rate.
_NON_MUON_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
}
_COMMON_KEYS = ("params", "param_names", "algorithm", "lr", "initial_lr", "fused")

#: ``x -> a x + b x^3 + c x^5`` for each singular value. The slope at 0 is as large as possible, and the result need not
#: be exactly 1 (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon: momentum with singular values near 1 as the step of filters and matrices.

    Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/. Filters of a convolution are a matrix
    ``(C_out, C_in * H * W)``. With weights ``W`` and gradients ``G``::

        M = momentum * M + (1 - momentum) * G
        U = momentum * M + (1 - momentum) * G      (nesterov; M without)
        W = W * sqrt(C_out) / norm(W)              (normalize_weights, as in the fast CIFAR-10 runs)
        W = W * (1 - lr * weight_decay) - lr * adjustment * newton_schulz(U)

    On 2-D weights, this is `torch.optim.Muon` up to the last bits. Biases, norms and the head need another algorithm:
    a group with ``"algorithm": "sgd"`` or ``"adamw"`` trains like `torch.optim.SGD` or `torch.optim.AdamW`.
    `param_groups` builds such groups.

    Args:
        params: Parameters of two dimensions or more, or groups ``{"params": [...], "lr": 0.1, ...}``. The keywords
            below are the defaults of Muon groups. Other groups inherit ``lr`` only. Their defaults are ``momentum``
            0.9, ``nesterov`` and no ``weight_decay`` (sgd), or ``weight_decay`` 0.01 (adamw).
        lr: Learning rate. A 0-d tensor stays on its device.
        momentum: Momentum in ``[0, 1)``.
        nesterov: Use Nesterov momentum.
        ns_steps: Number of Newton-Schulz steps. The fast runs use 3. Its products are in bfloat16 if the device
            computes that faster than the dtype of the weights.
        weight_decay: Decoupled weight decay, as in the formula.
        adjust_lr_fn: Scale of the step of an ``(A, B)`` matrix: ``"original"`` is ``sqrt(max(1, A / B))``, ``"none"``
            is 1, as in the fast CIFAR-10 runs.
        normalize_weights: Rescale each weight to the norm ``sqrt(C_out)`` before its step.

    Raises:
        SettingError: If a value is outside its range, a group has a setting that its algorithm does not know, or a
            Muon group has a parameter of fewer than two dimensions.

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
        weight_decay: float = 0.0,
        adjust_lr_fn: str = "original",
        normalize_weights: bool = False,
    ) -> None:
        settings: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        settings |= {"weight_decay": weight_decay, "adjust_lr_fn": adjust_lr_fn, "normalize_weights": normalize_weights}
        super().__init__(params, {"lr": lr, **settings})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: Group as in the constructor.

        Raises:
            SettingError: As in the constructor.
        """
        algorithm = param_group.get("algorithm", "muon")
        check_choice("algorithm", algorithm, ("muon", *_NON_MUON_DEFAULTS))
        muons = {key: value for key, value in self.defaults.items() if key != "lr"}
        own = _NON_MUON_DEFAULTS.get(algorithm, muons)
        for key in param_group:
            if key not in own and key not in _COMMON_KEYS:
                raise SettingError(f'a group with algorithm "{algorithm}" has no {key}; {did_you_mean(key, list(own))}')
        # With fused set, torch keeps the step counters on the device.
        group = {"algorithm": algorithm, "lr": self.defaults["lr"], "fused": True, **own, **param_group}
        _check(group)
        super().add_param_group(group)
        for key in muons.keys() - own.keys():
            del self.param_groups[-1][key]  # torch filled in the defaults of Muon
        if algorithm == "muon":
            for parameter in self.param_groups[-1]["params"]:
                _check_matrix(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient.

        Args:
            closure: Function that computes the loss and the gradients.

        Returns:
            The loss of the closure, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [(p, p.grad, self.state[p]) for p in group["params"] if p.grad is not None]
            if trained:
                params, grads, states = map(list, zip(*trained, strict=True))
                _UPDATES[group["algorithm"]](params, grads, states, group)
        return loss


def newton_schulz(matrices: Tensor, *, num_steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Bring all singular values near 1 and keep the singular vectors.

    Each matrix is divided by its Frobenius norm and goes ``num_steps`` times through ``X -> a X + (b A + c A A) X``
    with ``A = X X^T``. After 5 steps, singular values above 0.003 of the norm lie between 0.68 and 1.21.

    For a long matrix in float32 or float64, up to three steps update only ``A`` and multiply their factors, which are
    applied to ``X`` once. This saves 20 % of the CPU time of a step of the recipe ``cifarcnn_tuned`` (batch size 256,
    ``fc1.weight`` of 512 x 12,544, 3 steps). In bfloat16, the rounding of that product would be too large.

    Args:
        matrices: Matrices, shape ``(B, R, C)``. One batch takes less time than single matrices.
        num_steps: Number of steps.
        dtype: Dtype of the products, by default that of ``matrices``. bfloat16 is precise enough for training.

    Returns:
        Matrices of shape ``(B, R, C)`` in ``dtype``.

    Example:
        >>> matrices = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
        >>> print(newton_schulz(matrices))
        tensor([[[0.7229, 0.0000],
                 [0.0000, 1.1192]]])
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if is_tall else matrices  # the Gram matrix of the shorter side is smaller
    norms = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
    x: Tensor = (wide / norms.clamp_min(1e-7)).to(dtype or matrices.dtype)
    is_long = x.shape[-1] >= 2 * x.shape[-2] and x.dtype in (torch.float32, torch.float64)
    a, b, c = _COEFFICIENTS
    gram: Tensor | None = None  # (B, R, R)
    factor: Tensor | None = None
    for step in range(1, num_steps + 1):
        gram = torch.bmm(x, x.mT) if gram is None else gram
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if not is_long:
            x, gram = torch.baddbmm(x, polynomial, x, beta=a), None
            continue
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial if factor is None else torch.bmm(polynomial, factor)
        # Rounding makes zero eigenvalues of a Gram matrix negative, and those grow twelvefold per step. So compute a
        # new one after steps 3, 5, 7, ...
        if step == num_steps or (step > 1 and step % 2):
            x, factor, gram = torch.bmm(factor, x), None, None
        else:
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    return x.mT if is_tall else x


def _check(group: dict[str, Any]) -> None:
    if not 0 <= float(group["lr"]) < math.inf:
        raise SettingError(f"lr must be finite and not negative, got {float(group['lr'])}; 0.02 suits Muon")
    for key, least, end, remedy in (("momentum", 0, 1, "0.95 is usual"), ("weight_decay", 0, math.inf, "0 is none")):
        if not least <= group.get(key, 0) < end:
            raise SettingError(f"{key} must be in [{least}, {end}), got {group[key]}; {remedy}")
    if group["algorithm"] == "muon":
        check_count("ns_steps", group["ns_steps"], "5 are usual, 3 in the fast runs")
        check_choice("adjust_lr_fn", group["adjust_lr_fn"], ("none", "original"))


def _check_matrix(parameter: Tensor) -> None:
    if parameter.ndim < 2 or parameter.is_complex():
        shape = "x".join(map(str, parameter.shape)) or "one number"
        raise SettingError(
            f"Muon trains filters and matrices of real numbers, got a parameter of {shape}, {parameter.dtype}; pass "
            'it in a group with "algorithm": "sgd" or "adamw", as param_groups does'
        )


def _muon(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    lr, momentum = group["lr"], group["momentum"]
    buffers = _zeros_once("momentum_buffer", params, states)
    torch._foreach_lerp_(buffers, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
    if group["normalize_weights"]:
        norms = torch._foreach_norm(params)
        torch._foreach_clamp_min_(norms, 1e-12)  # weights of zeros stay zero
        torch._foreach_div_(params, norms)
        torch._foreach_mul_(params, [math.sqrt(len(parameter)) for parameter in params])
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    alike = defaultdict(list)
    for parameter, update in zip(params, updates, strict=True):
        matrix = update.flatten(1)
        alike[matrix.shape, matrix.dtype, matrix.device].append((parameter, matrix))
    for ((rows, columns), dtype, device), pairs in alike.items():
        matrices = torch.stack([matrix for _, matrix in pairs])  # (B, R, C)
        ns_dtype = torch.bfloat16 if dtype != torch.float64 and is_bf16_faster(device) else dtype
        orthogonal = newton_schulz(matrices, num_steps=group["ns_steps"], dtype=ns_dtype).to(dtype)
        adjustment = math.sqrt(max(1, rows / columns)) if group["adjust_lr_fn"] == "original" else 1.0
        for (parameter, _), step in zip(pairs, orthogonal * (lr * adjustment), strict=True):
            parameter.sub_(step.reshape(parameter.shape))


def _sgd(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    # A buffer of zeros becomes the gradient in the first step, as in torch's SGD.
    buffers: list[Tensor | None] = [*_zeros_once("momentum_buffer", params, states)]
    settings = {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")}
    sgd(params, grads, buffers, fused=True, dampening=0.0, maximize=False, **settings)


def _adamw(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    averages, squares = (_zeros_once(key, params, states) for key in ("exp_avg", "exp_avg_sq"))
    for parameter, state in zip(params, states, strict=True):
        state.setdefault("step", parameter.new_zeros((), dtype=torch.float32))
    counts = [state["step"] for state in states]
    settings = {key: group[key] for key in ("lr", "eps", "weight_decay")}
    beta1, beta2 = group["betas"]
    settings |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False, "fused": True}
    adamw(params, grads, averages, squares, [], counts, **settings)


def _zeros_once(key: str, params: list[Tensor], states: list[dict[str, Tensor]]) -> list[Tensor]:
    for parameter, state in zip(params, states, strict=True):
        if key not in state:
            state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return [state[key] for state in states]


_UPDATES = {"muon": _muon, "sgd": _sgd, "adamw": _adamw}
