"""Start of a run: checkpoints that fit, the best weights, and the weights of another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer, build_transforms
from cifarnet.errors import CheckpointError, CheckpointMismatchError, CifarnetError, SettingError
from runs import equal, fit, metrics_of, read_state, second_epoch_is_best, weights_of

MakeTrainer = Callable[..., Trainer]


def test_a_finished_run_is_left_alone(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(make_trainer(), synthetic.train, synthetic.test, tmp_path, max_epochs=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = fit(make_trainer(), synthetic.train, synthetic.test, tmp_path, max_epochs=3, progress_bar=True)
    assert capsys.readouterr().err == "Run already finished (3/3)\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert equal(weights_of(first.model), weights_of(second.model))
    for directory in (tmp_path, str(tmp_path)):
        with pytest.raises(CheckpointError, match=r"holds a run. Continue it with resume=True"):
            fit(make_trainer(), synthetic.train, max_epochs=1, checkpointer=directory)


def test_init_from_starts_a_new_run(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    first = fit(make_trainer(), synthetic.train, None, tmp_path / "first", max_epochs=3)
    second = make_trainer(lr=1e-9, init_seed=5)
    settings: dict[str, Any] = {"init_from": tmp_path / "first", "batch_size": 30}
    fit(second, synthetic.train, None, tmp_path / "second", **settings)
    assert [record.epoch for record in second.history] == [1]
    torch.testing.assert_close(list(second.model.parameters()), list(first.model.parameters()), rtol=0, atol=1e-6)
    with pytest.raises(SettingError, match="this trainer has trained"):
        fit(second, synthetic.train, max_epochs=2, **settings)
    resumed = make_trainer(lr=1e-9, init_seed=6)
    fit(resumed, synthetic.train, None, tmp_path / "second", max_epochs=2, **settings)
    assert len(resumed.history) == 2, "a run in the directory is resumed"


def test_a_wrong_state_changes_nothing(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    state, fresh = fit(make_trainer(), synthetic.train).state_dict(), make_trainer()
    before = weights_of(fresh.model)
    incomplete = {name: tensor for name, tensor in state["model"].items() if name != "fc2.bias"}
    for wrong, message in (
        ({"model": {}}, "not the state of a Trainer"),
        ({**state, "model": incomplete}, r"fc2\.bias is only in the model"),
        ({**state, "history": []}, "1 epochs are done and 0 are recorded"),
        ({**state, "position": {}}, r"not the state of a Trainer \(KeyError"),
        ({**state, "best": {"monitor": "val_loss", "epoch": 1}}, "the best epoch is 1 with the value None"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            fresh.load_state_dict(wrong)
        assert equal(weights_of(fresh.model), before)
        assert not fresh.optimizer.state
        assert fresh.global_step == 0
    Checkpointer(tmp_path).save(nn.Linear(2, 2))
    with pytest.raises(CifarnetError, match="not the state of a Trainer"):
        fit(fresh, synthetic.train, None, tmp_path)


def test_best_alone_is_not_resumed(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    fit(make_trainer(), synthetic.train, None, tmp_path, max_epochs=2)
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(CifarnetError, match=r"best\.safetensors but no last\.safetensors to resume from.*init_from="):
        fit(make_trainer(), synthetic.train, None, tmp_path)


@pytest.mark.parametrize("loss", ["damaged", "of a worse epoch"])
def test_lost_best_weights_cause_a_new_selection(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, loss: str
) -> None:
    def train(max_epochs: int) -> int:
        trainer, selection = make_trainer(lr=0.05), second_epoch_is_best()
        return fit(trainer, synthetic.train, synthetic.test, tmp_path, max_epochs=max_epochs, **selection).best.epoch

    assert train(4) == 2
    if loss == "damaged":
        (tmp_path / "best.safetensors").write_bytes(b"x" * 100)
    else:
        weights, description = Checkpointer(tmp_path).read_best()
        worse = {"monitor": "val_rank", "epoch": 1, "value": 0.001}
        Checkpointer(tmp_path).save_best(weights, {**description, "selected_by": worse})
    with pytest.warns(UserWarning, match="The weights of epoch 2, the best so far, are missing"):
        assert train(5) == 5
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 5


def test_a_missing_best_file_is_rewritten(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    fit(make_trainer(), synthetic.train, None, tmp_path, max_epochs=2)
    whole = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").unlink()
    fit(make_trainer(), synthetic.train, None, tmp_path, max_epochs=2)
    assert (tmp_path / "best.safetensors").read_bytes() == whole
    fit(make_trainer(), synthetic.train, None, tmp_path, max_epochs=3)
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 3


def test_a_best_epoch_survives_a_kill(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    class Stopping(Checkpointer):
        def save_state(self, state: Mapping[str, Any]) -> Path:
            super().save_state(state)
            raise StoppedError

    settings: dict[str, Any] = {"max_epochs": 9, "checkpointer": Stopping(tmp_path), "resume": True}
    for killed_after in (1, 2):  # each time between `last` and `best`
        with pytest.raises(StoppedError):
            fit(make_trainer(), synthetic.train, synthetic.test, **settings)
        assert (tmp_path / "best.safetensors").exists() == (killed_after == 2)
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["epoch"] == 1


class Shampoo(torch.optim.Optimizer):
    """Full-matrix preconditioners: states of other shapes than the parameter, nested, and of the whole optimizer."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            gradient = parameter.grad.reshape(len(parameter), -1)
            state = self.state[parameter].setdefault("nested", {"factor": [torch.eye(len(parameter)), 0]})
            state["factor"][0] += gradient @ gradient.T
            parameter -= 0.01 * torch.linalg.solve(state["factor"][0], gradient).reshape(parameter.shape)
        self.state["shared"] = {"seen": torch.tensor([len(self.state)])}  # type: ignore[index]


def test_an_optimizer_with_states_of_any_shape_resumes(synthetic: DatasetSplits, tmp_path: Path) -> None:
    def make() -> Trainer:
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(4, 8), hidden=16)
        optimizer = Shampoo(model.parameters(), {"lr": 0.01})
        return Trainer(model, optimizer, transforms=build_transforms(size=16), device="cpu")

    whole = fit(make(), synthetic.train, max_epochs=3)
    fit(make(), synthetic.train, None, tmp_path, max_epochs=2)
    resumed = fit(make(), synthetic.train, None, tmp_path, max_epochs=3)
    assert metrics_of(resumed) == metrics_of(whole)
    assert equal(weights_of(resumed.model), weights_of(whole.model))


def nan_in_evaluation(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels) * (1 if logits.requires_grad else torch.nan)


def test_patience_counts_nan_epochs(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    def train(max_epochs: int) -> Trainer:
        settings: dict[str, Any] = {"max_epochs": max_epochs, "monitor": "val_loss", "patience": 3}
        return fit(make_trainer(loss_fn=nan_in_evaluation), synthetic.train, synthetic.test, tmp_path, **settings)

    with pytest.warns(UserWarning, match=r"val_loss is nan at epoch \d. Such an epoch cannot become the best"):
        assert train(2).best.epoch == 0
    with pytest.warns(UserWarning, match="val_loss is nan at epoch 3"):
        assert len(train(9).history) == 3
    assert Checkpointer(tmp_path).read_best()[1]["selected_by"]["monitor"] == "final"
    assert read_state(tmp_path)["best"]["epochs_since"] == 3
