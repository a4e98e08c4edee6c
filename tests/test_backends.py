"""Every backend computes what the textbook computes; graphs are recorded and replayed by `tape` on a CPU."""

from __future__ import annotations

import random
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import tape
from cifarnet import Checkpointer, CifarCNN, DatasetSplits, Trainer, Transforms, build_transforms
from cifarnet.engine import (
    Batches,
    CompiledBackend,
    CudaGraphBackend,
    EagerBackend,
    RunningSums,
    StepSettings,
    choose_backend,
    graph,
    resolve_precision,
    what_cannot_be_captured,
)
from cifarnet.engine.waiting import waits_for_device
from cifarnet.errors import CheckpointWarning, DeviceMemoryError, NonFiniteLossError, SettingError
from cifarnet.optim import ExponentialMovingAverage, one_cycle, tabulate
from cifarnet.randomness import permutation, scope

MakeTrainer = Callable[..., Trainer]
CPU = torch.device("cpu")

BACKENDS: dict[str, Callable[[StepSettings], Any]] = {
    "eager": EagerBackend,
    "compiled": CompiledBackend,
    "graph": tape.Graph,
}


def network(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> CifarCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarCNN(image_size=16, widths=(8, 16), hidden=32, dropout=dropout)
    return model.to(dtype).to(memory_format=torch.channels_last)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": plain, "lr": 0.05}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)


def textbook(data: DatasetSplits, transforms: Transforms, make: Any, num_steps: int) -> tuple[nn.Module, list[float]]:
    """The loop of every tutorial, in plain torch but for order and augmentation."""
    model = network().train()
    optimizer = make(model)
    base = [group["lr"] for group in optimizer.param_groups]
    rates = tabulate(one_cycle(), 25)
    train, losses = data.train, []
    for step in range(num_steps):
        epoch, place = divmod(step, 5)
        index = permutation(0, epoch, train.ids)[64 * place : 64 * (place + 1)]
        with scope(0, epoch, train.ids[index]):
            images = transforms.train(train.images[index])
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * float(rates[step])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.double()), train.labels[index])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def train(
    backend: Any, settings: StepSettings, data: DatasetSplits, num_steps: int, first_step: int = 0
) -> RunningSums:
    """Epochs of five steps of 64 images, the last of which has 44."""
    source = data.train
    batches = Batches(source.images, source.labels, source.ids, batch_size=64, device=CPU, seed=0)
    rates = tabulate(one_cycle(), 25).tolist()
    sums = RunningSums(CPU)
    done = first_step
    while done < num_steps:
        epoch = done // 5
        sums.reset()
        multipliers = rates[5 * epoch : 5 * epoch + 5]
        for step in backend.epoch(batches, epoch, first_step=done % 5, multipliers=multipliers, sums=sums):
            done = 5 * epoch + step
            if done >= num_steps:
                break
    return sums


def settings_for(
    model: nn.Module, optimizer: torch.optim.Optimizer, transforms: Transforms, **more: Any
) -> StepSettings:
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    precision = resolve_precision(more.pop("precision", "float64"), CPU)
    return StepSettings(model, optimizer, nn.CrossEntropyLoss(), transforms, precision, 0, **more)


