"""What a user chooses by name: here, without torch, so that the command line tells it at once."""

from __future__ import annotations

from typing import Literal

__all__ = ["BACKENDS", "EXPORT_FORMATS", "RECIPE_NAMES", "VIEWS", "ViewName"]

#: What can compute the steps of a run; ``"auto"`` takes what is fastest there.
BACKENDS = ("auto", "eager", "compiled", "cuda-graph")

#: What `Views` can be named by.
ViewName = Literal["mirror", "multi-crop"]
VIEWS: tuple[ViewName, ...] = ("mirror", "multi-crop")

#: What ``cifarnet export --format`` can name.
EXPORT_FORMATS = ("onnx", "torch")

#: The keys of `RECIPES`, in its order.
RECIPE_NAMES = ("basic", "reference", "cifarcnn_tuned", "resnet18", "fast94", "fast96")
