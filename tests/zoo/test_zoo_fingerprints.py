"""Fingerprints: equal for equal data however it is read, different for every difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.zoo.files import write_images

from bookkd.core.errors import DataError
from bookkd.zoo import ArrayDataset, fingerprint, open_dataset

SMALL = ArrayDataset(
    "small", torch.arange(48, dtype=torch.uint8).view(6, 2, 2, 2), np.array([0, 1, 2, 0, 1, 2]), ("a", "b", "c")
)


def test_form():
    found = fingerprint(SMALL)
    assert json.loads(json.dumps(found)) == found
    assert (found["name"], found["length"], found["n_classes"]) == ("small", 6, 3)
    assert {len(found[key]) for key in ("classes", "labels", "samples")} == {32}
    assert fingerprint(SMALL) == found


def test_reading_at_once_or_one_by_one_is_the_same_data(tmp_path: Path):
    write_images(tmp_path / "here", {f"{name}/{i}.png": i for name in ("cat", "dog") for i in range(4)})
    lazy = fingerprint(open_dataset("folder", root=tmp_path / "here"))
    assert fingerprint(open_dataset("folder", root=tmp_path / "here", args={"cache": True})) == lazy
    (tmp_path / "here").rename(tmp_path / "there")
    assert fingerprint(open_dataset("folder", root=tmp_path / "there")) == lazy


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 47), st.integers(1, 255))
def test_every_pixel_of_a_small_set_counts(place: int, change: int):
    images = SMALL.images.clone()
    images.view(-1)[place] ^= change
    found, was = fingerprint(replace(SMALL, images=images)), fingerprint(SMALL)
    assert found["samples"] != was["samples"]
    assert found["labels"] == was["labels"]


def test_labels_classes_order_and_shape_count():
    was = fingerprint(SMALL)
    other_label = fingerprint(replace(SMALL, labels=np.array([0, 1, 2, 0, 1, 1])))
    assert other_label["labels"] != was["labels"]
    assert fingerprint(replace(SMALL, class_names=("a", "b", "d")))["classes"] != was["classes"]
    turned = ArrayDataset("small", SMALL.images.flip(0), SMALL.labels[::-1].copy(), SMALL.class_names)
    assert fingerprint(turned)["samples"] != was["samples"]
    flat = replace(SMALL, images=SMALL.images.view(6, 2, 4, 1))
    assert fingerprint(flat)["samples"] != was["samples"]


def test_all_labels_count_where_only_some_images_do():
    labels = np.zeros(1000, dtype=np.int64)
    images = torch.zeros(1000, 1, 1, 1, dtype=torch.uint8)
    was = fingerprint(ArrayDataset("long", images, labels, ("a", "b")))
    labels[1] = 1
    now = fingerprint(ArrayDataset("long", images, labels, ("a", "b")))
    assert now["samples"] == was["samples"]  # item 1 is not among the 256
    assert now["labels"] != was["labels"]


def test_at_most_256_items_are_read():
    class Counting:
        read = 0

        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int):
            Counting.read += 1
            return torch.tensor([index]), 0

    found = fingerprint(Counting())
    assert Counting.read == 256
    assert (found["name"], found["labels"], found["classes"], found["n_classes"]) == ("Counting", None, None, None)


ITEMS = [
    torch.ones(2),
    torch.ones(2, dtype=torch.float64),
    torch.ones(2, dtype=torch.bfloat16),
    np.ones(2, dtype=np.uint8),
    Image.new("L", (2, 2)),
    Image.new("L", (4, 1)),
    "a",
    b"a",
    1,
    1.5,
    None,
    [1, 2],
    [[1], 2],
    {"a": 1},
    {"b": 1},
    (torch.ones(2), None),
]


def test_items_of_all_kinds_are_told_apart():
    assert len({fingerprint([item])["samples"] for item in ITEMS}) == len(ITEMS)
    assert fingerprint([(torch.ones(1), 3)]) == fingerprint([(torch.ones(1), np.int64(3))])


def test_what_has_no_value_is_refused():
    with pytest.raises(DataError, match=r"made of tensors, arrays and plain values, got 'object' \(list, sample 0\)"):
        fingerprint([object()])


def test_vectors_and_numbers_as_labels_count():
    class Labelled:
        name = "labelled"

        def __init__(self, labels):
            self.labels = labels

        def __len__(self):
            return 400

        def __getitem__(self, index):
            return torch.zeros(1, 2, 2), 0

    vectors = np.zeros((400, 3), dtype=np.int64)
    was = fingerprint(Labelled(vectors))["labels"]
    changed = vectors.copy()
    changed[1, 2] = 1  # the items themselves are read at even distances
    assert fingerprint(Labelled(changed))["labels"] != was
    assert fingerprint(Labelled(vectors.astype(bool)))["labels"] == was
    assert fingerprint(Labelled(torch.from_numpy(vectors)))["labels"] == was
    assert fingerprint(Labelled(vectors.astype(float)))["labels"] != was
    numbers = np.linspace(0, 1, 400, dtype=np.float32)
    assert fingerprint(Labelled(numbers))["labels"] == fingerprint(Labelled(numbers[:, None]))["labels"]
    assert fingerprint(Labelled(numbers))["labels"] == fingerprint(Labelled(numbers.astype(np.float64)))["labels"]
    assert fingerprint(Labelled(numbers[::-1]))["labels"] != fingerprint(Labelled(numbers))["labels"]
    assert fingerprint(Labelled(vectors[:, 0]))["labels"] != fingerprint(Labelled(vectors[:, :1]))["labels"]
    assert fingerprint(Labelled(["a"] * 400))["labels"] is None
    assert fingerprint(Labelled([[1], [1, 2]] * 200))["labels"] is None
