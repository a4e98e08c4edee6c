"""Filters that whiten patches of images, so that their outputs are uncorrelated and have equal variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cifarnet._types import Images
from cifarnet._validation import check_count
from cifarnet.errors import DataError, SettingError

__all__ = ["whitening_filters"]

_CHUNK = 500  # images at once; they need 46 MB of float64 patches, 5,000 images would need 461 MB


@torch.no_grad()
def whitening_filters(images: Images, *, kernel_size: int = 2, eps: float = 5e-4) -> Tensor:
    """Compute the principal components of all patches, scaled to variance 1, as filters of a convolution.

    The components are the eigenvectors of the covariance of the patches, each divided by ``sqrt(eigenvalue + eps)``
    (as in hlb-CIFAR10 and airbench; Jordan, 2024, arXiv:2404.00498, section 3.2). They are computed in float64. The
    sign of an eigenvector is chosen so that two machines agree.

    Args:
        images: Normalised floating images, shape ``(N, C, H, W)``. 5,000 images of CIFAR-10 are enough.
        kernel_size: Side length of a patch in pixels, ``k``.
        eps: Positive number added to the eigenvalues, so that nearly constant components stay small.

    Returns:
        Filters in float64 on the device of the images, shape ``(C k k, C, k, k)``, largest eigenvalue first.

    Raises:
        DataError: If the images are not floating, contain NaN or infinity, or have fewer than two patches.
        SettingError: If ``kernel_size`` is below 1, or ``eps`` not above 0.

    Example:
        >>> whitening_filters(torch.rand(8, 3, 16, 16)).shape
        torch.Size([12, 3, 2, 2])
    """
    check_count("kernel_size", kernel_size, "the speed records have 2")
    if not (math.isfinite(eps) and eps > 0):
        raise SettingError(f"eps must be above 0, got {eps}; 5e-4 suits normalised images")
    covariance = _patch_covariance(images, kernel_size)
    # On a GPU, the decomposition of a 12x12 matrix takes longer than copying it to the CPU and back.
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.cpu())
    components = eigenvectors.T.flip(0)  # rows, the largest eigenvalue first
    filters: Tensor = components * _signs(components) / (eigenvalues.flip(0)[:, None] + eps).sqrt()
    return filters.view(-1, images.shape[1], kernel_size, kernel_size).to(images.device)


def _patch_covariance(images: Images, kernel_size: int) -> Tensor:
    """Compute the float64 covariance of all patches inside the images, shape ``(C k k, C k k)``."""
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"expected normalised floating images (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}; "
            "transforms.preprocess(images) makes them of uint8"
        )
    size = images.shape[1] * kernel_size**2
    total = torch.zeros(size, dtype=torch.float64, device=images.device)
    products = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    count = len(images) * max(0, images.shape[2] - kernel_size + 1) * max(0, images.shape[3] - kernel_size + 1)
    if count < 2:
        raise DataError(f"images of shape {tuple(images.shape)} have {count} patches; pass some 5,000 training images")
    for chunk in torch.split(images, _CHUNK):
        patches = F.unfold(chunk.double(), kernel_size).transpose(0, 1).flatten(1)  # (C k k, patches)
        total += patches.sum(dim=1)
        products += patches @ patches.T
    covariance = (products - total.outer(total) / count) / (count - 1)
    if not bool(covariance.isfinite().all()):
        raise DataError("the images contain NaN or infinity; find them with images.isfinite()")
    return covariance


def _signs(rows: Tensor) -> Tensor:
    """Return the sign of the first entry of each row that has at least half the largest magnitude.

    The largest entry itself would not do. Those of a vertical edge have both signs and differ only by noise.
    """
    large = rows.abs() >= 0.5 * rows.abs().amax(dim=1, keepdim=True)
    first = large.int().argmax(dim=1, keepdim=True)
    return rows.gather(1, first).sign()
