"""Loading of saved tensors into a network or an optimizer: compare all of them, then copy them in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.errors import CheckpointMismatchError

__all__ = ["check_weights", "follow_weights", "load_optimizer", "load_weights", "unwrapped_state_dict"]

#: Entries of a parameter group that select the kernels of the update, not its result.
OPTIMIZER_FLAGS = ("capturable", "differentiable", "foreach", "fused")

#: Largest number of differences that an error message lists.
MAX_NAMED = 5

#: States of torch's optimizers that have the shape of their parameter. Another shape means another network.
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "acc_delta")

_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile; DistributedDataParallel, DataParallel and AveragedModel


def unwrapped_state_dict(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights and buffers of a network by the names that they have without wrappers.

    Args:
        model: Network or its ``state_dict``. Any number of ``torch.compile``, ``DistributedDataParallel`` and
            ``AveragedModel`` may wrap it, and ``torch.compile`` may wrap parts of it.

    Returns:
        Tensors of the network by name, detached.

    Example:
        >>> list(unwrapped_state_dict(nn.DataParallel(nn.Linear(2, 3))))
        ['weight', 'bias']
    """
    tensors: Mapping[str, Tensor] = model.state_dict() if isinstance(model, nn.Module) else model
    bare = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
    while True:
        names = bare.keys() - {"n_averaged"}  # AveragedModel's own buffer: a count, not a weight
        # Only a prefix of all names belongs to a wrapper, because a network may have a part called module.
        prefix = next((p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            return bare
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name in names}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, built_with: str = "") -> None:
    """Copy saved weights into a network.

    Names are compared without the prefixes of wrappers. Each tensor is copied into the existing storage, so that memory
    formats do not change and an optimizer keeps its parameters.

    Args:
        model: Network, which is changed only if all tensors fit.
        weights: Tensors by name, on any device.
        source: Name of the file in error messages.
        built_with: Network of the file as code, such as ``"CifarCNN(num_classes=10)"``; empty if it is unknown.

    Raises:
        CheckpointMismatchError: If a name, a shape or a dtype differs. The message lists the first five differences.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> load_weights(model, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, source="ones")
        >>> model(torch.ones(1, 2)).tolist()
        [[2.0, 2.0, 2.0]]
    """
    check_weights(model, weights, source=source, built_with=built_with)
    saved, targets = unwrapped_state_dict(weights), unwrapped_state_dict(model)
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, built_with: str = "") -> None:
    """Compare names, shapes and dtypes of weights with those of a network, which may be on the meta device.

    Args:
        model: Network for the weights.
        weights: Tensors by name.
        source: Name of the file in error messages.
        built_with: Network of the file as code; empty if it is unknown.

    Raises:
        CheckpointMismatchError: If a name, a shape or a dtype differs.
    """
    remedy = f"The file holds {built_with}. Build the same model" if built_with else "Build the model of the file"
    differences = _weight_differences(unwrapped_state_dict(weights), unwrapped_state_dict(model))
    _refuse(differences, f"{source} does not fit the model", remedy)


