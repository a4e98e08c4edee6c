"""What augmentation makes of images."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms import v2

from cifarnet import randomness
from cifarnet._validation import check_count
from cifarnet.data import ImageDataset
from cifarnet.errors import InputError
from cifarnet.transforms import Transforms
from cifarnet.visualize.canvas import divide, figure_of, ink_on, open_axes, scale_of, show_image

__all__ = ["plot_augmentations"]


def plot_augmentations(
    transforms: Transforms | v2.Transform,
    data: ImageDataset,
    *,
    num_images: int = 4,
    num_epochs: int = 8,
    seed: int = 0,
    ax: Axes | None = None,
) -> Figure:
    """Draw images as they are, and as the epochs of a run with this seed see them.

    Draws are keyed by seed, epoch and image, so these are the very pictures that a `Trainer` with the same seed trains
    on, before they are resized and normalised. (Transforms of others draw from torch's generator: theirs are examples
    of what they do.)

    Args:
        transforms: What `build_transforms` returned, or a transform from uint8 to uint8.
        data: Where the images come from: the first ones.
        num_images: How many, a row each.
        num_epochs: How many epochs, a column each.
        seed: The run's.
        ax: Axes whose place is drawn in; a new figure without.

    Returns:
        The figure.

    Raises:
        SettingError: If a number is below 1.
        InputError: If the data are no `ImageDataset`, or the transforms give no uint8 images, one of each.

    Example:
        >>> from cifarnet import build_transforms, make_synthetic
        >>> data = make_synthetic(num_train=10, num_test=10)
        >>> figure = plot_augmentations(build_transforms(crop_padding=4), data.train)
        >>> figure.savefig("augmentations.png")  # doctest: +SKIP
    """
    check_count("num_images", num_images, "4 is the default")
    check_count("num_epochs", num_epochs, "8 is the default")
    check_count("seed", seed, "0 is the default", least=0)
    if not isinstance(data, ImageDataset):
        raise InputError(f"expected an ImageDataset, got {type(data).__name__}; data.train of load_cifar10 is one")
    augment = transforms.augment if isinstance(transforms, Transforms) else transforms
    if not isinstance(augment, v2.Transform):
        raise InputError(f"expected Transforms or a v2.Transform, got {type(augment).__name__}; see build_transforms")
    num_images = min(num_images, len(data))
    images, ids = data.images[:num_images], data.ids[:num_images]
    width = 0.9 * (num_epochs + 1)
    ax = open_axes(ax, width=width, height=0.9 * num_images + 0.3)
    panels = divide(ax, num_images, num_epochs + 1, gap_x=0.06, gap_y=0.06)
    columns = [("original", images)]
    cpu = torch.device("cpu")
    with randomness.isolated(cpu):
        for epoch in range(num_epochs):
            randomness.seed_torch(randomness.step_seed(seed, epoch, 0), cpu)
            with randomness.scope(seed, epoch, ids):
                columns.append((f"epoch {epoch + 1}", _check(augment(images), num_images)))
    for j, (title, column) in enumerate(columns):
        panels[0][j].set_title(title, color=ink_on(ax), fontsize=8 * scale_of(ax, width))
        for i in range(num_images):
            show_image(panels[i][j], column[i])
    return figure_of(ax)


def _check(images: object, num_images: int) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != num_images:
        raise InputError("expected a transform that makes one image of each; this one gives something else")
    if images.dtype != torch.uint8:
        raise InputError(
            f"expected a transform that gives uint8 images, this one gives {images.dtype}; normalised images cannot be "
            "shown, so give transforms.augment"
        )
    return images
