"""Training runs that every process of a group performs, to be compared by `test_several_processes`.

``python scenarios.py all DIRECTORY`` performs all of them in one process of a group, and saves what each returned.
``python scenarios.py raise DIRECTORY`` and ``kill DIRECTORY`` are runs whose last process dies.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
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
STOP_STEP = 3
#: Seconds after which a process writes its stacks and ends, because it waits for another one in vain.
LIMIT_S = 240

Result = dict[str, Any]


def make_data(num_train: int = NUM_IMAGES) -> DatasetSplits:
    return make_synthetic(num_train=num_train, num_test=120, seed=0, size=SIZE)


def make_plain_network() -> nn.Sequential:
    """Build a network without batch norm and dropout, which several processes train as one does."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, 10))


def make_cnn(seed: int = 0) -> CifarCNN:
    """Build a network with batch norm and dropout."""
    torch.manual_seed(seed)
    return CifarCNN(image_size=SIZE, widths=(8, 16), hidden=32)


def make_trainer(
    model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None, **settings: Any
) -> Trainer:
    model = make_plain_network() if model is None else model
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    transforms = build_transforms(crop_padding=2, cutout=4, size=SIZE)
    settings = {"transforms": transforms, "precision": "float64", "device": "cpu", "max_grad_norm": 0.5, **settings}
    return Trainer(model, optimizer, **settings)


def last_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return the weights that training reached. After `Trainer.fit`, the model holds the best ones."""
    return {name: tensor.clone() for name, tensor in trainer.state_dict()["model"].items()}


def train(trainer: Trainer, batches: Any = None) -> Result:
    """Train 20 steps and return all that must be equal to one process."""
    data = make_data()
    for _ in trainer.epochs(batches or data.train, data.test, max_epochs=4, batch_size=BATCH_SIZE):
        trainer.model.requires_grad_(True)
    return {
        "num_steps": trainer.global_step,
        "last": last_weights(trainer),
        "best": {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()},
        "losses": [*trainer.history["train_loss"], *trainer.history["val_loss"]],
        "accuracies": [*trainer.history["train_accuracy"], *trainer.history["val_accuracy"]],
    }


def float32(directory: Path) -> Result:
    model = make_plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return train(make_trainer(model, optimizer, precision="float32", max_grad_norm=None))


def float64(directory: Path) -> Result:
    return train(make_trainer())


def float64_with_cutmix_and_ema(directory: Path) -> Result:
    return train(make_trainer(batch_transform=v2.CutMix(num_classes=10), ema_decay=0.9))


def float64_accumulated(directory: Path) -> Result:
    """Three parts per batch, fewer where a process has fewer images."""
    return train(make_trainer(accumulate_grad_batches=3), make_data(NUM_IMAGES_SHORT).train)


def float64_from_data_loader(directory: Path) -> Result:
    images = make_data().train
    return train(make_trainer(), DataLoader(TensorDataset(images.images, images.labels), BATCH_SIZE, shuffle=True))


def float64_unfrozen(directory: Path) -> Result:
    """The convolution is frozen in the first epoch only."""
    model = make_plain_network()
    model[0].requires_grad_(False)
    return train(make_trainer(model))


def other_weights_per_process(directory: Path) -> Result:
    """Each process builds other weights. Those of rank 0 are trained."""
    trainer = make_trainer(make_cnn(seed=ProcessGroup.current().rank), ema_decay=0.9)
    trainer.fit(make_data().train, max_epochs=1, batch_size=BATCH_SIZE, progress_bar=False)
    return {"last": last_weights(trainer)}


def dropout(directory: Path) -> Result:
    """Return the features that dropout kept in the first step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 50), nn.Dropout(), nn.Linear(50, 10))
    masks: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        if module.training:
            masks.append(output != 0)

    model[2].register_forward_hook(note)
    make_trainer(model).fit(make_data().train, max_epochs=1, batch_size=BATCH_SIZE, progress_bar=False)
    return {"mask": masks[0]}


def early_stopping(directory: Path) -> Result:
    """The learning rate is 0, so that no epoch is better than the first one."""
    trainer, data = make_trainer(lr_schedule=lambda step, total: 0.0 * step), make_data()
    trainer.fit(data.train, data.test, max_epochs=9, batch_size=BATCH_SIZE, patience=2, progress_bar=False)
    return {"num_epochs": len(trainer.history)}


def ended_by_one(directory: Path) -> Result:
    """Leave the loop in one process only."""
    trainer, checkpointer = make_trainer(), Checkpointer(directory / "ended by one")
    for record in trainer.epochs(make_data().train, max_epochs=4, batch_size=BATCH_SIZE, checkpointer=checkpointer):
        if record.epoch == 2 and is_last_process():
            break
    ProcessGroup.current().wait()
    state: Any = checkpointer.read_last()
    return {"num_epochs": len(trainer.history), "saved_epochs": state["position"]["epoch"]}


#: Calls until `watched_loss` acts, and its action. They are global so that they are no settings of the run.
TRIPWIRE: dict[str, Any] = {}


def set_tripwire(at: int = 0, action: Callable[[Tensor], Tensor] | None = None) -> None:
    TRIPWIRE.update(left=at if action else 0, action=action)


def watched_loss(logits: Tensor, labels: Tensor) -> Tensor:
    TRIPWIRE["left"] -= 1
    loss = nn.functional.cross_entropy(logits, labels)
    acted: Tensor = loss if TRIPWIRE["left"] else TRIPWIRE["action"](loss)
    return acted


def is_last_process() -> bool:
    group = ProcessGroup.current()
    return group.rank == group.world_size - 1


