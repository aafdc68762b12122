"""Stored logits of TinyViT: fixed records that are found by seeking, one folder an epoch.

    logits_top100_epoch0/rank0-keys.txt      one key a line
    logits_top100_epoch0/rank0-values.bin    for each: seed int32, k classes int16, k probabilities float16

The seed draws the whole augmentation of that sample in that epoch, in TinyViT's own fork of timm. An epoch becomes a view.
Keys that two ranks wrote (samplers fill up the last batch) are taken from the lower rank.

Where the producer mixed images (MixUp, CutMix; its mode is "pair2"), it mixed samples 2i and 2i + 1 of each batch, each into the
other, with draws of the seed that is the exclusive or of both seeds. Batches are even and a rank writes in the order in which it
reads, so that records 2i and 2i + 1 of a rank's files are the pair. A record that the rank had written already is left out, which
happens to the second of the last pair alone: the record that then stands last has no partner in the files.

Classes above 32,767 do not fit int16 and come out negative, or as another class: books of more classes are refused.

Source: K. Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022, arXiv 2207.10666, and the
layout that microsoft/Cream writes (`TinyViT/save_logits.py`, `data/sampler.py`, `data/augmentation/manager.py` and `mixup.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

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
    sample_key,
    total_size,
)

__all__ = ["TinyViT"]

SEED, PARTNER, PARTNER_SEED = "view/seed", "view/partner", "view/partner_seed"
_NO_SEED = -1
_EPOCH = re.compile(r"logits_top(\d{1,5})_epoch(\d{1,6})")
_RANK = re.compile(r"rank(\d{1,6})-values\.bin")
_MAX_KEY = 4096
_MAX_CLASSES = 2**15


class TinyViT(Source):
    """Folder of `logits_top<k>_epoch<e>` -> a view for each epoch."""

    name: ClassVar[str] = "tinyvit"
    allowed = 2e-3  # k probabilities, each rounded to float16: relative 2**-11

    def __init__(self, path: Path, options: Options) -> None:
        self.n_classes = options.classes(str(path))
        if self.n_classes > _MAX_CLASSES:
            wish = f"at most {_MAX_CLASSES}: TinyViT keeps classes as int16, and larger ones are lost"
            raise DataError(expected("n_classes", wish, self.n_classes, where=str(path)))
        self.epochs = _epochs(path)
        self.stored_k = next(iter({k for k, _, _ in self.epochs}))
        self.k = kept_places(options, self.stored_k, self.n_classes, full=True)
        self.n_views = len(self.epochs)
        self._layout = np.dtype([("seed", "<i4"), ("classes", "<i2", (self.stored_k,)), ("p", "<f2", (self.stored_k,))])
        files = [file for _, _, folder in self.epochs for file in listed(folder, "rank*", "ranks")]
        self.size = total_size(files)
        self.keys = _all_keys(_ranks(self.epochs[0][2]))
        self._order = np.argsort(self.keys)
        if (np.diff(self.keys[self._order]) == 0).any():
            raise DataError(expected("keys", "distinct", "two that hash alike", where=str(self.epochs[0][2])))
        self.n_samples = len(self.keys)
        self.raw = {
            SEED: FieldPlan((), Raw("int32")),
            PARTNER: FieldPlan((), Raw("uint64")),
            PARTNER_SEED: FieldPlan((), Raw("int32")),
        }
        self.data = {"name": "tinyvit", "samples": self.n_samples, "digest": fingerprint(files, path)}
        numbers = [epoch for _, epoch, _ in self.epochs]
        self.views = {
            "transform": "tinyvit: seed and partner",
            "n_views": self.n_views,
            "epochs": numbers,
            "fields": list(self.raw),
        }
        self.notes = [
            f"{self.stored_k} probabilities in float16: a tail below about 1e-3 is their rounding",
            "`view/seed` draws the view in TinyViT's fork of timm alone; other code or versions draw another view, and nothing in "
            "the files would tell",
            "where the producer mixed images, `view/partner` is the key of the other image of the pair and `view/partner_seed` its "
            "seed (-1 and the sample's own key where the files have none); whether and how it mixed is in its configuration alone",
        ]
        self._open: tuple[int, list[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def read(self, unit: Unit) -> Iterator[Records]:
        rows = max(1, PIECE // self.stored_k)
        for start in range(unit.start, unit.stop, rows):
            yield self._records(unit, start, min(start + rows, unit.stop))

    def _records(self, unit: Unit, start: int, stop: int) -> Records:
        values, rank, row = self._epoch(unit.view)
        found = np.empty(stop - start, dtype=self._layout)
        partner, partner_seed = self.keys[start:stop].copy(), np.full(stop - start, _NO_SEED, dtype=np.int32)
        for number, (keys, array) in enumerate(values):
            mine = np.flatnonzero(rank[start:stop] == number)
            places = row[start:stop][mine]
            found[mine] = array[places]
            other = places ^ 1  # 0 with 1, 2 with 3
            paired = other < len(array)
            partner[mine[paired]] = keys[other[paired]]
            partner_seed[mine[paired]] = array["seed"][other[paired]]
        classes = found["classes"].astype(np.int64)
        p = found["p"].astype(np.float64)
        if (classes < 0).any() or not (p >= 0).all():
            wrong = int(np.flatnonzero((classes < 0).any(axis=1) | ~(p >= 0).all(axis=1))[0])
            wish = "classes from 0 and probabilities from 0"
            got = f"class {classes[wrong].min()}, probability {p[wrong].min():g}"
            do = f"A class above 32767 does not fit int16; or these are no records of top {self.stored_k}."
            raise DataError(expected("record", wish, got, where=self.place(unit, start - unit.start + wrong), do=do))
        raw = {SEED: found["seed"].copy(), PARTNER: partner, PARTNER_SEED: partner_seed}
        with np.errstate(divide="ignore"):
            return Records(np.log(p), classes, raw)

    def place(self, unit: Unit, row: int) -> str:
        return f"{self.epochs[unit.view][2]}, key {int(self.keys[unit.start + row])}"

    def _epoch(self, view: int) -> tuple[list[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return keys and records of each rank, and where each sample is; one epoch is kept."""
        if self._open is None or self._open[0] != view:
            self._open = None
            folder = self.epochs[view][2]
            values: list[Any] = []
            rank = np.full(self.n_samples, -1, dtype=np.int64)
            row = np.zeros(self.n_samples, dtype=np.int64)
            for number, path in enumerate(_ranks(folder)):
                keys = np.fromiter((sample_key(name) for name in _keys(path)), dtype=np.uint64)
                values.append((keys, self._values(path, len(keys))))
                samples = self._samples(keys, path)
                fresh = rank[samples] < 0
                rank[samples[fresh]], row[samples[fresh]] = number, np.flatnonzero(fresh)
            missing = np.flatnonzero(rank < 0)
            if len(missing):
                got = f"{len(missing)} missing, first with key {int(self.keys[missing[0]])}"
                wish = f"all {self.n_samples} samples of {self.epochs[0][2].name}"
                raise DataError(expected("epoch", wish, got, where=str(folder)))
            self._open = (view, values, rank, row)
        return self._open[1:]

    def _samples(self, keys: npt.NDArray[np.uint64], path: Path) -> npt.NDArray[np.int64]:
        place = np.minimum(np.searchsorted(self.keys, keys, sorter=self._order), self.n_samples - 1)
        found: npt.NDArray[np.int64] = self._order[place]
        unknown = np.flatnonzero(self.keys[found] != keys)
        if len(unknown):
            wish = f"the samples of {self.epochs[0][2].name}"
            raise DataError(expected("keys", wish, f"another in line {int(unknown[0]) + 1}", where=str(path)))
        if len(np.unique(found)) != len(found):
            raise DataError(expected("keys", "without repeats", "one twice in one rank", where=str(path)))
        return found

    def _values(self, path: Path, count: int) -> Any:
        size, wanted = path.stat().st_size, count * self._layout.itemsize
        if size != wanted:
            wish = f"{count} records of {self._layout.itemsize} bytes, one for each key ({wanted} bytes)"
            do = "It is cut, or of another k than its folder says."
            raise DataError(expected("values", wish, f"{size} bytes", where=str(path), do=do))
        return np.memmap(path, dtype=self._layout, mode="r", shape=(count,))


