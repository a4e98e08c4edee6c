"""Preparation of model, optimizer and processes for a run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from cifarnet import randomness
from cifarnet.checkpoint.state_dict import follow_weights
from cifarnet.errors import DeviceMemoryError, SettingError
from cifarnet.inference.device import out_of_memory_advice
from cifarnet.optim import use_fused
from cifarnet.training import cuda_graph
from cifarnet.training.step import set_learning_rates

if TYPE_CHECKING:
    from cifarnet.training.run_settings import RunSettings
    from cifarnet.training.trainer import Trainer

__all__ = ["find_frozen", "isolated", "prepare_network", "prepare_optimizer", "prepared"]

#: Number of runs that each thread is in the middle of.
_training_threads: Counter[int] = Counter()


@contextmanager
def prepared(trainer: Trainer) -> Iterator[None]:
    """Prepare the optimizer and the processes for a run; give the base learning rates back at its end.

    Raises:
        SettingError: If another thread of this process is training.
    """
    thread = threading.get_ident()
    if any(count for other, count in _training_threads.items() if other != thread):
        raise SettingError(
            "Another thread of this process is training, and they would share one random generator. Train in "
            "processes, as examples/sweep.py does, or one run after the other"
        )
    if not trainer.global_step:
        follow_weights(trainer.optimizer)  # the constructor moved the weights
    trainer.state.base_lrs = []
    prepare_optimizer(trainer)
    trainer.group.join(trainer.device)
    if trainer.model.training:
        trainer.frozen = find_frozen(trainer.model)
    _training_threads[thread] += 1  # a loop body may train another model
    try:
        yield
    finally:
        _training_threads[thread] -= 1
        trainer.network = trainer.model
        if trainer.lr_schedule is not None:
            set_learning_rates(trainer.optimizer, trainer.state.base_lrs)


@contextmanager
def isolated(trainer: Trainer, run: RunSettings) -> Iterator[None]:
    """Restore the random state of the caller afterwards, and explain a lack of memory and a lost process."""

    def advice() -> str:
        size = run.batch_size
        what = "A batch" if size is None else f"batch_size={size}"
        remedy = "Use smaller batches" if size is None or size < 2 else f"Use {size // 2} or accumulate_grad_batches=2"
        return f"{what} does not fit into the memory of {trainer.device}. {remedy}"

    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),  # the caller may be in torch.no_grad
            randomness.isolated(trainer.device, deterministic=trainer.deterministic),
            trainer.group.explained_loss(),
            out_of_memory_advice(trainer.device, advice),
        ):
            yield
    except DeviceMemoryError:
        trainer.optimizer.zero_grad(set_to_none=True)
        raise


def prepare_optimizer(trainer: Trainer) -> None:
    """Choose the kernels of the optimizer, and record the base learning rates of its new parameter groups."""
    use_fused(trainer.optimizer)
    if trainer.uses_cuda_graph:
        cuda_graph.prepare_optimizer(trainer.optimizer)
    base_lrs = trainer.state.base_lrs
    base_lrs += [float(group["lr"]) for group in trainer.optimizer.param_groups[len(base_lrs) :]]


def prepare_network(trainer: Trainer) -> None:
    """Let the network exchange gradients, and put it into training mode, except for its frozen modules.

    The gradients are those of the parameters that require one, which the caller may change between epochs.
    """
    trained = [id(parameter) for parameter in trainer.model.parameters() if parameter.requires_grad]
    if trainer.network is trainer.model or trained != trainer.exchanged:
        trainer.network = trainer.group.wrap(trainer.model, trainer.device)
        trainer.exchanged = trained
    trainer.network.train()
    for name, module in trainer.model.named_modules():
        if name in trainer.frozen:
            module.training = False


def find_frozen(model: nn.Module) -> set[str]:
    """Return the names of the modules in eval mode, such as frozen batch norms, of a model in training mode."""
    # Names, because SyncBatchNorm replaces modules.
    return {name for name, module in model.named_modules() if model.training and not module.training}
