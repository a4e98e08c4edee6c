"""The library's networks, their registry, and the summary of any network."""

from __future__ import annotations

from cifarnet.models.basic_cnn import BasicCNN
from cifarnet.models.cifar_cnn import CifarCNN
from cifarnet.models.fast_cnn import FastCNN
from cifarnet.models.registry import MODELS, build_model
from cifarnet.models.resnet18 import ResNet18
from cifarnet.models.summary import ModelSummary, count_flops, summarize_model

__all__ = [
    "MODELS",
    "BasicCNN",
    "CifarCNN",
    "FastCNN",
    "ModelSummary",
    "ResNet18",
    "build_model",
    "count_flops",
    "summarize_model",
]
