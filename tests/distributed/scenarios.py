"""Training runs that every process of a group performs, to be compared by `test_several_processes`.

``python scenarios.py all DIRECTORY`` performs all of them in one process of a group, and saves what each returned.
``python scenarios.py lose DIRECTORY HOW STEP`` and ``python scenarios.py wait DIRECTORY`` are runs that a test ends.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer, build_transforms, make_synthetic
from cifarnet.errors import CheckpointError, CifarnetError, DataError, NonFiniteError, SettingError
from cifarnet.training.distributed import ProcessGroup

SIZE = 16
# Five steps per epoch. 53, 20 and 3 images cannot be divided equally among 2 and 3 processes, except for 20 by 2.
BATCH_SIZE = 53
NUM_IMAGES = 4 * BATCH_SIZE + 20
NUM_IMAGES_SHORT = 4 * BATCH_SIZE + 3
NUM_EPOCHS = 4
STOP_STEP = 3
LIMIT_S = 120

Result = dict[str, Any]


def make_data(num_train: int = NUM_IMAGES, num_test: int = 120) -> DatasetSplits:
    return make_synthetic(num_train=num_train, num_test=num_test, seed=0, size=SIZE)


def make_plain_network() -> nn.Sequential:
    """Build a network without batch norm and dropout, which several processes train as one does."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, 10))


def make_cnn(*, dropout: float = 0.0, seed: int = 0) -> CifarCNN:
    """Build a network with batch norm, which normalises over the images of one process on a CPU."""
    torch.manual_seed(seed)
    return CifarCNN(image_size=SIZE, widths=(8, 16), hidden=32, dropout=dropout)


def make_trainer(model: nn.Module | None = None, **settings: Any) -> Trainer:
    model = make_plain_network() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    transforms = build_transforms(crop_padding=2, cutout=4, size=SIZE)
    settings = {"transforms": transforms, "precision": "float64", "device": "cpu", "max_grad_norm": 0.5, **settings}
    return Trainer(model, optimizer, **settings)


def make_float32_trainer(**settings: Any) -> Trainer:
    model = make_plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    transforms = build_transforms(crop_padding=2, cutout=4, size=SIZE)
    return Trainer(model, optimizer, transforms=transforms, precision="float32", device="cpu", **settings)


