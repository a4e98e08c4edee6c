from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cifarnet.data import ImageDataset
from cifarnet.errors import DataError, SettingError

GOOD: dict[str, Any] = {
    "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
    "labels": torch.tensor([0, 1]),
    "classes": ("a", "b"),
}


def dataset(labels: list[int], num_classes: int = 3, **more: Any) -> ImageDataset:
    """Return images of 2x2 pixels. All pixels of the image at ``i`` are ``i``, so up to 256 images differ."""
    images = (torch.arange(len(labels)) % 256).to(torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2)
    return ImageDataset(images, torch.tensor(labels), [f"class {k}" for k in range(num_classes)], **more)


def test_indexing_gives_image_and_label_from_either_end() -> None:
    data = dataset([0, 1, 2, 1])
    image, label = data[-1]
    assert image.dtype == torch.uint8
    assert image.tolist() == [[[3, 3], [3, 3]]] * 3
    assert label == 1
    assert type(label) is int
    assert torch.equal(data[3][0], image)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 4 images"):
            data[index]
    with pytest.raises(DataError, match=r"Use data\.subset\(range\(500\)\) for several"):
        data[:2]  # type: ignore[index]
    image.fill_(255)
    assert torch.equal(data.images[:, 0, 0, 0], torch.arange(4))


def test_a_plain_dataloader_collates_it() -> None:
    data = dataset([0, 1, 2, 1, 0])
    batches = list(DataLoader(data, batch_size=2))
    assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint  # as its workers need


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, r"images must be a tensor of torch.uint8 on the CPU, got torch.float32"),
        ({"images": torch.zeros(3, 4, 4, dtype=torch.uint8)}, r"shape \(N, C, H, W\), N at least 1, got \(3, 4, 4\)"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta")}, "got torch.uint8 on meta"),
        ({"labels": torch.tensor([0, 2])}, r"labels must be in \[0, 2\), got 0 to 2"),
        ({"labels": torch.tensor([0, 1, 1])}, r"labels must have the shape \(2,\), got \(3,\)"),
        ({"labels": [0, 1]}, r"got list\. Use torch.as_tensor\(labels, dtype=torch.int64\)"),
        ({"classes": ("a",)}, r"at least two classes, got \['a'\]"),
        ({"classes": ("a", "a")}, r"must be distinct, non-empty strings, got \['a', 'a'\]"),
        ({"classes": "ab"}, "must be a list or tuple of names, got str"),
        ({"ids": torch.tensor([4, 4])}, "ids must be distinct"),
    ],
)
def test_bad_input_is_refused_with_its_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataset(**(GOOD | change))


def test_subset_keeps_order_ids_and_name() -> None:
    data = dataset([0, 1, 2, 1], ids=torch.tensor([10, 11, 12, 13]), name="toys")
    assert repr(data) == "ImageDataset('toys', 4 images of 3x2x2, 3 classes)"
    assert data.class_counts == {"class 0": 1, "class 1": 2, "class 2": 1}
    some = data.subset([3, 0])
    assert (some.ids.tolist(), some.labels.tolist(), some.name) == ([13, 10], [1, 0], "toys")
    assert some.images[:, 0, 0, 0].tolist() == [3, 0]
    assert data.subset(torch.tensor([3, 0], dtype=torch.int32)).fingerprint == some.fingerprint


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "indices must be integers, at least one"),
        ([4], r"indices must be in \[0, 4\), got 4 to 4"),
        ([1, 1], "ids must be distinct"),
        ([True, False, True, True], r"got torch.bool \(4,\)"),
    ],
)
def test_subset_refuses_other_indices(indices: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataset([0, 1, 2, 1]).subset(indices)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    changes=st.dictionaries(st.integers(0, 10**6), st.integers(1, 255), min_size=1, max_size=4),
)
def test_hashes_differ_if_and_only_if_pixels_do(shape: tuple[int, int, int], changes: dict[int, int]) -> None:
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = image.clone().flatten()
    for index, value in changes.items():
        changed[index % image.numel()] ^= value
    images = torch.stack([image, changed.view(shape), image])
    one, other, again = ImageDataset(images, torch.tensor([0, 1, 1]), ("a", "b")).image_hashes.tolist()
    assert one == again
    assert (one == other) == torch.equal(images[0], images[1])


