"""The three manifests: a shard's sidecar, a view file, an edition. Each names the next with size and digest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from bookkd.book import _checked, _files, _layout
from bookkd.book.remote import Root
from bookkd.core import jsonio
from bookkd.core.errors import BookCorruptError, BookFormatError, expected

__all__ = [
    "Edition",
    "Sidecar",
    "ViewEntry",
    "ViewFile",
    "content_of_view",
    "read_edition",
    "read_sidecar",
    "read_view_file",
]

Hashes = npt.NDArray[np.uint64]
_HASH = re.compile("[0-9a-f]{16}")
_DIGEST = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, eq=False)
class Sidecar:
    """What is recorded of one shard.

    Args:
        view: The view.
        start: First sample.
        stop: End of the samples.
        size: Bytes of the shard.
        digest: xxh3_128 of the shard.
        block_rows: Rows of a hashing block.
        blocks: Tensor name -> xxh3_64 of each block's rows, uint64 [blocks].
        plan: Digest of the identity of the plan it was written under.
        fidelity: Sums and histograms per field, see `_fidelity.py`.
    """

    view: int
    start: int
    stop: int
    size: int
    digest: str
    block_rows: int
    blocks: Mapping[str, Hashes]
    plan: str
    fidelity: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return jsonio.pretty(
            {
                "format_version": _layout.FORMAT_VERSION,
                "view": self.view,
                "start": self.start,
                "stop": self.stop,
                "bytes": self.size,
                "xxh3_128": self.digest,
                "block_rows": self.block_rows,
                "blocks": {
                    name: [f"{value:016x}" for value in hashes.tolist()] for name, hashes in self.blocks.items()
                },
                "plan": self.plan,
                "fidelity": dict(self.fidelity),
            }
        )

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> Sidecar:
        """Return the sidecar in `found`, trusting nothing."""
        _checked.version(found, where)
        start = _checked.integer(found, "start", where)
        stop = _checked.integer(found, "stop", where, start + 1)
        block_rows = _checked.integer(found, "block_rows", where, 1, _layout.MAX_BLOCK_ROWS)
        if block_rows & (block_rows - 1):
            raise BookFormatError(expected("block_rows", "a power of two", block_rows, where=where))
        count = -(-(stop - start) // block_rows)
        blocks = {}
        for name in _checked.mapped(found, "blocks", where):
            hashes = _checked.texts(found["blocks"], name, where, _HASH)
            if len(hashes) != count:
                raise BookFormatError(expected("blocks", f"{count} hashes a tensor", len(hashes), where=where))
            blocks[name] = np.array([int(value, 16) for value in hashes], dtype=np.uint64)
        return cls(
            view=_checked.integer(found, "view", where),
            start=start,
            stop=stop,
            size=_checked.integer(found, "bytes", where),
            digest=_checked.hex_digest(found, "xxh3_128", where),
            block_rows=block_rows,
            blocks=blocks,
            plan=_checked.hex_digest(found, "plan", where),
            fidelity=_checked.mapped(found, "fidelity", where),
        )


@dataclass(frozen=True, eq=False)
class ViewFile:
    """The shards of one view, in the order of their samples; columns, since there may be many.

    Args:
        view: The view.
        stems: Name of each shard without its extension.
        starts: First sample of each, int64 [shards].
        stops: End of each, int64 [shards].
        sizes: Bytes of each, int64 [shards].
        sidecar_sizes: Bytes of each one's sidecar, int64 [shards].
        sidecars: xxh3_128 of each one's sidecar.
    """

    view: int
    stems: Sequence[str]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    sidecar_sizes: npt.NDArray[np.int64]
    sidecars: Sequence[str]

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return jsonio.pretty(
            {
                "format_version": _layout.FORMAT_VERSION,
                "view": self.view,
                "shards": list(self.stems),
                "start": self.starts.tolist(),
                "stop": self.stops.tolist(),
                "bytes": self.sizes.tolist(),
                "sidecar_bytes": self.sidecar_sizes.tolist(),
                "sidecar_xxh3_128": list(self.sidecars),
            }
        )

    @classmethod
    def from_json(cls, found: Mapping[str, Any], n_samples: int, where: str) -> ViewFile:
        """Return the view file in `found`, whose shards must cover samples 0 to `n_samples` without hole or overlap."""
        _checked.version(found, where)
        columns = {
            key: np.array(_checked.integers(found, key, where), dtype=np.int64)
            for key in ("start", "stop", "bytes", "sidecar_bytes")
        }
        stems = _checked.texts(found, "shards", where, _layout.SHARD_STEM)
        sidecars = _checked.texts(found, "sidecar_xxh3_128", where, _DIGEST)
        lengths = {len(stems), len(sidecars), *(len(column) for column in columns.values())}
        if len(lengths) != 1 or lengths == {0} or len(set(stems)) != len(stems):
            raise BookFormatError(
                expected("shards", "columns of one length without repeats", sorted(lengths), where=where)
            )
        starts, stops = columns["start"], columns["stop"]
        whole = (
            starts[0] == 0 and stops[-1] == n_samples and (starts < stops).all() and (starts[1:] == stops[:-1]).all()
        )
        if not whole:
            raise BookFormatError(
                expected("shards", f"ranges that cover 0 to {n_samples} in order", "others", where=where)
            )
        view = _checked.integer(found, "view", where)
        return cls(view, stems, starts, stops, columns["bytes"], columns["sidecar_bytes"], sidecars)


@dataclass(frozen=True)
class ViewEntry:
    """A view as its edition names it.

    Args:
        file: Name of the view file inside the view's folder.
        size: Bytes of the view file.
        digest: xxh3_128 of the view file.
        content: Digest of the records themselves, whatever the shards: see `content_of_view`.
    """

    file: str
    size: int
    digest: str
    content: str


@dataclass(frozen=True)
class Edition:
    """One finished state of a book.

    Args:
        number: 1 for the first.
        n_samples: Samples of this edition.
        views: One entry per view.
        plan_size: Bytes of the plan's file.
        plan_digest: xxh3_128 of the plan's file.
        identity: Digest of the plan's identity.
        fidelity: As measured while writing, merged over all units.
        cost: What making it cost; outside the content digest.
        plan_file: Name of the plan's file; a grown edition has one of its own.
        keys_file: Name of the keys' file, where the plan has keys.
    """

    number: int
    n_samples: int
    views: tuple[ViewEntry, ...]
    plan_size: int
    plan_digest: str
    identity: str
    fidelity: Mapping[str, Any]
    cost: Mapping[str, Any]
    plan_file: str = _layout.PLAN_NAME
    keys_file: str = _layout.KEYS_NAME

    @property
    def content_digest(self) -> str:
        """Digest of what the book says: plan identity and records; not of cost, time, path or sharding."""
        return jsonio.digest({"plan": self.identity, "views": [view.content for view in self.views]})

    def to_bytes(self) -> bytes:
        """Return the content of the file, with its own digest; names of files only where they are not the usual ones."""
        plan: dict[str, Any] = {"bytes": self.plan_size, "xxh3_128": self.plan_digest, "identity": self.identity}
        if self.plan_file != _layout.PLAN_NAME:
            plan["file"] = self.plan_file
        if self.keys_file != _layout.KEYS_NAME:
            plan["keys_file"] = self.keys_file
        found: dict[str, Any] = {
            "format_version": _layout.FORMAT_VERSION,
            "edition": self.number,
            "n_samples": self.n_samples,
            "n_views": len(self.views),
            "plan": plan,
            "views": [
                {"file": view.file, "bytes": view.size, "xxh3_128": view.digest, "content": view.content}
                for view in self.views
            ],
            "fidelity": dict(self.fidelity),
            "cost": dict(self.cost),
            "content_digest": self.content_digest,
        }
        return jsonio.pretty({**found, "digest": jsonio.digest(found)})

    @classmethod
    def from_json(cls, found: dict[str, Any], where: str) -> Edition:
        """Return the edition in `found`, after its version and its own digest."""
        _checked.version(found, where)
        body = {key: value for key, value in found.items() if key != "digest"}
        try:
            digest = jsonio.digest(body)
        except (ValueError, RecursionError) as error:
            raise BookFormatError(
                expected("edition", "finite numbers and texts", f"{error} in it", where=where)
            ) from error
        if digest != _checked.hex_digest(found, "digest", where):
            raise BookCorruptError(
                f"Expected {where} to have digest {found['digest']}, got {digest}. The file was changed after it was written."
            )
        plan = _checked.mapped(found, "plan", where)
        views = tuple(_view_entry(entry, where) for entry in _checked.listed(found, "views", where))
        n_views = _checked.integer(found, "n_views", where, 1, _layout.MAX_VIEWS)
        if len(views) != n_views:
            raise BookFormatError(expected("views", f"{n_views} entries", len(views), where=where))
        edition = cls(
            number=_checked.integer(found, "edition", where, 1),
            n_samples=_checked.integer(found, "n_samples", where, 1, _layout.MAX_SAMPLES),
            views=views,
            plan_size=_checked.integer(plan, "bytes", where),
            plan_digest=_checked.hex_digest(plan, "xxh3_128", where),
            identity=_checked.hex_digest(plan, "identity", where),
            fidelity=_checked.mapped(found, "fidelity", where),
            cost=_checked.mapped(found, "cost", where),
            plan_file=_named(plan, "file", where, _layout.PLAN_FILE, _layout.PLAN_NAME),
            keys_file=_named(plan, "keys_file", where, _layout.KEYS_FILE, _layout.KEYS_NAME),
        )
        if edition.content_digest != _checked.hex_digest(found, "content_digest", where):
            raise BookFormatError(
                expected("content_digest", edition.content_digest, found["content_digest"], where=where)
            )
        return edition


def content_of_view(sidecars: Sequence[Sidecar]) -> str:
    """Return the content digest of a view: over the block hashes of each tensor in sample order.

    Shards start at multiples of the block size, so that the digest does not change when shards are merged.
    """
    for before, after in pairwise(sidecars):
        if before.stop != after.start or before.stop % before.block_rows:
            raise BookFormatError(
                expected("shards", "ranges in order that end at whole blocks", f"{before.stop} before {after.start}")
            )
    found = {}
    for name in sidecars[0].blocks:
        state = xxhash.xxh3_128()
        for sidecar in sidecars:
            state.update(sidecar.blocks[name].astype("<u8").tobytes())
        found[name] = state.hexdigest()
    return jsonio.digest({"block_rows": sidecars[0].block_rows, "parts": found})


def read_edition(root: Root, number: int) -> Edition:
    """Read and check one edition file."""
    name = _layout.edition_name(number)
    found, _ = _files.read_json(root, name)
    edition = Edition.from_json(found, str(root / name))
    if edition.number != number:
        raise BookFormatError(expected("edition", str(number), edition.number, where=str(root / name)))
    return edition


def read_view_file(root: Root, view: int, entry: ViewEntry, n_samples: int) -> ViewFile:
    """Read and check the file of one view."""
    name = f"{_layout.view_folder(view)}/{entry.file}"
    found, _ = _files.read_json(root, name, (entry.size, entry.digest))
    file = ViewFile.from_json(found, n_samples, str(root / name))
    if file.view != view:
        raise BookFormatError(expected("view", str(view), file.view, where=str(root / name)))
    return file


def read_sidecar(root: Root, file: ViewFile, shard: int, data: bytes | None = None) -> Sidecar:
    """Read the sidecar of one shard and check it against the view file; `data` are its bytes, where they are known."""
    name = f"{_layout.view_folder(file.view)}/{file.stems[shard]}.json"
    if data is None:
        found, _ = _files.read_json(root, name, (int(file.sidecar_sizes[shard]), file.sidecars[shard]))
    else:
        found = jsonio.parse(data, str(root / name), limit=_layout.JSON_LIMIT)
    sidecar = Sidecar.from_json(found, str(root / name))
    here = (file.view, int(file.starts[shard]), int(file.stops[shard]), int(file.sizes[shard]))
    if (sidecar.view, sidecar.start, sidecar.stop, sidecar.size) != here:
        raise BookFormatError(
            expected(
                "view, start, stop, bytes",
                f"{here}",
                (sidecar.view, sidecar.start, sidecar.stop, sidecar.size),
                where=str(root / name),
            )
        )
    return sidecar


def _named(found: Mapping[str, Any], key: str, where: str, pattern: re.Pattern[str], usual: str) -> str:
    return _checked.text(found, key, where, pattern) if key in found else usual


def _view_entry(found: Any, where: str) -> ViewEntry:
    if not isinstance(found, dict):
        raise BookFormatError(expected("views", "objects", found, where=where))
    return ViewEntry(
        file=_checked.text(found, "file", where, _layout.VIEW_FILE),
        size=_checked.integer(found, "bytes", where),
        digest=_checked.hex_digest(found, "xxh3_128", where),
        content=_checked.hex_digest(found, "content", where),
    )
