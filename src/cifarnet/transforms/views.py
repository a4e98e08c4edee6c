"""Test-time augmentation: several views of an image, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.nn import functional as F

from cifarnet._checks import check_choice
from cifarnet._choices import VIEWS, ViewName
from cifarnet._types import Images, Logits
from cifarnet.errors import InputError, SettingError, SettingTypeError

__all__ = ["VIEWS", "ViewName", "Views"]


@dataclass(frozen=True)
class Views:
    """Which views of an image a network scores (Jordan, 2024, arXiv:2404.00498, section 3.5).

    ``"mirror"`` takes the image and its mirror image, with equal weights. ``"multi-crop"`` gives that pair half of the
    weight; the other half goes to the image shifted by (+1, +1) and by (-1, -1) pixels, what is missing at the edge
    reflected, and to the mirror images of these two. Two views cost twice the time of one, six cost six times.

    Args:
        views: ``"mirror"`` or ``"multi-crop"``.
        unsure_below: Take further views only of images whose highest probability is below this in the image as it
            is, in ``(0, 1]``; ``None`` takes them of all. A threshold and no share of the batch: what an image gets
            does not depend on the images beside it. The host waits for the device once a batch.

    Raises:
        SettingError: If a value is outside its range.

    Example:
        >>> import torch
        >>> left = lambda images: images[:, 0, 0]  # the two pixels at the top for logits
        >>> Views("mirror").average(left, torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[2., 2.]])
    """

    views: ViewName
    unsure_below: float | None = None

    def __post_init__(self) -> None:
        check_choice("views", self.views, VIEWS)
        below = self.unsure_below
        if below is None:
            return
        if isinstance(below, bool) or not isinstance(below, int | float):
            raise SettingTypeError(
                f"unsure_below must be a probability, got {below!r}; leave it out to view all images"
            )
        if not 0 < below <= 1:
            raise SettingError(f"unsure_below must be in (0, 1], got {below}; leave it out to view all images")

    def __str__(self) -> str:
        return self.views if self.unsure_below is None else f"{self.views} where less sure than {self.unsure_below}"

    @classmethod
    def of(cls, views: Views | ViewName | None) -> Views | None:
        """What a method is given that also takes the name alone.

        Args:
            views: `Views`, the name of one of `VIEWS`, or ``None``.

        Raises:
            SettingError: If it is neither views nor the name of some.

        Example:
            >>> Views.of("mirror")
            Views(views='mirror', unsure_below=None)
        """
        if views is None or isinstance(views, Views):
            return views
        if not isinstance(views, str):
            raise SettingTypeError(
                f"views must be Views or their name, got {views!r}; leave them out for the plain image"
            )
        return cls(views)

    def average(self, score: Callable[[Images], Logits], images: Images) -> Logits:
        """Score every view of each image.

        Args:
            score: The network; called for as many images as there are, or fewer.
            images: Preprocessed, shape ``(N, C, H, W)``, at least 2 pixels a side for ``"multi-crop"``.

        Returns:
            Weighted means of the logits, shape ``(N, K)``, in their dtype.

        Raises:
            InputError: If the images are too small.
        """
        if self.views == "multi-crop" and min(images.shape[-2:]) < 2:
            raise InputError(
                f'"multi-crop" shifts images by a pixel, and these have {images.shape[-2]}x{images.shape[-1]}; '
                '"mirror" takes any size'
            )
        plain = score(images)
        if self.unsure_below is None:
            return self._average(score, images, plain)
        # NaN is below nothing, and stays.
        unsure = (plain.softmax(dim=1).amax(dim=1) < self.unsure_below).nonzero()[:, 0]  # (M,)
        if not len(unsure):
            return plain
        return plain.index_copy(0, unsure, self._average(score, images[unsure], plain[unsure]))

    def _average(self, score: Callable[[Images], Logits], images: Images, plain: Logits) -> Logits:
        """Weighted mean of the logits of all views; ``plain`` are those of the images as they are."""
        unshifted = (plain + score(images.flip(-1))) / 2
        if self.views == "mirror":
            return unshifted
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")  # (N, C, H + 2, W + 2)
        down, up = padded[..., :-2, :-2], padded[..., 2:, 2:]
        shifted = score(down) + score(down.flip(-1)) + score(up) + score(up.flip(-1))
        return unshifted / 2 + shifted / 8
