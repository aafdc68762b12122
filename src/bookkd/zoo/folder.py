"""Image folders, on disk or inside a zip: [split/]class/.../image."""

from __future__ import annotations

import io
import os
import zipfile
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.names import choose, require
from bookkd.zoo.images import ArrayDataset

__all__ = ["SPLITS", "FolderDataset", "FolderFiles", "ZipFiles", "files_below", "folder"]

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
SPLITS = ("train", "test", "val", "valid", "validation")
_LAYOUT = "Lay the images out as [split/]class/image, for example train/cat/1.jpg."


class FolderFiles:
    """The files under a folder, by path relative to it.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Return every file's path with forward slashes; links to folders are followed."""
        found: list[str] = []
        for folder_path, _, files in os.walk(self.root, followlinks=True):
            below = Path(folder_path).relative_to(self.root)
            found.extend((below / name).as_posix() for name in files)
        return found

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        return (self.root / name).read_bytes()


class ZipFiles:
    """The files inside a zip, read in place; every process opens the archive for itself.

    Args:
        root: The zip.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_open": None}

    def _archive(self) -> zipfile.ZipFile:
        # A forked worker shares its parent's file position: it must not use the parent's handle.
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), zipfile.ZipFile(self.root))
        return self._open[1]

    def close(self) -> None:
        """Close the archive; the next read opens it again."""
        if self._open is not None and self._open[0] == os.getpid():
            self._open[1].close()
        self._open = None

    def __del__(self) -> None:
        self.close()

    def names(self) -> list[str]:
        """Return every file's path."""
        return [entry.filename for entry in self._archive().infolist() if not entry.is_dir()]

    def read(self, name: str) -> bytes:
        """Return the bytes of one file."""
        return self._archive().read(name)


