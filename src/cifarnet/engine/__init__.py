"""Batches, training steps and evaluation: everything that touches the device."""

from __future__ import annotations

from cifarnet.engine.backends import BACKENDS, Backend, choose_backend
from cifarnet.engine.batches import EVAL_BATCH_SIZE, Batch, Batches, BatchSource, OrderedBatches
from cifarnet.engine.compiled import CompiledBackend
from cifarnet.engine.device import Precision, describe_device, describe_machine, resolve_device, resolve_precision
from cifarnet.engine.eager import EagerBackend
from cifarnet.engine.evaluate import check_fit, check_sizes, evaluate, predict_logits, score
from cifarnet.engine.foreign import ForeignBatches
from cifarnet.engine.graph import CudaGraphBackend, what_cannot_be_captured
from cifarnet.engine.memory import explained_out_of_memory
from cifarnet.engine.ranks import Ranks
from cifarnet.engine.replica import BATCH_NORMS, Replica
from cifarnet.engine.settings import Mix, StepSettings
from cifarnet.engine.sums import RunningSums, Totals

__all__ = [
    "BACKENDS",
    "BATCH_NORMS",
    "EVAL_BATCH_SIZE",
    "Backend",
    "Batch",
    "BatchSource",
    "Batches",
    "CompiledBackend",
    "CudaGraphBackend",
    "EagerBackend",
    "ForeignBatches",
    "Mix",
    "OrderedBatches",
    "Precision",
    "Ranks",
    "Replica",
    "RunningSums",
    "StepSettings",
    "Totals",
    "check_fit",
    "check_sizes",
    "choose_backend",
    "describe_device",
    "describe_machine",
    "evaluate",
    "explained_out_of_memory",
    "predict_logits",
    "resolve_device",
    "resolve_precision",
    "score",
    "what_cannot_be_captured",
]
