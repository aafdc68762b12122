"""Small files in the layouts of the public sets, written by what wrote the originals or by the letter of their format."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image


class Python2Pickler(pickle._Pickler):
    """Write bytes as Python 2 wrote its strings, as the original CIFAR batches have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


def python2_pickle(path: Path, value: object) -> None:
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(value)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def write_cifar(root: Path, *, fine: bool) -> None:
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    names = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    key = "fine_labels" if fine else "labels"
    for seed, name in enumerate(names):
        labels = [(seed + i) % (100 if fine else 10) for i in range(4)]
        python2_pickle(folder / name, {"data": pixels(seed, 4, 3072), key: labels, "filenames": ["a.png"] * 4})
    meta, key, count = ("meta", "fine_label_names", 100) if fine else ("batches.meta", "label_names", 10)
    python2_pickle(folder / meta, {key: [f"class {i}" for i in range(count)]})


def write_idx(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed, prefix in enumerate(("train", "t10k")):
        images = pixels(seed, 5, 28, 28)
        labels = np.arange(5, dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">BBBBIII", 0, 0, 8, 3, 5, 28, 28) + images.tobytes()
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 5) + labels.tobytes())


def write_images(root: Path, tree: dict[str, int], size: tuple[int, int] = (6, 5)) -> None:
    """Write one PNG a path; the number is the value of its red channel."""
    for path, red in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (red, 0, 255)).save(root / path)


def write(name: str, root: Path) -> None:
    """Write a small data set of a name in the table."""
    if name in ("cifar10", "cifar100"):
        write_cifar(root, fine=name == "cifar100")
    elif name in ("mnist", "fashion-mnist"):
        write_idx(root / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] / "raw")
    elif name == "folder":
        tree = {
            f"{split}/{each}/{i}.png": i for split in ("train", "test") for each in ("cat", "dog") for i in range(3)
        }
        write_images(root, tree)