def last_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return the weights that training reached. After `Trainer.fit`, the model holds the best ones."""
    return {name: tensor.clone() for name, tensor in trainer.state_dict()["model"].items()}


def train(trainer: Trainer, data: DatasetSplits, batches: Any = None) -> Result:
    """Train 20 steps and return all that must be equal to one process."""
    images = data.train if batches is None else batches
    trainer.fit(images, data.test, max_epochs=NUM_EPOCHS, batch_size=BATCH_SIZE, progress_bar=False)
    return outcome_of(trainer)


def outcome_of(trainer: Trainer) -> Result:
    return {
        "num_steps": trainer.global_step,
        "last": last_weights(trainer),
        "best": {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()},
        "losses": [*trainer.history["train_loss"], *trainer.history["val_loss"]],
        "accuracies": [*trainer.history["train_accuracy"], *trainer.history["val_accuracy"]],
    }


# Scenarios that must be equal to one process -------------------------------------------------------------------------


def float32(directory: Path) -> Result:
    return train(make_float32_trainer(), make_data())


def float64(directory: Path) -> Result:
    return train(make_trainer(), make_data())


def float64_with_cutmix_and_ema(directory: Path) -> Result:
    return train(make_trainer(batch_transform=v2.CutMix(num_classes=10), ema_decay=0.9), make_data())


def float64_accumulated(directory: Path) -> Result:
    """Three parts per batch, fewer where a process has fewer images."""
    return train(make_trainer(accumulate_grad_batches=3), make_data(NUM_IMAGES_SHORT))


def float64_from_data_loader(directory: Path) -> Result:
    data = make_data()
    batches = DataLoader(TensorDataset(data.train.images, data.train.labels), BATCH_SIZE, shuffle=True)
    return train(make_trainer(), data, batches)


def float64_unfrozen(directory: Path) -> Result:
    """The caller unfreezes the convolution after the first epoch."""
    model, data = make_plain_network(), make_data()
    model[0].requires_grad_(False)
    trainer = make_trainer(model)
    for _ in trainer.epochs(data.train, data.test, max_epochs=NUM_EPOCHS, batch_size=BATCH_SIZE):
        model[0].requires_grad_(True)
    return outcome_of(trainer)


# Scenarios that differ from one process, but not between processes ---------------------------------------------------


def batch_norm(directory: Path) -> Result:
    return train(make_trainer(make_cnn()), make_data())


def other_weights_per_process(directory: Path) -> Result:
    """Each process builds other weights. Those of rank 0 are trained."""
    trainer = make_trainer(make_cnn(dropout=0.5, seed=ProcessGroup.current().rank), ema_decay=0.9)
    trainer.fit(make_data().train, max_epochs=1, batch_size=BATCH_SIZE, progress_bar=False)
    return {"last": last_weights(trainer)}


def dropout(directory: Path) -> Result:
    """Return which of 50 features dropout removed in the first step."""
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.detach() == 0)
            return x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 50), nn.Dropout(), Spy(), nn.Linear(50, 10))
    make_trainer(model).fit(make_data().train, max_epochs=1, batch_size=BATCH_SIZE, progress_bar=False)
    return {"is_dropped": seen[0]}


def early_stopping(directory: Path) -> Result:
    """The learning rate is 0, so that no epoch is better than the first one."""
    trainer, data = make_trainer(lr_schedule=lambda step, total: 0.0 * step), make_data()
    trainer.fit(data.train, data.test, max_epochs=9, batch_size=BATCH_SIZE, patience=2, progress_bar=False)
    return {"num_epochs": len(trainer.history)}


def ended_by_one(directory: Path) -> Result:
    """Leave the body of the loop in one process only, by ``break`` and by an exception."""
    data, result = make_data(), {}
    for how in ("break", "exception"):
        trainer, run = make_trainer(), directory / f"ended by {how}"
        try:
            for record in trainer.epochs(data.train, max_epochs=4, batch_size=BATCH_SIZE, checkpointer=run):
                if record.epoch == 2 and is_last_process():
                    if how == "break":
                        break
                    raise LookupError
        except LookupError:
            pass
        ProcessGroup.current().wait()
        state = Checkpointer(run).read_last()
        assert state is not None
        result[how] = {"num_epochs": len(trainer.history), "saved_epochs": state["position"]["epoch"]}
    return result


# Scenarios that are stopped or fail ----------------------------------------------------------------------------------


#: Action of `watched_loss` and the call that acts. They are global so that they are no settings of the run.
TRIPWIRE: dict[str, Any] = {"at": 0, "action": None, "num_calls": 0}


def watched_loss(logits: Tensor, labels: Tensor) -> Tensor:
    TRIPWIRE["num_calls"] += 1
    loss = nn.functional.cross_entropy(logits, labels)
    acts = TRIPWIRE["action"] is not None and TRIPWIRE["num_calls"] == TRIPWIRE["at"]
    acted: Tensor = TRIPWIRE["action"](loss) if acts else loss
    return acted


def set_tripwire(at: int = 0, action: Callable[[Tensor], Tensor] | None = None) -> None:
    TRIPWIRE.update(at=at, action=action, num_calls=0)


def send(signum: int) -> Callable[[Tensor], Tensor]:
    """Return an action that sends a signal to this process."""

    def action(loss: Tensor) -> Tensor:
        signal.raise_signal(signum)
        return loss

    return action


def is_last_process() -> bool:
    group = ProcessGroup.current()
    return group.rank == group.world_size - 1


def make_watched_trainer(*, dropout: float = 0.5, **settings: Any) -> Trainer:
    return make_trainer(make_cnn(dropout=dropout), loss_fn=watched_loss, **settings)


def fit(trainer: Trainer, directory: Path, *, max_epochs: int = 2, resume: bool = False, **settings: Any) -> None:
    data = make_data()
    checkpointer = Checkpointer(directory, save_every_s=1e9)
    settings = {"batch_size": BATCH_SIZE, "progress_bar": False, **settings}
    trainer.fit(data.train, data.test, max_epochs=max_epochs, checkpointer=checkpointer, resume=resume, **settings)


def fit_quietly(trainer: Trainer, directory: Path, **settings: Any) -> list[str]:
    """Resume and return the messages of the warnings about the checkpoint."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        fit(trainer, directory, resume=True, **settings)
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def uninterrupted(directory: Path) -> Result:
    set_tripwire()
    trainer = make_watched_trainer()
    fit(trainer, directory / "uninterrupted")
    return {"last": last_weights(trainer)}


