"""What a trainer's state looks like: whatever a file says, it is looked at before any of it is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cifarnet.errors import CheckpointMismatchError, InputError
from cifarnet.history import MONITORS, History

__all__ = ["check_state"]

_COUNT = range(2**63)
_POSITION = {"epoch": _COUNT, "step": _COUNT, "global_step": _COUNT, "train_s": float}
_SUMS = {"loss": float, "num_correct": _COUNT, "num_images": _COUNT, "first_bad_step": range(-1, 2**63)}
_SELECTION = {"monitor": str, "epoch": _COUNT, "value": object, "epochs_since": _COUNT}
_COPY = {"num_updates": _COUNT, "weights": Mapping}
#: Which copies of the weights there are, and the setting that brings each.
_COPIES = {"average": "ema_decay", "lookahead": "lookahead"}
_STATE = {
    "model": Mapping,
    "optimizer": {"state": Mapping, "param_groups": list},
    "position": _POSITION,
    "sums": _SUMS,
    "history": list,
    "selection": _SELECTION,
    "run": Mapping,
    "environment": Mapping,
    "notes": Mapping,
}


def check_state(state: object) -> None:
    """Refuse what `Trainer.state_dict` never returned; that tensors fit the network is seen to elsewhere.

    Raises:
        CheckpointMismatchError: If a part is missing, unknown, of another type or outside its range.
    """
    if not isinstance(state, Mapping):
        raise _refusal(f"it is {_short(state)}")
    state = {"notes": {}, **state}
    _check("state", state, _STATE | {key: _COPY for key in _COPIES if key in state})
    try:
        history = History.from_list(state["history"])
    except (InputError, AttributeError) as error:
        raise _refusal(f"its history: {error}") from error
    optimizer = state["optimizer"]
    if not all(isinstance(entries, Mapping) for entries in optimizer["state"].values()):
        raise _refusal("its optimizer.state is not a dict a parameter")
    if not all(_is_group(group) for group in optimizer["param_groups"]):
        raise _refusal("its optimizer.param_groups are not dicts with a list of params and a learning rate")
    position, selection = state["position"], state["selection"]
    if len(history) != position["epoch"]:
        raise _refusal(f"it has done {position['epoch']} epochs and has records of {len(history)}")
    if selection["monitor"] not in MONITORS:
        raise _refusal(f"it is selected by {_short(selection['monitor'])}")
    if selection["epoch"] and (not _is(selection["value"], float) or selection["epoch"] > position["epoch"]):
        raise _refusal(f"its best is epoch {selection['epoch']} with {_short(selection['value'])}")
    for key, setting in _COPIES.items():
        if (state["run"].get(setting) is not None) != (key in state):
            raise _refusal(f"it has {key} weights without {setting}, or {setting} without {key} weights")
        if key in state and state[key]["num_updates"] != position["global_step"]:
            raise _refusal(f"its {key} took {state[key]['num_updates']} of {position['global_step']} steps")
    changes = state["environment"].get("changes", [])
    if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
        raise _refusal(f"its environment.changes is {_short(changes)}, not a list of texts")


def _check(name: str, value: object, kind: Any) -> None:
    if not isinstance(kind, dict):
        if not _is(value, kind):
            raise _refusal(f"its {name} is {_short(value)}")
        return
    if not isinstance(value, Mapping):
        raise _refusal(f"its {name} is {_short(value)}")
    if value.keys() != kind.keys():
        missing = sorted(kind.keys() - value.keys())
        unknown = sorted(map(str, value.keys() - kind.keys()))
        raise _refusal(f"its {name} lacks {missing} and has {unknown} besides")
    for part, of in kind.items():
        _check(part if name == "state" else f"{name}.{part}", value[part], of)


def _is(value: object, kind: Any) -> bool:
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, kind)


def _is_group(group: object) -> bool:
    return (
        isinstance(group, Mapping)
        and isinstance(group.get("params"), list)
        and all(type(param) is int for param in group["params"])
        and (isinstance(group.get("lr"), Tensor) or _is(group.get("lr"), float))
    )


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refusal(reason: str) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"this is not the state of a Trainer: {reason}. Give what Trainer.state_dict returned, or what a run of "
        'Trainer.fit saved; to take the weights alone, load them with resume="weights" or load_best'
    )
