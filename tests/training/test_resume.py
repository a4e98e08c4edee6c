from __future__ import annotations

import copy
import math
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import killed
from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer, build_transforms
from cifarnet.errors import (
    CheckpointMismatchError,
    CheckpointWarning,
    CifarnetError,
    ResumeMismatchError,
    SettingError,
)
from cifarnet.optim import one_cycle
from cifarnet.training.history import EpochRecord, History
from runs import assert_equal_runs, interrupt_at, read_state, second_epoch_is_best

MakeTrainer = Callable[..., Trainer]


def without_times(trainer: Trainer) -> list[tuple[Any, ...]]:
    return [
        (r.epoch, r.global_step, r.train_loss, r.train_accuracy, r.val_loss, r.val_accuracy) for r in trainer.history
    ]


#: All that changes weights, but for mixing, which is not captured.
EVERYTHING: dict[str, Any] = {
    "lr_schedule": one_cycle(),
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
}
SETTINGS = [
    {"precision": "float32"},
    {"precision": "bf16", "lr_schedule": one_cycle()},
    {"precision": "float32", "max_grad_norm": 0.5, "deterministic": True},
    {"precision": "float32", "ema_decay": 0.95, "batch_transform": v2.CutMix(num_classes=10)},
    {"precision": "float32", "accumulate_grad_batches": 3, "fused": None},
    {"backend": "cuda-graph", "precision": "bf16", "batch_transform": v2.CutMix(num_classes=10), **EVERYTHING},
]
NAMES = ["float32", "bf16-schedule", "clipped", "mixed-averaged", "accumulated", "graph"]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_a_run_resumed_after_any_epoch_equals_an_unbroken_one(
    graphs: None,
    make_trainer: MakeTrainer,
    synthetic: DatasetSplits,
    tmp_path: Path,
    settings: dict[str, Any],
    stop_after: int,
) -> None:
    train, val = synthetic.train.split(0.2, seed=0)

    class StoppedError(Exception):
        pass

    def fit(directory: str, *, stop: int | None = None, resume: bool = False, seed: int = 0) -> Trainer:
        trainer = make_trainer(seed=seed, **settings)

        class Stopping(Checkpointer):
            def save_state(self, state: Mapping[str, Any]) -> Path:
                path = super().save_state(state)
                if stop is not None and len(state["history"]) == stop:
                    raise StoppedError
                return path

        checkpointer = Stopping(tmp_path / directory, save_every_s=0)
        trainer.fit(train, val, max_epochs=4, checkpointer=checkpointer, resume=resume, progress_bar=False)
        return trainer

    unbroken = fit("unbroken")
    with pytest.raises(StoppedError):  # between `last` and `best`: the worst moment
        fit("resumed", stop=stop_after)
    torch.rand(100)
    saved = read_state(tmp_path / "resumed")
    resumed = fit("resumed", resume=True)
    assert [record.epoch for record in History.from_list(saved["history"])] == list(range(1, stop_after + 1))
    assert list(resumed.history[:stop_after]) == list(History.from_list(saved["history"])), "times too: not done again"
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "resumed")
    assert without_times(resumed) == without_times(unbroken)
    other_seed = fit("other-seed", seed=1)
    assert without_times(other_seed) != without_times(unbroken)


@pytest.mark.parametrize("stop_at", range(1, 15))
def test_a_state_taken_at_any_step_continues_to_the_same_bytes(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, stop_at: int
) -> None:
    """A file written in mid-epoch holds the position, the running metrics and the time spent."""

    def fit(trainer: Trainer, directory: str, **settings: Any) -> None:
        trainer.fit(synthetic.train, max_epochs=3, checkpointer=tmp_path / directory, progress_bar=False, **settings)

    unbroken, stopped, resumed = (
        make_trainer(backend=backend, batch_transform=v2.CutMix(num_classes=10), **EVERYTHING) for _ in range(3)
    )
    fit(unbroken, "unbroken")
    interrupt_at(stopped, stop_at)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, "stopped")
    assert read_state(tmp_path / "stopped")["position"]["global_step"] == stop_at
    fit(resumed, "stopped", resume=True)
    assert unbroken.uses_cuda_graph == (backend == "cuda-graph")
    assert without_times(resumed) == without_times(unbroken)
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "stopped")
    assert resumed.state_dict()["ema"]["num_updates"] == 15


