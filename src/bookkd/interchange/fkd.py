"""Soft labels of FKD: one file of `torch.save` an image, with the crops of one teacher.

A file holds `[coordinates, flips, labels]` over the crops of one image: coordinates float [crops, 4] are top, left, height and
width as shares of the image; flips bool [crops]; labels are one of

- hard: int [crops], the most likely class;
- smoothing: float [crops, 2], that class and its probability, the rest even over the others;
- marginal smoothing or re-normalisation with 5 or 10 classes: float [crops, 2, k], classes and probabilities. Both are the
  same bytes; re-normalisation is a reader's choice, here the option `renormalise`.

Source: Z. Shen, E. Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022, arXiv 2112.01528, and the
layout that szq0214/FKD writes (`FKD_SLG/generate_soft_label.py`, `utils_FKD.py`). The pickles are not run, see `_tensors.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from bookkd.book import FieldPlan, Raw, Unit
from bookkd.core.errors import DataError, expected
from bookkd.interchange._source import (
    PIECE,
    Options,
    Records,
    Source,
    fingerprint,
    kept_places,
    listed,
    read_file,
    sample_key,
    total_size,
)
from bookkd.interchange._tensors import load_arrays, widened

__all__ = ["FKD"]

Array = npt.NDArray[Any]

BOX, FLIP = "view/box", "view/flip"
_MAX_BYTES = 2**26


class _Crops(NamedTuple):
    """What a file holds, in its own bytes: labels int [crops] or float [crops, 2, k]."""

    box: Array
    flip: Array
    labels: Array
    kind: str

    @property
    def width(self) -> int:
        """Classes of a crop."""
        return 1 if self.labels.ndim == 1 else int(self.labels.shape[2])


class FKD(Source):
    """Folder of `.tar` files of FKD -> a view for each crop."""

    name: ClassVar[str] = "fkd"

    def __init__(self, path: Path, options: Options) -> None:
        self.n_classes = options.classes(str(path))
        self.root = path
        self.files = listed(path, "**/*.tar", "files of FKD (.tar, one an image)")
        first = self._crops(self.files[0])
        self.kind = first.kind
        self.n_samples, self.n_views = len(self.files), len(first.box)
        self.k = kept_places(options, first.width, self.n_classes, full=True)
        self.size = total_size(self.files)
        names = [path_.relative_to(path).with_suffix("").as_posix() for path_ in self.files]
        self.keys = np.array([sample_key(name) for name in names], dtype=np.uint64)
        self.raw = {BOX: FieldPlan((4,), Raw("float32")), FLIP: FieldPlan((), Raw("bool"))}
        self.data = {"name": "fkd", "files": len(self.files), "digest": fingerprint(self.files, path)}
        self.views = {
            "transform": "fkd: crop and flip",
            "n_views": self.n_views,
            "fields": [BOX, FLIP],
            "labels": self.kind,
        }
        self.record_bytes = self.n_views * (20 + 16 * first.width)
        self.notes = [
            f"labels are {self.kind}: what the teacher said of other classes is one tail",
            "a view is the crop `view/box` (top, left, height, width as shares of the image) and `view/flip`; the size it was "
            "resized to, the interpolation and the normalisation are not in the files",
            "probabilities were quantised by the producer; a tail below 1e-6 is rounding",
        ]
        self._block: tuple[int, int, list[_Crops]] = (0, 0, [])

    def order(self, units: Sequence[Unit]) -> Iterable[Unit]:
        # A file has every view of its image: read it once.
        return sorted(units, key=lambda unit: (unit.start, unit.view))

    def read(self, unit: Unit) -> Iterator[Records]:
        start, stop, crops = self._block
        if (start, stop) != (unit.start, unit.stop):
            self._block = (0, 0, [])
            crops = [self._crops(path) for path in self.files[unit.start : unit.stop]]
            for path, found in zip(self.files[unit.start : unit.stop], crops, strict=True):
                if len(found.box) != self.n_views or found.kind != self.kind:
                    got = f"{len(found.box)} crops, labels {found.kind}"
                    do = "A book has equally many views of every sample: import images alike by themselves."
                    wish = f"{self.n_views} crops with labels {self.kind}, as {self.files[0].name} has"
                    raise DataError(expected("file", wish, got, where=str(path), do=do))
            self._block = (unit.start, unit.stop, crops)
        view, rows = unit.view, max(1, PIECE // crops[0].width)
        for first in range(0, len(crops), rows):
            some = crops[first : first + rows]
            log_p, classes = _log_p(np.stack([each.labels[view] for each in some]))
            raw = {BOX: np.stack([each.box[view] for each in some]), FLIP: np.stack([each.flip[view] for each in some])}
            yield Records(log_p, classes, raw)

    def place(self, unit: Unit, row: int) -> str:
        return f"{self.files[unit.start + row]}, crop {unit.view}"

    def _crops(self, path: Path) -> _Crops:
        where = str(path)
        found = load_arrays(read_file(path, _MAX_BYTES), where)
        if not isinstance(found, list) or len(found) != 3 or not all(isinstance(each, np.ndarray) for each in found):
            raise DataError(expected("file", "coordinates, flips and labels", type(found).__name__, where=where))
        box, flip, labels = (widened(each) for each in found)
        if box.ndim != 2 or box.shape[1] != 4 or box.dtype.kind != "f" or not len(box) or len(box) > 2**16:
            raise DataError(expected("coordinates", "float [crops, 4]", _said(box), where=where))
        box = box.astype(np.float32, copy=False)
        inside = (box >= -1e-3) & (box <= 1.001)
        if not inside.all():
            raise DataError(expected("coordinates", "shares of the image", float(box[~inside][0]), where=where))
        if flip.shape != (len(box),) or flip.dtype.kind not in "biu" or not np.isin(flip, (0, 1)).all():
            raise DataError(expected("flips", f"bool [{len(box)}]", _said(flip), where=where))
        labels, kind = _labels(labels, len(box), where)
        return _Crops(box, flip.astype(bool, copy=False), labels, kind)


def _labels(labels: Array, crops: int, where: str) -> tuple[Array, str]:
    """Return labels as int [crops] or float [crops, 2, k], checked, and their kind."""
    if labels.shape == (crops,) and labels.dtype.kind in "iu":
        return labels, "hard"
    if labels.dtype.kind == "f" and labels.shape == (crops, 2):
        labels, kind = labels[:, :, None], "smoothing"
    elif labels.dtype.kind == "f" and labels.ndim == 3 and labels.shape[:2] == (crops, 2) and labels.shape[2]:
        kind = f"marginal k{labels.shape[2]}"
    else:
        wish = f"int [{crops}], float [{crops}, 2] or float [{crops}, 2, k]"
        raise DataError(expected("labels", wish, _said(labels), where=where))
    exact = {2: 2**11, 4: 2**24, 8: 2**53}[labels.dtype.itemsize]
    for numbers, p in labels:
        if not (np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all() and (abs(numbers) < exact).all()):
            wish = f"whole numbers below {exact}, which {labels.dtype} holds exactly"
            raise DataError(expected("classes", wish, float(numbers[np.abs(numbers).argmax()]), where=where))
        if not (p >= 0).all():
            raise DataError(expected("probabilities", "from 0", float(np.nanmin(p)), where=where))
    return labels, kind


def _log_p(labels: Array) -> tuple[Array, Array]:
    """Return log-probabilities and classes [rows, k] of labels int [rows] or float [rows, 2, k]."""
    if labels.ndim == 1:
        return np.zeros((len(labels), 1)), labels.astype(np.int64)[:, None]
    with np.errstate(divide="ignore"):
        return np.log(labels[:, 1].astype(np.float64)), labels[:, 0].astype(np.int64)


def _said(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
