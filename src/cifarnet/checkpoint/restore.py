"""Saved tensors into live networks and optimizers: compare everything first, then copy into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.errors import CheckpointMismatchError

__all__ = [
    "OPTIMIZER_FLAGS",
    "check_weights",
    "follow_weights",
    "load_optimizer",
    "load_weights",
    "unwrapped_state_dict",
]

#: Entries of a parameter group that say how the update is computed, not what it is.
OPTIMIZER_FLAGS = ("capturable", "differentiable", "foreach", "fused")

#: How many differences a message lists; the first ones tell what happened.
MAX_NAMED = 5

#: States of torch's optimizers that have the shape of their parameter, and show that a file is of another network.
_PARAMETER_SHAPED = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
)

_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile; DistributedDataParallel, DataParallel and AveragedModel
_AVERAGE_COUNT = "n_averaged"  # AveragedModel's own buffer: a count, not a weight


def unwrapped_state_dict(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights and buffers of a network under the names that they have without wrappers.

    Args:
        model: A network, perhaps inside ``torch.compile``, ``DistributedDataParallel`` or ``AveragedModel``, or
            several of them; parts of it may be compiled too. Or its ``state_dict``.

    Returns:
        The network's own tensors, detached, by name.

    Example:
        >>> list(unwrapped_state_dict(nn.DataParallel(nn.Linear(2, 3))))
        ['weight', 'bias']
    """
    tensors: Mapping[str, Tensor] = model.state_dict() if isinstance(model, nn.Module) else model
    bare = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
    while True:
        names = bare.keys() - {_AVERAGE_COUNT}
        # Only a prefix of all names is a wrapper's: a network may have a part that is called module.
        prefix = next((p for p in _WRAPPERS if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            return bare
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name in names}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, built_with: str = "") -> None:
    """Copy saved weights into a network.

    Names are compared without the prefixes of wrappers, on both sides. Each tensor is copied into the storage
    that is there, so that memory formats stay and an optimizer keeps its parameters.

    Args:
        model: The network; changed only if everything fits.
        weights: Tensors by name, on any device.
        source: What messages call the file.
        built_with: How the file's network was built, ``"CifarCNN(num_classes=10)"``, if it is known.

    Raises:
        CheckpointMismatchError: If a name, a shape or a dtype differs; it lists the first five.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> load_weights(model, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, source="ones")
        >>> model(torch.ones(1, 2)).tolist()
        [[2.0, 2.0, 2.0]]
    """
    check_weights(model, weights, source=source, built_with=built_with)
    saved, targets = unwrapped_state_dict(weights), unwrapped_state_dict(model)
    without = (f"{name} has no storage in the model (it is on the meta device)" for name in targets)
    _refuse((told for told, target in zip(without, targets.values(), strict=True) if target.is_meta), source, "move it")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str, built_with: str = "") -> None:
    """Compare names, shapes and dtypes, which a network on the meta device has too; see `load_weights`.

    Args:
        model: The network that shall have the weights.
        weights: What a file holds.
        source: Which file, for the message.
        built_with: What the network was built with, for the message.
    """
    remedy = f"built with {built_with}" if built_with else "build the model as the file's was built"
    differences = _weight_differences(unwrapped_state_dict(weights), unwrapped_state_dict(model))
    _refuse(differences, f"{source} does not fit the model", remedy)


