"""Trainings that one process and several must do alike; ``python scenarios.py DIRECTORY`` is one of several.

Every scenario is run by all processes and returns what a test compares.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import v2

from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer, build_transforms, make_synthetic
from cifarnet.engine import Ranks
from cifarnet.errors import CheckpointWarning, InputError, NonFiniteLossError, RunExistsError, SettingError

SIZE = 16
# Five steps an epoch: 53 images are unequal parts of two and of three processes, and so is the last batch, which in
# the second case has too few images to be cut.
BATCH_SIZE = 53
NUM_IMAGES = {"tail of 20": 4 * 53 + 20, "tail of 3": 4 * 53 + 3}
EPOCHS = 4


def make_data(num_images: int = NUM_IMAGES["tail of 20"], num_test: int = 120) -> DatasetSplits:
    return make_synthetic(num_train=num_images, num_test=num_test, seed=0, size=SIZE)


def make_model(*, dropout: float = 0.0, norms: bool = True, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if norms:
        return CifarCNN(image_size=SIZE, widths=(8, 16), hidden=32, dropout=dropout)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, 10))


def make_trainer(model: nn.Module, **settings: Any) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    transforms = build_transforms(crop_padding=2, cutout=4, brightness=0.1, size=SIZE)
    settings = {"transforms": transforms, "precision": "float64", "device": "cpu", "max_grad_norm": 0.5, **settings}
    return Trainer(model, optimizer, **settings)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    """Where the training got to; `Trainer.fit` leaves the best in the model."""
    return {name: tensor.clone() for name, tensor in trainer.state_dict()["model"].items()}


def trained(trainer: Trainer, data: DatasetSplits, *, train: Any = None) -> dict[str, Any]:
    train = data.train if train is None else train
    trainer.fit(train, data.test, max_epochs=EPOCHS, batch_size=BATCH_SIZE, progress=False)
    return {
        "steps": trainer.global_step,
        "weights": weights_of(trainer),
        "best": {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()},
        "losses": trainer.history.column("train_loss"),
        "accuracies": trainer.history.column("train_accuracy"),
        "val_losses": trainer.history.column("val_loss"),
        "val_accuracies": trainer.history.column("val_accuracy"),
    }


def synchronised(directory: Path) -> dict[str, Any]:
    return trained(make_trainer(make_model()), make_data())


def short_tail(directory: Path) -> dict[str, Any]:
    return trained(make_trainer(make_model()), make_data(NUM_IMAGES["tail of 3"]))


def no_norm(directory: Path) -> dict[str, Any]:
    return trained(make_trainer(make_model(norms=False)), make_data())


def local(directory: Path) -> dict[str, Any]:
    return trained(make_trainer(make_model(), batch_norm="local"), make_data())


def mixed(directory: Path) -> dict[str, Any]:
    settings = {"mix": v2.CutMix(num_classes=10), "lookahead_every": 3, "ema_decay": 0.9}
    return trained(make_trainer(make_model(), **settings), make_data())


def weighted_loss(directory: Path) -> dict[str, Any]:
    """A mean that no mean of means gives, however the parts are weighted."""
    loss_fn = nn.CrossEntropyLoss(weight=torch.linspace(0.1, 3, 10, dtype=torch.float64), label_smoothing=0.1)
    return trained(make_trainer(make_model(), loss_fn=loss_fn), make_data())


class Recomputing(CifarCNN):
    """Computes the second block once more in the backward pass, batch norm included."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(torch.relu(self.conv1(images)))
        x = checkpoint(self._second, x, use_reentrant=True) if x.requires_grad else self._second(x)
        logits: Tensor = self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))
        return logits

    def _second(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.bn2(torch.max_pool2d(torch.relu(self.conv2(x)), 2))
        return normalised


def recomputed(directory: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Recomputing(image_size=SIZE, widths=(8, 16), hidden=32, dropout=0.0)
    return trained(make_trainer(model), make_data())


def loader(directory: Path) -> dict[str, Any]:
    data = make_data()
    batches = DataLoader(TensorDataset(data.train.images, data.train.labels), BATCH_SIZE, shuffle=True)
    return trained(make_trainer(make_model()), data, train=batches)


def unseeded(directory: Path) -> dict[str, Any]:
    """Each process makes another network: that of the first one counts. Dropout differs, weights must not."""
    trainer = make_trainer(make_model(dropout=0.5, seed=Ranks.here().rank))
    judged = make_trainer(make_model(seed=Ranks.here().rank)).evaluate(make_data(10, 1700).test)
    trainer.fit(make_data().train, max_epochs=1, batch_size=BATCH_SIZE, progress=False)
    return {"weights": weights_of(trainer), "judged": judged.to_dict()}


def masks(directory: Path) -> dict[str, Any]:
    """What dropout lets through in the first step: in each process something else."""
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x[:20].detach().clone())
            return x

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 50), nn.Dropout(), Spy(), nn.Linear(50, 10))
    make_trainer(model).fit(make_data().train, max_epochs=1, batch_size=BATCH_SIZE, progress=False)
    return {"mask": seen[0] == 0}


def evaluated(directory: Path) -> dict[str, Any]:
    """More images than processes have batches, and fewer."""
    trainer = make_trainer(make_model(), precision="float32")
    documents = [trainer.evaluate(make_data(10, number).test).to_dict() for number in (1700, 300)]
    shuffled = make_data(10, 100).test
    batches = DataLoader(TensorDataset(shuffled.images, shuffled.labels), 7, shuffle=True)
    return {"documents": documents, "of a loader": trainer.evaluate(batches).num_correct}


