from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarnet import randomness
from cifarnet.randomness import draw, permutation, scope

CPU = torch.device("cpu")


@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50, unique=True),
    data=st.data(),
)
def test_a_draw_depends_on_the_image_and_not_on_its_batch(
    seed: int, epoch: int, ids: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(ids) - 1))
    with scope(seed, epoch, torch.tensor(ids)):
        together = draw("crop", num_images=len(ids), columns=3)
    with scope(seed, epoch, torch.tensor([ids[position]])):
        alone = draw("crop", num_images=1, columns=3)
    assert torch.equal(together[position], alone[0])


def chi_square(values: torch.Tensor) -> float:
    """Return chi-square over 100 equally likely values; 148.2 is its 99.9 % quantile, and the draws are fixed."""
    expected = len(values) / 100
    return float(((torch.bincount(values, minlength=100) - expected) ** 2 / expected).sum())


def test_draws_of_50000_images_are_uniform_and_independent() -> None:
    ids = torch.arange(50_000)
    with scope(0, 0, ids):
        now = draw("crop", num_images=50_000, columns=2)
    with scope(0, 1, ids):
        next_epoch = draw("crop", num_images=50_000, columns=2)
    assert now.dtype == torch.float32
    assert 0 <= float(now.min()) <= float(now.max()) < 1
    for column in (*now.T, *next_epoch.T):
        assert chi_square((column * 100).long()) < 148.2
    for one, other in ((now[:, 0], now[:, 1]), (now[:, 0], next_epoch[:, 0]), (now[:-1, 0], now[1:, 0])):
        assert chi_square((one * 10).long() * 10 + (other * 10).long()) < 148.2


@pytest.mark.parametrize(
    ("seed", "epoch", "name"), [(1, 0, "crop"), (0, 1, "crop"), (0, 0, "flip"), (2**32, 0, "crop")]
)
def test_another_seed_epoch_or_name_gives_other_draws(seed: int, epoch: int, name: str) -> None:
    ids = torch.arange(1000)
    with scope(0, 0, ids):
        one = draw("crop", num_images=1000)
    with scope(seed, epoch, ids):
        other = draw(name, num_images=1000)
    assert int((one == other).sum()) <= 2


def test_draws_are_the_same_in_every_process_and_forever() -> None:
    code = (
        "import torch\nfrom cifarnet.randomness import draw, permutation, scope\n"
        "with scope(7, 2, torch.arange(3)):\n    print(draw('crop', num_images=3, columns=2).tolist())\n"
        "print(permutation(7, 2, torch.arange(6)).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # Recorded when the hash was written. A change of the hash changes every seeded run.
    assert printed.splitlines() == [str(GOLDEN_DRAWS), str(GOLDEN_ORDER)]
    assert permutation(7, 2, torch.arange(6)).tolist() == GOLDEN_ORDER


GOLDEN_DRAWS = [
    [0.8067034482955933, 0.7186064720153809],
    [0.14513272047042847, 0.2859412431716919],
    [0.8055330514907837, 0.45560550689697266],
]
GOLDEN_ORDER = [5, 3, 0, 4, 2, 1]


def test_outside_a_scope_draws_come_from_torchs_generator() -> None:
    torch.manual_seed(0)
    one = draw("crop", num_images=4)
    torch.manual_seed(0)
    assert torch.equal(one, torch.rand(4, 1))


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), num_images=st.integers(1, 300))
def test_an_order_visits_every_image_once(seed: int, epoch: int, num_images: int) -> None:
    order = permutation(seed, epoch, torch.arange(num_images))
    if num_images > 20:
        assert not torch.equal(order, permutation(seed, epoch + 1, torch.arange(num_images)))
    assert torch.equal(order.sort().values, torch.arange(num_images))


def test_leaving_images_out_does_not_reorder_the_rest() -> None:
    ids = torch.arange(100)
    kept = ids[ids % 3 != 0]
    whole = ids[permutation(0, 4, ids)]
    assert torch.equal(whole[whole % 3 != 0], kept[permutation(0, 4, kept)])


@settings(max_examples=30)
@given(step=st.integers(-1, 10_000), epoch=st.integers(0, 1000), seed=st.integers(0, 2**63 - 1))
def test_a_step_seed_is_one_that_torch_takes(seed: int, epoch: int, step: int) -> None:
    value = randomness.step_seed(seed, epoch, step)
    assert 0 <= value < 2**63
    assert value != randomness.step_seed(seed, epoch, step + 1)


def test_isolation_restores_generator_and_flags_after_an_error() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def fail() -> None:
        with randomness.isolated(CPU, deterministic=True):
            randomness.seed_torch(1, CPU)
            assert torch.are_deterministic_algorithms_enabled()
            raise ZeroDivisionError(torch.rand(5))

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark is False
