"""Filters that whiten patches of images: uncorrelated outputs of equal variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cifarnet._types import Images
from cifarnet._validation import check_count
from cifarnet.errors import InputError, SettingError

__all__ = ["whitening_filters"]

_CHUNK = 500  # images at a time: 46 MB of float64 patches, where 5,000 images would take 461 MB


@torch.no_grad()
def whitening_filters(images: Images, *, kernel_size: int = 2, eps: float = 5e-4) -> Tensor:
    """The principal components of all patches, scaled to variance 1, as the filters of a convolution.

    The components are the eigenvectors of the patches' covariance, each divided by ``sqrt(eigenvalue + eps)``
    (as in hlb-CIFAR10 and airbench; Jordan, 2024, arXiv:2404.00498, section 3.2). Computed in float64. Of the two
    signs of an eigenvector the one is taken that two machines agree on.

    Args:
        images: Normalised and floating, shape ``(N, C, H, W)``; some 5,000 of CIFAR-10 are enough.
        kernel_size: Side of a patch in pixels, ``k``.
        eps: Added to the eigenvalues, above 0: what is nearly constant is not blown up.

    Returns:
        float64 on the device of the images, shape ``(C k k, C, k, k)``, largest eigenvalue first.

    Raises:
        InputError: If the images are not floating, hold NaN or infinity, or have fewer than two patches.
        SettingError: If ``kernel_size`` is below 1, or ``eps`` not above 0.

    Example:
        >>> whitening_filters(torch.rand(8, 3, 16, 16)).shape
        torch.Size([12, 3, 2, 2])
    """
    check_count("kernel_size", kernel_size, "the speed records have 2")
    if not (math.isfinite(eps) and eps > 0):
        raise SettingError(f"eps must be above 0, got {eps}; 5e-4 suits normalised images")
    covariance = _patch_covariance(images, kernel_size)
    # A matrix of 12 by 12: on a GPU its decomposition would take longer than the way to the CPU and back.
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.cpu())
    components = eigenvectors.T.flip(0)  # rows, the largest eigenvalue first
    filters: Tensor = components * _signs(components) / (eigenvalues.flip(0)[:, None] + eps).sqrt()
    return filters.view(-1, images.shape[1], kernel_size, kernel_size).to(images.device)


def _patch_covariance(images: Images, kernel_size: int) -> Tensor:
    """Of all patches that lie whole inside an image, float64, shape ``(C k k, C k k)``."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"expected normalised floating images (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}; "
            "transforms.preprocess(images) makes them of uint8"
        )
    size = images.shape[1] * kernel_size**2
    total = torch.zeros(size, dtype=torch.float64, device=images.device)
    products = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    count = len(images) * max(0, images.shape[2] - kernel_size + 1) * max(0, images.shape[3] - kernel_size + 1)
    if count < 2:
        raise InputError(f"images of shape {tuple(images.shape)} have {count} patches; give some 5,000 of training")
    for chunk in torch.split(images, _CHUNK):
        patches = F.unfold(chunk.double(), kernel_size).transpose(0, 1).flatten(1)  # (C k k, patches)
        total += patches.sum(dim=1)
        products += patches @ patches.T
    covariance = (products - total.outer(total) / count) / (count - 1)
    if not bool(covariance.isfinite().all()):
        raise InputError("the images hold NaN or infinity; look at the ones with images.isfinite()")
    return covariance


def _signs(rows: Tensor) -> Tensor:
    """The sign, -1 or 1, that makes a row begin positive: its first entry of at least half the largest magnitude.

    Not the largest entry: those of a vertical edge are equal but for noise, and of both signs.
    """
    large = rows.abs() >= 0.5 * rows.abs().amax(dim=1, keepdim=True)
    first = large.int().argmax(dim=1, keepdim=True)
    return rows.gather(1, first).sign()
