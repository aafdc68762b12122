"""From a data set and views to batches on a device: the loader, groups of micro-batches, labels that may be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bookkd.core.check import at_least, between, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, PARTNER, PARTNER_LABEL, SAMPLE
from bookkd.core.rng import generator
from bookkd.learning.training import Training
from bookkd.views import BlockWindow, CachedViews, Replay, ViewSampler, collate, label_rows
from bookkd.views.sampler import VIEW_ROWS

__all__ = ["Groups", "check_batches", "make_groups", "visible_labels"]


class Groups:
    """Lists of batches, one list an optimizer step; `len` is the steps of a whole epoch.

    Has the state of the order of samples, so that a trainer that saves its loaders (Lightning does) saves it too.

    Args:
        loader: Gives batches.
        sampler: Its order of samples.
        accumulate: Batches of a group.
        labels: Numbers [rows of the book, ...] that replace the loader's labels; None keeps them.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        sampler: ViewSampler,
        accumulate: int,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        self.loader = loader
        self.sampler = sampler
        self.accumulate = accumulate
        self._labels = None if labels is None else torch.from_numpy(label_rows(labels, 0))

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.accumulate)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        group: list[dict[str, Any]] = []
        for batch in self.loader:
            group.append(self._relabelled(batch))
            if len(group) == self.accumulate:
                yield group
                group = []
        if group:
            yield group

    def _relabelled(self, batch: dict[str, Any]) -> dict[str, Any]:
        # Here and not in the data set, so that students who see different labels can share one cache of views.
        if self._labels is None:
            return batch
        changed = {**batch, LABEL: self._labels[batch[SAMPLE]]}
        if PARTNER in batch:
            changed[PARTNER_LABEL] = _of_partners(self._labels, batch[PARTNER])
        return changed

    def seen(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """Return the book rows that are learnt from, int64 [n], and the classes that the student may see of them; None without any."""
        rows = self.sampler.samples
        if self._labels is not None:
            labels = self._labels.numpy()[rows]
        else:
            replay: Replay | CachedViews = self.loader.dataset  # type: ignore[assignment]
            known = np.asarray(getattr(replay.dataset, "labels", ()))
            labels = known[replay.positions(rows)] if len(known) == len(replay) else known
        return rows, labels.astype(np.int64) if labels.shape == rows.shape and labels.dtype.kind in "iu" else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the order of samples."""
        return dict(self.sampler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.sampler.load_state_dict(state)


def _of_partners(labels: Tensor, rows: Tensor) -> Tensor:
    """Return the labels of partners, which may be of rows behind those that labels are given of: none is seen of these."""
    known = rows < len(labels)
    found = labels[rows.where(known, 0)]
    hidden = torch.nan if found.is_floating_point() else IGNORE_LABEL
    return found.masked_fill(~known.reshape(-1, *[1] * (found.ndim - 1)), hidden)


def check_batches(
    training: Training, *, samples: int, views_per_sample: int, whole: bool, where: str = "training"
) -> None:
    """Refuse batches that a method cannot learn from; asked before anything long starts.

    Args:
        training: Batch size, accumulation, devices.
        samples: Samples of an epoch.
        views_per_sample: Views of one sample next to each other in a batch, as `Needs` says.
        whole: Whether the method relates the rows of a batch (`Objective.relational`): it wants at least two samples in each,
            and no batch in parts.
        where: What is trained, for the error.

    Raises:
        ConfigError: if the batch size is no multiple of the views, or the method relates rows and a batch holds one sample,
            is divided, or is larger than an epoch.

    >>> check_batches(Training(batch_size=7), samples=100, views_per_sample=2, whole=False)
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `batch_size` to be a multiple of views_per_sample = 2, got 7 (training).
    """
    size = training.batch_size
    if size % views_per_sample:
        wish = f"a multiple of views_per_sample = {views_per_sample}"
        raise ConfigError(expected("batch_size", wish, size, where=where))
    if not whole:
        return
    do = "The method relates the samples of a batch: raise --training.batch_size."
    at_least(size, 2 * views_per_sample, "batch_size", where=where, do=do)
    for part in ("accumulate", "devices"):
        if getattr(training, part) > 1:
            do = f"The method relates the rows of a batch, so that every batch must be whole: leave --training.{part} out."
            raise ConfigError(expected(part, "1", getattr(training, part), where=where, do=do))
    if samples * views_per_sample < size:
        wish = f"at most {samples * views_per_sample} for {samples} samples"
        do = "The method relates the rows of a batch, so that every batch must be whole: lower --training.batch_size."
        raise ConfigError(expected("batch_size", wish, size, where=where, do=do))


def make_groups(
    replay: Replay | CachedViews,
    training: Training,
    *,
    samples: int | npt.NDArray[np.int64],
    n_views: int,
    views_per_sample: int = 1,
    rank: int = 0,
    world_size: int = 1,
    labels: npt.NDArray[Any] | None = None,
    whole: bool = False,
    window: BlockWindow | None = None,
    ahead: Callable[[int, int, int], object] | None = None,
) -> Groups:
    """Return the batches of a run: `views_per_sample` views of each sample an epoch, shuffled, this rank's share.

    Args:
        replay: Gives the views.
        training: Batch size, accumulation, workers, seed.
        samples: Samples of an epoch: their number, or the book rows where they are a part of it.
        n_views: Views of a sample.
        views_per_sample: Of them, next to each other in a batch.
        rank: This process.
        world_size: Processes.
        labels: Numbers [rows of the book, ...] that replace the data set's.
        whole: Leave the last incomplete batch of an epoch out instead of filling it up, for losses that relate the rows of
            a batch.
        window: Shuffle by blocks inside a window, as `learn` chooses for books larger than memory; None for all rows, or for
            what `training` says.
        ahead: Told of the blocks that come, see `ViewSampler`.

    Raises:
        ConfigError: if there are fewer labels than rows, or the batches are none that `check_batches` lets pass; if `training`
            asks for blocks and nothing says how many.
    """
    part = None if isinstance(samples, int) else samples
    n_samples = samples if isinstance(samples, int) else int(samples.max()) + 1
    if labels is not None:
        labels = label_rows(labels, n_samples)
    count = n_samples if part is None else len(part)
    check_batches(training, samples=count, views_per_sample=views_per_sample, whole=whole)
    if window is None and training.shuffle == "blocks":
        if training.shuffle_window is None:
            do = "Pass it, or `window`; `learn` alone chooses one by what is free."
            wish = "given for shuffle blocks"
            raise ConfigError(expected("shuffle_window", wish, None, where="make_groups", do=do))
        window = BlockWindow(training.shuffle_window, training.shuffle_block_rows or 4096)
    sampler = ViewSampler(
        n_samples,
        n_views,
        training.batch_size,
        seed=training.seed,
        rank=rank,
        world_size=world_size,
        views_per_sample=views_per_sample,
        drop_last=whole,
        samples=part,
        shuffle=window or True,
        # A block has one view: those of shards that are fetched as a whole may have more rows, or no divisor of them.
        block_rows=VIEW_ROWS if window is None else window.rows * max(1, VIEW_ROWS // window.rows),
        ahead=ahead,
    )
    workers = 0 if isinstance(replay, CachedViews) else training.workers
    loader: DataLoader[Any] = DataLoader(
        replay,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        # A generator of its own, since a DataLoader otherwise draws from the global one.
        generator=torch.Generator(),
        pin_memory=training.accelerator != "cpu" and torch.cuda.is_available(),
    )
    return Groups(loader, sampler, training.accumulate, labels)


def visible_labels(labels: npt.NDArray[Any], fraction: float, seed: int) -> npt.NDArray[Any]:
    """Hide all labels but a share of each class: the everyday case of few labels and many samples.

    Where a sample has no one class (vectors, or numbers), whole samples are hidden, and the share is one of all samples.

    Args:
        labels: Classes int64 [samples]; vectors int64 or floating [samples, ...]; numbers [samples], floating.
        fraction: Share of each class that stays, above 0 to 1; at least one sample a class.
        seed: Of the choice.

    Returns:
        A copy with `IGNORE_LABEL`, or NaN among floating ones, in place of the hidden ones.

    >>> hidden = visible_labels(np.repeat(np.arange(3), 10), 0.2, seed=0)
    >>> [(hidden == c).sum().item() for c in range(3)]
    [2, 2, 2]
    >>> visible_labels(np.linspace(0, 1, 5), 0.4, seed=0)
    array([ nan, 0.25,  nan,  nan, 1.  ])
    """
    positive(between(fraction, 0, 1, "label_fraction"), "label_fraction")
    hidden = np.full_like(labels, np.nan if labels.dtype.kind == "f" else IGNORE_LABEL)
    if labels.ndim > 1 or labels.dtype.kind == "f":
        known = ~np.isnan(labels) if labels.dtype.kind == "f" else labels != IGNORE_LABEL
        rows = np.flatnonzero(known.reshape(len(labels), -1).any(axis=1))
        shown = generator(seed, "visible labels").permutation(rows)[: max(1, round(fraction * len(rows)))]
        hidden[shown] = labels[shown]
        return hidden
    for label in np.unique(labels[labels != IGNORE_LABEL]):
        rows = np.flatnonzero(labels == label)
        keep = max(1, round(fraction * len(rows)))
        hidden[generator(seed, "visible labels", int(label)).permutation(rows)[:keep]] = label
    return hidden