def test_a_killed_process_is_taken_up_by_another_to_the_same_bytes(tmp_path: Path) -> None:
    def run(directory: str, *how: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, killed.__file__, str(tmp_path / directory), *how]
        return subprocess.run(command, check=False).returncode, read_state(tmp_path / directory)

    (ended, unbroken), (died, saved), (went_on, resumed) = run("unbroken"), run("killed", "killed"), run("killed")
    assert (ended, died, went_on) == (0, -signal.SIGKILL, 0)
    assert saved["position"]["global_step"] >= killed.NUM_STEPS
    before, after = (History.from_list(state["history"]) for state in (saved, resumed))
    assert len(before) > 0
    assert list(after[: len(before)]) == list(before), "with the same times: not done again"
    assert [r.train_loss for r in after] == [r.train_loss for r in History.from_list(unbroken["history"])]
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "killed")


def test_a_dataloader_resumes_at_the_end_of_an_epoch(
    backend: str, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    loader = DataLoader(synthetic.train, batch_size=64, shuffle=True)
    unbroken = make_trainer(backend=backend)
    unbroken.fit(loader, max_epochs=3, progress_bar=False)
    first = make_trainer(backend=backend).fit(
        loader, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False
    )
    resumed = make_trainer(backend=backend)
    resumed.fit(loader, max_epochs=3, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False)
    assert resumed.history[0] == first[0]
    assert without_times(resumed) == without_times(unbroken)


def test_early_stopping_goes_on_counting(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    train, val = synthetic.train.split(0.2, seed=0)
    unbroken = make_trainer(lr=0.05).fit(train, val, max_epochs=40, patience=2, progress_bar=False)
    before: list[EpochRecord] = []
    for max_epochs in (*range(1, len(unbroken)), 40, 40):
        resumed = make_trainer(lr=0.05).fit(
            train,
            val,
            max_epochs=max_epochs,
            patience=2,
            checkpointer=Checkpointer(tmp_path),
            resume=True,
            progress_bar=False,
        )
        assert list(resumed[: len(before)]) == before
        before = list(resumed)
    assert len(resumed) == len(unbroken)


def test_patience_counts_on_while_no_epoch_was_good(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels) * (1 if logits.requires_grad else math.nan)

    def fit(max_epochs: int) -> int:
        trainer = make_trainer(loss_fn=loss_fn)
        checkpointer = Checkpointer(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that val_loss is nan
            history = trainer.fit(
                synthetic.train, synthetic.test, max_epochs=max_epochs, monitor="val_loss", patience=3,
                checkpointer=checkpointer, resume=True, progress_bar=False,
            )  # fmt: skip
        return len(history)

    assert [fit(2), fit(9)] == [2, 3]


def test_an_evaluation_that_draws_draws_the_same_after_a_stop(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    class Some:
        """Other images each time, drawn by torch."""

        def __init__(self, stop_at: int) -> None:
            self.stop_at, self.calls = stop_at, 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.calls += 1
            for part in torch.split(torch.randperm(100)[:40], 20):
                yield synthetic.test.images[part], synthetic.test.labels[part]
                if self.calls == self.stop_at:
                    signal.raise_signal(signal.SIGINT)

    def fit(directory: str, stop_at: int = 0) -> list[float | None]:
        trainer = make_trainer()
        trainer.fit(
            synthetic.train, Some(stop_at), max_epochs=3, checkpointer=Checkpointer(tmp_path / directory), resume=True,
            progress_bar=False,
        )  # fmt: skip
        return [record.val_loss for record in trainer.history]

    unbroken = fit("unbroken")
    assert len(set(unbroken)) == 3
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", stop_at=2)
    assert fit("stopped") == unbroken


def test_resume_starts_where_there_is_nothing_to_continue(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    history = make_trainer().fit(
        synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path / "new"), resume=True, progress_bar=False
    )
    assert len(history) == 1


def test_a_finished_run_is_left_alone_and_says_so(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit() -> Trainer:
        trainer = make_trainer()
        trainer.fit(synthetic.train, synthetic.test, max_epochs=3, checkpointer=Checkpointer(tmp_path), resume=True)
        return trainer

    first = fit()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    second = fit()
    assert capsys.readouterr().err == "Run already finished (3/3)\n"
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_fewer_epochs_than_there_are_are_refused(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    make_trainer().fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    with pytest.raises(ResumeMismatchError, match="has 2 epochs, and max_epochs is 1"):
        make_trainer().fit(
            synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False
        )


def test_more_epochs_stretch_the_schedule_and_warn_of_it(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"checkpointer": Checkpointer(tmp_path), "resume": True, "progress_bar": False}
    make_trainer(lr_schedule=one_cycle()).fit(synthetic.train, max_epochs=1, **settings)
    with pytest.warns(CheckpointWarning, match="max_epochs 1 epochs in the run, 3 epochs now"):
        history = make_trainer(lr_schedule=one_cycle()).fit(synthetic.train, max_epochs=3, **settings)
    assert len(history) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed 0 in the run, 4 now"),
        ({"lr": 0.5}, r"optimizer.groups\[0\].lr 0.001 in the run, 0.5 now"),
        ({"num_classes": 11}, "model.arguments.num_classes 10 in the run, 11 now"),
        ({"dropout": 0.25}, "model.arguments.dropout 0.5 in the run, 0.25 now"),
        ({"transforms": build_transforms(size=16, mean=(0, 0, 0))}, r"preprocess.mean\[0\] 0.4914 in the run, 0.0 now"),
        ({"batch_size": 32}, "batch_size 64 in the run, 32 now"),
        ({"transforms": build_transforms(size=16)}, r"augment.transforms .* in the run"),
        ({"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}, r"loss_fn.label_smoothing 0\.0 in the run, 0\.1 now"),
        ({"max_grad_norm": 1.0}, "max_grad_norm None in the run, 1.0 now"),
        ({"ema_decay": 0.9}, "ema_decay None in the run, 0.9 now"),
        ({"batch_transform": v2.MixUp(num_classes=10)}, "batch_transform None in the run, .*MixUp.* now"),
        ({"lr_schedule": one_cycle()}, "lr_schedule None in the run, .*WarmupThenDecay now"),
        ({"val": "other"}, "val_data.fingerprint"),
        ({"val": None}, "val_data .* in the run, None now"),
        ({"images": 200}, "data.fingerprint"),
    ],
)
def test_another_run_is_not_continued_as_if_it_were_this_one(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Refused before a file or a weight is changed, also where the best epoch is the last one."""
    val = synthetic.test.subset(torch.arange(50))
    make_trainer().fit(synthetic.train, val, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changes = dict(changes)
    batch_size, images = changes.pop("batch_size", 64), changes.pop("images", 300)
    other_val = {"same": val, "other": synthetic.test, None: None}[changes.pop("val", "same")]
    trainer = make_trainer(**changes)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    train = synthetic.train.subset(torch.arange(images))
    if "num_classes" in changes:
        with pytest.raises(ResumeMismatchError, match=message):
            Checkpointer(tmp_path).load(trainer)
    else:
        with pytest.raises(ResumeMismatchError, match=message):
            trainer.fit(
                train,
                other_val,
                max_epochs=2,
                batch_size=batch_size,
                checkpointer=Checkpointer(tmp_path),
                resume=True,
                progress_bar=False,
            )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bf16"}, "precision float32 in the run, bf16 now"),
        ({"deterministic": True}, "deterministic False in the run, True now"),
        ({"fused": False}, r"optimizer\[0\].fused True in the run, False now"),
    ],
)
def test_what_costs_the_last_bit_is_warned_of_and_named(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    plain = {"precision": "float32"}
    make_trainer(**plain).fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    with pytest.warns(CheckpointWarning, match=message):
        make_trainer(**{**plain, **changes}).fit(
            synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False
        )


def test_weights_alone_start_a_new_run(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    first = make_trainer()
    first.fit(synthetic.train, max_epochs=3, checkpointer=tmp_path / "first", progress_bar=False)
    second = make_trainer(lr=1e-9, init_seed=5)
    settings: dict[str, Any] = {"checkpointer": tmp_path / "second", "init_from": tmp_path / "first"}
    history = second.fit(synthetic.train, max_epochs=1, batch_size=30, progress_bar=False, **settings)
    assert [record.epoch for record in history] == [1]
    torch.testing.assert_close(list(second.model.parameters()), list(first.model.parameters()), rtol=0, atol=1e-6)
    with pytest.raises(SettingError, match="this trainer has trained"):
        second.fit(synthetic.train, max_epochs=2, init_from=tmp_path / "first", progress_bar=False)
    resumed = make_trainer(lr=1e-9, init_seed=6)
    resumed.fit(synthetic.train, max_epochs=2, batch_size=30, resume=True, progress_bar=False, **settings)
    assert len(resumed.history) == 2, "a run in the directory is resumed"


def test_the_state_of_something_else_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(CheckpointMismatchError, match="not the state of a Trainer"):
        make_trainer().load_state_dict({"model": {}})


def test_another_optimizer_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    make_trainer().fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    model = CifarCNN(image_size=16, widths=(8, 16), hidden=32)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=1e-3), transforms=build_transforms(size=16))
    with pytest.raises(CifarnetError, match=r"optimizer\.name Adam in the run, SGD now"):
        Checkpointer(tmp_path).load(trainer)


def test_moments_keep_the_memory_format_of_their_weights(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    make_trainer().fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    trainer = make_trainer()
    Checkpointer(tmp_path).load(trainer)
    for parameter in trainer.model.parameters():
        state = trainer.optimizer.state[parameter]
        assert state["exp_avg"].stride() == parameter.stride()
    assert isinstance(trainer.model.conv2, nn.Conv2d)
    assert trainer.model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_state_that_does_not_fit_changes_nothing(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trained, fresh = make_trainer(), make_trainer()
    trained.fit(synthetic.train, max_epochs=1, progress_bar=False)
    state = trained.state_dict()
    state["model"] = {name: tensor for name, tensor in state["model"].items() if name != "fc2.bias"}
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    with pytest.raises(CheckpointMismatchError, match=r"fc2\.bias is only in the model"):
        fresh.load_state_dict(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())
    assert not fresh.optimizer.state
    assert fresh.global_step == 0


def test_a_setting_that_a_newer_torch_brought_is_no_difference(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    old, new = make_trainer(), make_trainer()
    old.fit(synthetic.train, max_epochs=1, progress_bar=False)
    state = old.state_dict()
    for group in (*state["optimizer"]["param_groups"], *state["settings"]["optimizer"]["groups"]):
        del group["decoupled_weight_decay"]
    new.load_state_dict(state)
    assert new.optimizer.param_groups[0]["decoupled_weight_decay"] is False
    assert new.global_step == old.global_step


def test_a_run_goes_on_that_was_saved_before_batch_norm_was_an_argument(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    old, new = make_trainer(), make_trainer()
    old.fit(synthetic.train, max_epochs=1, progress_bar=False)
    state = old.state_dict()
    assert state["settings"]["model"]["arguments"].pop("batch_norm") is True
    new.load_state_dict(state)
    for trainer in (old, new):
        trainer.fit(synthetic.train, max_epochs=2, progress_bar=False)
    went_on, unbroken = new.model.state_dict(), old.model.state_dict()
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in went_on.items())


def test_a_run_keeps_to_what_it_is_selected_by(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"checkpointer": Checkpointer(tmp_path), "resume": True, "progress_bar": False}
    make_trainer().fit(synthetic.train, synthetic.test, max_epochs=1, **settings)
    with pytest.raises(ResumeMismatchError, match="selected by val_accuracy, not by val_loss"):
        make_trainer().fit(synthetic.train, synthetic.test, max_epochs=2, monitor="val_loss", **settings)


def test_a_run_without_validation_that_was_killed_before_its_last_word_gets_its_best(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"checkpointer": Checkpointer(tmp_path), "resume": True, "progress_bar": False}
    make_trainer().fit(synthetic.train, max_epochs=2, **settings)
    whole = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").unlink()
    make_trainer().fit(synthetic.train, max_epochs=2, **settings)
    assert (tmp_path / "best.safetensors").read_bytes() == whole
    make_trainer().fit(synthetic.train, max_epochs=3, **settings)
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 3


def test_a_new_checkpointer_gets_a_best_that_was_found_before(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer = make_trainer(lr=0.05)
    history = trainer.fit(synthetic.train, synthetic.test, max_epochs=4, progress_bar=False)
    trainer.fit(synthetic.train, synthetic.test, max_epochs=5, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    best = history.best()
    assert best is not None
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == best.epoch


@pytest.mark.parametrize("loss", ["missing", "of a worse epoch"])
def test_best_weights_that_are_lost_are_told_and_not_made_up(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, loss: str
) -> None:
    trainer = make_trainer(lr=0.05)
    trainer.fit(
        synthetic.train,
        synthetic.test,
        max_epochs=6,
        checkpointer=Checkpointer(tmp_path),
        progress_bar=False,
        **second_epoch_is_best(),
    )
    assert trainer.best.epoch == 2
    if loss == "missing":
        (tmp_path / "best.safetensors").unlink()
    else:
        weights, description = Checkpointer(tmp_path).read_best()
        worse = {"monitor": "val_rank", "epoch": 1, "value": 0.001}
        Checkpointer(tmp_path).save_best(weights, {**description, "selected_by": worse})
    resumed = make_trainer(lr=0.05)
    with pytest.warns(CheckpointWarning, match="The weights of epoch 2, the best so far, are missing"):
        resumed.fit(
            synthetic.train,
            synthetic.test,
            max_epochs=7,
            checkpointer=Checkpointer(tmp_path),
            resume=True,
            progress_bar=False,
            **second_epoch_is_best(),
        )
    assert resumed.best.epoch == 7
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 7


def test_a_run_with_best_alone_is_not_resumed(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    make_trainer().fit(synthetic.train, max_epochs=2, checkpointer=tmp_path, progress_bar=False)
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(CifarnetError, match=r"best\.safetensors but no last\.safetensors to resume from.*init_from="):
        make_trainer().fit(synthetic.train, max_epochs=1, resume=True, checkpointer=tmp_path, progress_bar=False)


def test_the_state_of_a_fresh_trainer_can_be_gone_back_to(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    trainer = make_trainer()
    start = copy.deepcopy(trainer.state_dict())
    first = [r.train_loss for r in trainer.fit(synthetic.train, max_epochs=2, progress_bar=False)]
    trainer.load_state_dict(start)
    assert [r.train_loss for r in trainer.fit(synthetic.train, max_epochs=2, progress_bar=False)] == first


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_parameter_groups_and_rates_that_are_tensors_resume_too(
    synthetic: DatasetSplits, tmp_path: Path, tensor_lr: bool
) -> None:
    def make() -> Trainer:
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(4, 8), hidden=16)
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "lr": torch.tensor(1e-3) if tensor_lr else 1e-3},
            {"params": [p for p in model.parameters() if p.ndim == 1], "lr": torch.tensor(1e-2) if tensor_lr else 1e-2},
        ]
        optimizer = torch.optim.Adam(groups, fused=True)
        return Trainer(model, optimizer, transforms=build_transforms(size=16), lr_schedule=one_cycle(), device="cpu")

    def fit(trainer: Trainer, **settings: Any) -> None:
        trainer.fit(synthetic.train, max_epochs=3, progress_bar=False, **settings)

    unbroken, stopped, resumed = make(), make(), make()
    fit(unbroken)
    for _ in stopped.epochs(synthetic.train, max_epochs=3):
        Checkpointer(tmp_path).save(stopped)
        break
    fit(resumed, checkpointer=Checkpointer(tmp_path), resume=True)
    assert resumed.history[0] == stopped.history[0]
    for one, other in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [float(g["lr"]) for g in unbroken.optimizer.param_groups] == [
        float(g["lr"]) for g in resumed.optimizer.param_groups
    ]


def test_a_compiled_networks_run_goes_on_uncompiled(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def compiled() -> Trainer:
        model = make_trainer().model
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
        wrapped = torch.compile(model, backend="eager")
        return Trainer(wrapped, optimizer, transforms=make_trainer().transforms, device="cpu")  # type: ignore[arg-type]

    first = compiled().fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress_bar=False)
    assert "conv1.weight" in Checkpointer(tmp_path).read_best()[0]
    plain = make_trainer()
    plain.fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), resume=True, progress_bar=False)
    assert len(plain.history) == 2
    assert plain.history[0] == first[0]


def test_a_best_that_a_kill_kept_from_the_disk_is_written_before_training_goes_on(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    class Stopping(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            super().save_state(state)
            raise StoppedError

    checkpointer = Stopping(tmp_path)
    for killed_after in (1, 2):
        trainer = make_trainer()
        with pytest.raises(StoppedError):
            trainer.fit(
                synthetic.train,
                synthetic.test,
                max_epochs=9,
                checkpointer=checkpointer,
                resume=True,
                progress_bar=False,
            )
        # Each time it dies between `last` and `best`; the second time it has made up for the first.
        assert (tmp_path / "best.safetensors").exists() == (killed_after == 2)
    assert checkpointer.read_best()[1]["selected_by"]["epoch"] == 1


def test_a_damaged_last_goes_on_from_the_one_before_with_the_better_best(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def fit(max_epochs: int) -> Trainer:
        trainer = make_trainer()
        trainer.fit(
            synthetic.train,
            synthetic.test,
            max_epochs=max_epochs,
            monitor="val_loss",
            checkpointer=Checkpointer(tmp_path),
            resume=True,
            progress_bar=False,
        )
        return trainer

    best = fit(4).best.epoch
    assert best == 4  # val_loss falls in every epoch of so short a run
    last = tmp_path / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(CheckpointWarning, match=r"resuming from last\.previous\.safetensors"):
        resumed = fit(4)
    assert [record.epoch for record in resumed.history] == [1, 2, 3, 4]
    assert resumed.best.epoch == 4


def test_a_state_of_another_library_is_refused(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    Checkpointer(tmp_path).save(nn.Linear(2, 2))
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(CifarnetError, match="not the state of a Trainer"):
        make_trainer().fit(synthetic.train, max_epochs=1, checkpointer=tmp_path, resume=True, progress_bar=False)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_fall_back_into_an_epoch_goes_on_with_early_stopping_to_the_same_bytes(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    """The file before the damaged one is from the middle of an epoch, and the best on the disk from later."""
    train, val = synthetic.train.split(0.2, seed=0)

    def fit(directory: str, **settings: Any) -> Trainer:
        trainer = make_trainer(lr=0.05)
        trainer.fit(
            train,
            val,
            max_epochs=40,
            patience=3,
            checkpointer=Checkpointer(tmp_path / directory, save_every_s=settings.pop("save_every_s", 1e9)),
            progress_bar=False,
            **settings,
        )
        return trainer

    unbroken = fit("unbroken")
    for stop in range(2, unbroken.global_step, 3):
        directory = tmp_path / str(stop)
        trainer = make_trainer(lr=0.05)
        interrupt_at(trainer, stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(
                train,
                val,
                max_epochs=40,
                patience=3,
                checkpointer=Checkpointer(directory, save_every_s=1e9),
                progress_bar=False,
            )
        best, description = Checkpointer(tmp_path / "unbroken").read_best()
        checkpointer = Checkpointer(directory)
        checkpointer.save_best(best, description)
        checkpointer.save(unbroken)
        checkpointer.last_path.write_bytes(checkpointer.last_path.read_bytes()[:-1])
        with pytest.warns(CheckpointWarning, match=r"resuming from last\.previous\.safetensors"):
            resumed = fit(str(stop), resume=True)
        assert without_times(resumed) == without_times(unbroken)
        assert_equal_runs(tmp_path / "unbroken", directory)


def test_what_was_changed_on_resuming_is_kept(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def fit(max_epochs: int) -> Trainer:
        trainer = make_trainer(lr_schedule=one_cycle())
        settings: dict[str, Any] = {"checkpointer": Checkpointer(tmp_path), "resume": True, "progress_bar": False}
        trainer.fit(synthetic.train, max_epochs=max_epochs, **settings)
        return trainer

    assert fit(1).resume_differences == []
    first = "max_epochs 1 epochs in the run, 2 epochs now, from step 5"
    with pytest.warns(CheckpointWarning, match="1 epochs in the run"):
        assert fit(2).resume_differences == [first]
    assert fit(2).resume_differences == [first], "kept, though nothing is new"
    with pytest.warns(CheckpointWarning, match="2 epochs in the run"):
        assert fit(3).resume_differences == [first, "max_epochs 2 epochs in the run, 3 epochs now, from step 10"]


def test_a_directory_that_was_emptied_between_two_fits_gets_both_files(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    trainer, checkpointer = make_trainer(), Checkpointer(tmp_path / "run")
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=checkpointer, progress_bar=False)
    shutil.rmtree(tmp_path / "run")
    trainer.fit(synthetic.train, max_epochs=1, checkpointer=checkpointer, progress_bar=False)
    assert read_state(tmp_path / "run")["position"]["epoch"] == 1
    assert checkpointer.read_best()[1]["selected_by"]["epoch"] == 1


def test_a_damaged_best_beside_a_sound_last_is_chosen_anew(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    def fit(max_epochs: int) -> Trainer:
        trainer = make_trainer(lr=0.05)
        settings: dict[str, Any] = {"checkpointer": Checkpointer(tmp_path), "resume": True, "progress_bar": False}
        trainer.fit(synthetic.train, synthetic.test, max_epochs=max_epochs, **settings, **second_epoch_is_best())
        return trainer

    assert fit(6).best.epoch == 2
    (tmp_path / "best.safetensors").write_bytes(b"x" * 100)
    with pytest.warns(CheckpointWarning, match="the best so far, are missing"):
        assert fit(7).best.epoch == 7
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 7


def test_an_early_stop_that_is_reached_says_so(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        capsys.readouterr()
        trainer = make_trainer(lr=0.05)
        trainer.fit(
            synthetic.train,
            synthetic.test,
            max_epochs=40,
            patience=2,
            checkpointer=Checkpointer(tmp_path),
            resume=True,
        )
    epochs = len(trainer.history)
    assert capsys.readouterr().err == (f"Run already finished: the best val_accuracy was 2 epochs ago ({epochs}/40)\n")
