"""Types of images, labels and logits, with their shapes, dtypes and ranges.

======== ==================================================
letter   meaning
======== ==================================================
``N``    images in a batch or data set
``C``    channels, 3 for colour
``H W``  height and width in pixels
``K``    classes
======== ==================================================
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

__all__ = ["Images", "Json", "Labels", "Logits"]

#: ``(N, C, H, W)``: uint8 in ``[0, 255]`` in memory, floating and normalised in front of a network.
Images: TypeAlias = Tensor

#: ``(N,)`` int64, each in ``[0, K)``.
Labels: TypeAlias = Tensor

#: ``(N, K)`` floating, unnormalised scores.
Logits: TypeAlias = Tensor

#: What JSON can hold.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
