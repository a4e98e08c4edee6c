from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torchvision.transforms import v2

from cifarnet import (
    CifarCNN,
    DatasetSplits,
    ImageDataset,
    Preprocess,
    Trainer,
    Transforms,
    build_transforms,
    randomness,
)
from cifarnet.errors import InputError, SettingError
from cifarnet.visualize import plot_augmentations


def shown(figure: Figure) -> list[torch.Tensor]:
    """The images of the panels, row by row."""
    panels = figure.axes[0].child_axes
    return [torch.from_numpy(np.asarray(p.get_images()[0].get_array()).copy()).permute(2, 0, 1) for p in panels]


def augmented_in_training(transforms: Transforms, data: ImageDataset, *, seed: int) -> list[dict[int, torch.Tensor]]:
    """What a trainer's network is shown in three epochs, by the id of the image."""
    seen: list[dict[int, torch.Tensor]] = [{}, {}, {}]

    class Noting(v2.Transform):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            augmented: torch.Tensor = transforms.augment(images)
            current = randomness._current.get()
            assert current is not None
            seen[int(current.epoch)].update(zip(current.ids.tolist(), augmented, strict=True))
            return augmented

    model = CifarCNN(image_size=16, widths=(4, 4), hidden=8)
    noting = Transforms(Noting(), Preprocess(16))
    trainer = Trainer(model, torch.optim.SGD(model.parameters()), transforms=noting, seed=seed, device="cpu")
    trainer.fit(data, max_epochs=3, batch_size=2, progress_bar=False)
    return seen


def test_the_pictures_are_those_that_a_run_with_this_seed_trains_on(synthetic: DatasetSplits) -> None:
    data = synthetic.train.subset([7, 3, 5])
    transforms = build_transforms(crop_padding=3, cutout=4)
    trained_on = augmented_in_training(transforms, data, seed=11)
    pictures = shown(plot_augmentations(transforms, data, num_images=2, num_epochs=3, seed=11))
    assert len(pictures) == 2 * 4
    for row in range(2):
        assert torch.equal(pictures[4 * row], data.images[row])
        for epoch in range(3):
            assert torch.equal(pictures[4 * row + 1 + epoch], trained_on[epoch][int(data.ids[row])])
    other = shown(plot_augmentations(transforms, data, num_images=2, num_epochs=3, seed=12))
    assert not all(torch.equal(a, b) for a, b in zip(pictures, other, strict=True))


def test_columns_are_named_and_rows_are_no_more_than_there_are_images(synthetic: DatasetSplits) -> None:
    figure = plot_augmentations(build_transforms(), synthetic.train.subset([0, 1]), num_images=9, num_epochs=2)
    titles = [cast("Axes", panel).get_title() for panel in figure.axes[0].child_axes]
    assert titles == ["original", "epoch 1", "epoch 2", "", "", ""]


def test_transforms_of_others_are_shown_and_the_random_state_is_left_alone(synthetic: DatasetSplits) -> None:
    before = torch.get_rng_state()
    foreign = v2.RandomErasing(p=1.0)
    first = shown(plot_augmentations(foreign, synthetic.train, num_images=1, num_epochs=2))
    again = shown(plot_augmentations(foreign, synthetic.train, num_images=1, num_epochs=2))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_grey_images_are_drawn_grey(synthetic: DatasetSplits) -> None:
    grey = type(synthetic.train)(synthetic.train.images[:, :1], synthetic.train.labels, synthetic.train.classes)
    figure = plot_augmentations(build_transforms(), grey, num_images=1, num_epochs=1)
    image = figure.axes[0].child_axes[0].get_images()[0]
    assert image.get_clim() == (0, 255)
    assert image.get_cmap().name == "gray"


def test_it_draws_into_the_axes_it_is_given(synthetic: DatasetSplits) -> None:
    figure = Figure()
    ax = figure.subplots(2, 1)[0]
    assert plot_augmentations(build_transforms(), synthetic.train, ax=ax) is figure
    assert len(ax.child_axes) == 4 * 9


def test_normalised_images_and_wrong_counts_are_refused(synthetic: DatasetSplits) -> None:
    with pytest.raises(InputError, match=r"gives torch.float32; .* give transforms.augment"):
        plot_augmentations(build_transforms(size=16).train, synthetic.train)
    for transforms in (None, lambda images: images):
        with pytest.raises(InputError, match=r"expected Transforms or a v2.Transform"):
            plot_augmentations(transforms, synthetic.train)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected an ImageDataset, got Tensor"):
        plot_augmentations(build_transforms(), synthetic.train.images)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="makes one image of each"):
        plot_augmentations(v2.FiveCrop(8), synthetic.train)
    with pytest.raises(SettingError, match="num_epochs must be at least 1, got 0"):
        plot_augmentations(build_transforms(), synthetic.train, num_epochs=0)
