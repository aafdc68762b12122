"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST in the layouts in which torchvision keeps them under a root.

torchvision fetches the files if asked to; reading them is done here, so that nothing in them can run: CIFAR's batches
are pickles, which are opened with a reader that knows arrays and plain containers only.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bookkd.core.errors import DataError, expected
from bookkd.core.names import choose, require
from bookkd.zoo.images import ArrayDataset

__all__ = ["cifar10", "cifar100", "fashion_mnist", "mnist"]

_CIFAR_HOME = "the CIFAR page of the University of Toronto (Alex Krizhevsky)"


def cifar10(*, root: Path | None, split: str = "train", download: bool = False) -> ArrayDataset:
    """Read CIFAR-10, 50,000 + 10,000 images [3, 32, 32], from `root/cifar-10-batches-py`.

    Args:
        root: The folder that holds, or will hold, `cifar-10-batches-py`.
        split: "train" or "test".
        download: If true, let torchvision fetch what is not there.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _cifar(
        "cifar10",
        "CIFAR10",
        "cifar-10-batches-py",
        root,
        split,
        download,
        files,
        ("batches.meta", "label_names", "labels"),
    )


def cifar100(*, root: Path | None, split: str = "train", download: bool = False) -> ArrayDataset:
    """Read CIFAR-100, 50,000 + 10,000 images [3, 32, 32] in its 100 fine classes, from `root/cifar-100-python`.

    Args:
        root: The folder that holds, or will hold, `cifar-100-python`.
        split: "train" or "test".
        download: If true, let torchvision fetch what is not there.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    files = {"train": ["train"], "test": ["test"]}
    return _cifar(
        "cifar100",
        "CIFAR100",
        "cifar-100-python",
        root,
        split,
        download,
        files,
        ("meta", "fine_label_names", "fine_labels"),
    )


def mnist(*, root: Path | None, split: str = "train", download: bool = False) -> ArrayDataset:
    """Read MNIST, 60,000 + 10,000 images [1, 28, 28], from `root/MNIST/raw` or from files directly in the root.

    Args:
        root: A folder with `train-images-idx3-ubyte` and its companions (or `.gz`), or the one above `MNIST/raw`.
        split: "train" or "test".
        download: If true, let torchvision fetch what is not there.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST Database of Handwritten Digits", 1998.
    """
    names = tuple(str(digit) for digit in range(10))
    return _idx("mnist", "MNIST", "the MNIST page of Yann LeCun or its mirrors", names, root, split, download)


def fashion_mnist(*, root: Path | None, split: str = "train", download: bool = False) -> ArrayDataset:
    """Read Fashion-MNIST, 60,000 + 10,000 images [1, 28, 28], from `root/FashionMNIST/raw` or directly from the root.

    Args:
        root: A folder with `train-images-idx3-ubyte` and its companions (or `.gz`), or the one above `FashionMNIST/raw`.
        split: "train" or "test".
        download: If true, let torchvision fetch what is not there.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017, https://arxiv.org/abs/1708.07747.
    """
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    home = "the repository zalandoresearch/fashion-mnist, or Debian's package dataset-fashion-mnist"
    return _idx("fashion-mnist", "FashionMNIST", home, names, root, split, download)


