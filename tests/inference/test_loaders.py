from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifarnet import CifarCNN, DatasetSplits, Preprocess
from cifarnet._hardware import _is_cpu_suitable, is_bf16_faster
from cifarnet.errors import InputError, ResumeMismatchError, SettingError
from cifarnet.inference import describe_device, resolve_device, resolve_precision
from cifarnet.inference.evaluate import evaluate
from cifarnet.inference.iterable import IterableLoader
from cifarnet.inference.loader import TensorLoader
from cifarnet.inference.running import RunningMetrics

CPU = torch.device("cpu")
FLOAT64 = resolve_precision("float64", CPU)


def batches_of(data: DatasetSplits, batch_size: int = 64) -> TensorLoader:
    train = data.train
    return TensorLoader(train.images, train.labels, train.ids, batch_size=batch_size, device=CPU, seed=0)


def test_an_epoch_visits_every_image_once_with_a_tail_batch(synthetic: DatasetSplits) -> None:
    batches = batches_of(synthetic)
    seen = list(batches.epoch(0))
    assert batches.num_steps == len(seen) == 5
    assert [len(batch.labels) for batch in seen] == [64, 64, 64, 64, 44]
    ids = torch.cat([batch.ids for batch in seen])
    assert torch.equal(ids.sort().values, torch.arange(300))
    assert torch.equal(torch.cat([batch.images for batch in seen]), synthetic.train.images[ids])
    assert torch.equal(torch.cat([batch.labels for batch in seen]), synthetic.train.labels[ids])


@pytest.mark.parametrize("first_step", range(6))
def test_an_epoch_can_begin_at_any_step(synthetic: DatasetSplits, first_step: int) -> None:
    batches = batches_of(synthetic)
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, first_step))
    assert len(rest) == 5 - first_step
    for one, other in zip(whole[first_step:], rest, strict=True):
        assert torch.equal(one.ids, other.ids)


def test_two_epochs_have_two_orders(synthetic: DatasetSplits) -> None:
    batches = batches_of(synthetic)
    first, second = (torch.cat([batch.ids for batch in batches.epoch(epoch)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat([batch.ids for batch in batches.epoch(0)]))


def test_batches_in_order_are_views_of_the_data(synthetic: DatasetSplits) -> None:
    batches = list(batches_of(synthetic, 100).in_order())
    assert torch.equal(torch.cat([batch.ids for batch in batches]), torch.arange(300))
    assert batches[0].images.data_ptr() == synthetic.train.images.data_ptr()


def test_a_dataloader_gives_batches_with_running_ids() -> None:
    loader = DataLoader(TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) % 3), batch_size=4)
    batches = IterableLoader(loader, device=CPU)
    assert batches.num_steps == 3
    assert [batch.ids.tolist() for batch in batches.epoch(0)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_an_iterable_without_length_has_an_unknown_number_of_steps() -> None:
    assert IterableLoader(iter([]), device=CPU).num_steps is None


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([torch.zeros(2, 3, 8, 8)], r"^Batch 1 must be two tensors \(images, labels\), got Tensor"),
        ([(torch.zeros(3, 8, 8), 1)], "got tuple"),
        ([(torch.zeros(3, 8, 8), torch.tensor(1))], r"got \(3, 8, 8\) torch.float32 and \(\) torch.int64"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64))], r"and \(3,\) torch.int64"),
        ([(torch.zeros(2, 3, 8, 8), torch.zeros(2))], r"and \(2,\) torch.float32"),
        ([], "The iterable has no batches"),
    ],
)
def test_what_are_no_batches_is_refused(items: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(IterableLoader(items, device=CPU).in_order())


def test_an_iterable_cannot_be_continued_in_mid_epoch() -> None:
    with pytest.raises(ResumeMismatchError, match="at step 3 of an epoch"):
        list(IterableLoader([], device=CPU).epoch(0, first_step=3))


def test_sums_equal_those_over_the_whole_epoch_and_survive_a_save() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 4), torch.randint(4, (10,))
    sums = RunningMetrics(CPU)
    for i, part in enumerate((slice(0, 4), slice(4, 8))):
        sums.add(nn.functional.cross_entropy(logits[part], labels[part]), logits[part], labels[part], i)
    resumed = RunningMetrics(CPU)
    resumed.load_state_dict(sums.read()._asdict())
    for one in (sums, resumed):
        one.add(nn.functional.cross_entropy(logits[8:], labels[8:]), logits[8:], labels[8:], 2)
    totals = sums.read()
    assert totals == resumed.read()
    assert totals.num_images == 10
    assert totals.accuracy == int((logits.argmax(1) == labels).sum()) / 10
    assert totals.mean_loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_sums_of_nothing_are_nan() -> None:
    totals = RunningMetrics(CPU).read()
    assert math.isnan(totals.mean_loss)
    assert math.isnan(totals.accuracy)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sums_remember_the_first_loss_that_was_not_finite(bad: float) -> None:
    sums, logits, labels = RunningMetrics(CPU), torch.zeros(1, 2), torch.tensor([0])
    for step, loss in enumerate([1.0, bad, 1.0, bad]):
        sums.add(torch.tensor(loss), logits, labels, step)
    assert sums.read().first_bad_step == 1


