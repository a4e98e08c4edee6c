from __future__ import annotations

import numpy as np
import pytest
import torch

from cifarnet.optim.muon import newton_schulz

SHAPES = [(4, 12), (12, 4), (7, 7), (1, 5), (6, 9)]


def some(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_the_result_equals_the_polynomial_in_numpy(shape: tuple[int, int], num_steps: int) -> None:
    matrices = some((3, *shape))
    result = newton_schulz(matrices, num_steps=num_steps)
    for matrix, ours in zip(matrices.numpy(), result.numpy(), strict=True):
        x = matrix / np.sqrt((matrix**2).sum())
        u, values, vh = np.linalg.svd(x, full_matrices=False)
        for _ in range(num_steps):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        np.testing.assert_allclose(ours, (u * values) @ vh, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 0.0), (torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_the_result_is_near_the_nearest_orthogonal_matrix(
    shape: tuple[int, int], dtype: torch.dtype, slack: float
) -> None:
    matrix = some(shape)
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert (values / matrix.norm()).min() > 0.003  # the range in the docstring
    result = newton_schulz(matrix[None], dtype=dtype)[0]
    assert result.dtype == dtype
    reached = torch.linalg.svdvals(result.double())
    assert reached.min() > 0.68 - slack
    assert reached.max() < 1.21 + slack
    assert torch.linalg.matrix_norm(result.double() - u @ vh, ord=2) < 0.33 + slack
    assert torch.linalg.matrix_norm(matrix / matrix.norm() - u @ vh, ord=2) > 0.33 + slack or min(shape) == 1, "control"


def test_a_matrix_of_zeros_stays_zero_in_a_batch() -> None:
    matrices = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
    result = newton_schulz(matrices, num_steps=3)
    assert not result[0].any()
    assert result[1].isfinite().all()
    assert result[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_steps", [3, 10])
@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("shape", [(64, 576), (256, 64)])
def test_long_matrices_of_low_rank_stay_bounded(
    shape: tuple[int, int], rank: int, num_steps: int, dtype: torch.dtype
) -> None:
    """Gradients of a network have nearly a low rank, and a Gram matrix rounds zero eigenvalues to negative ones."""
    matrix = some((min(shape), rank), torch.float32) @ some((rank, max(shape)), torch.float32)
    matrix += 1e-3 * (rank > 1) * some((min(shape), max(shape)), torch.float32)
    matrix = matrix if shape[0] < shape[1] else matrix.T
    result = newton_schulz(matrix[None], num_steps=num_steps, dtype=dtype)[0].double()
    exact = newton_schulz(matrix[None].double(), num_steps=num_steps)[0]
    assert float(torch.linalg.matrix_norm(result, ord=2)) < 1.3
    if num_steps == 3:  # more steps enlarge singular values that are rounding errors
        assert float((result - exact).norm() / exact.norm()) < (0.2 if dtype == torch.bfloat16 else 1e-3)