@pytest.mark.parametrize("make", [adam, sgd])
@pytest.mark.parametrize("name", BACKENDS)
def test_weights_are_those_of_a_textbook_loop_after_20_steps(
    name: str, make: Any, synthetic: DatasetSplits, small_transforms: Transforms
) -> None:
    expected, losses = textbook(synthetic, small_transforms, make, 20)
    model = network()
    optimizer = make(model)
    settings = settings_for(model, optimizer, small_transforms)
    backend = BACKENDS[name](settings)
    sums = train(backend, settings, synthetic, 20)
    for (key, one), other in zip(expected.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")  # type: ignore[misc]
    for statistic, its in zip(expected.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(its, statistic, rtol=0, atol=1e-9)
    last_epoch = (64 * sum(losses[15:19]) + 44 * losses[19]) / 300
    assert sums.read().mean_loss == pytest.approx(last_epoch, abs=1e-9)
    assert sums.read().num_images == 300
    assert backend.name == {"graph": "cuda-graph"}.get(name, name), "no fall-back"
    if name == "graph":
        assert all(unit.replay is not None for unit in backend._units.values())


@pytest.mark.parametrize("pulled", [False, True])
def test_a_graph_averages_and_looks_ahead_as_the_eager_step_does(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits, pulled: bool
) -> None:
    trained = []
    for backend in ("eager", "cuda-graph"):
        lookahead = {"lookahead_every": 4, "lookahead_decay": 0.3} if pulled else {}
        trainer = make_trainer(backend=backend, ema_decay=0.9, dropout=0.0, precision="float64", **lookahead)
        list(trainer.epochs(synthetic.train, max_epochs=3))
        trained.append(trainer)
    eager, captured = (trainer.average for trainer in trained)
    assert isinstance(eager, ExponentialMovingAverage)
    assert isinstance(captured, ExponentialMovingAverage)
    assert eager.num_updates == captured.num_updates
    for key, tensor in eager.weights.items():
        torch.testing.assert_close(captured.weights[key], tensor, rtol=0, atol=1e-8)  # rates in a graph are float32


def test_a_loaded_state_is_captured_anew(graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits) -> None:
    """Its optimizer has other tensors: a graph of before would go on writing to the old ones."""
    import copy

    trainer = make_trainer(backend="cuda-graph")
    list(trainer.epochs(synthetic.train, max_epochs=2))
    state = copy.deepcopy(trainer.state_dict())
    first = [r.train_loss for r in trainer.epochs(synthetic.train, max_epochs=4)]
    trainer.load_state_dict(state)
    assert [r.train_loss for r in trainer.epochs(synthetic.train, max_epochs=4)] == first


def test_a_unit_is_captured_once_however_often_it_is_run(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has two names, such as ``cuda`` and ``cuda:0``, and optimizers make their state late."""
    captured = []

    def count(function: Callable[[], None]) -> Callable[[], None]:
        captured.append(function)
        return tape.capture(function)

    def choose(name: str, settings: StepSettings) -> Any:
        return CudaGraphBackend(settings, capture=count, steps_per_graph=3)

    monkeypatch.setattr("cifarnet.trainer.trainer.choose_backend", choose)
    for device in ("cpu", "cpu:0"):
        captured.clear()
        trainer = make_trainer(device=device)
        told = [len(captured) for _ in trainer.epochs(synthetic.train, max_epochs=4)]
        assert told == [0, 3, 3, 3]  # units of 3, 1 and 1 steps, the last one of a smaller batch


def test_what_is_changed_between_epochs_is_changed_in_graphs(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    trained = []
    for backend in ("eager", "cuda-graph"):
        trainer = make_trainer(backend=backend, dropout=0.0, precision="float64")
        model = trainer.model
        for record in trainer.epochs(synthetic.train, max_epochs=6):
            if record.epoch == 3:
                model.get_parameter("conv1.weight").requires_grad_(False)
                vars(model.get_submodule("bn1"))["momentum"] = 0.9
                trainer.optimizer.param_groups[0]["weight_decay"] = 0.1
                before = model.get_parameter("conv1.weight").clone()
        assert torch.equal(model.get_parameter("conv1.weight"), before)
        trained.append(trainer)
    eager, captured = trained
    assert captured.backend == "cuda-graph"
    for one, other in zip(eager.model.state_dict().values(), captured.model.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)  # learning rates are float32 there


def test_no_capture_is_begun_of_what_waits_for_the_device(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []

    def probe(function: Callable[[], None]) -> str:
        probed.append(function)
        function()
        return "it waits"

    def never(function: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("a capture was begun")

    def choose(name: str, settings: StepSettings) -> Any:
        return CudaGraphBackend(settings, capture=never, probe=probe, steps_per_graph=3)

    eager = make_trainer(backend="eager", dropout=0.0, precision="float64")
    eager.fit(synthetic.train, max_epochs=3, progress=False)
    monkeypatch.setattr("cifarnet.trainer.trainer.choose_backend", choose)
    trainer = make_trainer(dropout=0.0, precision="float64")
    with pytest.warns(UserWarning, match=r"cannot be captured in a CUDA graph \(it waits\)") as caught:
        trainer.fit(synthetic.train, max_epochs=3, progress=False)
    assert (len(caught), len(probed), trainer.backend) == (1, 1, "eager")
    for one, other in zip(eager.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)


def test_a_wait_of_this_thread_is_told_and_other_warnings_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch says it on CUDA, where tests/test_cuda.py has the same of real waits."""
    modes: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def write() -> None:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()

    with pytest.warns(UserWarning, match="something else") as others:
        assert waits_for_device(lambda: warnings.warn("something else", stacklevel=1)) == ""
    assert len(others) == 1
    assert waits_for_device(write) == "", "a checkpoint is written by a thread, which may wait"
    assert re.fullmatch(
        r"called a synchronizing CUDA operation in .*test_backends.py, line \d+", waits_for_device(wait)
    )
    assert modes == ["warn", 0] * 3


def test_an_optimizer_that_has_stepped_before_counts_where_its_flags_say(synthetic: DatasetSplits) -> None:
    model = network()
    optimizer = adam(model)
    model(torch.zeros(2, 3, 16, 16).double()).sum().backward()
    optimizer.step()
    for state in optimizer.state.values():
        state["step"] = 1  # as torch had it once, and files have it
    settings = settings_for(model, optimizer, build_transforms(size=16))
    tape.Graph(settings)
    assert all(isinstance(state["step"], Tensor) for state in optimizer.state.values())


@pytest.mark.parametrize("saved_by", ["eager", "cuda-graph"])
def test_a_run_changes_its_backend_with_a_warning(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, saved_by: str
) -> None:
    other = {"eager": "cuda-graph", "cuda-graph": "eager"}[saved_by]
    make_trainer(backend=saved_by).fit(
        synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path), progress=False
    )
    trainer = make_trainer(backend=other)
    with pytest.warns(CheckpointWarning, match=f"backend '{saved_by}' in the run, '{other}' now"):
        trainer.fit(synthetic.train, max_epochs=2, checkpointer=Checkpointer(tmp_path), resume=True, progress=False)
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor) == (other == "cuda-graph")
    assert [record.learning_rate for record in trainer.history] == pytest.approx([1e-3, 1e-3])


def test_windows_change_nothing(
    synthetic: DatasetSplits, small_transforms: Transforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are prepared a window at a time; here one of 3 steps, in chunks of 50 images."""
    weights = []
    for window_bytes, chunk in ((2**29, 4096), (1, 50)):
        monkeypatch.setattr(graph, "WINDOW_BYTES", window_bytes)
        monkeypatch.setattr(graph, "CHUNK", chunk)
        model = network(dropout=0.5)
        settings = settings_for(model, adam(model), small_transforms)
        train(tape.Graph(settings), settings, synthetic, 10)
        weights.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_foreign_batches_are_trained_on_eagerly(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = DataLoader(synthetic.train, batch_size=64)
    losses = []
    for backend in ("eager", "cuda-graph"):
        trainer = make_trainer(backend=backend, dropout=0.0, precision="float64")
        losses.append([r.train_loss for r in trainer.fit(loader, max_epochs=2)])
        assert ", backend eager" in capsys.readouterr().err
        assert trainer.backend == "eager", "and so says the report"
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_what_looks_at_a_value_is_trained_eagerly_with_one_warning(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(logits, labels)
        return value if float(value.detach()) > 1e9 else value * 2

    trainer = make_trainer(backend="cuda-graph", loss_fn=loss, dropout=0.0, precision="float64")
    with pytest.warns(UserWarning, match="cannot be captured") as caught:
        trainer.fit(synthetic.train, max_epochs=3, progress=False)
    assert len(caught) == 1
    assert trainer.backend == "eager"
    eager = make_trainer(backend="eager", loss_fn=loss, dropout=0.0, precision="float64")
    eager.fit(synthetic.train, max_epochs=3, progress=False)
    for one, other in zip(eager.model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)


class Noise(v2.Transform):
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return inpt + random.randrange(2)


class Oddity(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, None),
        ({"mix": v2.MixUp(num_classes=10)}, "mix=MixUp"),
        ({"augment": v2.Compose([v2.Identity(), v2.Compose([Noise()])])}, "the transform Noise"),
        ({"augment": v2.RandomHorizontalFlip()}, "the transform RandomHorizontalFlip"),
        ({"augment": build_transforms(cutout=2, contrast=0.1).augment}, None),
        ({"optimizer": Oddity}, "the optimizer Oddity"),
        ({"optimizer": torch.optim.Adagrad}, "the optimizer Adagrad"),
        ({"optimizer": torch.optim.SGD}, None),
    ],
)
def test_what_cannot_be_captured_is_named(changes: dict[str, Any], named: str | None) -> None:
    model = network()
    transforms = build_transforms()
    transforms = Transforms(changes.pop("augment", transforms.augment), transforms.preprocess)
    optimizer = changes.pop("optimizer", torch.optim.Adam)(model.parameters(), lr=0.1)
    assert what_cannot_be_captured(settings_for(model, optimizer, transforms, **changes)) == named


def test_backends_are_chosen_by_device_network_and_name(
    small_transforms: Transforms, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    settings = settings_for(model, adam(model), small_transforms)
    assert choose_backend("auto", settings).name == "eager"
    assert choose_backend("compiled", settings).name == "compiled"
    with pytest.raises(SettingError, match='backend "graph" is unknown'):
        choose_backend("graph", settings)
    with pytest.raises(SettingError, match='"cuda-graph" needs a CUDA device, and this run is on cpu'):
        choose_backend("cuda-graph", settings)
    # As on a GPU, where nothing is computed here.
    on_cuda = settings_for(model, adam(model), small_transforms)
    object.__setattr__(on_cuda.precision, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    assert choose_backend("auto", on_cuda).name == "cuda-graph"
    assert all(group["capturable"] and group["fused"] for group in on_cuda.optimizer.param_groups)
    foreign = StepSettings(nn.Sequential(), adam(model), nn.CrossEntropyLoss(), small_transforms, on_cuda.precision, 0)
    assert choose_backend("auto", foreign).name == "eager"
    assert choose_backend("cuda-graph", foreign).name == "cuda-graph"
    mixed = StepSettings(
        model, adam(model), nn.CrossEntropyLoss(), small_transforms, on_cuda.precision, 0, mix=v2.MixUp(num_classes=10)
    )
    with pytest.warns(UserWarning, match="mix=MixUp cannot be captured"):
        assert choose_backend("auto", mixed).name == "eager"


def test_without_a_compiler_training_is_eager_with_one_warning(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    trainer = make_trainer(backend="compiled", dropout=0.0)
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.warns(UserWarning, match="torch.compile does not work here .*compiler") as caught,
    ):
        trainer.fit(synthetic.train, max_epochs=1, checkpointer=Checkpointer(tmp_path / "run"), progress=False)
    assert len(caught) == 1
    assert trainer.backend == "eager"
    state = Checkpointer(tmp_path / "run").read_last()
    assert state is not None
    assert state["environment"]["backend"] == "eager"
    plain = make_trainer(backend="eager", dropout=0.0)
    plain.fit(synthetic.train, max_epochs=1, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), trainer.model.parameters(), strict=True))


def test_a_run_that_fell_back_goes_on_without_a_warning(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: Any, **_: Any) -> Any:
        def call(*_: Any) -> Any:
            raise torch._dynamo.exc.TorchDynamoException("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    for max_epochs in (1, 2):
        trainer = make_trainer(backend="compiled")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(
                synthetic.train, max_epochs=max_epochs, checkpointer=Checkpointer(tmp_path), resume=True, progress=False
            )
        assert ["does not work here" in str(warning.message) for warning in caught] == [True]
        assert trainer.changes == []
    assert trainer.state_dict()["environment"]["backend"] == "eager"


def test_an_error_of_the_users_own_is_not_taken_for_a_missing_compiler(
    make_trainer: MakeTrainer, synthetic: DatasetSplits
) -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("mine")

    trainer = make_trainer(backend="compiled", loss_fn=loss)
    with pytest.raises(ValueError, match="mine"):
        trainer.fit(synthetic.train, max_epochs=1, progress=False)


def test_a_loss_that_is_not_finite_within_a_graph_is_told_with_its_step(
    graphs: None, make_trainer: MakeTrainer, synthetic: DatasetSplits, tmp_path: Path
) -> None:
    """The host never sees the loss of a step; the device keeps the first that went wrong."""
    trainer = make_trainer(backend="cuda-graph", transforms=build_transforms(crop_padding=0, flip="none", size=16))
    checkpointer = Checkpointer(tmp_path, every_s=0)
    trainer.fit(synthetic.train, max_epochs=2, checkpointer=checkpointer, progress=False)
    place = 2  # the last of the first unit of three
    image = permutation(0, 2, synthetic.train.ids)[64 * place]

    def prepare(settings: StepSettings, images: Tensor) -> Tensor:
        ready = settings.transforms.train(images)
        bad = (images == synthetic.train.images[image]).flatten(1).all(1)
        return torch.where(bad[:, None, None, None], torch.nan, ready)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "prepared", prepare)
        with pytest.raises(NonFiniteLossError, match=r"first at step 3 of epoch 3 .*Last good checkpoint"):
            trainer.fit(synthetic.train, max_epochs=3, checkpointer=checkpointer, resume=True, progress=False)
    state = Checkpointer(tmp_path).read_last()
    assert state is not None
    assert state["position"]["global_step"] == 10
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_memory_that_is_short_while_a_graph_is_captured_is_told_of(
    make_trainer: MakeTrainer, synthetic: DatasetSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(function: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def choose(name: str, settings: StepSettings) -> Any:
        return CudaGraphBackend(settings, capture=no_room, steps_per_graph=3)

    monkeypatch.setattr("cifarnet.trainer.trainer.choose_backend", choose)
    with pytest.raises(DeviceMemoryError, match=r"training with batch_size=64 did not fit .*; try 32"):
        make_trainer().fit(synthetic.train, max_epochs=3, progress=False)