def _weight_differences(saved: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Iterator[str]:
    for name, target in targets.items():
        if name not in saved:
            yield f"{name} is only in the model"
        elif saved[name].shape != target.shape:
            yield f"{name} is {_shape(saved[name])} in the file, {_shape(target)} in the model"
        elif saved[name].dtype != target.dtype:
            yield f"{name} is {_dtype(saved[name])} in the file, {_dtype(target)} in the model"
    yield from (f"{name} is only in the file" for name in saved if name not in targets)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what ``optimizer.state_dict()`` once gave, in the memory format of the parameters.

    torch's own ``load_state_dict`` keeps the format of the saved tensors, which a file always holds contiguous.
    With ``fused=True`` contiguous Adam moments beside channels-last weights are read in the wrong order, and the
    network silently trains wrong.

    Args:
        optimizer: Over parameters of the same number, order and shapes; changed only if everything fits.
        state: With ``"state"`` and ``"param_groups"``; its tensors are copied.

    Raises:
        CheckpointMismatchError: If the groups or the shapes differ; it lists the first five.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1)
        >>> other = torch.optim.SGD([torch.zeros(2)], lr=0.5)
        >>> load_optimizer(other, optimizer.state_dict())
        >>> other.param_groups[0]["lr"]
        0.1
    """
    what, remedy = "the file does not fit the optimizer", "use the optimizer that the run was started with"
    groups, saved, live_groups = state.get("param_groups", []), state.get("state", {}), optimizer.param_groups
    _refuse(_group_differences(groups, live_groups), what, remedy)
    indices = chain.from_iterable(group["params"] for group in groups)
    params = dict(zip(indices, chain.from_iterable(group["params"] for group in live_groups), strict=True))
    _refuse(_state_differences(saved, params), what, remedy)

    # An optimizer may keep a state of all parameters under a key of its own. It goes to the device of the first one.
    first = next(iter(params.values()))
    placed = {key: _placed(value, params.get(key, first), str(key)) for key, value in saved.items()}
    settings = [_on_device_of(live, group) for group, live in zip(groups, live_groups, strict=True)]
    optimizer.load_state_dict({"state": placed, "param_groups": settings})
    for i, param in params.items():
        for key, value in placed.get(i, {}).items():
            if key != "step":  # torch casts every other state to the dtype of the parameter
                optimizer.state[param][key] = value


def follow_weights(optimizer: torch.optim.Optimizer) -> None:
    """Bring an optimizer's state to the device, dtype and memory format that its parameters were moved to.

    Args:
        optimizer: Perhaps with moments from training before the move.
    """
    state = optimizer.state_dict()
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    cast = {
        index: {
            key: value.to(params[index].dtype) if _is_moment(value, params[index]) else value
            for key, value in entries.items()
        }
        if isinstance(index, int)
        else entries
        for index, entries in state["state"].items()
    }
    if cast:
        load_optimizer(optimizer, {**state, "state": cast})


def _is_moment(value: Any, param: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == param.shape and value.dim() > 0


def _group_differences(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(saved) != len(own):
        yield f"{len(saved)} parameter groups in the file, {len(own)} in the optimizer"
        return
    for index, (group, own_group) in enumerate(zip(saved, own, strict=True)):
        size, own_size = len(group.get("params", [])), len(own_group["params"])
        if size != own_size:
            yield f"group {index} has {size} parameters in the file, {own_size} in the optimizer"
        # torch's schedulers add initial_lr.
        yield from (
            f"group {index} has {key} only in the file" for key in group if key not in own_group and key != "initial_lr"
        )
        if group.get("param_names") != own_group.get("param_names"):
            yield f"group {index} names its parameters otherwise, or in another order"


def _state_differences(saved: Mapping[Any, Mapping[str, Any]], params: Mapping[Any, Tensor]) -> Iterator[str]:
    for index, entries in saved.items():
        if not isinstance(index, int):
            continue
        if index not in params:
            yield f"parameter {index} is only in the file"
            continue
        for key, value in entries.items():
            if key in _PARAMETER_SHAPED and isinstance(value, Tensor) and value.shape != params[index].shape:
                yield f"{key} of parameter {index} is {_shape(value)} in the file, {_shape(params[index])} in the model"


def _placed(value: Any, param: Tensor, key: str) -> Any:
    """Copy a state as it was saved to the device of its parameter, in the memory format of the parameter."""
    if isinstance(value, Mapping):
        return {name: _placed(entry, param, str(name)) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_placed(entry, param, key) for entry in value)
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.clone()  # torch decides about its device
    if value.shape != param.shape:
        return value.to(param.device, copy=True)
    return torch.empty_like(param, dtype=value.dtype, memory_format=torch.preserve_format).copy_(value)


def _on_device_of(live: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group, with a learning rate of the optimizer's own kind.

    A setting that the file does not know, because a newer torch brought it, stays the optimizer's own; so does how
    the update is computed, which depends on the machine.
    """
    return dict(live) | {
        key: _like(live[key], value) if key == "lr" else value
        for key, value in group.items()
        if key not in OPTIMIZER_FLAGS
    }


def _like(live: Any, value: Any) -> Any:
    """A learning rate as the optimizer's own is kept: a tensor where it lies, or a float."""
    if isinstance(live, Tensor):
        return torch.as_tensor(value, dtype=live.dtype, device="cpu").to(live.device, copy=True)
    return float(value)


def _refuse(differences: Iterator[str], what: str, remedy: str) -> None:
    named = list(islice(differences, MAX_NAMED))
    if named:
        rest = sum(1 for _ in differences)
        more = f"; and {rest} more" if rest else ""
        raise CheckpointMismatchError(f"{what}: {'; '.join(named)}{more}; {remedy}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