def stopped(directory: Path) -> Result:
    """A signal arrives in the third step, in the last process or in all of them. The run is resumed then."""
    result: Result = {}
    for name, signum, receives in (
        ("Ctrl-C to the last process", signal.SIGINT, is_last_process()),
        ("SIGTERM to all processes", signal.SIGTERM, True),
    ):
        run = directory / name
        set_tripwire(STOP_STEP, send(signum) if receives else None)
        trainer = make_watched_trainer()
        try:
            fit(trainer, run)
        except (SystemExit, KeyboardInterrupt) as outcome:
            result[name] = {
                "outcome": outcome.code if isinstance(outcome, SystemExit) else "KeyboardInterrupt",
                "num_steps": trainer.global_step,
                "is_saved": (run / "last.safetensors").exists(),
            }
        set_tripwire()
        trainer = make_watched_trainer()
        fit_quietly(trainer, run)
        result[name] |= {"last": last_weights(trainer), "differences": trainer.resume_differences}
    return result


def resumed(directory: Path) -> Result:
    """Resume the run that two processes have stopped in the middle of an epoch; two processes stop it first."""
    group, given, run = ProcessGroup.current(), directory.parent / "stopped by two", directory / "resumed"
    if group.world_size == 2:
        set_tripwire(STOP_STEP, send(signal.SIGTERM))
        try:
            fit(make_trainer(loss_fn=watched_loss), given)
        except SystemExit:
            group.wait()
    if group.rank == 0:
        shutil.copytree(given, run)
    set_tripwire()
    trainer = make_trainer(loss_fn=watched_loss)
    messages = fit_quietly(trainer, run)  # rank 0 reads, and it has copied
    return {
        "last": last_weights(trainer),
        "losses": trainer.history["train_loss"],
        "num_steps": trainer.global_step,
        "messages": messages,
        "differences": trainer.resume_differences,
    }


