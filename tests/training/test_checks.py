"""Faults that users of training libraries meet: each is refused before the first step, warned of, or works."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import googlenet
from torchvision.transforms import v2

from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    DatasetSplits,
    ImageDataset,
    Preprocess,
    Trainer,
    Transforms,
    build_transforms,
    make_synthetic,
)
from cifarnet.errors import InputError, SettingError, SettingTypeError
from cifarnet.optim import cosine
from cifarnet.transforms import Cutout, RandomFlip

MakeTrainer = Callable[..., Trainer]


def small_model(num_classes: int = 10, **settings: Any) -> CifarCNN:
    torch.manual_seed(0)
    return CifarCNN(num_classes, image_size=16, widths=(8, 16), hidden=32, **settings)


def trainer_with(**settings: Any) -> Trainer:
    model = settings.pop("model", None) or small_model()
    settings = {"transforms": build_transforms(size=16), "device": "cpu", **settings}
    return Trainer(model, settings.pop("optimizer", None), **settings)


def fit(trainer: Trainer, data: Any, **settings: Any) -> Trainer:
    trainer.fit(data, **{"max_epochs": 1, "batch_size": 50, "progress_bar": False, **settings})
    return trainer


class TestAugmentation:
    @pytest.mark.parametrize(
        ("augment", "message"),
        [
            (v2.ToDtype(torch.float32), r"must return uint8 images, and ToDtype returns torch\.float32"),
            (v2.Compose([RandomFlip(), v2.ToDtype(torch.float32, scale=True)]), "Leave out ToDtype and Normalize"),
            (v2.Lambda(lambda images: images.tolist()), "Lambda returns list"),
        ],
    )
    def test_what_returns_no_uint8_is_refused(
        self, synthetic: DatasetSplits, augment: v2.Transform, message: str
    ) -> None:
        for data in (synthetic.train, DataLoader(synthetic.train, 50)):
            trainer = trainer_with(transforms=Transforms(augment, Preprocess(16)))
            with pytest.raises(SettingError, match=message):
                fit(trainer, data)
            assert trainer.global_step == 0

    def test_cutout_paints_the_same_colour_on_floating_images(self) -> None:
        images = torch.zeros(50, 3, 8, 8, dtype=torch.uint8)
        torch.manual_seed(0)
        painted = Cutout(4)(images)
        torch.manual_seed(0)
        floating = Cutout(4)(v2.functional.to_dtype(images, torch.float32, scale=True))
        torch.testing.assert_close(floating, painted / 255)
        assert floating.max() < 0.5

    @pytest.mark.parametrize("step", [v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), v2.RandomErasing(0.1)])
    def test_a_transform_that_draws_once_per_batch_is_named(self, synthetic: DatasetSplits, step: v2.Transform) -> None:
        trainer = trainer_with(transforms=Transforms(v2.Compose([RandomFlip(), step]), Preprocess(16)))
        with pytest.warns(UserWarning, match=f"{type(step).__name__} draws once per batch") as caught:
            fit(trainer, synthetic.train, max_epochs=2)
        assert len(caught) == 1

    @pytest.mark.parametrize("step", [v2.Identity(), v2.Grayscale(3), RandomFlip(), v2.RandomInvert(1.0)])
    def test_what_draws_per_image_or_not_at_all_is_not_named(
        self, synthetic: DatasetSplits, step: v2.Transform
    ) -> None:
        fit(trainer_with(transforms=Transforms(step, Preprocess(16))), synthetic.train)

    def test_the_check_leaves_no_trace(self, synthetic: DatasetSplits) -> None:
        trainer = trainer_with(model=small_model(dropout=0.5))
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        state = torch.get_rng_state()
        trainer.epochs(synthetic.train, max_epochs=1)  # checked, not started
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())


class TestLoss:
    def test_the_loss_of_an_evaluation_is_that_of_all_images(self, synthetic: DatasetSplits) -> None:
        """With class weights, the mean over batches of images that are sorted by class is another number."""
        weight = torch.tensor([10.0] + [0.1] * 9)
        data = make_synthetic(num_train=10, num_test=1200, seed=0, size=16).test
        data = data.subset(data.labels.argsort())
        trainer = trainer_with(loss_fn=nn.CrossEntropyLoss(weight=weight), precision="float32")
        for record in trainer.epochs(synthetic.train, data, max_epochs=1):
            assert record.val_loss == pytest.approx(trainer.evaluate(data).loss, rel=1e-5)
        with torch.no_grad():
            logits = trainer.model.eval()(trainer.transforms.preprocess(data.images))
        expected = nn.functional.cross_entropy(logits, data.labels, weight=weight)
        assert trainer.evaluate(data).loss == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize(
        ("loss_fn", "message"),
        [
            (nn.CrossEntropyLoss(reduction="sum"), "it has reduction='sum'. Use reduction='mean'"),
            (nn.CrossEntropyLoss(reduction="none"), "it has reduction='none'"),
            (lambda logits, labels: (logits - labels[:, None]).mean(dim=1), r"it returns shape \(50,\)"),
            (lambda logits, labels: 1.0, "it returns a float"),
        ],
    )
    def test_a_loss_that_is_no_mean_is_refused(self, synthetic: DatasetSplits, loss_fn: Any, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            fit(trainer_with(loss_fn=loss_fn), synthetic.train)

    def test_a_loss_with_weights_follows_the_model(self, synthetic: DatasetSplits) -> None:
        loss_fn = nn.CrossEntropyLoss(weight=torch.ones(10))
        fit(trainer_with(loss_fn=loss_fn, precision="float64"), synthetic.train, val=synthetic.test)
        assert loss_fn.weight is not None
        assert loss_fn.weight.dtype == torch.float64


class TestModel:
    def test_a_tuple_in_training_mode_is_refused_before_the_first_step(self, synthetic: DatasetSplits) -> None:
        model = googlenet(num_classes=10, init_weights=False, aux_logits=True)
        trainer = trainer_with(model=model, transforms=build_transforms(size=64))
        with pytest.raises(SettingError, match="The model returns a GoogLeNetOutputs, and loss_fn takes logits"):
            fit(trainer, synthetic.train)
        assert trainer.global_step == 0

    def test_a_dict_is_refused_with_its_remedy(self, synthetic: DatasetSplits) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = small_model()

            def forward(self, images: Tensor) -> dict[str, Tensor]:
                return {"logits": self.inner(images)}

        with pytest.raises(SettingError, match=r"The model returns a dict.*output\['logits'\]"):
            fit(trainer_with(model=Net()), synthetic.train)

    def test_what_is_frozen_when_training_begins_stays_frozen(self, synthetic: DatasetSplits) -> None:
        trainer = trainer_with()
        norms = [module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d)]
        norms[0].eval()  # after the Trainer was built
        before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
        fit(trainer, synthetic.train, max_epochs=2)
        assert norms[0].running_mean is not None
        assert norms[1].running_mean is not None
        assert torch.equal(norms[0].running_mean, before[0])
        assert not torch.equal(norms[1].running_mean, before[1])


class Stepless(torch.optim.SGD):
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        raise AssertionError


class TestComponents:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model": CifarCNN}, "model must be an nn.Module, got the class CifarCNN. Build it first"),
            ({"optimizer": torch.optim.Adam}, "optimizer must be a torch.optim.Optimizer, got the class Adam"),
            ({"transforms": v2.Compose([v2.Identity()])}, r"must be Transforms, got a Compose\. Use build_transforms"),
            ({"loss_fn": nn.CrossEntropyLoss}, "loss_fn must be a function .*, got the class CrossEntropyLoss"),
            (
                {
                    "lr_schedule": torch.optim.lr_scheduler.StepLR(
                        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), 1
                    )
                },
                r"lr_schedule must be a function .*, got a StepLR\. Use optim\.from_torch",
            ),
        ],
    )
    def test_a_component_of_another_kind_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingTypeError, match=message):
            trainer_with(**settings)

    @pytest.mark.parametrize("kind", [torch.optim.LBFGS, functools.partial(Stepless, lr=0.1)])
    def test_an_optimizer_with_a_closure_is_refused(self, kind: Any) -> None:
        model = small_model()
        with pytest.raises(SettingError, match=r"(LBFGS|Stepless) needs a closure"):
            Trainer(model, kind(model.parameters()), device="cpu")

    def test_a_model_that_is_frozen_is_refused(self, synthetic: DatasetSplits) -> None:
        trainer = trainer_with()
        trainer.model.requires_grad_(False)
        with pytest.raises(SettingError, match="No parameter of the optimizer requires a gradient"):
            fit(trainer, synthetic.train)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_no_grad_around_fit_changes_nothing(self, synthetic: DatasetSplits, context: Any) -> None:
        plain = fit(trainer_with(), synthetic.train, max_epochs=2)
        inside = trainer_with()
        with context():
            fit(inside, synthetic.train, max_epochs=2)
        assert inside.history["train_loss"] == plain.history["train_loss"]

    def test_whole_numbers_of_numpy_are_counts(self, synthetic: DatasetSplits, tmp_path: Path) -> None:
        plain = fit(trainer_with(seed=2**40 + 1), synthetic.train, max_epochs=2)
        settings = {"accumulate_grad_batches": np.int32(1), "seed": np.int64(2**40 + 1)}
        trainer = trainer_with(model=small_model(np.int64(10)), **settings)  # type: ignore[arg-type]
        counts = {"max_epochs": np.int64(2), "batch_size": np.uint8(50), "patience": np.int64(9)}
        fit(trainer, synthetic.train, val=synthetic.test, checkpointer=tmp_path, **counts)
        assert trainer.history["train_loss"] == plain.history["train_loss"]
        assert Classifier.load(tmp_path).classes == synthetic.train.classes


class TestNumpySettings:
    @pytest.mark.parametrize(
        "settings",
        [
            {"weight_decay": np.float64(1e-4)},
            {"weight_decay": np.float32(1e-4)},
            {"betas": (np.float64(0.9), np.float64(0.99))},
            {"max_grad_norm": np.float64(1.0)},
            {"max_grad_norm": torch.tensor(1.0)},
            {"ema_decay": np.float32(0.9)},
            {"mean": np.array([0.5, 0.5, 0.5]), "std": torch.tensor([0.2, 0.2, 0.2])},
        ],
        ids=lambda settings: "-".join(f"{key}-{type(value).__name__}" for key, value in settings.items()),
    )
    def test_a_run_with_them_is_saved_and_resumes(
        self, synthetic: DatasetSplits, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        def build() -> Trainer:
            model = small_model()
            of_adam = {key: settings[key] for key in ("weight_decay", "betas") if key in settings}
            of_trainer = {key: settings[key] for key in ("max_grad_norm", "ema_decay") if key in settings}
            of_images = {key: settings[key] for key in ("mean", "std") if key in settings}
            optimizer = torch.optim.Adam(model.parameters(), **of_adam)
            return trainer_with(
                model=model, optimizer=optimizer, transforms=build_transforms(size=16, **of_images), **of_trainer
            )

        fit(build(), synthetic.train, checkpointer=tmp_path)
        resumed = fit(build(), synthetic.train, max_epochs=2, checkpointer=tmp_path, resume=True)
        assert resumed.resume_differences == []
        straight = fit(build(), synthetic.train, max_epochs=2)
        assert resumed.history["train_loss"] == straight.history["train_loss"]
        assert Classifier.load(tmp_path).evaluate(synthetic.test).num_images == 100

    def test_what_cannot_be_saved_is_known_before_the_first_step(
        self, synthetic: DatasetSplits, tmp_path: Path
    ) -> None:
        model = small_model()
        optimizer = torch.optim.SGD([{"params": model.parameters(), "note": object()}], lr=0.1)
        trainer = trainer_with(model=model, optimizer=optimizer)
        with pytest.raises(SettingTypeError, match=r"optimizer/param_groups/0/note is a object"):
            fit(trainer, synthetic.train, checkpointer=tmp_path)
        assert trainer.global_step == 0


class TestData:
    @pytest.mark.parametrize("split", ["val", "test"])
    def test_validation_images_that_are_trained_on_are_counted(self, synthetic: DatasetSplits, split: str) -> None:
        train, val = synthetic.train.split(0.2, seed=0)
        fit(trainer_with(), train, **{split: val})
        with pytest.warns(UserWarning, match=f"{len(val)} of {len(val)} {split} images are training images too"):
            fit(trainer_with(), synthetic.train, **{split: val})

    def test_a_few_shared_images_are_no_fault(self, synthetic: DatasetSplits) -> None:
        data = make_synthetic(num_train=100, num_test=200, seed=0, size=16)
        images = torch.cat([data.train.images, data.test.images[:2]])
        labels = torch.cat([data.train.labels, data.test.labels[:2]])
        fit(trainer_with(), ImageDataset(images, labels, data.train.classes), val=data.test)


class TestThreads:
    def test_a_second_thread_is_refused(self, synthetic: DatasetSplits) -> None:
        errors: list[Exception] = []

        def train() -> None:
            try:
                fit(trainer_with(), synthetic.train)
            except SettingError as error:
                errors.append(error)

        for _ in trainer_with().epochs(synthetic.train, max_epochs=1):
            thread = threading.Thread(target=train)
            thread.start()
            thread.join()
        assert [str(error).partition(",")[0] for error in errors] == ["Another thread of this process is training"]
        train()
        assert len(errors) == 1

    def test_a_loop_body_may_train_another_model(self, synthetic: DatasetSplits) -> None:
        alone = fit(trainer_with(), synthetic.train, max_epochs=2)
        outer = trainer_with()
        for _ in outer.epochs(synthetic.train, max_epochs=2, batch_size=50):
            fit(trainer_with(), synthetic.train)
        assert outer.history["train_loss"] == alone.history["train_loss"]


class TestSignals:
    @pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
    def test_a_lost_terminal_and_a_scheduler_save_the_run(
        self, synthetic: DatasetSplits, tmp_path: Path, name: str
    ) -> None:
        signum = getattr(signal, name, None)
        if signum is None:
            pytest.skip("no such signal on this system")
        calls = []

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            calls.append(0)
            if len(calls) == 4:
                signal.raise_signal(signum)
            return nn.functional.cross_entropy(logits, labels)

        with pytest.raises(SystemExit) as caught:
            fit(trainer_with(loss_fn=loss), synthetic.train, checkpointer=tmp_path)
        assert caught.value.code == 128 + signum
        state = Checkpointer(tmp_path).read_last()
        assert state is not None
        assert state["position"]["global_step"] == 4
        assert signal.getsignal(signum) == signal.SIG_DFL


class TestDefaultDevice:
    def test_a_default_device_changes_nothing(self, synthetic: DatasetSplits, tmp_path: Path) -> None:
        plain = fit(trainer_with(ema_decay=0.9), synthetic.train, val=synthetic.test)
        model = small_model()
        torch.set_default_device("meta")
        try:
            data = ImageDataset(synthetic.train.images, synthetic.train.labels, synthetic.train.classes)
            train, _ = data.split(0.2, seed=0)
            assert len(train)
            trainer = trainer_with(model=model, ema_decay=0.9, lr_schedule=cosine())
            trainer = trainer_with(model=model, ema_decay=0.9)
            fit(trainer, data, val=synthetic.test, checkpointer=tmp_path)
            classifier = Classifier.load(tmp_path, device="cpu")
            assert classifier.evaluate(synthetic.test).accuracy == trainer.evaluate(synthetic.test).accuracy
            assert classifier.predict(np.zeros((20, 20, 3), np.uint8)).label in data.classes
            made = make_synthetic(num_train=10, num_test=10, size=16)
        finally:
            torch.set_default_device(None)
        assert trainer.history["train_loss"] == plain.history["train_loss"]
        assert made.train.images.device.type == "cpu"


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def isatty(self) -> bool:
        return isinstance(self.error, OSError)


class TestProgress:
    @pytest.mark.parametrize(
        "stream", [None, object(), Broken(BrokenPipeError()), Broken(OSError(5, "EIO")), Broken(ValueError("closed"))]
    )
    def test_a_stream_that_is_gone_ends_no_run(
        self, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch, stream: Any
    ) -> None:
        monkeypatch.setattr(sys, "stderr", stream)
        trainer = trainer_with()
        trainer.fit(synthetic.train, max_epochs=2)
        assert len(trainer.history) == 2

    @pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")
    @pytest.mark.parametrize(("redirection", "code"), [("2>&1 | head -n 1", 0), ("2>&-", 0), (">&- 2>&-", 0)])
    def test_a_closed_pipe_ends_no_command(self, tmp_path: Path, redirection: str, code: int) -> None:
        command = (
            f"{sys.executable} -m cifarnet train --data synthetic --recipe basic --epochs 1 --out run {redirection}"
        )
        process = subprocess.run(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, timeout=300, check=False)
        assert process.returncode == code
        assert (tmp_path / "run" / "report.json").exists()


def normalised(data: ImageDataset) -> DataLoader[Any]:
    images = v2.functional.to_dtype(data.images, torch.float32, scale=True)
    return DataLoader(TensorDataset((images - 0.5) / 0.5, data.labels), 50)


class TestFloatingBatches:
    def test_an_unknown_preprocessing_is_not_made_up(self, synthetic: DatasetSplits, tmp_path: Path) -> None:
        model = small_model()
        trainer = Trainer(model, device="cpu")
        fit(trainer, normalised(synthetic.train), val=normalised(synthetic.test), checkpointer=tmp_path)
        classifier = Classifier.load(tmp_path, device="cpu")
        expected = trainer.evaluate(normalised(synthetic.test)).accuracy
        assert classifier.evaluate(normalised(synthetic.test)).accuracy == expected
        assert "unknown preprocessing" in repr(classifier)
        refused: list[Callable[[], object]] = [
            lambda: classifier.evaluate(synthetic.test),
            lambda: classifier.predict(np.zeros((16, 16, 3), np.uint8)),
            lambda: classifier.preprocess,
            lambda: trainer.evaluate(synthetic.test),
        ]
        for function in refused:
            with pytest.raises(InputError, match=r"their preprocessing is unknown\. Pass it"):
                function()
        preprocess = Preprocess(16, (0.5,) * 3, (0.5,) * 3)
        given = Classifier.load(tmp_path, preprocess=preprocess, device="cpu")
        assert given.evaluate(synthetic.test).accuracy == expected
        classifier.preprocess = preprocess
        assert classifier.evaluate(synthetic.test).accuracy == expected
        assert Classifier.load(classifier.save(tmp_path / "given")).preprocess == preprocess

    def test_a_preprocessing_that_is_passed_is_saved(self, synthetic: DatasetSplits, tmp_path: Path) -> None:
        trainer = trainer_with(transforms=build_transforms(size=16, mean=(0.5,) * 3, std=(0.5,) * 3))
        fit(trainer, normalised(synthetic.train), val=synthetic.test, checkpointer=tmp_path)
        expected = trainer.evaluate(normalised(synthetic.test)).accuracy
        assert Classifier.load(tmp_path, device="cpu").evaluate(synthetic.test).accuracy == expected

    def test_uint8_validation_images_beside_floating_batches_are_refused(self, synthetic: DatasetSplits) -> None:
        trainer = trainer_with()
        trainer._has_own_transforms = False  # the default has 32 pixels
        with pytest.raises(InputError, match="their preprocessing is unknown"):
            fit(trainer, normalised(synthetic.train), val=synthetic.test)
        assert trainer.global_step == 0
