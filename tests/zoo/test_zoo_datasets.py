"""Data sets: the digits split, the order behind `limit`, the user's own data, and the shape that all readers share."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from tests.zoo import cases, files

from bookkd.core.errors import ConfigError, DataError, UnknownNameError
from bookkd.zoo import DATASETS, FILELESS, ArrayDataset, ImageDataset, VectorDataset, fingerprint, open_dataset
from bookkd.zoo.digits_targets import MOST
from bookkd.zoo.order import stratified_order


class Pairs:
    classes = ("no", "yes")

    def __init__(self, root: Path | None = None, split: str = "train", count: int = 6) -> None:
        self.root, self.split, self.count = root, split, count
        self.targets = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return Image.new("RGB", (3, 2), (index, 0, 255)), self.targets[index]


def plain_list() -> list:
    return [(np.full((1, 2, 2), label, dtype=np.uint8), np.int64(label)) for label in (0, 2, 2)]


def words() -> list:
    return [(torch.ones(1, 2, 2), "cat")]


def triples() -> list:
    return [(torch.ones(1), 0, 0)]


def texts() -> list:
    return [("a text", 0)]


def negative() -> list:
    return [(torch.ones(1), 0), (torch.ones(1), -2)]


def nobody_knows() -> list:
    return [(torch.ones(1), -1), (torch.ones(1), -1)]


class FewLabels(Pairs):
    """Many pictures, few labels: every fifth class is known."""

    def __init__(self, count: int = 100) -> None:
        super().__init__(count=count)
        self.targets = [index % 2 if index % 5 == 0 else -1 for index in range(count)]


def half_labels() -> Pairs:
    dataset = Pairs()
    dataset.labels = [0.5] * 5
    return dataset


class Tags(Pairs):
    """Two kinds of tags a picture, told by `labels` alone."""

    classes = ("round", "red")

    def __init__(self, labels=None, count: int = 6) -> None:
        super().__init__(count=count)
        self.labels = [[1, 0], [0, 1], [1, 1], [-1, 0], [0, 0], [1, -1]] if labels is None else labels


def read_tags() -> list:
    return [(torch.ones(1, 2, 2), torch.tensor([label, 1 - label])) for label in (0, 1, 1)]


def angles() -> list:
    return [(torch.ones(1, 2, 2), label) for label in (0.5, np.float32(-1), float("nan"), torch.tensor(2.0))]


def uneven() -> list:
    return [(torch.ones(1), [0, 1]), (torch.ones(1), [0, 1, 1])]


def nothing() -> list:
    return []


def stream():
    yield torch.ones(1), 0


def test_every_name_has_a_case():
    assert set(DATASETS) == set(cases.DATASETS)


@pytest.mark.parametrize(("name", "shape"), cases.DATASETS.items())
@pytest.mark.parametrize("split", ["train", "test"])
def test_all_readers_give_the_same_kind_of_thing(tmp_path: Path, name: str, shape: tuple[int, ...], split: str):
    files.write(name, tmp_path)
    dataset = open_dataset(name, root=None if name in FILELESS else tmp_path, split=split)
    assert isinstance(dataset, ImageDataset)
    image, label = dataset[0]
    assert image.shape == shape
    assert image.dtype == torch.uint8
    assert all(isinstance(each, str) for each in dataset.class_names)
    if name in cases.VECTORS:
        dtype, length = cases.VECTORS[name]
        assert str(label.dtype) == f"torch.{dtype}"
        assert dataset.labels.dtype == dtype
        assert dataset.labels.shape == (len(dataset), length) == (len(dataset), len(dataset.class_names))
        assert torch.equal(torch.stack([dataset[i][1] for i in range(len(dataset))]), torch.from_numpy(dataset.labels))
    else:
        assert type(label) is int
        assert dataset.labels.dtype == np.int64
        assert [dataset[i][1] for i in range(len(dataset))] == dataset.labels.tolist()
        assert dataset.labels.max() < len(dataset.class_names)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1][0], dataset[1][0])


def test_digits_are_scikit_learns():
    raw = load_digits()
    whole = open_dataset("digits", split="all")
    np.testing.assert_allclose(whole.images[:, 0].numpy() / 255 * 16, raw.images, atol=0.04)
    assert whole.labels.tolist() == raw.target.tolist()
    assert (int(whole.images.min()), int(whole.images.max())) == (0, 255)


def test_digits_split_is_fixed_stratified_and_without_overlap():
    train, test = open_dataset("digits"), open_dataset("digits", split="test")
    assert (len(train), len(test)) == (1297, 500)
    share = np.bincount(test.labels) / np.bincount(open_dataset("digits", split="all").labels)
    assert np.abs(share - 500 / 1797).max() < 0.006
    rows = [set(map(bytes, each.images.numpy().reshape(len(each), -1))) for each in (train, test)]
    assert not rows[0] & rows[1]
    # The split is part of every published number: this digest may never change.
    assert xxhash.xxh3_64_hexdigest(test.images.numpy().tobytes()) == "4c93e0d7bf446df4"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.data())
def test_every_prefix_of_the_order_holds_the_classes_in_their_shares(labels: list[int], data: st.DataObject):
    array = np.array(labels)
    order = stratified_order(array, "test")
    assert sorted(order.tolist()) == list(range(len(labels)))
    length = data.draw(st.integers(0, len(labels)))
    classes, sizes = np.unique(array, return_counts=True)
    held = np.array([(array[order[:length]] == each).sum() for each in classes])
    shares = sizes / len(labels)
    # Half a sample of rounding in each class, and one where the prefix ends between equal places.
    assert (np.abs(held - length * shares) <= 1.5 + shares * len(classes) / 2).all()


def test_order_within_a_class_is_random_but_fixed():
    labels = np.zeros(50, dtype=np.int64)
    order = stratified_order(labels, "a")
    assert order.tolist() == stratified_order(labels, "a").tolist()
    assert order.tolist() != sorted(order.tolist())
    assert order.tolist() != stratified_order(labels, "b").tolist()


def test_a_smaller_limit_is_a_part_of_a_larger_one():
    small, large = (open_dataset("digits", limit=limit) for limit in (37, 200))
    assert len(small) == 37
    for index in range(37):
        assert torch.equal(small[index][0], large[index][0])
    assert small.labels.tolist() == large.labels.tolist()[:37]
    assert np.bincount(large.labels, minlength=10).tolist() == [20] * 10
    assert len(open_dataset("digits", limit=10**6)) == 1297


def test_own_data_of_torchvisions_kind(tmp_path: Path):
    dataset = open_dataset(f"{__name__}:Pairs", root=tmp_path, split="test", args={"count": 4})
    assert (dataset.whole.root, dataset.whole.split) == (tmp_path, "test")
    assert (dataset.name, dataset.class_names, dataset.labels.tolist()) == (
        f"{__name__}:Pairs",
        ("no", "yes"),
        [0, 1, 0, 1],
    )
    image, label = dataset[3]
    assert image.shape == (3, 2, 3)
    assert image[:, 0, 0].tolist() == [3, 0, 255]
    assert label == 1
    assert [int(image[0, 0, 0]) for image, _ in dataset] == [0, 1, 2, 3]


def test_own_data_without_names_is_read_once_for_its_labels():
    dataset = open_dataset(f"{__name__}:plain_list", limit=2)
    assert dataset.class_names == ("0", "1", "2")
    assert sorted(dataset.labels.tolist()) == [0, 2]
    assert dataset[0][0].dtype == torch.uint8


def test_samples_without_a_class_are_data_too():
    whole = open_dataset(f"{__name__}:FewLabels")
    assert whole.labels.tolist().count(-1) == 80
    assert [whole[index][1] for index in range(6)] == [0, -1, -1, -1, -1, 1]
    part = open_dataset(f"{__name__}:FewLabels", limit=20)
    assert sorted(part.labels.tolist()) == [-1] * 16 + [0] * 2 + [1] * 2
    assert [part[index][1] for index in range(20)] == part.labels.tolist()
    assert fingerprint(part)["labels"] == xxhash.xxh3_128_hexdigest(part.labels.astype("<i8").tobytes())
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    assert ArrayDataset("mine", images, np.array([-1, 0, -1]), ("a",))[2][1] == -1


def test_pairs_of_digits_say_which_occur():
    digits, pairs = open_dataset("digits"), open_dataset("digits-pairs")
    assert len(pairs) == len(digits) == 1297
    at = {bytes(image.numpy()): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}
    for i in range(0, len(pairs), 31):
        image, label = pairs[i]
        left, right = (at[bytes(half.contiguous().numpy())] for half in image.split(8, dim=-1))
        assert left == digits.labels[i]
        assert label.nonzero().flatten().tolist() == sorted({left, right})
    assert set(pairs.labels.sum(axis=1)) == {1, 2}


def test_angles_turn_the_digits():
    digits, turned = open_dataset("digits"), open_dataset("digits-angle")
    assert np.abs(turned.labels).max() < MOST
    assert abs(turned.labels.mean()) < 0.05
    assert turned.labels.std() == pytest.approx(2 * MOST / 12**0.5, rel=0.03)  # of a uniform distribution
    for i in range(0, 200, 17):
        image, label = turned[i]
        degrees = float(label) * 180 / np.pi
        # PIL turns counter-clockwise about the centre of the image, too.
        wanted = Image.fromarray(digits.images[i, 0].numpy()).rotate(degrees, resample=Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(wanted, dtype=int) - image[0].numpy().astype(int))
        assert np.median(difference) <= 1
        assert difference[2:6, 2:6].max() <= 3


@pytest.mark.parametrize("name", sorted(cases.VECTORS))
def test_sets_made_of_digits_are_the_same_everywhere(name):
    parts = [open_dataset(name, split=split) for split in ("train", "test", "all")]
    assert [len(part) for part in parts] == [1297, 500, 1797]
    assert torch.equal(parts[2].images, torch.cat([parts[0].images, parts[1].images]))
    assert np.array_equal(parts[2].labels, np.concatenate([parts[0].labels, parts[1].labels]))
    small, large = (open_dataset(name, limit=limit) for limit in (37, 200))
    assert all(torch.equal(small[i][0], large[i][0]) and torch.equal(small[i][1], large[i][1]) for i in range(37))
    assert xxhash.xxh3_64_hexdigest(parts[1].labels.tobytes()) == LABELS_OF_TEST[name]


# The labels are part of every published number: these digests may never change.
LABELS_OF_TEST = {"digits-angle": "1e9c6d86aac498a3", "digits-pairs": "280b37a441358266"}


def test_own_data_with_several_labels_or_numbers():
    tags = open_dataset(f"{__name__}:Tags")
    assert (tags.class_names, tags.labels.dtype, tags.labels.shape) == (("round", "red"), np.int64, (6, 2))
    image, label = tags[3]
    assert image.shape == (3, 2, 3)
    assert label.tolist() == [-1, 0]
    part = open_dataset(f"{__name__}:Tags", limit=3)
    assert [part[index][1].tolist() for index in range(3)] == part.labels.tolist()
    read = open_dataset(f"{__name__}:read_tags")
    assert (read.class_names, read.labels.tolist()) == (("0", "1"), [[0, 1], [1, 0], [1, 0]])
    numbers = open_dataset(f"{__name__}:angles")
    assert (numbers.class_names, numbers.labels.dtype) == (("0",), np.float32)
    np.testing.assert_equal(numbers.labels, np.array([[0.5], [-1], [np.nan], [2]], dtype=np.float32))
    assert numbers[1][1].tolist() == [-1]
    truths = open_dataset(f"{__name__}:Tags", args={"labels": np.array([[True, False]] * 6)})
    assert truths.labels.dtype == np.int64
    assert truths[0][1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("digit", {}, UnknownNameError, r"Unknown data set 'digit'. Nearest: digits"),
        ("digits", {"split": "tset"}, UnknownNameError, r"Unknown split 'tset' \(data set digits\). Nearest: test"),
        ("digits", {"root": "."}, ConfigError, r"`root` to be absent, got '\.' \(data set digits\)"),
        ("digits", {"download": True}, ConfigError, r"This data set is never fetched"),
        ("digits", {"limit": 0}, ConfigError, r"`limit` to be a whole number of at least 1"),
        ("digits", {"args": {"cache": True}}, ConfigError, r"that it takes \(none\), got \{'cache': True\}"),
        (
            "folder",
            {"root": ".", "args": {"split": "x"}},
            ConfigError,
            r"without 'split', which has an option of its own",
        ),
        (f"{__name__}:plain_list", {"split": "test"}, ConfigError, r"Give the callable an argument `split`"),
        (
            f"{__name__}:words",
            {},
            DataError,
            r"`class` to be a whole number, -1 where not known, got 'cat' \(.*:words, sample 0\)",
        ),
        (f"{__name__}:triples", {}, DataError, r"an \(image, class\) pair, got 'tuple'"),
        (f"{__name__}:texts", {}, DataError, r"a tensor, an array or a PIL image, got 'str'"),
        (f"{__name__}:negative", {}, DataError, r"0 and 0, or -1 where not known, got -2 \(.*:negative, sample 1\)"),
        (f"{__name__}:nobody_knows", {}, DataError, r"given where no sample has a class, got 'none'.*`class_names`"),
        (f"{__name__}:half_labels", {}, DataError, r"6 whole numbers, one a sample, or vectors, got float64 \(5,\)"),
        (f"{__name__}:uneven", {}, DataError, r"`labels` to be of one length for all samples, got .*\(.*:uneven\)"),
        (f"{__name__}:nothing", {}, DataError, r"at least one sample long, got 0"),
        (f"{__name__}:stream", {}, DataError, r"an object with a length and items by number"),
        (f"{__name__}:__doc__", {}, ConfigError, r"a callable that returns a data set"),
    ],
)
def test_refusals(name: str, options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        open_dataset(name, **options)


def test_arrays_are_checked():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"between 0 and 1, or -1 where not known, got 2 \(mine, sample 1\)"):
        ArrayDataset("mine", images, np.array([0, 2]), ("a", "b"))
    with pytest.raises(DataError, match=r"`labels` to be 2, one an image, got 3"):
        ArrayDataset("mine", images, np.array([0, 1, 1]), ("a", "b"))
    with pytest.raises(DataError, match=r"uint8 \[n, channels, height, width\], got torch.float32 \(2, 1, 2, 2\)"):
        ArrayDataset("mine", images.float(), np.array([0, 1]), ("a", "b"))


def test_vectors_are_checked():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(
        DataError, match=r"`labels` to be numbers \[2, 3\], one vector a sample, got int64 \(2, 2\) \(mine\)"
    ):
        VectorDataset("mine", images, np.zeros((2, 2), dtype=int), ("a", "b", "c"))
    with pytest.raises(DataError, match=r"numbers \[2, 1\], one vector a sample, got <U1 \(2, 1\)"):
        VectorDataset("mine", images, np.array([["a"], ["b"]]), ("a",))
    with pytest.raises(DataError, match=r"uint8 \[n, channels, height, width\], got torch.float32"):
        VectorDataset("mine", images.float(), np.zeros((2, 1)), ("a",))
    one = VectorDataset("mine", images, np.zeros((2, 1)), ("a",))
    one[0][1][0] = 5
    assert one[0][1].tolist() == [0]