def fit(model: nn.Module, directory: Path, *, save_every_s: float = 1e9, resume: bool = False) -> Trainer:
    """Train ten steps with the watched loss."""
    trainer, data = make_trainer(model, loss_fn=watched_loss), make_data()
    checkpointer = Checkpointer(directory, save_every_s=save_every_s)
    settings: dict[str, Any] = {"max_epochs": 2, "batch_size": BATCH_SIZE, "progress_bar": False, "resume": resume}
    trainer.fit(data.train, data.test, checkpointer=checkpointer, **settings)
    return trainer


def uninterrupted(directory: Path) -> Result:
    set_tripwire()
    return {"last": last_weights(fit(make_cnn(), directory / "uninterrupted"))}


def stop(model: nn.Module, directory: Path, signum: int | None) -> Result:
    """Train until a signal arrives in the third step, in this process or in another one."""

    def send(loss: Tensor) -> Tensor:
        signal.raise_signal(signum or 0)
        return loss

    set_tripwire(STOP_STEP, send if signum else None)
    try:
        fit(model, directory)
    except (SystemExit, KeyboardInterrupt) as outcome:
        ProcessGroup.current().wait()
        state: Any = Checkpointer(directory).read_last()
        name = outcome.code if isinstance(outcome, SystemExit) else "KeyboardInterrupt"
        return {"outcome": name, "saved_steps": state["position"]["global_step"]}
    return {}


def resume(model: nn.Module, directory: Path) -> Result:
    """Resume and return all that a resume must give back, with the messages of the warnings about the checkpoint."""
    set_tripwire()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        trainer = fit(model, directory, resume=True)
    return {
        "num_steps": trainer.global_step,
        "last": last_weights(trainer),
        "losses": trainer.history["train_loss"],
        "messages": [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)],
        "differences": trainer.resume_differences,
    }


def stopped(directory: Path) -> Result:
    """A signal arrives in the last process or in all of them. The run is resumed then."""
    result: Result = {}
    for signum, receives in ((signal.SIGINT, is_last_process()), (signal.SIGTERM, True)):
        run = directory / signum.name
        result[signum.name] = stop(make_cnn(), run, signum if receives else None) | resume(make_cnn(), run)
    return result


def resumed(directory: Path) -> Result:
    """Resume the run that two processes have stopped in the middle of an epoch; two processes stop it first."""
    group, given, run = ProcessGroup.current(), directory.parent / "stopped by two", directory / "resumed"
    if group.world_size == 2:
        stop(make_plain_network(), given, signal.SIGTERM)
    if group.rank == 0:
        shutil.copytree(given, run)
    return resume(make_plain_network(), run)  # rank 0 reads, and it has copied


def refused(directory: Path) -> Result:
    """Return the error message of each run that several processes must refuse together."""
    result: Result = {}
    rank, world_size = ProcessGroup.current().rank, ProcessGroup.current().world_size
    images = TensorDataset(torch.rand(40, 3, SIZE, SIZE), torch.arange(40) % 10)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(rank))
    sampler: DistributedSampler[Any] = DistributedSampler(images, world_size, rank)

    def refuse(name: str, expected: type[CifarnetError], function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except expected as error:
            result[name] = str(error)

    def fit_images(images: Any, batch_size: int = 64, val: Any = None, seed: int = 0) -> None:
        make_trainer(seed=seed).fit(images, val, max_epochs=1, batch_size=batch_size, progress_bar=False)

    set_tripwire(STOP_STEP, (lambda loss: loss + float("inf")) if is_last_process() else None)
    refuse("infinity in one", NonFiniteError, fit, make_cnn(), directory / "infinity")
    set_tripwire()
    refuse("run exists", CheckpointError, fit, make_cnn(), directory / "uninterrupted")
    data = make_data(BATCH_SIZE + 1).train
    refuse("seed", SettingError, fit_images, data, 64, None, rank)
    refuse("batch_size", SettingError, fit_images, data, 18 if rank else 27)
    refuse("validation", SettingError, fit_images, data, 64, DataLoader(images, 10 + 10 * rank))
    refuse("too few images", SettingError, fit_images, data, BATCH_SIZE)
    refuse("order", DataError, fit_images, DataLoader(images, 10, sampler=order))
    refuse("sampler", SettingError, fit_images, DataLoader(images, 10, sampler=sampler))
    return result


SCENARIOS: tuple[Callable[[Path], Result], ...] = (
    float32,
    float64,
    float64_with_cutmix_and_ema,
    float64_accumulated,
    float64_from_data_loader,
    float64_unfrozen,
    other_weights_per_process,
    dropout,
    early_stopping,
    ended_by_one,
    uninterrupted,
    stopped,
    resumed,
    refused,
)


def lose(directory: Path, how: str) -> None:
    """Train; the last process dies in the fourth step, unless torchrun has restarted it."""

    def die(loss: Tensor) -> Tensor:
        if how == "raise":
            raise LookupError("a bug of the caller")
        os.kill(os.getpid(), signal.SIGKILL)
        return loss

    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    set_tripwire(4, die if is_last_process() and restarts == "0" else None)
    fit(make_cnn(), directory, save_every_s=0, resume=True)
    sys.stdout.write(f"restarts: {restarts}\n")


if __name__ == "__main__":
    how, root = sys.argv[1], Path(sys.argv[2])
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    torch.set_num_threads(1)
    if how == "all":
        torch.save({run.__name__: run(root) for run in SCENARIOS}, root / f"rank-{os.environ['RANK']}.pt")
    else:
        lose(root, how)
