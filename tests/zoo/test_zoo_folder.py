"""Image folders and zips: layouts, splits, workers, the cache, and files that are not what they should be."""

from __future__ import annotations

import multiprocessing
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.zoo.files import write_images
from torch.utils.data import DataLoader

from bookkd.core.errors import DataError, UnknownNameError
from bookkd.zoo import open_dataset

TREE = {
    "train/cat/a.png": 1,
    "train/cat/b.png": 2,
    "train/emu/c.png": 3,
    "val/cat/d.png": 4,
    "val/dog/sub/e.PNG": 5,
}


def zipped(folder: Path, *, wrapper: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted(folder.rglob("*")):
            archive.write(each, wrapper + each.relative_to(folder).as_posix())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "data", TREE)
    return tmp_path / "data"


def reds(dataset) -> list[int]:
    return [int(dataset[i][0][0, 0, 0]) for i in range(len(dataset))]


@pytest.mark.parametrize("kind", ["folder", "zip", "wrapped zip", "wrapped folder"])
@pytest.mark.parametrize("cache", [False, True])
def test_layouts(root: Path, kind: str, cache: bool):
    place = root
    if kind == "wrapped folder":
        place = root.parent / "above"
        write_images(place / "inner", TREE)
    elif kind != "folder":
        place = zipped(root, wrapper="inner/" if kind == "wrapped zip" else "")
    dataset = open_dataset("folder", root=place, args={"cache": cache})
    assert dataset.class_names == ("cat", "dog", "emu")
    assert dataset.labels.tolist() == [0, 0, 2]
    assert reds(dataset) == [1, 2, 3]
    image, label = dataset[2]
    assert image.shape == (3, 5, 6)
    assert image[:, 4, 5].tolist() == [3, 0, 255]
    assert label == 2


def test_a_class_that_one_split_lacks_does_not_move_the_others(root: Path):
    dataset = open_dataset("folder", root=root, split="val")
    assert dataset.class_names == ("cat", "dog", "emu")
    assert dataset.labels.tolist() == [0, 1]
    assert reds(dataset) == [4, 5]


def test_a_tree_without_splits(tmp_path: Path):
    # Of vehicles, "train" is a class.
    write_images(tmp_path, {"car/1.png": 1, "train/2.png": 2, "train/3.png": 3})
    dataset = open_dataset("folder", root=tmp_path)
    assert dataset.class_names == ("car", "train")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert reds(open_dataset("folder", root=tmp_path, split="all")) == [1, 2, 3]
    with pytest.raises(
        DataError, match=r"a tree with a folder 'test', got class folders directly below the root .* --data.split all"
    ):
        open_dataset("folder", root=tmp_path, split="test")


def test_hidden_and_other_files_are_left_out(root: Path):
    for name in (".hidden/x.png", "train/cat/._a.png", "__MACOSX/train/cat/a.png", "train/cat/notes.txt", "words.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no picture")
    assert reds(open_dataset("folder", root=root)) == [1, 2, 3]


def test_grey_and_palette_images_become_rgb(tmp_path: Path):
    (tmp_path / "one").mkdir()
    Image.new("L", (2, 2), 7).save(tmp_path / "one" / "a.png")
    Image.new("P", (2, 2), 0).save(tmp_path / "one" / "b.gif")
    Image.new("RGBA", (2, 2), (1, 2, 3, 0)).save(tmp_path / "one" / "c.png")
    dataset = open_dataset("folder", root=tmp_path)
    assert [tuple(dataset[i][0].shape) for i in range(3)] == [(3, 2, 2)] * 3
    assert dataset[0][0][:, 0, 0].tolist() == [7, 7, 7]


def test_sizes_may_vary_but_not_in_the_cache(tmp_path: Path):
    write_images(tmp_path, {"a/1.png": 1}, size=(4, 3))
    write_images(tmp_path, {"a/2.png": 1}, size=(5, 3))
    assert [tuple(image.shape) for image, _ in (open_dataset("folder", root=tmp_path)[i] for i in (0, 1))] == [
        (3, 3, 4),
        (3, 3, 5),
    ]
    with pytest.raises(DataError, match=r"`image` to be \(3, 4\) pixels as the first one, got \(3, 5\) \(a/2.png\)"):
        open_dataset("folder", root=tmp_path, args={"cache": True})


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_workers_open_the_zip_for_themselves(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    (tmp_path / "data" / "one").mkdir(parents=True)
    for index, each in enumerate(noise):
        Image.fromarray(each).save(tmp_path / "data" / "one" / f"{index:02}.png")
    dataset = open_dataset("folder", root=zipped(tmp_path / "data"))
    assert len(dataset[0]) == 2  # the parent has the archive open before the workers start
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    found = torch.cat([images for images, _ in loader])
    np.testing.assert_array_equal(found.numpy(), noise.transpose(0, 3, 1, 2))
    assert reds(dataset)[:3] == noise[:3, 0, 0, 0].tolist()


def test_an_open_zip_pickles(root: Path):
    dataset = open_dataset("folder", root=zipped(root))
    assert reds(pickle.loads(pickle.dumps(dataset))) == reds(dataset)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_damaged_image_is_named(root: Path, form: str):
    whole = (root / "train/cat/b.png").read_bytes()
    (root / "train/cat/b.png").write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset("folder", root=root if form == "folder" else zipped(root))
    assert int(dataset[0][0][0, 0, 0]) == 1
    with pytest.raises(DataError, match=r"`image` to be a whole picture, got .*train/cat/b.png\)\. Replace the file"):
        dataset[1]


def test_damaged_bytes_inside_a_zip_are_named(root: Path):
    path = zipped(root)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("train/cat/a.png").header_offset + 60
    data = bytearray(path.read_bytes())
    data[start] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"BadZipFile: Bad CRC-32 .*train/cat/a.png"):
        open_dataset("folder", root=path)[0]


def test_wrong_layouts(root: Path, tmp_path: Path):
    with pytest.raises(UnknownNameError, match=r"Unknown split 'test' \(data set folder, .*\). Nearest: .*val"):
        open_dataset("folder", root=root, split="test")
    with pytest.raises(DataError, match=r"`root` to be a folder or a zip, got None .* Pass --data.root DIR"):
        open_dataset("folder")
    with pytest.raises(DataError, match="a folder or a zip, got no such path"):
        open_dataset("folder", root=tmp_path / "absent")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match=r"got another kind of file .* \[split/\]class/image"):
        open_dataset("folder", root=tmp_path / "file.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"a tree of images, got 1 other files .* \[split/\]class/image"):
        open_dataset("folder", root=tmp_path / "empty")
    write_images(tmp_path / "flat", {"1.png": 1, "2.png": 2})
    with pytest.raises(DataError, match=r"inside a class folder, got '1.png'"):
        open_dataset("folder", root=tmp_path / "flat")
    write_images(root, {"train/lost.png": 9})
    with pytest.raises(DataError, match=r"inside a class folder, got 'train/lost.png'"):
        open_dataset("folder", root=root)
