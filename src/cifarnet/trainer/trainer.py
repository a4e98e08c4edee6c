"""`Trainer`: a loop that is a generator, and `fit`, which drains it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cifarnet import randomness
from cifarnet._checks import check_count
from cifarnet.checkpoint import Checkpointer, checked_notes, follow_weights, load_weights
from cifarnet.datasets import ImageDataset
from cifarnet.engine import (
    Mix,
    OrderedBatches,
    Ranks,
    Replica,
    StepSettings,
    Totals,
    check_fit,
    choose_backend,
    describe_device,
    evaluate,
    resolve_device,
    resolve_precision,
    score,
)
from cifarnet.errors import CheckpointMismatchError, SettingError
from cifarnet.history import EpochRecord, History
from cifarnet.metrics import Evaluation
from cifarnet.optim import ExponentialMovingAverage, Lookahead, Schedule, constant
from cifarnet.trainer.identity import Identity
from cifarnet.trainer.memory import explained_memory_errors
from cifarnet.trainer.plan import Data, Plan, check_optimizer, open_for_evaluation
from cifarnet.trainer.progress import Progress
from cifarnet.trainer.saving import RunSaver, check_resume, describe_best
from cifarnet.trainer.schema import check_state
from cifarnet.trainer.selection import Selection
from cifarnet.trainer.state import RunState, check_epochs, check_finite
from cifarnet.trainer.stopping import StopRequestedError, StopSignals, WatchedBatches
from cifarnet.transforms import Transforms, ViewName, Views, build_transforms

__all__ = ["Trainer"]


class Trainer:
    """Trains one network; a run is a function of its settings, its seed and its data.

    The model is moved to the device, its weights to channels-last memory, in place. It is trained in training
    mode; modules that come in evaluation mode while it is in training mode, such as frozen batch norms, stay so.

    Args:
        model: Any module from images ``(N, C, H, W)`` to logits ``(N, K)``.
        optimizer: Over parameters of the model. The learning rates it comes with are the base ones, which
            ``schedule`` multiplies at each step.
        transforms: For uint8 images; ``None`` takes the defaults of `build_transforms`. Floating batches of a
            foreign iterable are taken as they are.
        mix: Mixes images of a batch after the transforms, such as ``v2.MixUp(num_classes=10)`` or ``v2.CutMix`` of
            `torchvision.transforms`: ``(images, labels) -> (images, shares of the classes)``. The training accuracy
            then counts the class with the largest share.
        loss_fn: ``(logits, labels) -> mean loss``; give ``nn.CrossEntropyLoss(label_smoothing=0.1)`` to smooth.
        schedule: Multiplier of the base learning rates at each step; see `cifarnet.optim`.
        max_grad_norm: Longer gradients are shortened to this 2-norm; ``None`` leaves them as they are.
        lookahead_every: Pull the weights back every so many steps, see `Lookahead`; ``None`` does not.
        lookahead_decay: How much of the slow weights stays then: a number in ``[0, 1]`` or a schedule.
        ema_decay: Average the weights along the way, see `ExponentialMovingAverage`; the average is
            what is evaluated, selected and left in the model by `fit`. ``None`` averages nothing.
        device: ``"auto"`` (CUDA where there is one, else the CPU) or what `torch.device` takes.
        precision: ``"auto"`` (bf16 autocast on CUDA and on CPUs where it is faster, else float32), ``"bf16"``,
            ``"float32"`` or ``"float64"``.
        backend: What computes the steps: ``"auto"`` (CUDA graphs for the library's networks on a GPU, else eager),
            ``"eager"``, ``"compiled"`` (by ``torch.compile``) or ``"cuda-graph"``, which is for networks that decide
            nothing on the host. What cannot be captured or compiled is trained eagerly, with a warning that names it.
        batch_norm: Of several processes that train together: ``"synchronised"`` takes mean and variance over the whole
            batch, as one process does; ``"local"`` lets each take those of its own images, and exchanges less. See
            :doc:`/howto/growing`.
        deterministic: On CUDA, allow only kernels whose result never changes; slower ones. Sets
            ``CUBLAS_WORKSPACE_CONFIG`` for the rest of the process, where it is not set. (Not tested on a GPU yet.)
        seed: Of order, augmentation and dropout, not negative. Initial weights are the model's own business.
        notes: Plain values that every checkpoint keeps beside the run, such as the recipe that it came from;
            ``Classifier.notes`` has them again.

    Attributes:
        model: The network, on its device.
        optimizer: As above.
        transforms: As above, or the defaults.
        device: A `torch.device`.
        precision: A `Precision`: its name, and the number format of the weights.
        seed: As above.
        notes: As above, a plain copy.

    Raises:
        SettingTypeError: If there is something in ``notes`` that cannot be saved.
        SettingError: If a value is outside its range, or the optimizer is not over the model's parameters.

    Example:
        >>> from cifarnet import CifarCNN, make_synthetic
        >>> data = make_synthetic(num_train=64, num_test=32)
        >>> model = CifarCNN()
        >>> trainer = Trainer(model, torch.optim.Adam(model.parameters()), seed=0)
        >>> history = trainer.fit(data.train, max_epochs=1, batch_size=32, progress=False)
        >>> len(history)
        1
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        transforms: Transforms | None = None,
        mix: Mix | None = None,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        schedule: Schedule | None = None,
        max_grad_norm: float | None = None,
        lookahead_every: int | None = None,
        lookahead_decay: float | Schedule = 0.5,
        ema_decay: float | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        backend: str = "auto",
        batch_norm: str = "synchronised",
        deterministic: bool = False,
        seed: int = 0,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        check_optimizer(optimizer, model)
        check_count("seed", seed, "0 is the default", least=0)
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise SettingError(f"max_grad_norm must be above 0, got {max_grad_norm}; leave it out for no clipping")
        self.device = resolve_device(device)
        if deterministic and self.device.type == "cuda":
            # cuBLAS needs a workspace of fixed size to be reproducible; it reads this when its handle is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.precision = resolve_precision(precision, self.device)
        self.model = model.to(self.device, self.precision.weights).to(memory_format=torch.channels_last)
        self.optimizer = optimizer
        follow_weights(optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = float(group["lr"])
        self.transforms = build_transforms() if transforms is None else transforms
        self.seed = seed
        self.notes = checked_notes({} if notes is None else notes)
        self._schedule = constant() if schedule is None else schedule
        self._deterministic = deterministic
        self._ranks = Ranks.here()
        replica = Replica(model, self._ranks, batch_norm=batch_norm)
        self._settings = StepSettings(
            model,
            optimizer,
            nn.CrossEntropyLoss() if loss_fn is None else loss_fn,
            self.transforms,
            self.precision,
            seed,
            mix=mix,
            max_grad_norm=max_grad_norm,
            lookahead=(
                None if lookahead_every is None else Lookahead(model, every=lookahead_every, decay=lookahead_decay)
            ),
            average=None if ema_decay is None else ExponentialMovingAverage(model, ema_decay),
            replica=None if self._ranks.world_size == 1 else replica,
        )
        self._backend = choose_backend(backend, self._settings)
        self._state = RunState(model, optimizer, self._settings.lookahead, self._settings.average, self.device)
        self._identity = Identity(
            self._settings,
            self._schedule,
            backend=self._backend,
            deterministic=deterministic,
            ranks=self._ranks,
            batch_norm=batch_norm,
        )

    @property
    def history(self) -> History:
        """What was done so far; kept when training is interrupted."""
        return self._state.history

    @property
    def selection(self) -> Selection:
        """The best validation so far, as `fit` found it."""
        return self._state.selection

    @property
    def global_step(self) -> int:
        """How many optimizer steps were done."""
        return self._state.global_step

    @property
    def backend(self) -> str:
        """Which of ``"eager"``, ``"compiled"`` and ``"cuda-graph"`` computes the steps."""
        return self._backend.name

    @property
    def rank(self) -> int:
        """The number of this process among those that train together, from 0; print and draw in the first alone."""
        return self._ranks.rank

    @property
    def world_size(self) -> int:
        """How many processes train together."""
        return self._ranks.world_size

    @property
    def changes(self) -> list[str]:
        """What cost a resumed run its equality with an unbroken one, and from which step on; empty if nothing did."""
        return self._identity.changes

    @property
    def average(self) -> ExponentialMovingAverage | None:
        """Of the weights; ``None`` without ``ema_decay``."""
        return self._settings.average

    def fit(
        self,
        train: Data,
        val: Data | None = None,
        *,
        test: Data | None = None,
        max_epochs: int,
        batch_size: int = 64,
        checkpointer: Checkpointer | None = None,
        resume: bool | Literal["weights"] = False,
        monitor: str = "val_accuracy",
        patience: int | None = None,
        progress: bool = True,
    ) -> History:
        """Train to ``max_epochs`` in all, and leave the best weights in the model.

        The best epoch is the one with the best validation; without ``val`` it is the last. Calling `fit` again
        with more epochs continues from the last epoch, not from the best.

        Started by torchrun, all processes train one network together: each calls this with the same arguments. The
        first reads, writes and shows; when it returns, the files are there.

        Args:
            train: Images to learn from: an `ImageDataset`, or an iterable of ``(images, labels)`` batches.
            val: Images to select by.
            test: Images that are evaluated each epoch, as published curves do it; they select nothing.
            max_epochs: Epochs of the whole run, counting those done before.
            batch_size: Images a step, over all processes.
            checkpointer: Saves ``last`` every ``every_s`` seconds and at the end, ``best`` on improvement, in a thread
                of its own. Ctrl-C and SIGTERM save ``last`` after the step that was begun; the second one acts at once.
            resume: ``True`` continues if there is something to continue, and starts if not; ``False`` refuses a
                directory that holds a run; ``"weights"`` starts anew from the weights of the run that is there.
            monitor: What ``best`` means: ``"val_accuracy"`` or ``"val_loss"``.
            patience: Stop after so many epochs without a new best; ``None`` never does.
            progress: Show a bar on a terminal and in a notebook, a line an epoch elsewhere, on stderr.

        Returns:
            `history`: a record an epoch.

        Raises:
            SettingError: If a value is outside its range.
            RunExistsError: If the checkpointer's directory holds a run and ``resume`` is ``False``.
            ResumeMismatchError: If the run there has other settings.
            RunDirectoryBusyError: If another process is training in the directory.
            CheckpointError: If a checkpoint cannot be read or written.
            NonFiniteLossError: If the loss or a weight becomes NaN or infinite; nothing is saved after it did.
            InputError: If a foreign batch is none, or has a label or a pixel that cannot be.
            DeviceMemoryError: If a batch does not fit into memory.
            RankLostError: If another process of the same training has ended.
        """
        if patience is not None:
            check_count("patience", patience, "3 is usual")
            if val is None:
                raise SettingError("patience needs validation images; hold some out with train.split(0.1, seed=0)")
        check_resume(resume)
        selection, state, ranks = Selection(monitor), self._state, self._ranks
        plan = self._make_plan(train, val, test, max_epochs=max_epochs, batch_size=batch_size)
        told = [checkpointer is not None, patience or 0, monitor == "val_loss", resume == "weights", bool(resume)]
        ranks.refuse_unequal("checkpointer, patience, monitor or resume", *map(int, told))
        with StopSignals(ranks) as signals, self._saver(checkpointer, plan) as saver:
            self._open(saver.open(resume), resume, plan, f"the run in {getattr(checkpointer, 'directory', '')}")
            self._identity.begin(plan, global_step=state.global_step)
            check_epochs(state, plan)
            state.take_up_selection(selection, checkpointer, ranks)
            saver.begin()
            with (
                Progress(plan, epoch=state.epoch, step=state.step, enabled=progress and ranks.rank == 0) as bar,
                closing(self._run(plan, patience=patience, check=signals.check)) as events,
            ):
                bar.show_line(self._opening(plan, patience))
                try:
                    for event in events:
                        if isinstance(event, int):
                            bar.show_step(state.epoch, event, state.sums, state.train_s)
                            saver.after_step()
                        else:
                            bar.show_epoch(event)
                            improved = val is not None and state.selection.update(event, state.evaluated_weights)
                            saver.after_epoch(improved=improved)
                        signals.check()
                except StopRequestedError as request:
                    bar.show_line(saver.stop())
                    ranks.wait()  # who ends with an error code has the others ended, before they have saved
                    raise request.outcome from None
                except Exception as error:
                    # What tells a group of processes to end has ended a loader's workers too, before their batch.
                    if signals.requested is None or plan.train.starts_anywhere:
                        raise
                    bar.show_line(saver.stop(in_step=True))
                    raise signals.requested.outcome from error
            saver.finish()
            ranks.wait()
        state.put_best_weights()
        return state.history

    def epochs(
        self,
        train: Data,
        val: Data | None = None,
        *,
        test: Data | None = None,
        max_epochs: int,
        batch_size: int = 64,
    ) -> Iterator[EpochRecord]:
        """Train an epoch each time the next record is asked for: stopping early is ``break``.

        Nothing is saved, selected or shown; the caller's random state is untouched between two records.

        Args:
            train: Images to learn from: an `ImageDataset`, or an iterable of ``(images, labels)`` batches.
            val: Images to evaluate after each epoch.
            test: Further images to evaluate after each epoch.
            max_epochs: Epochs of the whole run, counting those done before.
            batch_size: Images a step.

        Yields:
            A record an epoch.

        Raises:
            SettingError: If a value is outside its range.
            NonFiniteLossError: If the loss or a weight becomes NaN or infinite.
            InputError: If a foreign batch is none, or has a label or a pixel that cannot be.
            DeviceMemoryError: If a batch does not fit into memory.
            RankLostError: If another process of the same training has ended.
        """
        plan = self._make_plan(train, val, test, max_epochs=max_epochs, batch_size=batch_size)
        return (event for event in self._run(plan) if isinstance(event, EpochRecord))

    def _run(
        self, plan: Plan, *, patience: int | None = None, check: Callable[[], None] = lambda: None
    ) -> Generator[int | EpochRecord, None, None]:
        """Train on: an int after each step of an epoch (how many are done), a record after each epoch."""
        state = self._state
        self._identity.begin(plan, global_step=state.global_step)
        state.put_last_weights()
        self._ranks.spread([*self.model.parameters(), *self.model.buffers()])
        if self._settings.lookahead is not None:
            self._settings.lookahead.begin(plan.total_steps)
        if self._settings.average is not None:
            self._settings.average.begin()
        while state.epoch < plan.max_epochs and (patience is None or state.selection.epochs_since < patience):
            with (
                randomness.isolated(self.device, deterministic=self._deterministic),
                explained_memory_errors(self.optimizer, self.device, plan.batch_size),
            ):
                yield from self._train_epoch(plan)
                record = self._finish_epoch(plan, check)
            yield record

    def _train_epoch(self, plan: Plan) -> Iterator[int]:
        state = self._state
        started = time.perf_counter() - state.train_s
        for step in self._backend.epoch(
            plan.train,
            state.epoch,
            first_step=state.step,
            multipliers=plan.epoch_multipliers(state.epoch),
            sums=state.sums,
        ):
            state.global_step += step - state.step
            state.step = step
            # The clock runs on at the yield: to show the sums there waits for steps that are under way.
            state.train_s = time.perf_counter() - started
            yield step
        check_finite(self.model, state, plan, self.precision)  # waits for the device: once an epoch
        state.train_s = time.perf_counter() - started

    def _finish_epoch(self, plan: Plan, check: Callable[[], None]) -> EpochRecord:
        clock = time.perf_counter()
        state = self._state
        val = None if plan.val is None else self._score(WatchedBatches(plan.val, check), -2)
        test = None if plan.test is None else self._score(WatchedBatches(plan.test, check), -3)
        totals = state.sums.read()
        record = EpochRecord(
            epoch=state.epoch + 1,
            global_step=state.global_step,
            learning_rate=float(self.optimizer.param_groups[0]["lr"]),
            train_loss=totals.mean_loss,
            train_accuracy=totals.accuracy,
            val_loss=None if val is None else val.mean_loss,
            val_accuracy=None if val is None else val.accuracy,
            test_loss=None if test is None else test.mean_loss,
            test_accuracy=None if test is None else test.accuracy,
            train_s=state.train_s,
            eval_s=time.perf_counter() - clock,
            images_per_s=totals.num_images / state.train_s,
        )
        state.history.append(record)
        state.finish_epoch()
        return record

    def evaluate(self, data: Data, *, views: Views | ViewName | None = None) -> Evaluation:
        """Score the model as it is now, in evaluation mode; in the course of a run with ``ema_decay`` the average.

        Args:
            data: An `ImageDataset`, or an iterable of ``(images, labels)`` batches.
            views: Views of each image whose logits are averaged, `Views` or their name; ``None`` takes the image as it
                is, as every evaluation in the course of a run does.

        Of several processes that train together all have to call this; each evaluates its share of the batches, and all
        get the scores that one process gets.

        Returns:
            All scores; the loss is the one that the run is trained with. It says which views they are of.

        Raises:
            SettingError: If the network does not fit the images or their number of classes, or ``views`` is unknown.
            InputError: If a foreign batch is none, or has a label or a pixel that cannot be.
            DeviceMemoryError: If a batch does not fit into memory.
        """
        chosen = Views.of(views)
        self._ranks.join(self.device)
        if isinstance(data, ImageDataset):
            preprocess = self.transforms.preprocess
            num_classes = len(data.classes)
            check_fit(
                self.model, data.images[:1], num_classes, data.name, preprocess=preprocess, precision=self.precision
            )
        with self._state.evaluated():
            self._ranks.spread([*self.model.parameters(), *self.model.buffers()])
            return evaluate(
                self.model,
                open_for_evaluation(data, self.device, self._ranks),
                preprocess=self.transforms.preprocess,
                loss_fn=self._settings.loss_fn,
                precision=self.precision,
                views=chosen,
                classes=data.classes if isinstance(data, ImageDataset) else (),
                ranks=self._ranks,
            )

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, as nested dicts of tensors and plain values; the tensors are not copies."""
        return {**self._state.state_dict(), **self._identity.state_dict(), "notes": self.notes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, given the same settings and data.

        Args:
            state: What `state_dict` returned, or `Checkpointer.read_last` read.

        Raises:
            CheckpointMismatchError: If the weights or the optimizer's state do not fit; nothing is changed then.
            ResumeMismatchError: If the run has another seed, model, optimizer or preprocessing.
        """
        check_state(state)
        self._identity.refuse_other(state)
        self._state.load_state_dict(state)
        self._identity.load_state_dict(state)

    def _make_plan(self, train: Data, val: Data | None, test: Data | None, *, max_epochs: int, batch_size: int) -> Plan:
        plan = Plan.make(
            train,
            val,
            test,
            max_epochs=max_epochs,
            batch_size=batch_size,
            schedule=self._schedule,
            model=self.model,
            transforms=self.transforms,
            precision=self.precision,
            seed=self.seed,
            ranks=self._ranks,
        )
        self._ranks.join(self.device)
        told = [val is not None, test is not None, max_epochs, batch_size]
        self._ranks.refuse_unequal("validation or test images, max_epochs or batch_size", *map(int, told))
        if self._settings.lookahead is not None:
            self._settings.lookahead.check(plan.total_steps)
        return plan

    def _saver(self, checkpointer: Checkpointer | None, plan: Plan) -> RunSaver:
        return RunSaver(
            checkpointer,
            plan,
            self._state,
            device=self.device,
            read_state=self.state_dict,
            describe=lambda: describe_best(
                self.model,
                self.transforms.preprocess,
                self.precision,
                plan,
                self.selection,
                epoch=self._state.epoch,
                notes=self.notes,
            ),
            check=lambda: check_finite(self.model, self._state, plan, self.precision),
            ranks=self._ranks,
        )

    def _open(self, state: Mapping[str, Any] | None, resume: bool | str, plan: Plan, source: str) -> None:
        """Load what is to be continued, if anything."""
        if resume == "weights" and self.global_step:
            raise SettingError(
                'resume="weights" starts a run anew, and this trainer has trained already; build a new Trainer'
            )
        if resume == "weights" and state is not None:
            weights = state.get("model")
            if not isinstance(weights, Mapping):
                raise CheckpointMismatchError(f"{source} was not saved by a Trainer; load its weights by yourself")
            load_weights(self.model, weights, source=source)
        elif state is not None:
            check_state(state)
            # Before anything is changed: a run that cannot go on is left as it was.
            self._identity.refuse_other(state, plan)
            self.load_state_dict(state)

    def _opening(self, plan: Plan, patience: int | None) -> str:
        """What is to be done, in a line."""
        selection, done = self.selection, f"({self._state.epoch}/{plan.max_epochs})"
        if self._state.epoch >= plan.max_epochs:
            return f"Run already finished {done}"
        if patience is not None and selection.epochs_since >= patience:
            return f"Run already finished: the best {selection.monitor} was {selection.epochs_since} epochs ago {done}"
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        is_foreign = not plan.train.starts_anywhere  # which is not captured
        backend = "eager" if is_foreign and self.backend == "cuda-graph" else self.backend
        return f"Training on {describe_device(self.device)}, {self.precision.name}, backend {backend}{processes}"

    def _score(self, batches: OrderedBatches, place: int) -> Totals:
        """Loss and accuracy alone: all else is for those who ask; ``place`` is that in the epoch, beside its steps."""
        # What draws in somebody's iterable draws the same in a run that was stopped in the midst of it.
        randomness.seed_torch(randomness.step_seed(self.seed, self._state.epoch, place), self.device)
        with self._state.evaluated():
            own = score(
                self.model,
                batches,
                preprocess=self.transforms.preprocess,
                loss_fn=self._settings.loss_fn,
                precision=self.precision,
                ranks=self._ranks,
            )
        # A process on a machine of another make must not choose another epoch.
        totals: Totals = self._ranks.from_first(lambda: own)
        return totals
