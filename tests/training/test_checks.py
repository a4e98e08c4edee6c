"""Faults that users meet: each is refused before the first step, or named in a warning."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from cifarnet import (
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
from cifarnet.errors import DataError, SettingError
from cifarnet.optim import linear
from cifarnet.transforms import RandomFlip
from runs import equal, fit, metrics_of, weights_of

MakeTrainer = Callable[..., Trainer]


def small_model(num_classes: int = 10, **settings: Any) -> CifarCNN:
    torch.manual_seed(0)
    return CifarCNN(num_classes, image_size=16, widths=(8, 16), hidden=32, **settings)


def with_augment(augment: v2.Transform) -> dict[str, Any]:
    return {"transforms": Transforms(augment, Preprocess(16))}


STEP_LR = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0, got 0.0"),
        ({"transforms": v2.Compose([v2.Identity()])}, "transforms is a Compose. It must be Transforms"),
        ({"loss_fn": nn.CrossEntropyLoss}, "loss_fn is the class CrossEntropyLoss. It must be a fun"),
        ({"loss_fn": nn.CrossEntropyLoss(reduction="sum")}, "it has reduction='sum'. Use reduction='mean'"),
        ({"lr_schedule": STEP_LR}, r"lr_schedule is a StepLR\. .*Use optim\.from_torch"),
    ],
)
def test_wrong_trainer_settings_are_refused(make_trainer: MakeTrainer, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_trainer(**settings)


def test_an_optimizer_that_cannot_train_the_model_is_refused(synthetic: DatasetSplits) -> None:
    model = small_model()
    with pytest.raises(SettingError, match="LBFGS needs a closure"):
        Trainer(model, torch.optim.LBFGS(model.parameters()), device="cpu")
    with pytest.raises(SettingError, match="parameters that are not the model's"):
        Trainer(model, torch.optim.SGD(small_model().parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SettingError, match="lr is the learning rate of the default Adam"):
        Trainer(model, optimizer, lr=1e-3)
    optimizer.param_groups[0]["lr"] = -0.1  # torch itself refuses it in the constructor only
    with pytest.raises(SettingError, match=r"learning rate must not be negative, got -0.1. 1e-3 suits Adam"):
        Trainer(model, optimizer)
    frozen = Trainer(model, device="cpu")
    model.requires_grad_(False)
    with pytest.raises(SettingError, match="No parameter of the optimizer requires a gradient"):
        fit(frozen, synthetic.train)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        ({"max_epochs": 2.0}, "max_epochs must be a whole number"),
        ({"batch_size": -5}, "batch_size must be at least 1, got -5"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"patience": 1}, "patience and metrics need validation images"),
        ({"metrics": {"top5": max}}, "patience and metrics need validation images"),
        ({"metrics": {"loss": max}}, 'metrics must not be named "accuracy" or "loss"'),
        ({"monitor": "val_acuracy"}, 'monitor "val_acuracy" is unknown; did you mean "val_acc'),
    ],
)
def test_a_run_with_a_wrong_setting_is_refused(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    trainer = make_trainer()
    before = weights_of(trainer.model)
    with pytest.raises(SettingError, match=message):
        fit(trainer, synthetic.train, None, tmp_path / "run", **settings)
    assert equal(before, weights_of(trainer.model))
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_fit_the_model_are_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    test = synthetic.test
    permuted = ImageDataset(test.images, test.labels, test.classes[::-1])
    with pytest.raises(SettingError, match="Pass images with the same classes in the same order"):
        fit(make_trainer(), synthetic.train, permuted)
    with pytest.raises(SettingError, match="Build it with num_classes=11"):
        make_trainer().evaluate(ImageDataset(test.images, test.labels, (*test.classes, "eleventh")))
    with pytest.raises(SettingError, match=r"logits of shape \(1, 7\) for one image.*num_classes=10"):
        fit(make_trainer(num_classes=7), synthetic.train)
    with pytest.raises(SettingError, match=r"CifarCNN cannot take the images of .*prepared to 32 pixels"):
        fit(make_trainer(transforms=build_transforms()), synthetic.train)
    with pytest.raises(SettingError, match="the iterable of batches has no length"):
        fit(make_trainer(lr_schedule=linear()), iter([(test.images, test.labels)]))
    with pytest.raises(DataError, match=r"got DatasetSplits. Pass its .train or .test"):
        fit(make_trainer(), synthetic)


def test_an_augmentation_must_return_uint8(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    to_float = v2.Compose([RandomFlip(), v2.ToDtype(torch.float32, scale=True)])
    to_list = v2.Lambda(lambda images: images.tolist())
    for augment, message in (
        (to_float, "ToDtype returns torch.float32. Leave out"),
        (to_list, "Lambda returns list"),
    ):
        for data in (synthetic.train, DataLoader(synthetic.train, 50)):
            trainer = make_trainer(**with_augment(augment))
            with pytest.raises(SettingError, match=message):
                fit(trainer, data)
            assert trainer.global_step == 0


@pytest.mark.parametrize("step", [v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), v2.RandomErasing(0.1)])
def test_draws_once_per_batch_are_named(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, step: v2.Transform
) -> None:
    trainer = make_trainer(**with_augment(v2.Compose([RandomFlip(), step])))
    before, state = weights_of(trainer.model), torch.get_rng_state()
    with pytest.warns(UserWarning, match=f"{type(step).__name__} draws once per batch") as caught:
        trainer.epochs(synthetic.train, max_epochs=1)  # checked, not started
    assert len(caught) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights_of(trainer.model), before)


def test_a_transform_without_shared_draws_is_not_named(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    for step in (v2.Identity(), v2.Grayscale(3), RandomFlip(), v2.RandomInvert(1.0)):
        make_trainer(**with_augment(step)).epochs(synthetic.train, max_epochs=1)


def test_a_loss_that_is_no_mean_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    with pytest.raises(SettingError, match=r"it returns shape \(64,\)"):
        fit(make_trainer(loss_fn=lambda logits, labels: (logits - labels[:, None]).mean(dim=1)), synthetic.train)
    with pytest.raises(SettingError, match="it returns a float"):
        fit(make_trainer(loss_fn=lambda logits, labels: 1.0), synthetic.train)


def test_a_model_that_returns_a_dict_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    class Net(CifarCNN):
        def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"logits": super().forward(images)}

    trainer = Trainer(Net(image_size=16, widths=(8, 16)), transforms=make_trainer().transforms, device="cpu")
    with pytest.raises(SettingError, match=r"The model returns a dict.*output\['logits'\]"):
        fit(trainer, synthetic.train)


def test_settings_of_numpy_are_saved_and_resume(synthetic: DatasetSplits, tmp_path: Path) -> None:
    def build() -> Trainer:
        model, betas = small_model(), (np.float64(0.9), np.float64(0.99))
        optimizer = torch.optim.Adam(model.parameters(), betas=betas, weight_decay=np.float32(1e-4))  # type: ignore[arg-type]
        mean, std = np.array([0.5, 0.5, 0.5]), torch.tensor([0.2, 0.2, 0.2])
        transforms = build_transforms(size=16, mean=mean, std=std)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"max_grad_norm": torch.tensor(1.0), "seed": np.int64(2**40 + 1)}
        settings |= {"ema_decay": np.float32(0.9), "accumulate_grad_batches": np.int32(1)}
        return Trainer(model, optimizer, transforms=transforms, device="cpu", **settings)

    counts: dict[str, Any] = {"max_epochs": np.int64(2), "batch_size": np.uint8(50)}
    fit(build(), synthetic.train, None, tmp_path, **{**counts, "max_epochs": 1})
    resumed = fit(build(), synthetic.train, None, tmp_path, **counts)
    assert resumed.resume_differences == []
    assert metrics_of(resumed) == metrics_of(fit(build(), synthetic.train, **counts))
    assert Classifier.load(tmp_path).evaluate(synthetic.test).num_images == 100


def test_a_state_that_cannot_be_saved_is_refused(synthetic: DatasetSplits, tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.SGD([{"params": model.parameters(), "note": object()}], lr=0.1)
    trainer = Trainer(model, optimizer, transforms=build_transforms(size=16), device="cpu")
    with pytest.raises(SettingError, match=r"optimizer/param_groups/0/note is a object"):
        fit(trainer, synthetic.train, None, tmp_path)
    assert trainer.global_step == 0


def test_a_second_thread_is_refused(make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    errors: list[Exception] = []

    def train() -> None:
        try:
            fit(make_trainer(), synthetic.train)
        except SettingError as error:
            errors.append(error)

    for _ in make_trainer().epochs(synthetic.train, max_epochs=1):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert [str(error).partition(",")[0] for error in errors] == ["Another thread of this process is training"]
    train()
    assert len(errors) == 1


def normalised(data: ImageDataset) -> DataLoader[Any]:
    images = v2.functional.to_dtype(data.images, torch.float32, scale=True)
    return DataLoader(TensorDataset((images - 0.5) / 0.5, data.labels), 50)


def test_unknown_preprocessing_is_not_made_up(tmp_path: Path) -> None:
    def make() -> Trainer:
        return Trainer(CifarCNN(widths=(4, 8), hidden=8), device="cpu")

    synthetic, trainer = make_synthetic(num_train=64, num_test=50, seed=0), make()
    fit(trainer, normalised(synthetic.train), normalised(synthetic.test), tmp_path)
    classifier = Classifier.load(tmp_path, device="cpu")
    expected = trainer.evaluate(normalised(synthetic.test)).accuracy
    assert classifier.evaluate(normalised(synthetic.test)).accuracy == expected
    message = r"their preprocessing is unknown\. Pass it"
    for owner in (classifier, trainer):
        with pytest.raises(DataError, match=message):
            owner.evaluate(synthetic.test)
    with pytest.raises(DataError, match=message):
        classifier.predict(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(DataError, match=message):
        fit(make(), normalised(synthetic.train), synthetic.test)
    given = Classifier.load(tmp_path, preprocess=Preprocess(32, (0.5,) * 3, (0.5,) * 3), device="cpu")
    assert given.evaluate(synthetic.test).accuracy == expected


def test_passed_preprocessing_is_saved(make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path) -> None:
    trainer = make_trainer(transforms=build_transforms(size=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    fit(trainer, normalised(synthetic.train), synthetic.test, tmp_path)
    expected = trainer.evaluate(normalised(synthetic.test)).accuracy
    assert Classifier.load(tmp_path, device="cpu").evaluate(synthetic.test).accuracy == expected
