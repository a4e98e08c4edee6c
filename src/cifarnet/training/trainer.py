"""Trainer: constructor and public methods. The loop is in `cifarnet.training.loop`."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet._types import Images, Labels
from cifarnet._validation import check_count, did_you_mean
from cifarnet.checkpoint import Checkpointer
from cifarnet.checkpoint.state_dict import follow_weights
from cifarnet.data import ImageDataset
from cifarnet.errors import SettingError
from cifarnet.inference import Evaluation, resolve_device, resolve_precision
from cifarnet.inference.data import Data, open_data, open_evaluation_loader
from cifarnet.inference.evaluate import check_model_fits, check_preprocess, evaluate
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.optim import ExponentialMovingAverage, Schedule, use_fused
from cifarnet.training.checks import check_components, check_optimizer
from cifarnet.training.cuda_graph import can_be_captured, prepare_optimizer
from cifarnet.training.distributed import ProcessGroup
from cifarnet.training.history import EpochRecord, History, check_monitor
from cifarnet.training.loop import Metric, run_epochs
from cifarnet.training.progress import Progress
from cifarnet.training.resume import RunIdentity, upgrade_from_format_1
from cifarnet.training.run_data import RunData, open_run_data
from cifarnet.training.state import BestEpoch, TrainState
from cifarnet.training.step import set_learning_rates
from cifarnet.transforms import TTA, Preprocess, Transforms, build_transforms, draws_per_image
from cifarnet.transforms.tta import check_tta

__all__ = ["BatchTransform", "Trainer"]

#: Number of runs that each thread is in the middle of.
_training_threads: Counter[int] = Counter()

#: ``(images, labels) -> (mixed images, soft labels)``, such as `torchvision.transforms.v2.MixUp`.
BatchTransform = Callable[[Images, Labels], tuple[Images, Tensor]]


class Trainer:
    """Training of one network. A run is a function of its settings, its seed and its data.

    The model is moved to the device and to channels-last memory, in place. Submodules that are in eval mode while the
    model is in training mode, such as frozen batch norms, stay in eval mode.

    Args:
        model: Module from images ``(N, C, H, W)`` to logits ``(N, K)``.
        optimizer: Optimizer of the model's parameters. `torch.optim.Adam`, ``AdamW`` and ``SGD`` that leave ``fused``
            and ``foreach`` unset run fused. ``None`` builds Adam.
        lr: Learning rate of that Adam; ``None`` is 1e-3.
        transforms: Transforms of uint8 images; ``None`` builds the defaults of `build_transforms`. Floating batches of
            an iterable are not transformed. If you train on them, pass the preprocessing that they have passed, such as
            ``build_transforms(mean=..., std=...)``, or the saved classifier has none.
        batch_transform: Transform of a batch after ``transforms`` that returns soft labels, such as
            ``torchvision.transforms.v2.MixUp(num_classes=10)``. The training accuracy then counts the class with the
            largest share.
        loss_fn: Loss ``(logits, labels) -> mean over the images``; ``None`` is cross-entropy. A module is moved to the
            device and dtype of the model.
        lr_schedule: Factor of the base learning rates at each step, see `cifarnet.optim`. The base rates are those at
            the start of the run, and the optimizer has them again at the end. ``None`` never writes a learning rate.
        max_grad_norm: Largest 2-norm of the gradient; ``None`` does not clip.
        accumulate_grad_batches: Number of parts that a batch is split into to save memory; the gradient is that of the
            whole batch.
        ema_decay: Decay of an `ExponentialMovingAverage` of the weights, which is evaluated, selected and left in the
            model; ``None`` keeps none.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or an argument of `torch.device`.
        precision: ``"auto"`` (bf16 autocast on CUDA and on CPUs where it is faster, else float32), ``"bf16"``,
            ``"float32"`` or ``"float64"``.
        deterministic: Whether CUDA uses only kernels with reproducible results, which are slower. It needs
            ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the environment before Python starts.
        seed: Seed of order, augmentation and dropout, at least 0.

    Attributes:
        model: Network, on its device.
        optimizer: Optimizer.
        transforms: Transforms.
        device: A `torch.device`.
        precision: A `Precision`.
        seed: Seed.
        ema: The moving average; ``None`` without ``ema_decay``.
        cuda_graph: Whether steps that can be captured are trained by a CUDA graph; ``True`` unless you set it.
        group: Processes that train together.

    Raises:
        SettingError: If a value is outside its range, or the optimizer cannot train the model.
        SettingTypeError: If a component is of another kind, such as a class in the place of an instance.

    Example:
        >>> from cifarnet import CifarCNN, make_synthetic
        >>> data = make_synthetic(num_train=64, num_test=32)
        >>> trainer = Trainer(CifarCNN(), lr=1e-3, seed=0)
        >>> history = trainer.fit(data.train, max_epochs=1, batch_size=32, progress_bar=False)
        >>> len(history)
        1
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lr: float | None = None,
        transforms: Transforms | None = None,
        batch_transform: BatchTransform | None = None,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        lr_schedule: Schedule | None = None,
        max_grad_norm: float | None = None,
        accumulate_grad_batches: int = 1,
        ema_decay: float | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        deterministic: bool = False,
        seed: int = 0,
    ) -> None:
        check_components(model, optimizer, transforms, loss_fn, lr_schedule)
        if optimizer is not None and lr is not None:
            raise SettingError("lr is the learning rate of the default Adam. Set it in your optimizer, or leave it out")
        if optimizer is None:
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if lr is None else lr)
        check_optimizer(optimizer, model)
        check_count("seed", seed, "The default is 0", least=0)
        check_count("accumulate_grad_batches", accumulate_grad_batches, "1 does not split a batch")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise SettingError(f"max_grad_norm must be above 0, got {max_grad_norm}. Use None for no clipping")
        self.device = resolve_device(device)
        if deterministic and self.device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
            # torch reads it once, at the first matrix product of the process.
            raise SettingError(
                "deterministic=True needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment. Set it before Python "
                "starts"
            )
        self.precision = resolve_precision(precision, self.device)
        self.model = model.to(self.device, self.precision.weights).to(memory_format=torch.channels_last)
        self.optimizer = optimizer
        self.transforms = build_transforms() if transforms is None else transforms
        self.batch_transform = batch_transform
        self.loss_fn = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
        if isinstance(self.loss_fn, nn.Module):  # such as class weights
            self.loss_fn.to(self.device, self.precision.weights)
        self.lr_schedule = lr_schedule
        self.max_grad_norm = None if max_grad_norm is None else float(max_grad_norm)  # numpy's is not saved
        self.accumulate_grad_batches = int(accumulate_grad_batches)
        self.deterministic = deterministic
        self.seed = int(seed)
        self.cuda_graph = True
        self.ema = None if ema_decay is None else ExponentialMovingAverage(self.model, float(ema_decay))
        self.group = ProcessGroup.current()
        self.network: nn.Module = self.model  # or DistributedDataParallel around it, while it trains
        self.num_logits: int | None = None
        self.has_floating_batches = False
        self._has_own_transforms = transforms is not None
        self.state = TrainState(self.model, optimizer, self.ema, self.device, self.group)
        self.identity = RunIdentity(self)
        self._frozen = _frozen_modules(self.model)
        self._exchanged: list[int] = []

    @property
    def history(self) -> History:
        """Records of the completed epochs. They are kept when training is interrupted."""
        return self.state.history

    @property
    def best(self) -> BestEpoch:
        """Best validated epoch so far, with its number, its value and its weights."""
        return self.state.best

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of the images that the model learns from. ``None`` if that is unknown.

        Your code has preprocessed floating batches. Their preprocessing is known if you pass it in ``transforms``.
        """
        return self.transforms.preprocess if self._has_own_transforms or not self.has_floating_batches else None

    @property
    def global_step(self) -> int:
        """Number of completed optimizer steps."""
        return self.state.global_step

    @property
    def resume_differences(self) -> list[str]:
        """Settings that changed on resume, each with its step; empty for a bit-identical run."""
        return list(self.identity.differences)

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether steps are trained by a CUDA graph."""
        return self.cuda_graph and can_be_captured(self)

    @property
    def draws_per_image(self) -> bool:
        """Whether all transforms draw for each image separately, so that a batch can be split before them."""
        return all(draws_per_image(step) for step in self.transforms.steps)

    def fit(
        self,
        train: Data,
        val: Data | None = None,
        *,
        test: Data | None = None,
        max_epochs: int,
        batch_size: int = 64,
        checkpointer: Checkpointer | str | Path | None = None,
        resume: bool = False,
        init_from: str | Path | None = None,
        monitor: str = "val_accuracy",
        patience: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
        progress_bar: bool = True,
    ) -> History:
        """Train to ``max_epochs`` in total with a progress bar; see `epochs` for all other arguments and errors.

        Args:
            train: Training images.
            val: Validation images.
            test: Test images.
            max_epochs: Number of epochs of the whole run.
            batch_size: Images per step.
            checkpointer: Checkpointer of the run's directory, or the directory.
            resume: Whether to resume a run in that directory.
            init_from: Run whose best weights a new run starts from.
            monitor: Validation metric that selects the best epoch.
            patience: Number of epochs without a new best one after which training stops.
            metrics: Further metrics of the evaluation.
            progress_bar: Whether to show a bar on a terminal and in a notebook, or a line per epoch elsewhere, on
                stderr.

        Returns:
            `history`, with a record per epoch.
        """
        data = self._open(train, val, test, max_epochs, batch_size, monitor, patience, metrics)
        with Progress(self, data, enabled=progress_bar) as bar:
            for record in run_epochs(
                self,
                data,
                checkpointer=_as_checkpointer(checkpointer),
                resume=resume,
                init_from=init_from,
                monitor=monitor,
                patience=patience,
                metrics=metrics or {},
                bar=bar,
            ):
                bar.show_epoch(record)
        return self.history

    def epochs(
        self,
        train: Data,
        val: Data | None = None,
        *,
        test: Data | None = None,
        max_epochs: int,
        batch_size: int = 64,
        checkpointer: Checkpointer | str | Path | None = None,
        resume: bool = False,
        init_from: str | Path | None = None,
        monitor: str = "val_accuracy",
        patience: int | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> Generator[EpochRecord, None, None]:
        """Train one epoch per iteration: `fit` without the bar, whose loop body is yours.

        ``break`` ends training as the last epoch would: the run is saved, and the model holds the best weights. So does
        an exception in the body. In the body, the model holds the current weights, and torch's random state is your
        own. Python only prints an error of the save that ``break`` causes. To get it raised, write
        ``with contextlib.closing(trainer.epochs(...)) as records`` around the loop.

        Calling it again with more epochs continues from the last epoch, unless you have changed the weights of the
        model since. Started by torchrun, every process calls it with the same arguments, and ``break`` in one of them
        ends the loop in all.

        Args:
            train: Training images: an `ImageDataset`, a map-style data set of (image, label), or an iterable of
                ``(images, labels)`` batches.
            val: Validation images, which choose the best epoch. Without them, the best epoch is the last one.
            test: Test images that are evaluated each epoch, as published curves do. They choose nothing.
            max_epochs: Number of epochs of the whole run, including those done before.
            batch_size: Images per step, over all processes.
            checkpointer: Checkpointer of the run's directory, or the directory. It saves ``last`` every
                ``save_every_s`` seconds and at the end, and ``best`` on improvement, in a thread. Ctrl-C and SIGTERM
                save ``last`` after the current step; a second one acts at once.
            resume: ``True`` resumes a run in the directory, and starts one if there is none. ``False`` refuses a
                directory that holds a run.
            init_from: Directory or ``best.safetensors`` of another run, whose best weights a new run starts from.
            monitor: Validation metric that chooses the best epoch: ``"val_accuracy"``, ``"val_loss"`` or ``"val_"`` and
                the name of one of ``metrics``. Lower is better if it ends with ``loss``, else higher.
            patience: Number of epochs without a new best one after which training stops; ``None`` never stops.
            metrics: Functions ``(logits, labels) -> float`` by name. ``{"top5": fn}`` is evaluated on all validation
                and test images and recorded as ``val_top5`` and ``test_top5``.

        Returns:
            Generator of the record of each epoch.

        Raises:
            SettingError: If a value is outside its range, or the processes have different settings.
            RunExistsError: If the directory holds a run and ``resume`` is ``False``.
            ResumeMismatchError: If the run there has other settings.
            RunDirectoryBusyError: If another process is training in the directory.
            CheckpointError: If a checkpoint cannot be read or written.
            NonFiniteLossError: If the loss or a weight becomes NaN or infinite. Nothing is saved after that.
            InputError: If a batch, a label or a pixel of an iterable is invalid.
            DeviceMemoryError: If a batch does not fit into memory.
            RankLostError: If another process of the same training has ended.
        """
        data = self._open(train, val, test, max_epochs, batch_size, monitor, patience, metrics)
        bar = Progress(self, data, enabled=False)
        return run_epochs(
            self,
            data,
            checkpointer=_as_checkpointer(checkpointer),
            resume=resume,
            init_from=init_from,
            monitor=monitor,
            patience=patience,
            metrics=metrics or {},
            bar=bar,
        )

    def evaluate(self, data: Data, *, tta: TTA | None = None) -> Evaluation:
        """Evaluate the model in eval mode; while a run with ``ema_decay`` trains, evaluate the average.

        Args:
            data: Images, as in `epochs`.
            tta: Test-time augmentation; ``None`` evaluates each image once.

        Returns:
            All metrics. The loss is the one that the run is trained with.

        Raises:
            SettingError: If the model does not fit the images or their number of classes, or ``tta`` is unknown.
            InputError: If a batch, a label or a pixel of an iterable is invalid.
            DeviceMemoryError: If a batch does not fit into memory.
        """
        check_tta(tta)
        images = open_data(data, batch_size=EVAL_BATCH_SIZE, shuffle=False)
        classes = images.classes if isinstance(images, ImageDataset) else ()
        if isinstance(images, ImageDataset):
            preprocess, precision = self.transforms.preprocess, self.precision
            check_preprocess(self.preprocess)
            check_model_fits(
                self.model, images.images[:1], len(classes), images.name, preprocess=preprocess, precision=precision
            )
        with self.state.evaluated():
            return evaluate(
                self.model,
                open_evaluation_loader(images, self.device),
                preprocess=self.preprocess,
                loss_fn=self.loss_fn,
                precision=self.precision,
                tta=tta,
                classes=classes,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs, as nested dictionaries of tensors and plain values, without copies."""
        return {**self.state.state_dict(), **self.identity.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state_dict` was called, with the same settings and data.

        Args:
            state: Result of `state_dict` or `Checkpointer.read_last`.

        Raises:
            CheckpointMismatchError: If the state does not fit. Nothing is changed then.
            ResumeMismatchError: If the run has another seed, model, optimizer or preprocessing.
        """
        state = upgrade_from_format_1(state)
        self.identity.check_loadable(state)
        self.state.load_state_dict(state)
        self.identity.load_state_dict(state)

    def set_training_mode(self) -> None:
        """Put the model into training mode, except for its frozen modules."""
        self.network.train()
        for name, module in self.model.named_modules():
            if name in self._frozen:
                module.training = False

    def wrap_network(self) -> None:
        """Let the network exchange the gradients of the parameters that require one; the caller may change these."""
        trained = [id(parameter) for parameter in self.model.parameters() if parameter.requires_grad]
        if self.network is self.model or trained != self._exchanged:
            self.network = self.group.wrap(self.model, self.device)
            self._exchanged = trained

    def prepare_optimizer(self) -> None:
        """Choose the kernels of the optimizer, and note the base learning rates of its new parameter groups."""
        use_fused(self.optimizer)
        if self.uses_cuda_graph:
            prepare_optimizer(self.optimizer)
        base_lrs = self.state.base_lrs
        base_lrs += [float(group["lr"]) for group in self.optimizer.param_groups[len(base_lrs) :]]

    @contextmanager
    def prepared_for_run(self) -> Iterator[None]:
        """Prepare the optimizer and the processes for a run; give the base learning rates back at its end."""
        optimizer = self.optimizer
        thread = threading.get_ident()
        if _training_threads.keys() - {thread}:
            raise SettingError(
                "Another thread of this process is training, and they would share one random generator. Train in "
                "processes, as examples/sweep.py does, or one run after the other"
            )
        if not self.global_step:
            follow_weights(optimizer)  # the constructor moved the weights
        self.state.base_lrs = []
        self.prepare_optimizer()
        self.num_logits = None
        self.group.join(self.device)
        if self.model.training:
            self._frozen = _frozen_modules(self.model)
        _training_threads[thread] += 1  # a loop body may train another model
        try:
            yield
        finally:
            _training_threads[thread] -= 1
            if not _training_threads[thread]:
                del _training_threads[thread]
            self.network = self.model
            if self.lr_schedule is not None:
                set_learning_rates(optimizer, self.state.base_lrs)

    def _open(
        self,
        train: Data,
        val: Data | None,
        test: Data | None,
        max_epochs: int,
        batch_size: int,
        monitor: str,
        patience: int | None,
        metrics: Mapping[str, Metric] | None,
    ) -> RunData:
        """Check the arguments of `epochs` before anything is read or written."""
        check_monitor(monitor)
        names = ["val_accuracy", "val_loss", *(f"val_{name}" for name in metrics or ())]
        if monitor not in names:
            raise SettingError(f'monitor "{monitor}" is unknown; {did_you_mean(monitor, names)}')
        if len(set(names)) < len(names):
            raise SettingError('metrics must not be named "accuracy" or "loss", which are always there. Rename yours')
        if patience is not None:
            check_count("patience", patience, "3 is usual")
        if val is None and (patience is not None or (metrics and test is None)):
            raise SettingError("patience and metrics need validation images. Use train.split(0.1, seed=0)")
        check_optimizer(self.optimizer, self.model)
        return open_run_data(self, train, val, test, max_epochs=max_epochs, batch_size=batch_size)


def _as_checkpointer(checkpointer: Checkpointer | str | Path | None) -> Checkpointer | None:
    return Checkpointer(checkpointer) if isinstance(checkpointer, str | Path) else checkpointer


def _frozen_modules(model: nn.Module) -> set[str]:
    # Names, because SyncBatchNorm replaces modules.
    return {name for name, module in model.named_modules() if model.training and not module.training}
