"""The library's networks, their registry, and the summary of any network."""

from __future__ import annotations

from cifarnet.models._modules import evaluation_mode, unwrapped
from cifarnet.models.basic_cnn import BasicCNN
from cifarnet.models.cifar_cnn import CifarCNN
from cifarnet.models.fast_cnn import FastCNN
from cifarnet.models.registry import MODELS, build_model, describe_model, is_known
from cifarnet.models.resnet18 import ResNet18
from cifarnet.models.summary import ModelSummary, count_flops, summarize_model
from cifarnet.models.whitening import whitening_filters

__all__ = [
    "MODELS",
    "BasicCNN",
    "CifarCNN",
    "FastCNN",
    "ModelSummary",
    "ResNet18",
    "build_model",
    "count_flops",
    "describe_model",
    "evaluation_mode",
    "is_known",
    "summarize_model",
    "unwrapped",
    "whitening_filters",
]
