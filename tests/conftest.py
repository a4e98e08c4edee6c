from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic runs on CUDA need it before torch

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and before any process that a test starts
    _cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, _cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import tape
from cifarnet import (
    Checkpointer,
    CifarCNN,
    Classifier,
    DatasetSplits,
    Trainer,
    build_transforms,
    load_cifar10,
    make_synthetic,
)
from cifarnet.training.cuda_graph import GraphedUpdate
from cifarnet.transforms import Transforms

if TYPE_CHECKING:
    from hostile import Made

SIZE = 16  # pixels a side of the images of most tests: a quarter of the work


@pytest.fixture(scope="session")
def synthetic() -> DatasetSplits:
    """300 training and 100 test images of 16x16 in ten classes."""
    return make_synthetic(num_train=300, num_test=100, seed=0, size=SIZE)


@pytest.fixture(scope="session")
def small_transforms() -> Transforms:
    """Crop, flip and cutout for images of 16x16."""
    return build_transforms(crop_padding=2, cutout=4, size=SIZE)


@pytest.fixture
def make_trainer(small_transforms: Transforms) -> Callable[..., Trainer]:
    """Build equal trainers of a small network; keywords go to `Trainer`."""

    def make(
        *,
        lr: float = 1e-3,
        init_seed: int = 0,
        dropout: float = 0.5,
        num_classes: int = 10,
        fused: bool = True,
        backend: str = "eager",
        **settings: object,
    ) -> Trainer:
        with torch.random.fork_rng():
            torch.manual_seed(init_seed)
            model = CifarCNN(num_classes, image_size=SIZE, widths=(8, 16), hidden=32, dropout=dropout)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-4, fused=fused)
        settings = {"transforms": small_transforms, "device": "cpu", **settings}
        trainer = Trainer(model, optimizer, **settings)  # type: ignore[arg-type]
        trainer.cuda_graph = backend == "cuda-graph"
        return trainer

    return make


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded and replayed on the CPU, as a CUDA graph does."""
    monkeypatch.setattr("cifarnet.training.trainer.can_be_captured", lambda trainer: True)
    monkeypatch.setattr("cifarnet.training.loop.GraphedUpdate", partial(GraphedUpdate, capture=tape.capture))


@pytest.fixture(params=["eager", "cuda-graph"])
def backend(request: pytest.FixtureRequest) -> str:
    """Backend of the training steps."""
    name: str = request.param
    if name == "cuda-graph":
        request.getfixturevalue("graphs")
    return name


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder with CIFAR-10. Tests that use it are skipped if it is not there."""
    root = os.environ.get("CIFARNET_TEST_DATA")
    if not root:
        pytest.skip("CIFARNET_TEST_DATA does not name a folder with CIFAR-10")
    return Path(root)


@pytest.fixture(scope="session")
def cifar10(real_data_root: Path) -> DatasetSplits:
    return load_cifar10(real_data_root, download=False)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run whose names are all hostile, and its page."""
    from hostile import make  # of tests/report, which alone asks for it

    return make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def trained_run(
    synthetic: DatasetSplits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trainer, DatasetSplits, Path]:
    """Trainer in float64, its training and validation images, and the directory of its run."""
    train, val = synthetic.train.split(0.3, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=SIZE, widths=(8, 16), hidden=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    transforms = build_transforms(size=SIZE)
    trainer = Trainer(model, optimizer, transforms=transforms, device="cpu", precision="float64")
    directory = tmp_path_factory.mktemp("run")
    trainer.fit(train, val, max_epochs=6, batch_size=32, checkpointer=Checkpointer(directory), progress_bar=False)
    return trainer, DatasetSplits(train, val), directory


@pytest.fixture
def classifier(trained_run: tuple[Trainer, DatasetSplits, Path]) -> Classifier:
    return Classifier.load(trained_run[2], device="cpu")