class TestSplit:
    @settings(max_examples=60, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 3), min_size=8, max_size=80),
        val_fraction=st.floats(0.01, 0.99),
        seed=st.integers(0, 2**64 - 1),
    )
    def test_parts_are_a_partition_in_order_with_every_class(
        self, labels: list[int], val_fraction: float, seed: int
    ) -> None:
        data = dataset(labels, 4)
        try:
            train, val = data.split(val_fraction, seed=seed)
        except SettingError:
            assert all(count == 1 or count * val_fraction < 1 for count in data.class_counts.values())
            return
        assert sorted(train.ids.tolist() + val.ids.tolist()) == data.ids.tolist()
        for part in (train, val):
            assert part.ids.tolist() == sorted(part.ids.tolist())
            assert torch.equal(part.labels, data.labels[part.ids])
            assert torch.equal(part.images, data.images[part.ids])
        for name, count in data.class_counts.items():
            assert train.class_counts[name] >= min(count, 1)
            if count > 1 and count * val_fraction >= 1:
                assert val.class_counts[name] >= 1

    @settings(max_examples=30, deadline=None)
    @given(order=st.permutations(range(200)), num_left=st.integers(150, 200), seed=st.integers(0, 1000))
    def test_added_and_removed_images_move_no_other(self, order: list[int], num_left: int, seed: int) -> None:
        """A split by position or by id would fail, because an added picture shifts the ids of later ones."""
        data = dataset([index % 3 for index in range(200)])
        some = data.subset(order[:num_left])
        fewer = ImageDataset(some.images, some.labels, some.classes)
        val = {image.numpy().tobytes() for image, _ in data.split(0.2, seed=seed)[1]}
        for part, is_val in zip(fewer.split(0.2, seed=seed), (False, True), strict=True):
            assert all((image.numpy().tobytes() in val) == is_val for image, _ in part)

    def test_equal_images_are_on_one_side(self) -> None:
        images = dataset([0] * 90).images
        data = ImageDataset(torch.cat([images, images]), torch.arange(180) % 3, ("a", "b", "c"))
        _, val = data.split(0.3, seed=0)
        assert {index % 90 for index in val.ids.tolist()} == {index - 90 for index in val.ids.tolist() if index >= 90}

    def test_the_seed_alone_decides_in_every_version(self) -> None:
        data, before = dataset([i % 2 for i in range(20)], 2), torch.get_rng_state()
        assert data.split(0.2, seed=0)[1].ids.tolist() == [3, 9, 10]
        assert data.split(0.2, seed=1)[1].ids.tolist() != [3, 9, 10]
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("val_fraction", "seed", "message"),
        [
            *[(value, 0, r"val_fraction must be in \(0, 1\), got") for value in (0, 1, float("nan"), "0.1")],
            *[(0.1, value, "seed must be") for value in (0.5, -1)],
            (0.01, 0, "gives no validation image"),
        ],
    )
    def test_other_settings_are_refused(self, val_fraction: Any, seed: Any, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            dataset([0, 1, 2, 1]).split(val_fraction, seed=seed)


def test_the_fingerprint_covers_images_labels_classes_and_shape() -> None:
    base = ImageDataset(**GOOD)
    assert base.fingerprint == "2a36f6b1f5734c58f16562acac978dd52416fd8225849339ed6cf5f7670bb09d"  # in every version
    pixel = GOOD["images"].clone()
    pixel[1, 2, 3, 3] = 1
    shape = GOOD["images"].reshape(2, 3, 2, 8)
    changes = {"images": pixel}, {"images": shape}, {"labels": torch.tensor([1, 0])}, {"classes": ("a", "c")}
    others = [ImageDataset(**(GOOD | change)) for change in changes]
    assert len({data.fingerprint for data in (base, *others)}) == 5
    assert ImageDataset(**GOOD, ids=torch.tensor([8, 9]), name="other").fingerprint == base.fingerprint
