"""A book of any number of records in a moment: one shard of zeros under the names of all, and the manifests that name it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from bookkd.book import BookWriter, Dense, FieldPlan, Plan
from bookkd.core import jsonio
from bookkd.core.fields import LOGITS

__all__ = ["write_large_book"]

VERSION = {"format_version": 1}


def write_large_book(path: Path, *, n_views: int, shards: int, shard_rows: int) -> int:
    """Write a whole book of zeros of ten classes: every file is there, and every digest right.

    The shards are hard links to one file, since they have the same bytes; the manifests are written from the format's own
    description, since a writer would take hours.

    Args:
        path: Folder; created.
        n_views: Views.
        shards: Shards of a view.
        shard_rows: Rows of a shard, a multiple of 4096.

    Returns:
        The number of records.
    """
    plan = Plan(
        n_samples=shard_rows,
        n_views=1,
        fields={LOGITS: FieldPlan((10,), Dense())},
        class_names=tuple("0123456789"),
        temperatures=(),
        unit_rows=shard_rows,
        block_rows=4096,
    )
    with BookWriter(path, plan) as writer:
        writer.write_rows(0, 0, {LOGITS: np.zeros((shard_rows, 10), dtype=np.float16)})
        writer.finish()
    (shard,) = path.glob("view-0000/*.safetensors")
    sidecar = _read(shard.with_suffix(".json"))
    edition = _read(path / "edition-000001.json")
    for written in path.glob("view-0000/view-*.json"):
        written.unlink()
    large = replace(plan, n_samples=shards * shard_rows, n_views=n_views).resolved()
    text = jsonio.pretty(large.to_json())
    (path / "plan.json").write_bytes(text)
    identity = jsonio.digest(large.identity())
    hashes = [int(each, 16) for each in sidecar["blocks"][f"{LOGITS}/values"]] * shards
    parts = {f"{LOGITS}/values": xxhash.xxh3_128_hexdigest(np.array(hashes, dtype="<u8").tobytes())}
    content = jsonio.digest({"block_rows": 4096, "parts": parts})
    views = [
        {**_view(shard, view, shards, {**sidecar, "plan": identity}), "content": content} for view in range(n_views)
    ]
    body = {key: value for key, value in edition.items() if key != "digest"}
    body |= {"n_samples": large.n_samples, "n_views": n_views, "views": views}
    body["plan"] = {"bytes": len(text), "xxh3_128": _digest(text), "identity": identity}
    body["content_digest"] = jsonio.digest({"plan": identity, "views": [content] * n_views})
    (path / "edition-000001.json").write_bytes(jsonio.pretty({**body, "digest": jsonio.digest(body)}))
    return large.n_samples * n_views


def _view(shard: Path, view: int, shards: int, sidecar: dict[str, Any]) -> dict[str, Any]:
    """Write the files of one view; return its entry in the edition."""
    rows, folder = sidecar["stop"], shard.parent.parent / f"view-{view:04d}"
    folder.mkdir(exist_ok=True)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("shards", "start", "stop", "bytes", "sidecar_bytes", "sidecar_xxh3_128")
    }
    for number in range(shards):
        start, stop = number * rows, (number + 1) * rows
        stem = f"rows-{start:09d}-{stop:09d}"
        text = jsonio.pretty({**sidecar, "view": view, "start": start, "stop": stop})
        (folder / f"{stem}.json").write_bytes(text)
        target = folder / f"{stem}.safetensors"
        if target != shard:
            os.link(shard, target)
        entry = (stem, start, stop, sidecar["bytes"], len(text), _digest(text))
        for column, value in zip(columns.values(), entry, strict=True):
            column.append(value)
    text = jsonio.pretty({**VERSION, "view": view, **columns})
    name = f"view-{_digest(text)[:8]}.json"
    (folder / name).write_bytes(text)
    return {"file": name, "bytes": len(text), "xxh3_128": _digest(text)}


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _read(path: Path) -> dict[str, Any]:
    return jsonio.read(path, str(path))
