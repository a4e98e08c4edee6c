from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cifarnet.errors import DataError, SettingError
from cifarnet.models.whitening import whitening_filters


def smooth_images(num_images: int = 20, channels: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    """Neighbouring pixels and channels are correlated, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_images, channels, size + 2, size + 2, generator=generator, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64) + 2 * torch.eye(channels)
    return F.avg_pool2d(torch.einsum("dc,nchw->ndhw", mixing, noise), 3, stride=1) + 0.3


def patches_of(images: Tensor, size: int) -> Tensor:
    cut = images.double().unfold(2, size, 1).unfold(3, size, 1)  # (N, C, H', W', k, k)
    return cut.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * size * size)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 4), size=st.integers(1, 3))
def test_filters_are_scaled_eigenvectors_of_the_covariance(seed: int, channels: int, size: int) -> None:
    images = smooth_images(channels=channels, seed=seed)
    filters = whitening_filters(images, kernel_size=size, eps=1e-3).flatten(1)
    covariance = torch.cov(patches_of(images, size).T).reshape(len(filters), len(filters))
    values = torch.linalg.eigvalsh(covariance).flip(0)
    torch.testing.assert_close(filters @ covariance, values[:, None] * filters, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(filters.norm(dim=1), (values + 1e-3).rsqrt())
    gram = filters @ filters.T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-8)


def test_whitened_patches_have_the_identity_as_covariance() -> None:
    images = smooth_images(num_images=600)  # more than one chunk
    whitened = F.conv2d(images, whitening_filters(images, eps=1e-12))
    covariance = torch.cov(whitened.transpose(0, 1).flatten(1))
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_filters_and_signs_do_not_depend_on_rounding(seed: int) -> None:
    """Other hardware adds in another order, and its ``eigh`` may choose other signs."""
    images = smooth_images(seed=seed)
    filters = whitening_filters(images)
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(whitening_filters(shuffled * (1 + 1e-12)), filters, rtol=1e-6, atol=1e-8)
    # The eigenvectors of mirrored images are the mirrored ones up to their signs.
    mirrored = whitening_filters(images.flip(3)).flip(3).flatten(1)
    aligned = (mirrored * filters.flatten(1)).sum(dim=1).sign()[:, None] * mirrored
    torch.testing.assert_close(aligned, filters.flatten(1), rtol=1e-6, atol=1e-8)
    for row in filters.flatten(1):
        assert float(row[row.abs() >= 0.5 * row.abs().max()][0]) > 0


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {}, "expected normalised floating images .* got torch.uint8"),
        (torch.zeros(3, 8, 8), {}, r"got torch.float32 of shape \(3, 8, 8\)"),
        (torch.full((4, 3, 8, 8), torch.nan), {}, "NaN or infinity"),
        (torch.zeros(0, 3, 8, 8), {}, "have 0 patches"),
        (torch.zeros(1, 3, 2, 2), {}, "have 1 patches"),
        (torch.zeros(4, 3, 8, 8), {"eps": 0.0}, "eps must be above 0, got 0.0"),
        (torch.zeros(4, 3, 8, 8), {"eps": float("nan")}, "eps must be above 0, got nan"),
        (torch.zeros(4, 3, 8, 8), {"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused_with_a_remedy(images: Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, SettingError), match=message):
        whitening_filters(images, **arguments)