class Tripwire(nn.Module):
    """A loss that does something when it is called for the k-th time."""

    def __init__(self, at: int, action: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.calls, self.at, self.action = [0], [at], action

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls[0] += 1
        loss = nn.functional.cross_entropy(logits, labels)
        return self.action(loss) if self.calls == self.at else loss

    def __repr__(self) -> str:
        return "Tripwire()"


def dropping(action: Callable[[Tensor], Tensor] = lambda loss: loss, *, at: int = 0, **settings: Any) -> Trainer:
    return make_trainer(make_model(dropout=0.5), loss_fn=Tripwire(at, action), **settings)


def fit(trainer: Trainer, directory: Path, *, max_epochs: int = 2, resume: bool = False) -> None:
    data = make_data()
    checkpointer = Checkpointer(directory, every_s=1e9)
    trainer.fit(
        data.train,
        data.test,
        max_epochs=max_epochs,
        batch_size=BATCH_SIZE,
        checkpointer=checkpointer,
        resume=resume,
        progress=False,
    )


def unbroken(directory: Path) -> dict[str, Any]:
    trainer = dropping()
    fit(trainer, directory / "unbroken")
    return {"weights": weights_of(trainer)}


def end(loss: Tensor) -> Tensor:
    signal.raise_signal(signal.SIGTERM)
    return loss


def stopped(directory: Path) -> dict[str, Any]:
    """Told to end in its third step: the last process alone, or all; then it goes on."""
    found: dict[str, Any] = {}
    for who in ("last", "all"):
        told = who == "all" or Ranks.here().rank == Ranks.here().world_size - 1
        trainer = dropping(end if told else lambda loss: loss, at=3)
        try:
            fit(trainer, directory / f"stopped-{who}")
        except SystemExit as ended:
            found[who] = (ended.code, trainer.global_step, (directory / f"stopped-{who}/last.safetensors").exists())
        trainer = dropping()
        fit(trainer, directory / f"stopped-{who}", resume=True)
        found[f"{who} resumed"] = weights_of(trainer)
    return found


def failed(directory: Path) -> dict[str, Any]:
    """What ends one process ends all of them, with the same error."""
    found: dict[str, Any] = {}

    def note(name: str, error: type[Exception], function: Callable[[], object]) -> None:
        try:
            function()
        except error as told:
            found[name] = str(told)

    trainer = dropping(lambda loss: loss * float("nan"), at=3)
    note("NaN", NonFiniteLossError, lambda: fit(trainer, directory / "nan"))
    note("exists", RunExistsError, lambda: fit(dropping(), directory / "unbroken"))
    number = Ranks.here().rank
    alone = None if number else Checkpointer(directory / "alone")
    train = make_data().train
    note("epochs", InputError, lambda: dropping().fit(train, max_epochs=1 + number, progress=False))
    note("alone", InputError, lambda: dropping().fit(train, max_epochs=1, checkpointer=alone, progress=False))
    note("seed", SettingError, lambda: fit(dropping(seed=trainer.rank), directory / "seeds"))
    images = TensorDataset(torch.rand(40, 3, SIZE, SIZE), torch.arange(40) % 10)
    own = DataLoader(images, 10, sampler=torch.randperm(40, generator=torch.Generator().manual_seed(trainer.rank)))
    short = DataLoader(torch.utils.data.Subset(images, range(40 - 10 * trainer.rank)), 10)
    sampled = DataLoader(images, 10, sampler=DistributedSampler(images, trainer.world_size, trainer.rank))
    for name, batches in (("order", own), ("length", short), ("sampler", sampled)):
        note(
            name,
            SettingError if name == "sampler" else InputError,
            partial(dropping().fit, batches, max_epochs=1, progress=False),
        )
    return found


def patient(directory: Path) -> dict[str, Any]:
    trainer = make_trainer(make_model(), schedule=lambda step, total: 0.0 * step)
    data = make_data()
    trainer.fit(data.train, data.test, max_epochs=9, batch_size=BATCH_SIZE, patience=2, progress=False)
    return {"epochs": len(trainer.history)}


def exchanged(directory: Path) -> dict[str, Any]:
    """Bytes of float32 that one training step adds up over the processes."""
    sizes: list[int] = []
    real = torch.distributed.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **more: Any) -> Any:
        sizes.append(tensor.nbytes if tensor.dtype == torch.float32 else 0)
        return real(tensor, *arguments, **more)

    torch.distributed.all_reduce = counting
    try:
        trainer = make_trainer(make_model(), precision="float32")
        trainer.fit(make_data(BATCH_SIZE).train, max_epochs=1, batch_size=BATCH_SIZE, progress=False)
    finally:
        torch.distributed.all_reduce = real
    return {"bytes": sum(sizes)}


def moved(directory: Path) -> dict[str, Any]:
    """One epoch more of a run that another number of processes began."""
    trainer, run = make_trainer(make_model()), directory.parent / "moved"
    state = Checkpointer(run).read_last()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(trainer, run, max_epochs=1 if state is None else state["position"]["epoch"] + 1, resume=True)
    told = [str(warning.message) for warning in caught if warning.category is CheckpointWarning]
    return {"weights": weights_of(trainer), "told": told, "changes": trainer.changes, "epochs": len(trainer.history)}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    synchronised,
    short_tail,
    no_norm,
    local,
    mixed,
    weighted_loss,
    recomputed,
    loader,
    unseeded,
    masks,
    evaluated,
    unbroken,
    stopped,
    failed,
    patient,
    exchanged,
    moved,
)


def run(directory: Path, *chosen: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {scenario.__name__: scenario(directory) for scenario in chosen or SCENARIOS}
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    import os

    out = Path(sys.argv[1])
    torch.save(run(out), out / f"rank-{os.environ['RANK']}.pt")
