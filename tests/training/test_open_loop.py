"""The loop belongs to its caller: metrics, learning rates, weights, any optimizer and any data set."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    DatasetSplits,
    ImageDataset,
    Trainer,
    Transforms,
    build_transforms,
)
from cifarnet.errors import CheckpointSaveError, CheckpointWarning, InputError, ResumeMismatchError, SettingError
from cifarnet.inference import top_k_accuracy
from cifarnet.inference.data import open_data
from cifarnet.optim import cosine
from cifarnet.training.resume import describe_value
from runs import assert_equal_runs, interrupt_at, read_state, second_epoch_is_best

MakeTrainer = Callable[..., Trainer]


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class TestLoop:
    def test_epochs_does_all_that_fit_does(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        train, val = synthetic.train.split(0.2, seed=0)
        settings: dict[str, Any] = {"max_epochs": 40, "patience": 2}
        by_fit, by_loop = make_trainer(lr=0.05), make_trainer(lr=0.05)
        by_fit.fit(train, val, checkpointer=tmp_path / "fit", progress_bar=False, **settings)
        records = list(by_loop.epochs(train, val, checkpointer=tmp_path / "loop", **settings))
        assert [r.metrics for r in records] == [r.metrics for r in by_fit.history]
        assert equal(copies(by_loop.model), copies(by_fit.model)), "both end with the best weights"
        assert_equal_runs(tmp_path / "fit", tmp_path / "loop")

    def test_break_saves_and_leaves_the_best_weights(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        trainer = make_trainer(lr=0.05)
        checkpointer = Checkpointer(tmp_path, save_every_s=1e9)
        for record in trainer.epochs(synthetic.train, synthetic.test, max_epochs=9, checkpointer=checkpointer):
            if record.epoch == 4:
                break
        assert read_state(tmp_path)["position"]["epoch"] == 4
        best = trainer.history.best()
        assert best is not None
        assert trainer.evaluate(synthetic.test).accuracy == best.val_accuracy
        assert equal(copies(trainer.model), checkpointer.read_best()[0])
        resumed = make_trainer(lr=0.05)
        resumed.fit(
            synthetic.train, synthetic.test, max_epochs=6, checkpointer=tmp_path, resume=True, progress_bar=False
        )
        straight = make_trainer(lr=0.05)
        straight.fit(synthetic.train, synthetic.test, max_epochs=6, progress_bar=False)
        assert [r.metrics for r in resumed.history] == [r.metrics for r in straight.history]

    def test_a_closed_loop_raises_the_error_of_its_save(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        class Failing(Checkpointer):
            def save_state(self, state: Any) -> Path:
                raise CheckpointSaveError("No space left")

        records = make_trainer().epochs(synthetic.train, max_epochs=9, checkpointer=Failing(tmp_path, save_every_s=1e9))
        next(records)
        with pytest.raises(CheckpointSaveError, match="No space left"), contextlib.closing(records):
            pass

    def test_an_error_in_the_body_saves_too(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        def train() -> None:
            checkpointer = Checkpointer(tmp_path, save_every_s=1e9)
            for record in make_trainer().epochs(synthetic.train, max_epochs=9, checkpointer=checkpointer):
                if record.epoch == 2:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train()
        assert read_state(tmp_path)["position"]["epoch"] == 2

    def test_ctrl_c_acts_at_once_in_the_body(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        reached = []

        def train() -> None:
            for record in make_trainer().epochs(synthetic.train, max_epochs=3):
                signal.raise_signal(signal.SIGINT)
                reached.append(record)

        with pytest.raises(KeyboardInterrupt):
            train()
        assert not reached
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Penalised(nn.Module):
    """Cross-entropy with a penalty on a weight of the model."""

    def __init__(self, model: nn.Module, weight: Tensor, alpha: float) -> None:
        super().__init__()
        self.model = model
        self.weights = [weight]
        self.alpha = alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels) + self.alpha * self.weights[0].square().sum()


class TestMetrics:
    def test_metrics_of_the_caller_are_recorded_saved_and_selected_by(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        trainer = make_trainer(lr=0.01)
        settings: dict[str, Any] = {
            "test": synthetic.test.subset(range(50)),
            "metrics": {"top5": lambda logits, labels: top_k_accuracy(logits, labels, k=5)},
            "monitor": "val_top5",
            "checkpointer": tmp_path,
        }
        for record in trainer.epochs(synthetic.train, synthetic.test, max_epochs=4, **settings):
            images = trainer.transforms.preprocess(synthetic.test.images)
            with torch.no_grad():
                logits = trainer.model.eval()(images)
            expected = top_k_accuracy(logits, synthetic.test.labels, k=5)
            assert record.metrics["val_top5"] == pytest.approx(expected, abs=0.02)
            assert set(record.metrics) > {"test_top5", "test_loss"}
        best = trainer.history.best("val_top5")
        assert best is not None
        assert trainer.best.epoch == best.epoch
        assert read_state(tmp_path)["history"][0]["val_top5"] == trainer.history["val_top5"][0]
        assert Classifier.load(tmp_path, device="cpu").selected_by["monitor"] == "val_top5"

    def test_an_unknown_column_does_not_hinder_a_resume(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        make_trainer().fit(synthetic.train, max_epochs=1, checkpointer=tmp_path, progress_bar=False)
        checkpointer = Checkpointer(tmp_path)
        state = checkpointer.read_last()
        assert state is not None
        state["history"][0]["grad_norm"] = 2.5
        checkpointer.save_state(state)
        resumed = make_trainer()
        resumed.fit(synthetic.train, max_epochs=2, checkpointer=tmp_path, resume=True, progress_bar=False)
        assert resumed.history["grad_norm"] == [2.5, None]


class TestLearningRates:
    def test_a_rate_that_the_body_sets_stays_also_across_a_resume(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        trainer = make_trainer()
        for record in trainer.epochs(synthetic.train, max_epochs=3, checkpointer=tmp_path):
            assert record.learning_rate == (1e-3 if record.epoch == 1 else 1e-4)
            trainer.optimizer.param_groups[0]["lr"] = 1e-4
        resumed = make_trainer()
        resumed.fit(synthetic.train, max_epochs=4, checkpointer=tmp_path, resume=True, progress_bar=False)
        assert resumed.history["learning_rate"] == [1e-3, 1e-4, 1e-4, 1e-4]
        assert resumed.resume_differences == []

    def test_settings_that_the_body_changes_resume_twice(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        for max_epochs in (1, 2, 3):
            trainer = make_trainer()
            for _ in trainer.epochs(synthetic.train, max_epochs=max_epochs, checkpointer=tmp_path, resume=True):
                trainer.optimizer.param_groups[0]["weight_decay"] = 0.01 * max_epochs
                trainer.optimizer.param_groups[0]["betas"] = (0.8, 0.99)
        assert len(trainer.history) == 3

    def test_a_trainer_resumes_itself_after_its_rate_was_lowered(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        trainer = make_trainer()
        for max_epochs in (1, 2):
            for _ in trainer.epochs(synthetic.train, max_epochs=max_epochs, checkpointer=tmp_path, resume=True):
                trainer.optimizer.param_groups[0]["lr"] /= 4
        assert trainer.history["learning_rate"] == [1e-3, 1e-3 / 4]

    def test_a_scheduler_of_torch_works_in_the_body(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        trainer = make_trainer(lr=0.5)
        # No loss falls by 1e9, so that each epoch after the first is a plateau.
        scheduler = ReduceLROnPlateau(
            trainer.optimizer, patience=0, factor=0.1, threshold=1e9, threshold_mode="abs", min_lr=0.005
        )
        for record in trainer.epochs(synthetic.train, synthetic.test, max_epochs=6):
            assert record.val_loss is not None
            scheduler.step(record.val_loss)
        assert list(trainer.history["learning_rate"]) == pytest.approx([0.5, 0.5, 0.05, 0.005, 0.005, 0.005])

    def test_a_schedule_gives_the_base_rates_back(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        donor = make_trainer(lr=0.1)
        first_rates = []
        for _ in range(3):
            trainer = Trainer(
                donor.model, donor.optimizer, transforms=donor.transforms, lr_schedule=cosine(), device="cpu"
            )
            trainer.fit(synthetic.train, max_epochs=1, batch_size=300, progress_bar=False)
            first_rates.append(trainer.history[0].learning_rate)
        assert first_rates == [0.1, 0.1, 0.1]
        assert donor.optimizer.param_groups[0]["lr"] == 0.1
        assert "initial_lr" not in donor.optimizer.param_groups[0]

    @pytest.mark.parametrize("schedule", [None, cosine()])
    def test_a_group_can_be_added_between_epochs(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, schedule: Any
    ) -> None:
        donor = make_trainer()
        model = donor.model
        head = [model.get_parameter("fc2.weight"), model.get_parameter("fc2.bias")]
        optimizer = torch.optim.SGD(head, lr=0.1)
        trainer = Trainer(model, optimizer, transforms=donor.transforms, lr_schedule=schedule, device="cpu")
        before = copies(model)
        for record in trainer.epochs(synthetic.train, max_epochs=3):
            moved = not torch.equal(model.state_dict()["conv1.weight"], before["conv1.weight"])
            assert moved == (record.epoch > 1)
            if record.epoch == 1:
                optimizer.add_param_group({"params": [model.get_parameter("conv1.weight")], "lr": 0.01})
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]

    @pytest.mark.parametrize("schedule", [None, cosine()])
    @pytest.mark.parametrize("stop", [1, 2])  # right after the group was added, and an epoch later
    def test_a_run_with_an_added_group_resumes(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, schedule: Any, stop: int
    ) -> None:
        def make(*, has_both: bool) -> Trainer:
            donor = make_trainer()
            head, body = (donor.model.get_parameter(name) for name in ("fc2.weight", "conv1.weight"))
            optimizer = torch.optim.Adam([head], lr=0.01)
            if has_both:
                optimizer.add_param_group({"params": [body], "lr": 0.001})
            return Trainer(
                donor.model, optimizer, transforms=donor.transforms, lr_schedule=schedule, device="cpu", ema_decay=0.9
            )

        def train(trainer: Trainer, directory: str, last: int) -> None:
            for record in trainer.epochs(synthetic.train, max_epochs=3, checkpointer=tmp_path / directory, resume=True):
                if record.epoch == 1:
                    body = trainer.model.get_parameter("conv1.weight")
                    trainer.optimizer.add_param_group({"params": [body], "lr": 0.001})
                if record.epoch == last:
                    break

        train(make(has_both=False), "unbroken", 3)
        train(make(has_both=False), "stopped", stop)
        resumed = make(has_both=True)
        assert all(group["fused"] is None for group in resumed.optimizer.param_groups)
        train(resumed, "stopped", 3)
        assert all(group["fused"] for group in resumed.optimizer.param_groups)
        assert resumed.resume_differences == []
        assert_equal_runs(tmp_path / "unbroken", tmp_path / "stopped")

    def test_building_a_trainer_writes_nothing_into_the_optimizer(self) -> None:
        model = CifarCNN(image_size=16, widths=(4, 8), hidden=8)
        optimizer = torch.optim.Adam(model.parameters())
        before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        Trainer(model, optimizer, lr_schedule=cosine(), device="cpu")
        assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == before
        assert not optimizer.state


class TestWeights:
    def test_what_is_in_the_model_is_what_is_trained(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        """The best epoch is not the last one, so that `fit` leaves other weights than training reached."""
        train, val = synthetic.train.split(0.3, seed=0)
        trainer = make_trainer(lr=0.03)
        start = copies(trainer.model)
        selection = second_epoch_is_best()
        trainer.fit(train, val, max_epochs=5, progress_bar=False, **selection)
        assert trainer.best.epoch == 2
        trainer.model.load_state_dict(start)  # rewound
        seen = []
        hook = trainer.model.register_forward_pre_hook(lambda module, _: seen.append(copies(module)))
        next(iter(trainer.epochs(train, val, max_epochs=6, **selection)))
        hook.remove()
        assert equal({**seen[1], **{k: v for k, v in start.items() if "num_batches" in k}}, start)

    def test_the_average_follows_weights_that_the_caller_changed(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        trainer = make_trainer(lr=1e-6, ema_decay=0.999)  # the weights stay nearly where they are
        start = copies(trainer.model)
        trainer.fit(synthetic.train, max_epochs=3, progress_bar=False)
        half = {name: tensor / 2 if tensor.is_floating_point() else tensor for name, tensor in start.items()}
        trainer.model.load_state_dict(half)
        trainer.fit(synthetic.train, max_epochs=4, progress_bar=False)
        for name in ("conv1.weight", "fc2.weight"):
            torch.testing.assert_close(trainer.model.state_dict()[name], half[name], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("last", [2, 5])
    def test_a_best_epoch_of_weights_that_the_caller_replaced_does_not_come_back(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, last: int
    ) -> None:
        train, val = synthetic.train.split(0.3, seed=0)
        trainer = make_trainer(lr=0.03)
        selection = second_epoch_is_best()
        trainer.fit(train, val, max_epochs=last, progress_bar=False, **selection)
        assert trainer.best.epoch == 2  # the model holds what training reached, or other weights
        for parameter in trainer.model.parameters():
            nn.init.zeros_(parameter)
        trainer.optimizer.param_groups[0]["lr"] = 0.0
        trainer.fit(train, val, max_epochs=last + 1, progress_bar=False, **selection)
        assert trainer.best.epoch == last + 1
        assert not any(parameter.any() for parameter in trainer.model.parameters())

    def test_an_untouched_model_continues_from_the_last_epoch(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        train, val = synthetic.train.split(0.3, seed=0)
        parts, whole = make_trainer(lr=0.03), make_trainer(lr=0.03)
        parts.fit(train, val, max_epochs=5, progress_bar=False)
        parts.fit(train, val, max_epochs=7, progress_bar=False)
        whole.fit(train, val, max_epochs=7, progress_bar=False)
        assert [r.metrics for r in parts.history] == [r.metrics for r in whole.history]


class Shampoo(torch.optim.Optimizer):
    """Matrix factors, nested state, numbers, ``None`` and a state of all parameters: nothing of a parameter's shape."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        shared = self.state["shared"]  # type: ignore[index]  # torch saves such a key as it is
        shared["scale"] = shared.get("scale", torch.ones(())) * 0.9
        for group in self.param_groups:
            for parameter in group["params"]:
                state, grad = self.state[parameter], parameter.grad.flatten(1) if parameter.ndim > 1 else None
                if not state:
                    state.update(count=0, factors={}, blocks=None, scales=[])
                state["count"] += 1
                if grad is None:
                    parameter.sub_(group["lr"] * parameter.grad)
                    continue
                left = state["factors"].setdefault("left", torch.eye(len(grad)))
                left.add_(grad @ grad.T)
                state["blocks"] = (grad.abs().flatten()[:64] * 1e3).clamp(0, 255).to(torch.uint8)
                state["scales"] = [grad.abs().max().double()]
                direction = torch.linalg.solve(left, grad) + 1e-3 * float(state["blocks"].sum())
                parameter.sub_(
                    group["lr"] * float(shared["scale"]) * direction.view_as(parameter) * float(state["scales"][0])
                )