class _ArraysOnly(pickle.Unpickler):
    """A reader of pickles that can make numpy arrays and plain containers, and can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)  # type: ignore[attr-defined]
        if (module, name) == ("_codecs", "encode"):
            # How a pickle of protocol 2 that Python 3 wrote spells bytes.
            return lambda text, encoding: text.encode(choose(encoding, ("latin1",), "encoding"))
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        found = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # whatever a damaged pickle raises, the file is at fault
        raise DataError(
            expected("file", "a whole batch of CIFAR", f"{type(error).__name__}: {error}", where=str(path))
            + " The file is damaged; fetch it again."
        ) from error
    if not isinstance(found, dict):
        raise DataError(expected("file", "a batch of CIFAR", type(found).__name__, where=str(path)))
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _entry(batch: dict[str, Any], key: str, path: Path) -> Any:
    if key not in batch:
        raise DataError(expected("file", f"a batch of CIFAR with {key!r}", sorted(batch), where=str(path)))
    return batch[key]


def _cifar(
    name: str,
    loader: str,
    folder: str,
    root: Path | None,
    split: str,
    download: bool,
    files: dict[str, list[str]],
    meta: tuple[str, str, str],
) -> ArrayDataset:
    choose(split, files, "split", where=f"data set {name}")
    names_file, names_key, labels_key = meta
    wanted = [*files[split], names_file]
    if root is not None and not all((root / folder / each).is_file() for each in wanted) and download:
        _fetch(loader, root)
    home = _present(name, root, [Path(folder)], wanted, _CIFAR_HOME)
    images, labels = [], []
    for each in files[split]:
        batch = _unpickle(home / each)
        data = np.asarray(_entry(batch, "data", home / each))
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            got = f"{data.dtype} {data.shape}"
            raise DataError(expected("data", "uint8 [n, 3072]", got, where=str(home / each)))
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(np.asarray(_entry(batch, labels_key, home / each), dtype=np.int64))
    class_names = _entry(_unpickle(home / names_file), names_key, home / names_file)
    return ArrayDataset(
        name, torch.from_numpy(np.concatenate(images)), np.concatenate(labels), tuple(str(each) for each in class_names)
    )


def _idx(
    name: str, loader: str, source: str, class_names: tuple[str, ...], root: Path | None, split: str, download: bool
) -> ArrayDataset:
    prefix = {"train": "train", "test": "t10k"}[choose(split, ("train", "test"), "split", where=f"data set {name}")]
    wanted = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    places = [Path(loader) / "raw", Path()]
    if root is not None and download and not any(_has(root / place, wanted) for place in places):
        _fetch(loader, root)
    home = _present(name, root, places, wanted, source)
    images, labels = (_read_idx(home / each, dimensions) for each, dimensions in zip(wanted, (3, 1), strict=True))
    return ArrayDataset(name, torch.from_numpy(images[:, None]), labels.astype(np.int64), class_names)


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one file of the IDX format: 0, 0, 8 (uint8), dimensions, big-endian sizes, bytes."""
    path = path if path.is_file() else path.with_name(path.name + ".gz")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(expected("file", "readable", str(error), where=str(path), do="Fetch it again.")) from error
    start = 4 + 4 * dimensions
    sizes = [int(size) for size in np.frombuffer(data[4:start], ">u4")] if len(data) >= start else []
    length = int(np.prod(sizes, dtype=object)) if sizes else -1
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) - start != length:
        got = f"{len(data)} bytes that begin {data[:4]!r}, sizes {sizes}"
        raise DataError(expected("file", f"an IDX file of uint8 in {dimensions} dimensions", got, where=str(path)))
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes).copy()


def _has(folder: Path, names: list[str]) -> bool:
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)


def _present(name: str, root: Path | None, places: list[Path], wanted: list[str], source: str) -> Path:
    """Return the first of the places below the root that has all files."""
    layout = f"{places[0].as_posix()}/{wanted[0]}"
    advice = f"Get it from {source}, or pass --data.download true to fetch it."
    if root is None:
        raise DataError(
            expected("root", f"the folder that holds {layout}", None, where=f"data set {name}")
            + f" Pass --data.root DIR. {advice}"
        )
    for place in places:
        if _has(root / place, wanted):
            return root / place
    missing = next(each for each in wanted if not _has(root / places[0], [each]))
    raise DataError(
        expected(
            "root", f"a folder with {layout}", f"no {places[0].as_posix()}/{missing}", where=f"data set {name}, {root}"
        )
        + f" {advice}"
    )


def _fetch(loader: str, root: Path) -> None:
    sets = require("torchvision.datasets", "train")
    try:
        getattr(sets, loader)(root=str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            expected("download", f"{loader} in {root}", f"{type(error).__name__}: {error}")
            + " Check the connection, or fetch the files elsewhere and pass --data.root DIR."
        ) from error