def _weight_differences(saved: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Iterator[str]:
    for name, target in targets.items():
        if name not in saved:
            yield f"{name} is only in the model"
        elif saved[name].shape != target.shape:
            yield f"{name} is {_shape(saved[name])} in the file, {_shape(target)} in the model"
        elif saved[name].dtype != target.dtype:
            yield f"{name} is {saved[name].dtype} in the file, {target.dtype} in the model".replace("torch.", "")
    yield from (f"{name} is only in the file" for name in saved if name not in targets)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a saved ``optimizer.state_dict()`` in the memory format of the parameters.

    ``load_state_dict`` of torch keeps the memory format of the saved tensors, which are contiguous in a file. With
    ``fused=True``, Adam reads contiguous moments of channels-last weights in the wrong order, without an error.

    Args:
        optimizer: Optimizer of parameters of the same number, order and shapes. It is changed only if all of the state
            fits.
        state: Dictionary with ``"state"`` and ``"param_groups"``. Its tensors are copied.

    Raises:
        CheckpointMismatchError: If groups or shapes differ. The message lists the first five differences.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1)
        >>> other = torch.optim.SGD([torch.zeros(2)], lr=0.5)
        >>> load_optimizer(other, optimizer.state_dict())
        >>> other.param_groups[0]["lr"]
        0.1
    """
    groups, saved, live_groups = state.get("param_groups", []), state.get("state", {}), optimizer.param_groups
    indices = chain.from_iterable(group["params"] for group in groups)
    params = dict(zip(indices, chain.from_iterable(group["params"] for group in live_groups), strict=False))
    differences = chain(_group_differences(groups, live_groups), _state_differences(saved, params))
    _refuse(differences, "The file does not fit the optimizer", "Use the optimizer that the run was started with")

    # A state under another key belongs to all parameters. It is moved to the device of the first one.
    first = next(iter(params.values()))
    placed = {key: _placed(value, params.get(key, first), str(key)) for key, value in saved.items()}
    settings = [_merge_group(live, group) for group, live in zip(groups, live_groups, strict=True)]
    optimizer.load_state_dict({"state": placed, "param_groups": settings})
    for i, param in params.items():
        for key, value in placed.get(i, {}).items():
            if key != "step":  # torch casts every other state to the dtype of the parameter
                optimizer.state[param][key] = value


def follow_weights(optimizer: torch.optim.Optimizer) -> None:
    """Move the state of an optimizer to the device, dtype and memory format that its parameters were moved to.

    Args:
        optimizer: Optimizer, which may have moments from training before the move.
    """
    if optimizer.state:
        optimizer.load_state_dict(optimizer.state_dict())  # torch moves it to the device and dtype of the parameters
        load_optimizer(optimizer, optimizer.state_dict())


def _group_differences(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(saved) != len(own):
        yield f"{len(saved)} parameter groups in the file, {len(own)} in the optimizer"
        return
    for index, (group, own_group) in enumerate(zip(saved, own, strict=True)):
        size, own_size = len(group["params"]), len(own_group["params"])
        if size != own_size:
            yield f"group {index} has {size} parameters in the file, {own_size} in the optimizer"
        unknown = group.keys() - own_group.keys() - {"initial_lr"}  # torch's schedulers add initial_lr
        yield from (f"group {index} has {key} only in the file" for key in sorted(unknown))
        if group.get("param_names") != own_group.get("param_names"):
            yield f"group {index} has other parameter names, or another order of them"


def _state_differences(saved: Mapping[Any, Mapping[str, Any]], params: Mapping[Any, Tensor]) -> Iterator[str]:
    for index, param in params.items():
        for key, value in saved.get(index, {}).items():
            if key in _MOMENTS and isinstance(value, Tensor) and value.shape != param.shape:
                yield f"{key} of parameter {index} is {_shape(value)} in the file, {_shape(param)} in the model"


def _placed(value: Any, param: Tensor, key: str) -> Any:
    """Copy a saved state to the device and memory format of its parameter, without changing its dtype."""
    if isinstance(value, Mapping):
        return {name: _placed(entry, param, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(entry, param, key) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.clone()  # load_state_dict of torch chooses its device
    if value.shape != param.shape:
        return value.to(param.device, copy=True)
    return torch.empty_like(param, dtype=value.dtype, memory_format=torch.preserve_format).copy_(value)


def _merge_group(live: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the saved settings of a group into those of the optimizer.

    The optimizer keeps its own value of settings that the file lacks, because a newer torch added them. It also keeps
    its own `OPTIMIZER_FLAGS`, because they depend on the machine. A learning rate that is a tensor stays on its device.
    """
    merged = dict(live) | {key: value for key, value in saved.items() if key not in OPTIMIZER_FLAGS}
    if isinstance(live.get("lr"), Tensor):
        merged["lr"] = torch.as_tensor(merged["lr"], dtype=live["lr"].dtype).to(live["lr"].device, copy=True)
    elif "lr" in live:
        merged["lr"] = float(merged["lr"])
    return merged


def _refuse(differences: Iterator[str], what: str, remedy: str) -> None:
    found = list(differences)
    if found:
        more = [f"and {len(found) - MAX_NAMED} more"] if len(found) > MAX_NAMED else []
        raise CheckpointMismatchError(f"{what}: {'; '.join(found[:MAX_NAMED] + more)}. {remedy}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