def test_evaluation_is_a_plain_count_and_leaves_the_model_as_it_was(synthetic: DatasetSplits) -> None:
    torch.manual_seed(0)
    model = CifarCNN(image_size=16, widths=(4, 8), hidden=16).double().train()
    preprocess = Preprocess(16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = evaluate(
        model, batches_of(synthetic), preprocess=preprocess, loss_fn=nn.functional.cross_entropy, precision=FLOAT64
    )
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        logits = model(preprocess(synthetic.train.images).double())
    assert result.num_correct == int((logits.argmax(1) == synthetic.train.labels).sum())
    assert result.num_images == 300
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, synthetic.train.labels)), rel=1e-9)


def test_the_mode_is_put_back_when_evaluation_fails() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).train()
    source = IterableLoader([(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))], device=CPU)
    with pytest.raises(RuntimeError):
        evaluate(
            model,
            source,
            preprocess=Preprocess(8),
            loss_fn=nn.functional.cross_entropy,
            precision=resolve_precision("float32", CPU),
        )
    assert model.training


@pytest.mark.parametrize(
    ("capabilities", "cpu_name", "suits"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "AMD EPYC 9R14", True),
        ({"avx512_bf16": True, "amx_bf16": False}, "Intel(R) Xeon(R) Processor", False),
        ({"avx512_bf16": True, "amx_bf16": True}, "Intel(R) Xeon(R) Platinum 8488C", True),
        ({"arm_bf16": True}, "aarch64", True),
        ({"avx512_bf16": False, "avx2": True}, "AMD EPYC 7R13", False),
        ({}, "AMD EPYC 9R14", False),
    ],
)
def test_bf16_suits_processors_that_are_faster_in_it(capabilities: dict[str, bool], cpu_name: str, suits: bool) -> None:
    assert _is_cpu_suitable(capabilities, cpu_name) == suits


def test_bf16_is_taken_where_it_is_faster() -> None:
    assert resolve_precision("auto", CPU).name == ("bf16" if is_bf16_faster(CPU) else "float32")
    assert not is_bf16_faster(torch.device("meta"))
    with resolve_precision("bf16", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with resolve_precision("float32", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_images_are_prepared_in_channels_last_memory() -> None:
    prepared = FLOAT64.prepare(torch.rand(2, 3, 8, 8))
    assert prepared.dtype == torch.float64
    assert prepared.is_contiguous(memory_format=torch.channels_last)


def test_devices_and_precisions_that_are_not_there_are_refused() -> None:
    with pytest.raises(SettingError, match='precision "bf61" is unknown; did you mean "bf16"'):
        resolve_precision("bf61", CPU)
    with pytest.raises(SettingError, match='device "gpu" cannot be used'):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match=r'device "cuda" cannot be used .*Use "auto"'):
            resolve_device("cuda")
        assert resolve_device("auto") == CPU


def test_the_hardware_is_named() -> None:
    assert "thread" in describe_device(CPU)
