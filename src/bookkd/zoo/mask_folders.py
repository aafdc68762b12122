"""Folders of images beside folders of masks, on disk or inside a zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.names import choose, require
from bookkd.zoo.folder import SPLITS, FolderDataset, FolderFiles, ZipFiles, files_below
from bookkd.zoo.masks import MaskDataset, as_mask, check_mask

__all__ = ["CAMVID", "MaskFolders", "camvid", "image_masks"]

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""Classes of CamVid, in the order of its ids."""
_LAYOUT = (
    "Lay them out as train/1.jpg and trainannot/1.png, train/images/1.jpg and train/masks/1.png, images/train/1.jpg and masks/train/1.png, "
    "or images/1.jpg and masks/1.png."
)
_MASKS = ("masks", "annotations", "labels", "annot")


class MaskFolders(FolderDataset):
    """Images and masks that are decoded when they are read.

    Args:
        name: Name of the set.
        files: Where they lie.
        paths: One path an image.
        masks: The path of the mask of each.
        class_names: One name a class.
        void: Ids in the masks that stand for no class.
    """

    def __init__(
        self,
        name: str,
        files: FolderFiles | ZipFiles,
        paths: Sequence[str],
        masks: Sequence[str],
        class_names: tuple[str, ...],
        void: tuple[int, ...],
    ) -> None:
        self.name, self.files, self.class_names, self.void = name, files, class_names, void
        self.paths, self.masks = np.array(paths), np.array(masks)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        pixels = self.decode(index)
        return torch.from_numpy(pixels), as_mask(self.decode_mask(index, pixels.shape[1:]))

    def decode_mask(self, index: int, size: Sequence[int]) -> npt.NDArray[np.int16]:
        """Return the mask of one image, `IGNORE_LABEL` where it is void.

        Raises:
            DataError: for a file that is no mask of this image, by its name.
        """
        path = str(self.masks[index])
        where = f"{self.files.root}, {path}"
        image = require("PIL.Image", "train")
        try:
            with image.open(io.BytesIO(self.files.read(path))) as opened:
                ids = np.asarray(opened)
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, image.DecompressionBombError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(expected("mask", "a whole picture", reason, where=where, do="Replace the file.")) from error
        if ids.ndim != 2 or ids.dtype.kind not in "iub":
            do = "Save class ids as a grey or palette PNG."
            raise DataError(expected("mask", "one id a pixel", f"{ids.dtype} {ids.shape}", where=where, do=do))
        mask = ids.astype(np.int32)
        mask[np.isin(mask, self.void)] = IGNORE_LABEL
        check_mask(mask, size, len(self.class_names), where)
        return mask.astype(np.int16)

    def cached(self) -> MaskDataset:  # type: ignore[override]
        """Decode every image and mask once, into two arrays.

        Raises:
            DataError: images of more than one size.
        """
        first = self.decode(0)
        images = np.empty((len(self), *first.shape), dtype=np.uint8)
        masks = np.empty((len(self), *first.shape[1:]), dtype=np.int16)
        for index in range(len(self)):
            pixels = self.decode(index)
            if pixels.shape != first.shape:
                do = "Do without the cache, and let a transform bring the images to one size."
                wish = f"{first.shape[1:]} pixels as the first one"
                raise DataError(expected("image", wish, pixels.shape[1:], where=str(self.paths[index]), do=do))
            images[index], masks[index] = pixels, self.decode_mask(index, pixels.shape[1:])
        return MaskDataset(self.name, torch.from_numpy(images), masks, self.class_names)


