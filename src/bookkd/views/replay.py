"""`Replay`: a data set indexed by (sample, view), bit-equal in any order, worker or rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bookkd.core.check import between
from bookkd.core.errors import BookKDError, ConfigError, DataError, expected
from bookkd.core.fields import (
    IGNORE_LABEL,
    INPUT,
    LABEL,
    LABEL_LENGTH,
    LENGTH,
    PARTNER,
    PARTNER_LABEL,
    PROBE_HASH,
    PROBE_PROJECTIONS,
    PROBE_TAKEN,
    RATIO,
    SAMPLE,
    VIEW,
    WEIGHT,
)
from bookkd.core.names import is_reference
from bookkd.core.rng import draw64
from bookkd.views.collate import collate
from bookkd.views.labels import as_label, label_rows
from bookkd.views.mix import Mix, draw_partners
from bookkd.views.picks import Pick, Positions, as_picks
from bookkd.views.probe import probe
from bookkd.views.seeding import isolated, seed_all
from bookkd.views.views import Views, as_tensor

__all__ = ["Replay"]


class Replay(Dataset[dict[str, Any]]):
    """A data set of (image, label) seen through `Views`: `replay[Pick(sample, view)]` is a dict for one record.

    Views are mixed with those of any sample of the book. Of a part of its samples the others are read from the whole that it is a part of
    (`whole` and `indices`, as `bookkd.zoo.SubsetDataset` has them), and their labels stay hidden.

    Use it with `DataLoader(replay, batch_sampler=ViewSampler(...), collate_fn=collate)`. The generators are seeded
    before the data set is asked, so that a data set which augments by itself replays too. A label that is a tensor of
    its own kind (torchvision's `Mask`, `BoundingBoxes`) goes through the transform together with the image; CutMix moves masks with its box.

    A data set with an attribute `pad_value` is one of sequences: the first axis of each view may have a length of its own. The views
    of a batch are filled up to the longest with that value, labels that are tensors to the longest label with `IGNORE_LABEL` (NaN among
    floating ones; none beside them is one such), and each record says its `length` and `label_length`. Probes are those of the views without padding; of a data set
    with an attribute `label_is_input`, whose labels are what a network is given too (teacher forcing), of the view and the label.

    Args:
        dataset: `dataset[i]` is (image, label) or an image alone; the label a number, a tensor or array
            of one shape for all samples, or None.
        views: What is done to the images.
        rows: Row of the book of each data set position, shape [len(dataset)], for reordered or filtered data; None
            where they are the same.
        labels: Labels by row of the book, in place of the data set's; `IGNORE_LABEL` where hidden.
        probe_share: Share of the records that carry a probe, 0 to 1, chosen by (seed, sample, view); with 0 the
            batch has no probe entries.

    Raises:
        ConfigError: if an argument does not fit the data set; for a part of a book of mixed views that does not know the whole.

    >>> replay = Replay([(torch.zeros(1, 2, 2), 5)], Views(None, n_views=1))
    >>> item = replay[Pick(0, 0)]
    >>> item["label"], item["input"].shape
    (5, torch.Size([1, 2, 2]))
    """

    def __init__(
        self,
        dataset: Any,
        views: Views,
        *,
        rows: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        probe_share: float = 1.0,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ConfigError(expected("dataset", "indexable, with a length", type(dataset).__name__, where="Replay"))
        self.dataset = dataset
        self.views = views
        self.positions = Positions(rows, len(dataset))
        most = int(self.positions.rows.max(initial=-1))
        self.labels = None if labels is None else label_rows(labels, most + 1, "Replay")
        self.pad_value = getattr(dataset, "pad_value", None)
        self.label_is_input = bool(getattr(dataset, "label_is_input", False))
        self.probe_share = between(probe_share, 0, 1, "probe_share", where="Replay")
        if views.transform is not None and hasattr(dataset, "taught"):
            do = "Make the book of the text as it is."
            got = views.name or type(views.transform).__name__
            wish = "None where the teacher sees the text in other tokens"
            raise ConfigError(expected("transform", wish, got, where="Replay", do=do))
        check = getattr(views.transform, "check_data", None)
        if check is not None:
            check(dataset)
        if views.mix is not None and views.mix.pool is None and rows is not None:
            raise ConfigError(
                expected(
                    "pool",
                    "given where `rows` maps the data set to a book",
                    None,
                    where="Replay",
                    do="Use `views.with_pool(recipe['mix']['pool'])`.",
                )
            )
        self._pool: Any = None if views.mix is None else self._partners(views.mix.pool or len(dataset))

    def __len__(self) -> int:
        return len(self.positions.rows)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Row of the book of each data set position, shape [len(dataset)]."""
        return self.positions.rows

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        return self.__getitems__([pick])[0]

    def __getitems__(self, picks: Sequence[Pick]) -> list[dict[str, Any]]:
        """Return the records of a whole batch; the DataLoader calls this."""
        found = as_picks(picks, self.views.n_views)
        samples, views = [pick.sample for pick in found], [pick.view for pick in found]
        with isolated():
            own = self._draw(samples, views)
            if self.views.mix is not None:
                self._mix(self.views.mix, own, samples, views)
            if self.probe_share > 0:
                self._take_probes(own, samples, views)
        if self.pad_value is not None:
            _pad(own, self.pad_value)
        for item, pick in zip(own, found, strict=True):
            item[SAMPLE], item[VIEW], item[WEIGHT] = pick
        return own

    def batch(self, picks: Sequence[Pick]) -> dict[str, Any]:
        """Return some records as a batch, as `collate` makes one of them."""
        return collate(self.__getitems__(picks))

    def _draw(self, samples: Sequence[int], views: Sequence[int], *, of_partners: bool = False) -> list[dict[str, Any]]:
        """Draw views, each without what is mixed into it; with `of_partners` also of samples that the data set is no part of."""
        transform = self.views.transform
        here = np.isin(samples, self.rows) if of_partners and self._pool is not None else np.ones(len(samples), bool)
        positions = np.array(samples, dtype=np.int64)
        positions[here] = self.positions(positions[here])
        out = []
        for position, sample, view, seed, known in zip(
            positions.tolist(), samples, views, self.views.seeds(samples, views), here.tolist(), strict=True
        ):
            seed_all(seed)
            try:
                image, label = _split((self.dataset if known else self._pool)[position], sample)
                if self.labels is not None and known:
                    label = self.labels[sample]
                # A plain tensor is not of a kind that a transform knows how to move along with the image.
                if transform is not None:
                    image, label = self._transformed(transform, image, label, f"sample {sample}, view {view}")
            except Exception as error:
                error.add_note(f"While replaying sample {sample}, view {view}.")
                raise
            beside = getattr(self.dataset if known else self._pool, "beside", None)
            more = {} if beside is None else beside(position)
            found = as_label(label, sample)
            out.append({INPUT: as_tensor(image, sample, view), LABEL: found if known else _without(found), **more})
        return out

    def _transformed(self, transform: Callable[..., Any], image: Any, label: Any, where: str) -> tuple[Any, Any]:
        """Return a view of a sample, and its label."""
        # A plain tensor is not of a kind that a transform knows how to move along with the image.
        alike = isinstance(label, Tensor) and type(label) is not Tensor
        try:
            if alike:
                return self._moved_alike(transform, image, label)
            view = transform(image)
        except ValueError as error:
            # A recipe of ours is not at fault; code of a user's own is looked for by its traceback.
            if isinstance(error, BookKDError) or not self.views.name or is_reference(self.views.name):
                raise
            wish, got = "one that takes these samples", f"{self.views.name}: {error}".rstrip(".")
            do = "Pass other --views.args, or samples of another size."
            raise DataError(expected("views", wish, got, where=where, do=do)) from error
        # What the tokens are that the view hides.
        return view, image if label is None and self._are_tokens(image, view) else label

    def _moved_alike(self, transform: Callable[..., Any], image: Any, label: Any) -> tuple[Any, Any]:
        """Return a view of image and label, which is as an image itself; a transform of images alone cannot draw one."""
        try:
            moved = transform(image, label)
            if not isinstance(moved, tuple | list) or len(moved) != 2:
                raise TypeError(f"it returned {type(moved).__name__}, not image and {type(label).__name__.lower()}")
        except TypeError as error:
            inside = error.__traceback__ is not None and error.__traceback__.tb_next is not None
            if inside and self.views.name and is_reference(self.views.name):
                raise  # it took both, and a line of the user's own went wrong
            wish, got = (
                f"a transform that moves image and {type(label).__name__.lower()} alike",
                self.views.name or repr(transform),
            )
            do = "Pass --views mask-affine or mask-crop, or one of torchvision's v2 that takes both."
            raise ConfigError(expected("views", wish, f"{got} ({error})", where="replay", do=do)) from error
        return moved[0], moved[1]

    def _are_tokens(self, text: Any, view: Any) -> bool:
        """Say whether a sample is a sequence of whole numbers, and its view as long as it."""
        both = isinstance(text, Tensor) and isinstance(view, Tensor)
        return both and self.pad_value is not None and text.shape == view.shape and not text.is_floating_point()

    def _partners(self, pool: int) -> Any:
        """Return the data set that has all rows that may be partners: this one where it has them, else the whole that it is a part of."""
        rows = self.rows
        if np.isin(np.arange(pool), rows).all():
            return None
        whole, places = self.dataset, np.arange(len(rows))
        while len(whole) != pool or not np.array_equal(places, rows):
            if not (hasattr(whole, "whole") and hasattr(whole, "indices")):
                do = (
                    "Learn from all of them, or take the part by --data.limit, --data.classes or bookkd.zoo.SubsetDataset, which know "
                    "the whole."
                )
                wish = f"of all {pool} samples, which are partners of one another in mixed views"
                raise ConfigError(expected("rows", wish, f"{len(rows)} of them", where="Replay", do=do))
            whole, places = whole.whole, np.asarray(whole.indices)[places]
        return whole

    def _mix(self, mix: Mix, own: list[dict[str, Any]], samples: list[int], views: list[int]) -> None:
        seed = self.views.seed
        partners = draw_partners(seed, samples, views, pool=mix.pool or len(self)).tolist()
        others = self._draw(partners, views, of_partners=True)
        for item, other, partner, sample, view in zip(own, others, partners, samples, views, strict=True):
            item[INPUT], item[RATIO] = mix(item[INPUT], other[INPUT], seed=seed, sample=sample, view=view)
            if mix.name == "cutmix" and _are_masks(item[LABEL], other[LABEL], item[INPUT]):
                # The box of the partner brings its classes along; what is left to mix by the ratio is the same on both sides.
                item[LABEL], _ = mix(item[LABEL], other[LABEL], seed=seed, sample=sample, view=view)
                other[LABEL] = item[LABEL]
            item[PARTNER], item[PARTNER_LABEL] = partner, other[LABEL]

    def _take_probes(self, items: list[dict[str, Any]], samples: list[int], views: list[int]) -> None:
        taken = [True] * len(items)
        if self.probe_share < 1:
            draws = draw64(self.views.seed, "probe share", samples, views)[:, 0]
            taken = ((draws >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self.probe_share).tolist()
        each = zip(items, samples, taken, strict=True)
        hashes, projections = probe([self._seen(item, sample) for item, sample, take in each if take])
        found = iter(zip(hashes.tolist(), projections, strict=True))
        for item, take in zip(items, taken, strict=True):
            item[PROBE_HASH], item[PROBE_PROJECTIONS] = (
                next(found) if take else (0, torch.zeros(2, dtype=torch.float64))
            )
            item[PROBE_TAKEN] = take

    def _seen(self, item: Mapping[str, Any], sample: int) -> Tensor:
        """Return all that the teacher is given of a record, in one tensor."""
        taught = getattr(self.dataset, "taught", None)
        if taught is not None:
            other: Tensor = taught(int(self.positions([sample])[0]))
            return other
        view: Tensor = item[INPUT]
        if not self.label_is_input:
            return view
        label = torch.as_tensor(item[LABEL])
        # The lengths tell where the one ends and the other begins.
        return torch.cat([torch.tensor([len(view), label.numel()]), view.flatten().long(), label.flatten().long()])


def _are_masks(own: Any, other: Any, view: Tensor) -> bool:
    """Say whether two labels have one class for each pixel of a view."""
    return all(isinstance(each, Tensor) and each.ndim == 2 and each.shape == view.shape[-2:] for each in (own, other))


def _pad(items: list[dict[str, Any]], value: float) -> None:
    """Note the lengths of each view and label, and fill them up to the longest of their kind."""
    for item in items:
        if item[INPUT].ndim == 0 or not len(item[INPUT]):
            where = f"sample {item.get(SAMPLE)}" if SAMPLE in item else "Replay"
            raise DataError(expected("view", "a sequence of at least one position", "an empty one", where=where))
        item[LENGTH] = len(item[INPUT])
    longest = max(item[LENGTH] for item in items)
    tensors = [item[LABEL] for item in items if isinstance(item[LABEL], Tensor)]
    most = max(map(len, tensors), default=0)
    for item in items:
        if tensors and isinstance(item[LABEL], int) and item[LABEL] == IGNORE_LABEL:  # no label, beside others
            item[LABEL] = tensors[0].new_full((1, *tensors[0].shape[1:]), _hidden(tensors[0]))
    for item in items:
        label = item[LABEL]
        if isinstance(label, Tensor):
            item[LABEL_LENGTH] = len(label)
            item[LABEL] = _filled(label, most, _hidden(label))
        item[INPUT] = _filled(item[INPUT], longest, value)


def _without(label: float | Tensor) -> float | Tensor:
    """Return a label of the same kind that says nothing: the student is not to see it."""
    if isinstance(label, Tensor):
        return torch.full_like(label, _hidden(label))
    return torch.nan if isinstance(label, float) else IGNORE_LABEL


def _hidden(label: Tensor) -> float:
    return torch.nan if label.is_floating_point() else IGNORE_LABEL


def _filled(tensor: Tensor, length: int, value: float) -> Tensor:
    if len(tensor) == length:
        return tensor
    return torch.cat([tensor, tensor.new_full((length - len(tensor), *tensor.shape[1:]), value)])


def _split(record: Any, sample: int) -> tuple[Any, Any]:
    if isinstance(record, tuple | list):
        if len(record) == 2:
            return record[0], record[1]
        raise DataError(
            expected("dataset[i]", "(image, label) or an image", f"{len(record)} parts", where=f"sample {sample}")
        )
    if isinstance(record, dict):
        raise DataError(
            expected(
                "dataset[i]",
                "(image, label) or an image",
                f"a dict of {sorted(map(str, record))}",
                where=f"sample {sample}",
                do="Wrap the data set so that it returns the image and the label.",
            )
        )
    return record, None
