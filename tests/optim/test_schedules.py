from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from cifarnet.errors import SettingError
from cifarnet.optim import Schedule, constant, cosine, from_torch, linear, one_cycle
from cifarnet.optim.schedules import tabulate

SCHEDULES = [
    constant(),
    linear(),
    linear(warmup=0.1, end=0.05, tail=0.2),
    cosine(warmup=0.2),
    cosine(tail=0.95),
    one_cycle(),
]


@given(total_steps=st.integers(1, 300), schedule=st.sampled_from(SCHEDULES))
def test_a_multiplier_is_between_0_and_1_and_the_table_agrees(total_steps: int, schedule: Schedule) -> None:
    table = tabulate(schedule, total_steps)
    assert table.shape == (total_steps,)
    assert bool(((table >= 0) & (table <= 1)).all())
    assert table.tolist() == [schedule(step, total_steps) for step in range(total_steps)]


@given(total_steps=st.integers(1, 200), warmup=st.floats(0.01, 0.5), tail=st.floats(0, 0.4), end=st.floats(0, 1))
def test_a_schedule_is_the_line_through_its_corners(total_steps: int, warmup: float, tail: float, end: float) -> None:
    corners = np.array([0, warmup, 1 - tail, 1]) * total_steps
    steps = np.arange(total_steps)
    for schedule in (linear, one_cycle):
        table = tabulate(schedule(warmup=warmup, start=0.3, end=end, tail=tail), total_steps)
        np.testing.assert_allclose(table.numpy(), np.interp(steps, corners, [0.3, 1, end, end]), rtol=0, atol=1e-12)


def test_a_tail_stays_at_its_floor() -> None:
    assert tabulate(cosine(end=0.25, tail=0.5), 8).tolist()[4:] == [0.25] * 4


def test_cosine_equals_torchs() -> None:
    theirs = from_torch(lambda optimizer, total_steps: CosineAnnealingLR(optimizer, total_steps))
    torch.testing.assert_close(tabulate(cosine(), 50), tabulate(theirs, 50))


def test_a_torch_scheduler_is_tabulated_as_it_runs() -> None:
    schedule = from_torch(lambda optimizer, total_steps: MultiStepLR(optimizer, [2, total_steps - 2], gamma=0.1))
    expected = [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert tabulate(schedule, 6).tolist() == pytest.approx(expected)
    assert [schedule(step, 6) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("build", [linear, cosine, one_cycle])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), a share of all steps, got 1.0"),
        ({"start": -1.0}, "start must be finite and not negative, got -1.0"),
        ({"end": math.inf}, "end must be finite and not negative, got inf"),
        ({"warmup": 0.5, "tail": 0.5}, r"tail must be in \[0, 0.5\), what the warm-up leaves, got 0.5"),
        ({"tail": -0.1}, "tail must be in"),
    ],
)
def test_a_setting_out_of_range_is_refused(build: type, settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build(**settings)


def test_one_cycle_needs_a_way_up() -> None:
    with pytest.raises(SettingError, match="use linear"):
        one_cycle(warmup=0)


@pytest.mark.parametrize("wrong", [-0.5, math.nan, math.inf])
def test_a_schedule_that_goes_wrong_is_refused_before_training(wrong: float) -> None:
    def schedule(step: int, total_steps: int) -> float:
        return wrong if step == 3 else 1.0

    with pytest.raises(SettingError, match="at step 3 of 5"):
        tabulate(schedule, 5)
