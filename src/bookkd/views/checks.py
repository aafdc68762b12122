"""Proofs: that a replayed view is the input the teacher saw, and that a transform replays at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, ViewMismatchError, expected
from bookkd.core.fields import (
    INPUT,
    LABEL,
    LABEL_LENGTH,
    LENGTH,
    PARTNER,
    PROBE_HASH,
    PROBE_PROJECTIONS,
    PROBE_TAKEN,
    RATIO,
    SAMPLE,
    VIEW,
)
from bookkd.views.picks import Pick, as_picks
from bookkd.views.probe import probe
from bookkd.views.replay import Replay
from bookkd.views.views import versions

__all__ = ["FLOAT_TOLERANCE", "INTEGER_TOLERANCE", "ROUNDING_TOLERANCE", "check_probes", "check_replay"]

INTEGER_TOLERANCE = 1e-6
"""Same libraries and processor, whole-number views: the sums are exact, only the float32 of the book rounds."""
FLOAT_TOLERANCE = 1e-5
"""Same libraries and processor, float views: rounding noise of up to 1e-6 a pixel; one grey level of one pixel in
32 x 32 x 3 moves a projection by 7e-5."""
ROUNDING_TOLERANCE = 0.02
"""Another library version or processor: a JPEG decoder or interpolation may be off by a grey level in every pixel,
which moves a projection by 0.004. Another view moves it by 0.1 and more, and many records are checked."""


def check_probes(
    batch: Mapping[str, Any],
    stored_hash: npt.NDArray[np.uint64],
    stored_projections: npt.NDArray[np.float32],
    *,
    recipe_versions: Mapping[str, str],
    where: str = "",
    tolerance: float | None = None,
) -> None:
    """Refuse a batch whose views are not the inputs that the teacher saw.

    A row passes if its hash is equal, or if |here - stored| <= tolerance max(1, |stored|) in both projections; of whole numbers that
    are no pixels (tokens) by the hash alone, since no library rounds them. Only rows with `probe_taken` count; a batch without probes passes.

    Args:
        batch: From `collate`.
        stored_hash: Hashes in the book, uint64 [batch].
        stored_projections: Projections in the book, float32 [batch, 2].
        recipe_versions: `versions` of the book's recipe.
        where: Name of the book, for the message.
        tolerance: At least 0; None for `INTEGER_TOLERANCE` or `FLOAT_TOLERANCE` where versions and processor are
            those of the book, `ROUNDING_TOLERANCE` elsewhere.

    Raises:
        ViewMismatchError: with sample, view, the versions there and here, and what to do.

    >>> hashes, projections = probe(torch.zeros(1, 3, 4, 4))
    >>> batch = {"probe_taken": torch.tensor([True]), "probe/hash": hashes, "probe/projections": projections}
    >>> stored = hashes.numpy().view(np.uint64), projections.numpy().astype(np.float32)
    >>> check_probes(batch, *stored, recipe_versions=versions())
    """
    if PROBE_TAKEN not in batch:
        return
    here = batch[PROBE_HASH].cpu().numpy().view(np.uint64)
    projections, stored = batch[PROBE_PROJECTIONS].cpu().numpy(), np.asarray(stored_projections, dtype=np.float64)
    if here.shape != np.shape(stored_hash) or projections.shape != stored.shape:
        raise ViewMismatchError(
            expected("stored probes", f"of shape {here.shape} and {projections.shape}", f"{stored.shape}", where=where)
        )
    distance = np.abs(projections - stored) / np.maximum(1, np.abs(stored))
    if tolerance is None:
        tolerance = _tolerance(batch, dict(recipe_versions) == versions())
    # Written so that NaN in a projection does not pass.
    exact = _exact(batch.get(INPUT))
    same = (here == np.asarray(stored_hash)) | ((distance <= tolerance).all(axis=1) & (not exact))
    taken = batch[PROBE_TAKEN].cpu().numpy()
    wrong = np.flatnonzero(taken & ~same)
    if len(wrong):
        raise ViewMismatchError(_mismatch(batch, wrong, distance, int(taken.sum()), recipe_versions, where))


def _exact(view: Any) -> bool:
    """Whether views are whole numbers that are no pixels, which no library rounds."""
    return isinstance(view, Tensor) and not view.is_floating_point() and view.dtype != torch.uint8


def _tolerance(batch: Mapping[str, Any], same_versions: bool) -> float:
    if not same_versions:
        return ROUNDING_TOLERANCE
    view = batch.get(INPUT)
    return INTEGER_TOLERANCE if isinstance(view, Tensor) and not view.is_floating_point() else FLOAT_TOLERANCE


def _mismatch(
    batch: Mapping[str, Any],
    wrong: npt.NDArray[np.intp],
    distance: npt.NDArray[np.float64],
    taken: int,
    recipe_versions: Mapping[str, str],
    where: str,
) -> str:
    first = int(wrong[0])
    name = ", ".join(f"{key} {int(batch[key][first])}" for key in (SAMPLE, VIEW) if key in batch)
    here = versions()
    book = ", ".join(f"{key} {value}" for key, value in sorted(recipe_versions.items()))
    if _exact(batch.get(INPUT)):  # which library drew them says nothing of tokens
        made = "a record of tokens"
        advice = "Use the text, tokenizer, length and order of the book, or make the book again with these."
    elif dict(recipe_versions) == here:
        advice = "Use the data, transform, arguments and seed of the book's recipe, or make the book again with these."
        made = f"made and replayed with {book}"
    else:
        advice = "Install the versions of the book, or make it again with these; check data, transform and seed too."
        made = f"made with {book}; here {', '.join(f'{key} {value}' for key, value in sorted(here.items()))}"
    # Not through `expected`, which shortens: both lists of versions are what the reader needs.
    return (
        f"Expected the replayed view to be the input that the teacher saw, got another one in {len(wrong)} of {taken} "
        f"records, first {name or f'row {first} of the batch'}, off by {distance[first].max():.2g} "
        f"({f'{where}; ' if where else ''}{made}). {advice}"
    )


def check_replay(replay: Replay, picks: int | Sequence[Pick] = 32) -> None:
    """Refuse a transform that does not replay: draw records as a batch, then one by one backwards, and compare bits.

    Args:
        replay: What `make` is about to read.
        picks: The records, or how many, spread over samples and views.

    Raises:
        ConfigError: naming sample and view, if a record does not come out bit-equal.

    >>> from bookkd.views import Views
    >>> check_replay(Replay([(torch.zeros(1, 2, 2), 0)], Views(lambda image: image + torch.rand(()), n_views=4)))
    """
    found = _spread(replay, picks) if isinstance(picks, int) else as_picks(picks, replay.views.n_views)
    # Fingerprints are taken before the next pass: a view may share memory with data that a transform writes into.
    first = [_fingerprint(item) for item in replay.__getitems__(found)]
    again = [_fingerprint(replay[pick]) for pick in reversed(found)][::-1]
    wrong = [pick for pick, one, other in zip(found, first, again, strict=True) if one != other]
    if wrong:
        raise ConfigError(
            expected(
                "transform",
                "bit-equal when replayed in another order",
                f"another view in {len(wrong)} of {len(found)} records",
                where=f"sample {wrong[0].sample}, view {wrong[0].view}",
                do="The transform or data set holds a generator or state of its own, or writes into its input: draw"
                " from the global generators of torch, numpy or random, and copy before writing.",
            )
        )


def _spread(replay: Replay, count: int) -> list[Pick]:
    at_least(count, 1, "picks", where="check_replay")
    n_views = replay.views.n_views
    n = len(replay)
    if count <= n:
        return [Pick(int(replay.rows[k * n // count]), k % n_views) for k in range(count)]
    # More records than samples: go round the samples, each time with each sample's next view.
    return [Pick(int(replay.rows[k % n]), (k % n + k // n) % n_views) for k in range(min(count, n * n_views))]


def _fingerprint(item: Mapping[str, Any]) -> list[object]:
    # Without the padding, which depends on the batch.
    pairs = ((item[INPUT], item.get(LENGTH)), (item[LABEL], item.get(LABEL_LENGTH)))
    values = (value[:length] if isinstance(value, torch.Tensor) else value for value, length in pairs)
    said = [int(probe([value])[0]) if isinstance(value, torch.Tensor) else value for value in values]
    return [*said, item.get(PARTNER), item.get(RATIO)]
