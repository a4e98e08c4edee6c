"""Trainer: constructor and public methods. The loop is in `cifarnet.training.loop`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarnet.checkpoint import Checkpointer
from cifarnet.data import ImageDataset
from cifarnet.inference import Evaluation, resolve_device, resolve_precision
from cifarnet.inference.evaluate import evaluate
from cifarnet.inference.loader import EVAL_BATCH_SIZE
from cifarnet.inference.open_data import Data, open_data, open_evaluation_loader
from cifarnet.optim import ExponentialMovingAverage, Schedule
from cifarnet.training.checks import check_components, check_options, choose_optimizer
from cifarnet.training.cuda_graph import can_be_captured
from cifarnet.training.distributed import ProcessGroup
from cifarnet.training.history import EpochRecord, History
from cifarnet.training.identity import RunIdentity
from cifarnet.training.loop import run_epochs
from cifarnet.training.preparation import find_frozen
from cifarnet.training.progress import Progress
from cifarnet.training.resume import upgrade_from_format_1
from cifarnet.training.run_settings import Metric, RunSettings, check_images
from cifarnet.training.state import BestEpoch, TrainState
from cifarnet.training.step import BatchTransform
from cifarnet.transforms import TTA, Preprocess, Transforms, build_transforms

__all__ = ["Trainer"]


class Trainer:
    """Training of one network. A run is a function of its settings, its seed and its data.

    The model is moved to the device and to channels-last memory, in place. Submodules that are in eval mode while the
    model is in training mode, such as frozen batch norms, stay in eval mode.

    Args:
        model: Module from images ``(N, C, H, W)`` to logits ``(N, K)``.
        optimizer: Optimizer of the model's parameters; ``None`` builds Adam. `torch.optim.Adam`, ``AdamW`` and ``SGD``
            that leave ``fused`` and ``foreach`` unset run fused.
        lr: Learning rate of that Adam; ``None`` is 1e-3.
        transforms: Transforms of uint8 images; ``None`` builds those of `build_transforms`. For floating batches, which
            are not transformed, pass the preprocessing that they have passed, or the saved classifier has none.
        batch_transform: Transform of a batch after ``transforms`` that returns soft labels, such as
            ``torchvision.transforms.v2.MixUp(num_classes=10)``. The class with the largest share counts as true.
        loss_fn: Loss ``(logits, labels) -> mean over the images``; ``None`` is cross-entropy. A module is moved to the
            device and dtype of the model.
        lr_schedule: Factor of the base learning rates at each step, see `cifarnet.optim`. The base rates are those at
            the start of the run, and the optimizer has them again at the end. ``None`` never writes a learning rate.
        max_grad_norm: Largest 2-norm of the gradient; ``None`` does not clip.
        accumulate_grad_batches: Number of parts of a batch, to save memory; the gradient is that of the whole batch.
        ema_decay: Decay of an average of the weights, which is evaluated, selected and left in the model, or ``None``.
        device: ``"auto"`` (CUDA if there is one, else the CPU) or an argument of `torch.device`.
        precision: ``"auto"`` (bf16 autocast if it is faster, else float32), ``"bf16"``, ``"float32"`` or ``"float64"``.
        deterministic: Whether CUDA uses only kernels with reproducible results, which are slower. It needs
            ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` in the environment before Python starts.
        seed: Seed of order, augmentation and dropout, at least 0.

    Attributes:
        model, optimizer, transforms, device, precision, seed: As passed; device and precision are resolved.
        ema: The moving average; ``None`` without ``ema_decay``.
        cuda_graph: Whether steps that can be captured are trained by a CUDA graph; ``True`` unless you set it.
        group: Processes that train together.

    Raises:
        SettingError: If a value is outside its range or of another type, or the optimizer cannot train the model.

    Example:
        >>> from cifarnet import CifarCNN, make_synthetic
        >>> data = make_synthetic(num_train=64, num_test=32)
        >>> history = Trainer(CifarCNN(), lr=1e-3).fit(data.train, max_epochs=1, progress_bar=False)
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
        self.device = resolve_device(device)
        check_options(seed, accumulate_grad_batches, max_grad_norm, deterministic, self.device)
        optimizer = choose_optimizer(optimizer, model, lr)
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
        self.exchanged: list[int] = []  # parameters whose gradients the network exchanges
        self.frozen = find_frozen(self.model)
        self.has_floating_batches = False
        self._has_own_transforms = transforms is not None
        self.state = TrainState(self)
        self.identity = RunIdentity(self)

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
        """Preprocessing of the images that the model learns from; ``None`` for floating batches without transforms."""
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
        """``True`` if a CUDA graph trains the steps."""
        return self.cuda_graph and can_be_captured(self)

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
            progress_bar: Whether to show a bar on a terminal and in a notebook, or a line per epoch elsewhere.

        Returns:
            `history`, with a record per epoch.
        """
        run = RunSettings(
            self, train, val, test, max_epochs, batch_size, checkpointer, resume, init_from, monitor, patience, metrics
        )
        with Progress(self, run, enabled=progress_bar) as bar:
            for record in run_epochs(self, run, bar):
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
        """Train one epoch per iteration and yield its record: `fit` without the bar, whose loop body is yours.

        ``break`` and an exception in the body end training as the last epoch would: the run is saved, and the model
        holds the best weights. In the body, the model holds the current weights, and torch's random state is your own.
        If the save fails after ``break``, Python only prints the error, unless you write
        ``with contextlib.closing(trainer.epochs(...)) as records`` around the loop. Calling it again with more epochs
        continues from the last epoch, unless you have changed the weights of the model since. With torchrun, every
        process passes the same arguments, and ``break`` in one process ends the loop in all.

        Args:
            train: Training images: an `ImageDataset`, a map-style data set of (image, label), or an iterable of
                ``(images, labels)`` batches.
            val: Validation images, which choose the best epoch. Without them, it is the last one.
            test: Test images that are evaluated each epoch. They choose nothing.
            max_epochs: Number of epochs of the whole run, including those done before.
            batch_size: Images per step, over all processes.
            checkpointer: Checkpointer of the run's directory, or the directory. It saves ``last`` every
                ``save_every_s`` seconds and at the end, and ``best`` on improvement, in a thread. Ctrl-C and SIGTERM
                save ``last`` after the current step or batch of validation; a second one acts at once.
            resume: Whether to resume a run in the directory if there is one. ``False`` refuses a directory with a run.
            init_from: Directory or ``best.safetensors`` of another run, whose best weights a new run starts from.
            monitor: Validation metric that chooses the best epoch: ``"val_accuracy"``, ``"val_loss"`` or ``"val_"`` and
                the name of one of ``metrics``. Lower is better if it ends with ``loss``, else higher.
            patience: Number of epochs without a new best one after which training stops; ``None`` never stops.
            metrics: Functions ``(logits, labels) -> float`` by name. ``{"top5": fn}`` is evaluated on all validation
                and test images and recorded as ``val_top5`` and ``test_top5``.

        Raises:
            SettingError: If a value is outside its range, or the processes have different settings.
            CheckpointError: If a checkpoint cannot be read or written, the directory is in use or holds another run, or
                it holds a run and ``resume`` is ``False``.
            NonFiniteError: If the loss or a weight becomes NaN or infinite. Nothing is saved after that.
            DataError: If a batch, a label or a pixel of an iterable is invalid.
            DeviceMemoryError: If a batch does not fit into memory.
            CifarnetError: If another process of the same training has ended.
        """
        run = RunSettings(
            self, train, val, test, max_epochs, batch_size, checkpointer, resume, init_from, monitor, patience, metrics
        )
        return run_epochs(self, run, Progress(self, run, enabled=False))

    def evaluate(self, data: Data, *, tta: TTA | None = None) -> Evaluation:
        """Evaluate the model in eval mode; while a run with ``ema_decay`` trains, evaluate the average.

        Args:
            data: Images, as in `epochs`.
            tta: Test-time augmentation; ``None`` evaluates each image once.

        Returns:
            All metrics. The loss is the one that the run is trained with.

        Raises:
            SettingError: If the model does not fit the images or their number of classes, or ``tta`` is unknown.
        """
        images = open_data(data, batch_size=EVAL_BATCH_SIZE, shuffle=False)
        if isinstance(images, ImageDataset):
            check_images(self, images)
        with self.state.evaluated():
            return evaluate(
                self.model,
                open_evaluation_loader(images, self.device),
                preprocess=self.preprocess,
                loss_fn=self.loss_fn,
                precision=self.precision,
                tta=tta,
                classes=images.classes if isinstance(images, ImageDataset) else (),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resume needs, as nested dictionaries of tensors and plain values, without copies."""
        return {**self.state.state_dict(), **self.identity.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state_dict` was called, with the same settings and data.

        Args:
            state: Result of `state_dict` or `Checkpointer.read_last`.

        Raises:
            CheckpointError: If the state does not fit, or is that of another run. Nothing is changed then.
        """
        state = upgrade_from_format_1(state)
        self.identity.check(state, None)
        self.state.load_state_dict(state)
        self.identity.load_state_dict(state)
