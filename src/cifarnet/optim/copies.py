"""Copies of a network's weights that go their own way beside it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["copied_weights", "pairs_with_weights"]


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by the names of the model's ``state_dict``; tied weights share a copy.

    Args:
        model: On its device, in its dtype; the copies have its memory format.
    """
    copies: dict[tuple[object, ...], Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        weights[name] = copies.setdefault(place, tensor.clone())
    return weights


def pairs_with_weights(
    copies: Mapping[str, Tensor], model: nn.Module
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Each copy beside its tensor of the model, once: first those that can be averaged, then counters.

    Args:
        copies: Of `copied_weights`.
        model: Whose weights they were.
    """
    pairs = {id(copies[name]): (copies[name], tensor) for name, tensor in model.state_dict().items()}
    floating = [pair for pair in pairs.values() if pair[0].is_floating_point()]
    return floating, [pair for pair in pairs.values() if not pair[0].is_floating_point()]