def _epochs(path: Path) -> list[tuple[int, int, Path]]:
    """Return k, number and folder of each epoch, in order."""
    if not path.is_dir():
        raise DataError(expected("source", "a folder with logits_top<k>_epoch<e>", "no folder", where=str(path)))
    places = [path] if _EPOCH.fullmatch(path.name) else list(path.iterdir())
    found = []
    for place in places:
        match = _EPOCH.fullmatch(place.name)
        if match and place.is_dir() and not place.is_symlink():
            found.append((int(match[1]), int(match[2]), place))
    kinds = {k for k, _, _ in found}
    if len(kinds) != 1 or 0 in kinds:
        got = f"k {', '.join(map(str, sorted(kinds)))}" if kinds else "none there"
        raise DataError(expected("source", "folders logits_top<k>_epoch<e> of one k", got, where=str(path)))
    return sorted(found, key=lambda each: each[1])


def _ranks(folder: Path) -> list[Path]:
    """Return the files of values by rank."""
    found = {}
    for path in listed(folder, "rank*-values.bin", "rank<r>-values.bin"):
        match = _RANK.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return [found[rank] for rank in sorted(found)]


def _keys(values: Path) -> Iterator[str]:
    """Yield the keys that stand beside a file of values, one a line."""
    path = values.with_name(values.name.replace("-values.bin", "-keys.txt"))
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_MAX_KEY + 1):
                number += 1
                key = line.strip().decode("utf-8", "surrogateescape")
                if len(line) > _MAX_KEY or not key:
                    raise DataError(
                        expected("key", f"1 to {_MAX_KEY} bytes", len(line), where=f"{path}, line {number}")
                    )
                yield key
    except OSError as error:
        raise DataError(expected("keys", "readable", error.strerror or str(error), where=str(path))) from error


def _all_keys(ranks: list[Path]) -> npt.NDArray[np.uint64]:
    """Return the keys of all samples once, in the order of their numbers or of their names: that of a folder of classes."""
    if all(name.isascii() and name.isdigit() and len(name) < 19 for path in ranks for name in _keys(path)):
        numbers = np.fromiter((int(name) for path in ranks for name in _keys(path)), dtype=np.uint64)
        return np.unique(numbers)
    # A slash sorts before everything, so that folders stay together.
    names = sorted({name.replace("/", "\0") for path in ranks for name in _keys(path)})
    return np.fromiter((sample_key(name.replace("\0", "/")) for name in names), dtype=np.uint64, count=len(names))