def image_masks(
    *,
    root: Path | None,
    split: str = "train",
    classes: Sequence[str] | None = None,
    void: int | Sequence[int] = 255,
    cache: bool = False,
    name: str = "image-masks",
) -> MaskFolders | MaskDataset:
    """Open folders of images beside folders of masks, one mask an image, of the same name but for its ending.

    Layouts: `train/` beside `trainannot/`; `train/images/` beside `train/masks/`; `images/train/` beside `masks/train/`; and `images/`
    beside `masks/` of a set without splits. Masks are grey or palette pictures of class ids.

    Args:
        root: A folder, or a zip of one.
        split: "train", "test", "val", ...
        classes: Names in the order of the ids; None reads `classes.txt` of the root, one name a line.
        void: Ids of no class, in labels `IGNORE_LABEL`.
        cache: If true, decode everything now into two arrays; images must have one size.
        name: Of the set.

    Raises:
        DataError: no such root or split, an image without mask, or no class names.
    """
    if root is None:
        raise DataError(
            expected("root", "a folder or a zip", None, where=f"data set {name}", do="Pass --data.root DIR.")
        )
    files, wrapper, images = files_below(root, split, _LAYOUT)
    pairs = _pairs([path.relative_to(wrapper) for path in images], split, root, name)
    names = _names(files, wrapper, root, name) if classes is None else tuple(map(str, classes))
    ids = (void,) if isinstance(void, int) else tuple(void)
    paths, masks = ([str(wrapper / path) for path in each] for each in zip(*pairs, strict=True))
    dataset = MaskFolders(name, files, paths, masks, names, ids)
    return dataset.cached() if cache else dataset


def camvid(*, root: Path | None, split: str = "train", cache: bool = False) -> MaskFolders | MaskDataset:
    """Open CamVid in its 11 classes, as the SegNet tutorial lays it out: `train/` beside `trainannot/`, and `val`, `test`; id 11 is void.

    Args:
        root: The folder, or a zip of it.
        split: "train" (367 images), "val" (101) or "test" (233).
        cache: If true, decode everything now.

    Source: Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; the split and the classes are those of SegNet
    (arXiv 1511.00561).
    """
    return image_masks(root=root, split=split, classes=CAMVID, void=11, cache=cache, name="camvid")


def _names(files: FolderFiles | ZipFiles, wrapper: PurePosixPath, root: Path, name: str) -> tuple[str, ...]:
    path = str(wrapper / "classes.txt")
    try:
        lines = files.read(path).decode("utf-8").splitlines()
    except (OSError, KeyError, UnicodeDecodeError) as error:
        do = 'Pass --data.args \'{"classes": ["road", "sky"]}\', or write one name a line into classes.txt of the root.'
        raise DataError(
            expected("classes", "given, or in classes.txt", "neither", where=f"data set {name}, {root}", do=do)
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def _pairs(
    images: Sequence[PurePosixPath], split: str, root: Path, name: str
) -> list[tuple[PurePosixPath, PurePosixPath]]:
    """Return the image and the mask of each sample of a split, in the order of their names."""
    where = f"data set {name}, {root}"
    found = {(parts, masks): key for key, parts, masks in _layouts(images, split)}
    if not found:
        raise DataError(
            expected("root", f"a tree of images and masks with {split!r}", "neither", where=where, do=_LAYOUT)
        )
    (image_folder, mask_folder), chosen = next(iter(found.items()))
    if chosen != split:
        choose(split, sorted(set(found.values())), "split", where=where)
    of_masks = {
        path.relative_to(mask_folder).with_suffix(""): path for path in images if path.is_relative_to(mask_folder)
    }
    pairs = []
    for path in images:
        if not path.is_relative_to(image_folder) or path.is_relative_to(mask_folder):
            continue
        own = path.relative_to(image_folder).with_suffix("")
        if own not in of_masks:
            wish, do = f"beside each image, as {mask_folder / own}.png", "Add the mask, or take the image out."
            raise DataError(expected("mask", wish, "none", where=f"{where}, {path}", do=do))
        pairs.append((path, of_masks[own]))
    if not pairs:
        raise DataError(expected("images", "at least one", 0, where=f"{where}, {image_folder}", do=_LAYOUT))
    return pairs


def _layouts(images: Sequence[PurePosixPath], split: str) -> list[tuple[str, PurePosixPath, PurePosixPath]]:
    """Return (split, folder of images, folder of masks) of what there is, the split that is asked for first."""
    folders = {parent for path in images for parent in path.parents}
    found = []
    for each in dict.fromkeys((split, *SPLITS)):
        candidates = [(each, f"{each}annot"), *((f"{each}/images", f"{each}/{masks}") for masks in _MASKS)]
        candidates += [(f"images/{each}", f"{masks}/{each}") for masks in _MASKS]
        if each in ("train", "all") and not any(PurePosixPath(f"images/{other}") in folders for other in SPLITS):
            candidates += [("images", masks) for masks in _MASKS]
        both = [(PurePosixPath(one), PurePosixPath(other)) for one, other in candidates]
        found += [(each, one, other) for one, other in both if one in folders and other in folders][:1]
    return found