def test_an_optimizer_with_states_of_any_shape_resumes(synthetic: DatasetSplits, tmp_path: Path) -> None:
    def make() -> Trainer:
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(4, 8), hidden=8)
        optimizer = Shampoo(model.parameters())
        return Trainer(model, optimizer, transforms=build_transforms(size=16), device="cpu", precision="float32")

    def fit(trainer: Trainer, directory: str) -> None:
        trainer.fit(synthetic.train, max_epochs=2, checkpointer=tmp_path / directory, resume=True, progress_bar=False)

    unbroken, stopped, resumed = make(), make(), make()
    fit(unbroken, "unbroken")
    interrupt_at(stopped, 7)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, "stopped")
    fit(resumed, "stopped")
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "stopped")


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    mean: Tensor = ((1 - (-loss).exp()) ** gamma * loss).mean()
    return mean


class Focal(nn.Module):
    def __init__(self, gamma: float, smoothing: float = 0.0) -> None:
        super().__init__()
        self.power = gamma
        self.loss = nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = self.loss(logits, labels)
        mean: Tensor = ((1 - (-loss).exp()) ** self.power * loss).mean()
        return mean


def lambda_loss(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda logits, labels: scale * nn.functional.cross_entropy(logits, labels)


def transforms_with(augment: v2.Transform) -> Transforms:
    return Transforms(augment, build_transforms(size=16).preprocess)


def double(images: Tensor) -> Tensor:
    return images


def triple(images: Tensor) -> Tensor:
    return images


@pytest.mark.filterwarnings("ignore:.* draws once per batch:UserWarning")
class TestSameRun:
    """Two runs are the same run if their settings have equal values."""

    @pytest.mark.parametrize(
        ("saved", "now", "message"),
        [
            (functools.partial(focal, gamma=2), functools.partial(focal, gamma=5), "loss_fn.keywords.gamma 2"),
            (nn.CrossEntropyLoss(torch.ones(10)), nn.CrossEntropyLoss(torch.arange(1.0, 11)), "loss_fn.weight.tensor"),
            (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(torch.ones(10)), "loss_fn.weight"),
            (Focal(2.0), Focal(5.0), "loss_fn.power 2.0 in the run, 5.0 now"),
            (Focal(2.0), Focal(2.0, smoothing=0.1), "loss_fn.loss.label_smoothing 0.0 in the run, 0.1 now"),
            (focal, Focal(2.0), "loss_fn"),
            (focal, lambda_loss(1.0), "loss_fn"),
        ],
    )
    def test_another_loss_is_refused(
        self,
        make_trainer: MakeTrainer,
        synthetic: DatasetSplits,
        tmp_path: Path,
        saved: Any,
        now: Any,
        message: str,
    ) -> None:
        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        make_trainer(loss_fn=saved).fit(synthetic.train, max_epochs=1, **settings)
        same = make_trainer(loss_fn=saved)
        same.fit(synthetic.train, max_epochs=1, **settings)
        assert same.resume_differences == []
        with pytest.raises(ResumeMismatchError, match=message):
            make_trainer(loss_fn=now).fit(synthetic.train, max_epochs=2, **settings)

    @pytest.mark.parametrize(
        ("saved", "now", "message"),
        [
            (v2.Lambda(double), v2.Lambda(triple), "augment.lambd.global double in the run, triple now"),
            (v2.ColorJitter(0.1), v2.ColorJitter(0.2), "augment.brightness"),
            (v2.Compose([v2.RandomInvert(0.1)]), v2.Compose([v2.RandomInvert(0.2)]), r"augment.transforms\[0\].p 0.1"),
        ],
    )
    def test_another_augmentation_is_refused(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, saved: Any, now: Any, message: str
    ) -> None:
        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        make_trainer(transforms=transforms_with(saved)).fit(synthetic.train, max_epochs=1, **settings)
        with pytest.raises(ResumeMismatchError, match=message):
            make_trainer(transforms=transforms_with(now)).fit(synthetic.train, max_epochs=2, **settings)

    def test_a_lambda_is_named_in_a_warning(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        make_trainer(loss_fn=lambda_loss(1.0)).fit(synthetic.train, max_epochs=1, **settings)
        resumed = make_trainer(loss_fn=lambda_loss(2.0))
        with pytest.warns(CheckpointWarning, match="loss_fn is a lambda, which cannot be compared"):
            resumed.fit(synthetic.train, max_epochs=2, **settings)
        assert resumed.resume_differences == ["loss_fn is a lambda, which cannot be compared, from step 5"]

    def test_a_newer_torch_warns_and_never_refuses(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another version may print a transform differently, and give it one field more or less."""
        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        transforms = transforms_with(v2.RandomInvert(0.1))
        make_trainer(transforms=transforms).fit(synthetic.train, max_epochs=1, **settings)
        monkeypatch.setattr(v2.RandomInvert, "extra_repr", lambda self: "another text")
        monkeypatch.setattr("cifarnet.training.resume.torch.__version__", "99.0")
        checkpointer = Checkpointer(tmp_path)
        state = checkpointer.read_last()
        assert state is not None
        state["settings"]["augment"]["fields"]["new_field"] = 3
        checkpointer.save_state(state)
        with pytest.warns(CheckpointWarning, match=r"torch .* in the run, 99\.0 now") as caught:
            make_trainer(transforms=transforms).fit(synthetic.train, max_epochs=2, **settings)
        assert sum(issubclass(one.category, CheckpointWarning) for one in caught) == 1

    def test_renamed_data_of_equal_content_resume(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        make_trainer().fit(synthetic.train, max_epochs=1, **settings)
        train = synthetic.train
        renamed = ImageDataset(train.images, train.labels, train.classes, ids=train.ids, name="reached elsewhere")
        resumed = make_trainer()
        resumed.fit(renamed, max_epochs=2, **settings)
        assert resumed.resume_differences == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 50}, "data.batch_size 64 in the run, 50 now"),
            ({"dataset": "other"}, "data.fingerprint"),
            ({"drop_last": True}, "data.num_batches 5 in the run, 4 now"),
        ],
    )
    def test_another_dataloader_is_named(
        self,
        make_trainer: MakeTrainer,
        synthetic: DatasetSplits,
        tmp_path: Path,
        change: dict[str, Any],
        message: str,
    ) -> None:
        def loader(**changes: Any) -> DataLoader[Any]:
            dataset = {"other": synthetic.test}.get(changes.pop("dataset", ""), synthetic.train)
            return DataLoader(dataset, shuffle=True, **{"batch_size": 64, **changes})

        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        make_trainer().fit(loader(), max_epochs=1, **settings)
        with pytest.raises(ResumeMismatchError, match=message):
            make_trainer().fit(loader(**change), max_epochs=2, **settings)

    @pytest.mark.parametrize(
        ("value", "other"),
        [
            (torch.ones(2), torch.zeros(2)),
            (np.ones(2), np.ones(3)),
            ({"a": [1, (2,)]}, {"a": [1, (3,)]}),
            (nn.Linear(2, 2), nn.Linear(2, 2)),
            (b"1", b"2"),
            (torch.float32, torch.float64),
            (focal, Focal),
            ({1, 2}, {1, 3}),
            (Path("a"), Path("b")),
            (Image.Resampling.BILINEAR, Image.Resampling.NEAREST),
        ],
    )
    def test_descriptions_are_equal_if_values_are(self, value: Any, other: Any) -> None:
        assert describe_value(value) == describe_value(value)
        assert describe_value(value) != describe_value(other)

    def test_a_value_that_contains_itself_is_incomparable(self) -> None:
        class Loop:
            def __init__(self) -> None:
                self.own = self

        assert "contains itself" in str(describe_value(Loop()))
        assert describe_value(object()) == {"incomparable": "a object"}

    def test_a_loss_that_holds_the_model_resumes(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        def trainer_with_loss(alpha: float) -> Trainer:
            donor = make_trainer()
            nn.init.normal_(donor.model.get_parameter("fc2.weight"), std=alpha)  # a resume begins with other weights
            loss = Penalised(donor.model, donor.model.get_parameter("fc2.weight"), alpha)
            return Trainer(donor.model, donor.optimizer, transforms=donor.transforms, loss_fn=loss, device="cpu")

        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        trainer_with_loss(0.1).fit(synthetic.train, max_epochs=1, **settings)
        torch.manual_seed(1)
        trainer = trainer_with_loss(0.1)
        trainer.fit(synthetic.train, max_epochs=2, **settings)
        assert trainer.resume_differences == []
        with pytest.raises(ResumeMismatchError, match=r"loss_fn\.alpha 0\.1 in the run, 0\.2 now"):
            trainer_with_loss(0.2).fit(synthetic.train, max_epochs=3, **settings)

    def test_a_loss_that_is_a_method_is_named(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        def trainer_with_method() -> Trainer:
            donor = make_trainer()
            loss = Penalised(donor.model, donor.model.get_parameter("fc2.weight"), 0.1)
            return Trainer(
                donor.model, donor.optimizer, transforms=donor.transforms, loss_fn=loss.forward, device="cpu"
            )

        settings: dict[str, Any] = {"checkpointer": tmp_path, "resume": True, "progress_bar": False}
        trainer_with_method().fit(synthetic.train, max_epochs=1, **settings)
        with pytest.warns(CheckpointWarning, match="loss_fn is a method of a Penalised, which cannot be compared"):
            trainer_with_method().fit(synthetic.train, max_epochs=2, **settings)


class TestFused:
    @pytest.mark.parametrize(
        "kind", [torch.optim.Adam, torch.optim.AdamW, functools.partial(torch.optim.SGD, momentum=0.9)]
    )
    def test_an_optimizer_without_a_choice_runs_fused(self, synthetic: DatasetSplits, kind: Any) -> None:
        results = []
        for chosen in ({}, {"fused": True}, {"foreach": False}):
            torch.manual_seed(0)
            model = CifarCNN(image_size=16, widths=(4, 8), hidden=8)
            optimizer = kind(model.parameters(), lr=1e-3, **chosen)
            trainer = Trainer(model, optimizer, transforms=build_transforms(size=16), device="cpu", precision="float64")
            trainer.fit(synthetic.train, max_epochs=1, progress_bar=False)
            results.append(copies(model))
            assert bool(optimizer.param_groups[0]["fused"]) == ("foreach" not in chosen)
        assert equal(results[0], results[1])
        torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-9)

    def test_a_checkpoint_of_an_unfused_run_resumes_fused(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        make_trainer(fused=False).fit(synthetic.train, max_epochs=1, checkpointer=tmp_path, progress_bar=False)
        resumed = make_trainer(fused=None)
        with pytest.warns(CheckpointWarning, match="fused False in the run, True now"):
            resumed.fit(synthetic.train, max_epochs=2, checkpointer=tmp_path, resume=True, progress_bar=False)
        assert len(resumed.history) == 2

    def test_the_trainer_builds_adam(self) -> None:
        trainer = Trainer(CifarCNN(image_size=16, widths=(4, 8), hidden=8), lr=3e-4, device="cpu")
        assert type(trainer.optimizer) is torch.optim.Adam
        assert trainer.optimizer.param_groups[0]["lr"] == 3e-4
        with pytest.raises(SettingError, match="lr is the learning rate of the default Adam"):
            Trainer(trainer.model, trainer.optimizer, lr=1e-3)


class Pictures(Dataset[Any]):
    """A map-style data set as torchvision's are."""

    classes = tuple("abcdefghij")

    def __init__(self, data: ImageDataset, kind: str) -> None:
        self.data, self.kind = data, kind

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data[index]
        if self.kind == "pil":
            return Image.fromarray(image.permute(1, 2, 0).numpy()), label
        return (image if self.kind == "uint8" else (image / 255 - 0.5)), label


class TestData:
    @pytest.mark.parametrize("kind", ["pil", "uint8"])
    def test_a_map_style_data_set_is_read_into_memory(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits, kind: str
    ) -> None:
        expected = make_trainer().fit(synthetic.train, max_epochs=1, progress_bar=False)
        history = make_trainer().fit(Pictures(synthetic.train, kind), max_epochs=1, progress_bar=False)
        assert history[0].train_loss == expected[0].train_loss

    def test_subsets_are_accepted(self, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
        own = make_trainer().fit(Subset(synthetic.train, range(100)), max_epochs=1, progress_bar=False)
        assert (
            own[0].train_loss
            == make_trainer().fit(synthetic.train.subset(range(100)), max_epochs=1, progress_bar=False)[0].train_loss
        )
        pictures = Subset(Pictures(synthetic.train, "pil"), range(100))
        trainer = make_trainer()
        others = Subset(Pictures(synthetic.train, "pil"), range(100, 200))
        trainer.fit(pictures, others, max_epochs=1, checkpointer=tmp_path, progress_bar=False)
        assert trainer.history[0].train_loss == own[0].train_loss
        assert Classifier.load(tmp_path, device="cpu").classes == Pictures.classes
        assert trainer.evaluate(pictures).num_images == 100

    def test_floating_items_are_batched_and_shuffled(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        trainer = make_trainer()
        trainer.fit(Pictures(synthetic.train, "float"), max_epochs=2, batch_size=100, progress_bar=False)
        assert trainer.global_step == 6
        assert trainer.history[0].train_loss != trainer.history[1].train_loss

    def test_random_transforms_draw_in_every_epoch(self, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
        class Flipped(Pictures):
            def __getitem__(self, index: int) -> tuple[Any, int]:
                image, label = super().__getitem__(index)
                return v2.RandomHorizontalFlip(0.2)(image), label

        for kind in ("pil", "uint8"):
            generator = torch.get_rng_state()
            make_trainer().fit(Flipped(synthetic.train, kind), max_epochs=1, progress_bar=False)
            assert torch.equal(torch.get_rng_state(), generator)
            opened = open_data(Flipped(synthetic.train, kind), batch_size=300, shuffle=False)
            assert not isinstance(opened, ImageDataset)
            (one, labels), (other, _) = next(iter(opened)), next(iter(opened))
            assert one.dtype == torch.uint8
            assert torch.equal(labels, synthetic.train.labels)
            changed = (one != other).flatten(1).any(dim=1).float().mean()
            assert 0.2 < changed < 0.45  # 2 * 0.2 * 0.8 are expected

    def test_a_subset_has_the_classes_of_the_whole(self) -> None:
        labels = torch.arange(10).repeat(10)
        whole = TensorDataset(torch.zeros(100, 3, 16, 16, dtype=torch.uint8), labels)
        part = open_data(Subset(Subset(whole, range(50)), range(4)), batch_size=1, shuffle=False)
        assert isinstance(part, ImageDataset)
        assert len(part) == 4
        assert part.classes == tuple("0123456789")

    def test_what_is_no_data_set_of_pictures_is_refused(
        self, make_trainer: MakeTrainer, synthetic: DatasetSplits
    ) -> None:
        class Wrong(Pictures):
            def __getitem__(self, index: int) -> Any:
                return {"image": 1} if self.kind == "dict" else ("a picture", 0)

        for kind, message in (("dict", r"Return \(image, label\)"), ("text", "is a str. Return a PIL image")):
            with pytest.raises(InputError, match=message):
                make_trainer().fit(Wrong(synthetic.train, kind), max_epochs=1)
        with pytest.raises(InputError, match="is empty"):
            make_trainer().fit(Subset(Pictures(synthetic.train, "pil"), []), max_epochs=1)
