"""Training on small images first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torchvision.transforms import v2

from cifarnet import randomness
from cifarnet._resize import resize_images
from cifarnet._validation import check_count
from cifarnet.errors import SettingError

__all__ = ["ProgressiveResize"]

_EXAMPLE = "Pass {0: 24, 3: 28, 6: 32} for 24 pixels at first and 32 from the seventh epoch on"


class ProgressiveResize(v2.Transform):
    """Resize images to the side of the current epoch, bilinear and antialiased.

    Early epochs on small images cost less: 24 pixels a side are 9/16 of the pixels of 32 (progressive learning: Tan and
    Le, 2021, arXiv:2104.00298, section 4). The epoch comes from `cifarnet.randomness.scope`, which a `Trainer` opens.
    Outside a scope, images keep their size.

    Args:
        sizes: Side in pixels by the first epoch that has it, counted from 0: ``{0: 24, 3: 28, 6: 32}``.

    Raises:
        SettingError: If epoch 0 is missing, or a value is outside its range.

    Example:
        >>> import torch
        >>> resize = ProgressiveResize({0: 24, 3: 28})
        >>> with randomness.scope(seed=0, epoch=3, ids=torch.arange(2)):
        ...     resize(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        super().__init__()
        if not isinstance(sizes, Mapping):
            raise SettingError(f"sizes must be a dictionary of epochs and pixels, got {sizes!r}. {_EXAMPLE}")
        for epoch, size in sizes.items():
            check_count("each epoch of sizes", epoch, _EXAMPLE, least=0)
            check_count("each side of sizes", size, _EXAMPLE, least=2)
        if 0 not in sizes:
            raise SettingError(f"sizes must have epoch 0, got {dict(sizes)}. {_EXAMPLE}")
        #: Side in pixels by the first epoch that has it, in the order of the epochs.
        self.sizes = dict(sorted(sizes.items()))

    def size_at(self, epoch: int) -> int:
        """Return the side in pixels of an epoch.

        Args:
            epoch: Epoch, counted from 0.
        """
        return self.sizes[max(first for first in self.sizes if first <= epoch)]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Tensor:
        """Resize one image or one batch. ``forward`` calls this."""
        epoch = randomness.current_epoch()
        # int() synchronizes with the device, because the shape of the result depends on the epoch.
        return inpt if epoch is None else resize_images(inpt, self.size_at(int(epoch)))

    def extra_repr(self) -> str:
        """Return the text between the parentheses of ``repr``."""
        return repr(self.sizes)
