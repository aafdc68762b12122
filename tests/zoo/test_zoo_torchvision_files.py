"""CIFAR and MNIST layouts: against torchvision's own reader, without running what a pickle asks for."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from tests.zoo import files

from bookkd.core.errors import DataError, UnknownNameError
from bookkd.zoo import open_dataset


@pytest.mark.parametrize(("name", "loader"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_against_torchvision(tmp_path: Path, name: str, loader: str):
    files.write(name, tmp_path)
    for split in ("train", "test"):
        wanted = getattr(torchvision.datasets, loader)(root=str(tmp_path), train=split == "train")
        found = open_dataset(name, root=tmp_path, split=split)
        assert torch.equal(found.images[:, 0], wanted.data)
        assert found.labels.tolist() == wanted.targets.tolist()
        assert len(found.class_names) == len(wanted.classes) == 10
    if name == "fashion-mnist":
        assert list(found.class_names) == wanted.classes


def test_idx_files_may_be_compressed_and_lie_in_the_root(tmp_path: Path):
    files.write_idx(tmp_path / "plain")
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "plain").iterdir():
        (tmp_path / "packed" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    plain, packed = (open_dataset("fashion-mnist", root=tmp_path / each) for each in ("plain", "packed"))
    assert torch.equal(plain.images, packed.images)
    assert plain.labels.tolist() == packed.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_batches_of_python_2(tmp_path: Path, name: str):
    files.write(name, tmp_path)
    test = open_dataset(name, root=tmp_path, split="test")
    seed = 1 if name == "cifar100" else 5
    np.testing.assert_array_equal(test.images.numpy().reshape(4, -1), files.pixels(seed, 4, 3072))
    assert test.labels.tolist() == [seed, seed + 1, seed + 2, seed + 3]
    train = open_dataset(name, root=tmp_path)
    assert len(train) == (4 if name == "cifar100" else 20)
    np.testing.assert_array_equal(train.images[:4].numpy().reshape(4, -1), files.pixels(0, 4, 3072))
    assert train.class_names[3] == "class 3"


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_batches_of_python_3(tmp_path: Path, protocol: int):
    files.write("cifar10", tmp_path)
    batch = {b"data": files.pixels(9, 2, 3072), b"labels": [3, 4]}
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    found = open_dataset("cifar10", root=tmp_path, split="test")
    np.testing.assert_array_equal(found.images.numpy().reshape(2, -1), files.pixels(9, 2, 3072))
    assert found.labels.tolist() == [3, 4]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_batch_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    files.write("cifar10", tmp_path)
    Path("cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({"data": Bomb()}))
    with pytest.raises(DataError, match=r"UnpicklingError: \w+.mkdir has no place in a data set"):
        open_dataset("cifar10", root=tmp_path, split="test")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"not a pickle", r"a whole batch of CIFAR, got .*test_batch\)\. The file is damaged"),
        (pickle.dumps([1]), r"a batch of CIFAR, got 'list'"),
        (pickle.dumps({"labels": [1]}), r"a batch of CIFAR with 'data', got \['labels'\]"),
        (
            pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}),
            r"uint8 \[n, 3072\], got uint8 \(2, 5\)",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
            r"`labels` to be 2, one an image, got 1",
        ),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
            r"between 0 and 9, or -1 where not known, got 10 \(cifar10, sample 0\)",
        ),
    ],
)
def test_wrong_batches(tmp_path: Path, batch: bytes, message: str):
    files.write("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(batch)
    with pytest.raises(DataError, match=message):
        open_dataset("cifar10", root=tmp_path, split="test")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\0\0\x0d" + data[3:],
        lambda data: data[:6],
        lambda data: b"",
    ],
)
def test_wrong_idx_files(tmp_path: Path, damage):
    files.write("mnist", tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"an IDX file of uint8 in 3 dimensions, got \d+ bytes"):
        open_dataset("mnist", root=tmp_path)


def test_a_damaged_gz_is_named(tmp_path: Path):
    files.write_idx(tmp_path / "raw")
    path = tmp_path / "raw" / "train-images-idx3-ubyte"
    data = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"`file` to be readable, got .*ubyte.gz\)\. Fetch it again"):
        open_dataset("mnist", root=tmp_path / "raw")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar10",
            r"a folder with cifar-10-batches-py/data_batch_1, got .* Get it from the CIFAR page .* --data.download true",
        ),
        ("cifar100", r"a folder with cifar-100-python/train, got .* Get it from the CIFAR page"),
        ("mnist", r"a folder with MNIST/raw/train-images-idx3-ubyte, got .* Get it from the MNIST page"),
        ("fashion-mnist", r"a folder with FashionMNIST/raw/train-images-idx3-ubyte, got .* Debian's package"),
    ],
)
def test_absent_files(tmp_path: Path, name: str, message: str):
    with pytest.raises(DataError, match=message):
        open_dataset(name, root=tmp_path)
    with pytest.raises(DataError, match=r"`root` to be the folder that holds .*, got None .* Pass --data.root DIR"):
        open_dataset(name)
    with pytest.raises(UnknownNameError, match="Unknown split 'val'"):
        open_dataset(name, root=tmp_path, split="val")


@pytest.mark.parametrize(("name", "loader"), [("mnist", "MNIST"), ("cifar100", "CIFAR100")])
def test_files_are_fetched_only_when_asked_and_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, loader: str
):
    calls = []

    def fetch(root: str, download: bool) -> None:
        calls.append((root, download))
        files.write(name, Path(root))

    monkeypatch.setattr(torchvision.datasets, loader, fetch)
    with pytest.raises(DataError, match=r"--data\.download true"):
        open_dataset(name, root=tmp_path)
    assert calls == []
    assert len(open_dataset(name, root=tmp_path, download=True)) > 0
    open_dataset(name, root=tmp_path, download=True)
    assert calls == [(str(tmp_path), True)]


def test_a_failed_fetch_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    with pytest.raises(DataError, match=r"`download` to be MNIST in .*Error downloading .* Check the connection"):
        open_dataset("mnist", root=tmp_path, download=True)