def refused(directory: Path) -> Result:
    """Return the error message of each run that several processes must refuse together; all of them go on."""
    result: Result = {}
    rank, world_size = ProcessGroup.current().rank, ProcessGroup.current().world_size

    def refuse(name: str, expected: type[CifarnetError], function: Callable[..., object], /, **settings: Any) -> None:
        try:
            function(**settings)
        except expected as error:
            result[name] = str(error)

    def fit_batches(batches: Any, **settings: Any) -> None:
        make_trainer().fit(batches, max_epochs=1, progress_bar=False, **settings)

    def fit_images(*, num_images: int = NUM_IMAGES, **settings: Any) -> None:
        settings = {"max_epochs": 1, "batch_size": BATCH_SIZE, "progress_bar": False, **settings}
        make_trainer(seed=settings.pop("seed", 0)).fit(make_data(num_images).train, **settings)

    set_tripwire(STOP_STEP, lambda loss: loss * float("nan"))
    refuse("NaN in all", NonFiniteError, fit, trainer=make_watched_trainer(), directory=directory / "nan")
    set_tripwire(STOP_STEP, (lambda loss: loss + float("inf")) if is_last_process() else None)
    refuse("infinity in one", NonFiniteError, fit, trainer=make_watched_trainer(), directory=directory / "inf")
    set_tripwire()
    refuse("run exists", CheckpointError, fit, trainer=make_watched_trainer(), directory=directory / "uninterrupted")

    refuse("max_epochs", SettingError, fit_images, max_epochs=1 + rank)
    refuse("checkpointer", SettingError, fit_images, checkpointer=None if rank else Checkpointer(directory / "one"))
    refuse("seed", SettingError, fit_images, seed=rank)
    refuse("batch_size", SettingError, fit_images, batch_size=29 if rank else 58)
    refuse(
        "test",
        SettingError,
        fit_images,
        test=DataLoader(TensorDataset(torch.rand(40, 3, SIZE, SIZE), torch.arange(40) % 10), 10 + 10 * rank),
    )

    refuse("too few images", SettingError, fit_images, num_images=BATCH_SIZE + 1)

    images = TensorDataset(torch.rand(40, 3, SIZE, SIZE), torch.arange(40) % 10)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(rank))
    sampler: DistributedSampler[Any] = DistributedSampler(images, world_size, rank)

    class Endless:
        """Batches without a length, one more in rank 0."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from DataLoader(Subset(images, range(20 if rank else 30)), 10)

    refuse("order", DataError, fit_batches, batches=DataLoader(images, 10, sampler=order))
    refuse("unknown length", DataError, fit_batches, batches=Endless())
    refuse("sampler", SettingError, fit_batches, batches=DataLoader(images, 10, sampler=sampler))
    return result


SCENARIOS: tuple[Callable[[Path], Result], ...] = (
    float32,
    float64,
    float64_with_cutmix_and_ema,
    float64_accumulated,
    float64_from_data_loader,
    float64_unfrozen,
    batch_norm,
    other_weights_per_process,
    dropout,
    early_stopping,
    ended_by_one,
    uninterrupted,
    stopped,
    resumed,
    refused,
)


def perform(directory: Path, *chosen: Callable[[Path], Result]) -> dict[str, Result]:
    """Perform scenarios and return their results by name."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {scenario.__name__: scenario(directory) for scenario in chosen or SCENARIOS}
    finally:
        torch.set_num_threads(num_threads)


# Runs that a test ends -----------------------------------------------------------------------------------------------


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def lose(directory: Path, how: str, step: int) -> None:
    """Train; the last process dies at a step, unless torchrun has restarted it."""

    def die(loss: Tensor) -> Tensor:
        if how == "raise":
            raise LookupError("a bug of the caller")
        os.kill(os.getpid(), signal.SIGKILL)
        return loss

    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    set_tripwire(step, die if is_last_process() and restarts == "0" else None)
    data, checkpointer = make_data(), Checkpointer(directory, save_every_s=0)
    make_watched_trainer().fit(
        data.train,
        data.test,
        max_epochs=2,
        batch_size=BATCH_SIZE,
        checkpointer=checkpointer,
        resume=True,
        progress_bar=False,
    )
    say(f"restarts: {restarts}")


def wait(directory: Path) -> None:
    """Train until a signal arrives, and say when training has begun."""

    def announce(loss: Tensor) -> Tensor:
        say("training")
        return loss

    set_tripwire(STOP_STEP, announce)
    fit(make_watched_trainer(), directory, max_epochs=100_000, progress_bar=True)


if __name__ == "__main__":
    action, root = sys.argv[1], Path(sys.argv[2])
    faulthandler.dump_traceback_later(LIMIT_S)
    torch.set_num_threads(1)
    if action == "lose":
        lose(root, sys.argv[3], int(sys.argv[4]))
    elif action == "wait":
        wait(root)
    else:
        torch.save(perform(root), root / f"rank-{os.environ['RANK']}.pt")
