"""Batches, training steps and evaluation: everything that touches the device."""

from __future__ import annotations

from cifarnet.engine.batches import EVAL_BATCH_SIZE, Batch, Batches, BatchSource, OrderedBatches
from cifarnet.engine.device import Precision, describe_device, describe_machine, resolve_device, resolve_precision
from cifarnet.engine.eager import EagerBackend
from cifarnet.engine.evaluate import check_fit, evaluate, predict_logits
from cifarnet.engine.foreign import ForeignBatches
from cifarnet.engine.memory import explained_out_of_memory
from cifarnet.engine.settings import Mix, StepSettings
from cifarnet.engine.sums import RunningSums

__all__ = [
    "EVAL_BATCH_SIZE",
    "Batch",
    "BatchSource",
    "Batches",
    "EagerBackend",
    "ForeignBatches",
    "Mix",
    "OrderedBatches",
    "Precision",
    "RunningSums",
    "StepSettings",
    "check_fit",
    "describe_device",
    "describe_machine",
    "evaluate",
    "explained_out_of_memory",
    "predict_logits",
    "resolve_device",
    "resolve_precision",
]