class FolderDataset:
    """Images that are decoded to RGB when they are read.

    Args:
        name: Name of the set.
        files: Where they lie.
        paths: One path an image.
        labels: int64, one class an image.
        class_names: One name a class.
    """

    def __init__(
        self,
        name: str,
        files: FolderFiles | ZipFiles,
        paths: Sequence[str],
        labels: npt.NDArray[np.int64],
        class_names: tuple[str, ...],
    ) -> None:
        self.name = name
        self.files = files
        # One array pickles to workers as a block; a list of a million strings would be copied object by object.
        self.paths = np.array(paths)
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.decode(index)), int(self.labels[index])

    def decode(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 [3, height, width].

        Raises:
            DataError: a file that cannot be read or decoded, by its name.
        """
        path = str(self.paths[index])
        image = require("PIL.Image", "train")
        try:
            with image.open(io.BytesIO(self.files.read(path))) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except (
            OSError,
            ValueError,
            SyntaxError,
            RuntimeError,
            zipfile.BadZipFile,
            image.DecompressionBombError,
        ) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                expected("image", "a whole picture", reason, where=f"{self.files.root}, {path}", do="Replace the file.")
            ) from error
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def cached(self) -> ArrayDataset:
        """Decode every image once into one array.

        Raises:
            DataError: images of more than one size.
        """
        first = self.decode(0)
        images = np.empty((len(self), *first.shape), dtype=np.uint8)
        for index in range(len(self)):
            pixels = self.decode(index)
            if pixels.shape != first.shape:
                raise DataError(
                    expected(
                        "image", f"{first.shape[1:]} pixels as the first one", pixels.shape[1:], where=self.paths[index]
                    )
                    + " Do without the cache, and let a transform bring the images to one size."
                )
            images[index] = pixels
        return ArrayDataset(self.name, torch.from_numpy(images), self.labels, self.class_names)


def folder(*, root: Path | None, split: str = "train", cache: bool = False) -> FolderDataset | ArrayDataset:
    """Open a tree of images, one folder a class.

    The classes are the sorted names of the class folders of all splits together, so that a class which one split lacks
    does not move the others' numbers. A tree without split folders is one split, "train" (or "all"): asking it for
    another is an error, since that would hand out the training images as test images.

    Args:
        root: A folder, or a zip of one.
        split: Name of a folder below the root: "train", "test", "val", ...
        cache: If true, decode all images now into one uint8 array; they must have one size.

    Raises:
        DataError: no such root, no such split, no class folders or no images in them.
    """
    if root is None:
        raise DataError(
            expected("root", "a folder or a zip", None, where="data set folder", do="Pass --data.root DIR.")
        )
    files, wrapper, images = files_below(root, split)
    inside = [path.relative_to(wrapper) for path in images]
    depth, paths = _choose_split(inside, split, root)
    # The classes of all splits count, at the same depth below the root.
    splits = {path.parts[0] for path in inside} & {*SPLITS, split}
    classes = sorted(
        {path.parts[depth] for path in inside if depth == 0 or (path.parts[0] in splits and len(path.parts) > 2)}
    )
    labels = np.array([bisect_left(classes, path.parts[depth]) for path in paths], dtype=np.int64)
    dataset = FolderDataset("folder", files, [str(wrapper / path) for path in paths], labels, tuple(classes))
    return dataset.cached() if cache else dataset


def files_below(
    root: Path, split: str, layout: str = _LAYOUT
) -> tuple[FolderFiles | ZipFiles, PurePosixPath, list[PurePosixPath]]:
    """Return the files of a root, the one folder that it may have above everything, and the pictures in order.

    Args:
        root: A folder, or a zip of one.
        split: That is asked for, which is no folder above everything.
        layout: How to lay the files out, for errors.

    Raises:
        DataError: no such root, or no pictures in it.
    """
    files = _files(root)
    try:
        names = [PurePosixPath(name) for name in sorted(files.names())]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(expected("root", "a readable folder or zip", str(error), where=str(root))) from error
    images = [name for name in names if _is_image(name)]
    if not images:
        got = f"{len(names)} other files" if names else "no files at all"
        raise DataError(expected("root", "a tree of images", got, where=str(root), do=layout))
    return files, _wrapper(images, split), images


def _files(root: Path) -> FolderFiles | ZipFiles:
    if root.is_dir():
        return FolderFiles(root)
    if not root.exists():
        raise DataError(expected("root", "a folder or a zip", "no such path", where=str(root)))
    if not zipfile.is_zipfile(root):
        raise DataError(expected("root", "a folder or a zip", "another kind of file", where=str(root), do=_LAYOUT))
    return ZipFiles(root)


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not hidden


def _wrapper(images: Sequence[PurePosixPath], split: str) -> PurePosixPath:
    """Return the one folder that a zip of a folder has above everything, or the root itself."""
    tops = {path.parts[0] for path in images}
    alone = len(tops) == 1 and not tops & {*SPLITS, split} and all(len(path.parts) > 2 for path in images)
    return PurePosixPath(tops.pop() if alone else ".")


def _choose_split(images: Sequence[PurePosixPath], split: str, root: Path) -> tuple[int, list[PurePosixPath]]:
    """Return the depth of the class folder, 0 or 1, and the images of the split."""
    # A folder named "train" that holds images and no folders is a class (of vehicles, say), not a split.
    splits = sorted({path.parts[0] for path in images if path.parts[0] in {*SPLITS, split} and len(path.parts) > 2})
    where = f"data set folder, {root}"
    if splits and split not in splits:
        choose(split, splits, "split", where=where)
    if not splits and split not in ("train", "all"):
        got = "class folders directly below the root"
        do = f"Put the images under {split}/class/, or pass --data.split all to take every image."
        raise DataError(expected("root", f"a tree with a folder {split!r}", got, where=where, do=do))
    paths = [path for path in images if path.parts[0] == split] if splits else list(images)
    depth = 1 if splits else 0
    stray = [path for path in paths if len(path.parts) < depth + 2]
    if stray:
        raise DataError(expected("image", "inside a class folder", str(stray[0]), where=where, do=_LAYOUT))
    return depth, paths
