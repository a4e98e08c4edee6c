"""What a user chooses by name: here, without torch, so that the command line tells it at once."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["BACKENDS", "EXPORT_FORMATS", "RECIPE_NAMES", "TTA", "TTA_NAMES"]

#: What can compute the steps of a run.
BACKENDS = ("eager", "cuda-graph")

#: Test-time augmentations, see `cifarnet.transforms.tta`.
TTA = Literal["flip", "flip+shift"]
TTA_NAMES: tuple[TTA, ...] = get_args(TTA)

#: What ``cifarnet export --format`` can name.
EXPORT_FORMATS = ("onnx", "torch")

#: The keys of `RECIPES`, in its order.
RECIPE_NAMES = ("basic", "reference", "cifarcnn_tuned", "resnet18", "fast94", "fast96")
