"""Text that a language model writes, as a data set on disk: sequence-level distillation learns it by method `supervised`."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bookkd.book.teacher_info import teacher_from_json
from bookkd.core.check import at_least
from bookkd.core.errors import BookFormatError, BookMismatchError, DataError, expected
from bookkd.core.files import file_digest, make_folder, storage_errors, write_atomic
from bookkd.core.jsonio import canonical, parse, pretty, read
from bookkd.core.lock import Lock
from bookkd.core.rng import draw64
from bookkd.knowledge import Teacher
from bookkd.zoo import Decoding, TokenDataset, continued, fingerprint

__all__ = ["open_texts", "write_texts"]

_PLAN, _DONE, _FORMAT = "plan.json", "texts.json", "bookkd-texts"
_VERSION = 1
_TOLD = ("versions", "name")
"""What a plan notes and a text may be gone on with under another of: names and libraries are for people."""


def write_texts(
    path: str | Path,
    teacher: Teacher,
    prompts: TokenDataset,
    decoding: Decoding,
    *,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> TokenDataset:
    """Let a language model write behind each prompt, and keep what it writes.

    A prompt is what stands before the first token that is to be learnt: of a text without prompts its first token, of one that is
    not to be learnt at all the whole of it. Each batch is written when it is whole; a folder that was begun is gone on with, to the
    same texts, and a finished one is read. The draws of a batch depend on the seed and on its place alone.

    Args:
        path: Folder of the texts.
        teacher: Whose network is a `LanguageModel`.
        prompts: Where the prompts are.
        decoding: How it writes.
        seed: Of the draws.
        batch_size: Prompts that are written behind at once.
        progress: Called with (texts done, texts in all).

    Returns:
        As many texts as prompts, in the same order, of which the prompt is not learnt; `written_by` is the teacher.

    Raises:
        BookMismatchError: if the folder holds texts of another teacher, other prompts or another decoding.
        ConfigError: for a network that cannot write, or prompts that leave it no room.
        BookLockedError: if another process writes there.

    Source: Kim and Rush 2016 (arXiv 1606.07947), sequence-level distillation: beam search there.
    """
    at_least(batch_size, 1, "batch_size", where="write_texts")
    folder, plan = Path(path), _plan(teacher, prompts, decoding, seed, batch_size)
    make_folder(folder)
    lock = Lock(folder / ".lock")
    try:
        _begin(folder, plan)
        if not (folder / _DONE).is_file():
            digests = _write_all(folder, teacher, prompts, decoding, seed, batch_size, progress)
            write_atomic(folder / _DONE, pretty({**plan, "batches": digests}))
    finally:
        lock.release()
    return open_texts(folder)


def open_texts(path: str | Path) -> TokenDataset:
    """Return the texts that `write_texts` has finished.

    Raises:
        BookFormatError: if the folder holds none, or files that were changed.
    """
    folder = Path(path)
    if not (folder / _DONE).is_file():
        raise BookFormatError(expected("folder", f"one with {_DONE}", str(folder), do="Let write_texts finish it."))
    found = read(folder / _DONE)
    try:
        if found["format"] != _FORMAT or found["version"] != _VERSION:
            got = f"{found['format']} {found['version']}"
            raise BookFormatError(expected("format", f"{_FORMAT} {_VERSION}", got, where=str(folder)))
        parts = [_read(_batch(folder, place), digest) for place, digest in enumerate(found["batches"])]
        tokens, ends, starts = (
            np.concatenate([part[name] for part in parts]) for name in ("tokens", "counts", "starts")
        )
        ends = np.cumsum(ends, dtype=np.int64)
        within = np.arange(len(tokens)) - np.repeat(np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0))
        return TokenDataset(
            found["name"],
            tokens,
            ends,
            found["vocabulary"],
            tokenizer=found["tokenizer"],
            learnt=within >= np.repeat(starts, np.diff(ends, prepend=0)),
            pad_value=found["pad_value"],
            control=tuple(found["control"]),
            written_by=teacher_from_json(found["teacher"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BookFormatError(expected(_DONE, "what write_texts writes", str(error), where=str(folder))) from error


def _plan(teacher: Teacher, prompts: TokenDataset, decoding: Decoding, seed: int, batch_size: int) -> dict[str, Any]:
    if len(prompts) == 0:
        raise DataError(expected("prompts", "at least one", 0, where="write_texts"))
    found = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": f"{prompts.name}, written by {teacher.name}",
        "teacher": teacher.info.to_json(),
        "decoding": asdict(decoding),
        "seed": at_least(seed, 0, "seed", where="write_texts"),
        "batch_size": batch_size,
        "prompts": {**fingerprint(prompts), "content": prompts.content},
        "vocabulary": prompts.vocabulary,
        "tokenizer": prompts.tokenizer,
        "pad_value": prompts.pad_value,
        "control": list(prompts.control),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    return parse(canonical(found), "plan")


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Note what is written here, or refuse a folder of something else."""
    path = folder / _PLAN
    if not path.is_file():
        write_atomic(path, pretty(plan))
        return
    known = read(path)
    other = [key for key in plan if key not in _TOLD and known.get(key) != plan[key]]
    if other:
        wish = "texts of the same teacher, prompts and decoding"
        do = "Choose another folder, or delete this one."
        raise BookMismatchError(expected("folder", wish, f"other {', '.join(other)}", where=str(folder), do=do))


def _write_all(
    folder: Path,
    teacher: Teacher,
    prompts: TokenDataset,
    decoding: Decoding,
    seed: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    digests = []
    for place, start in enumerate(range(0, len(prompts), batch_size)):
        rows = range(start, min(start + batch_size, len(prompts)))
        if not _readable(_batch(folder, place), len(rows)):
            given = [prompts.prompt(row).numpy() for row in rows]
            draws = int(draw64(seed, "written text", [place], [0])[0, 0] >> np.uint64(1))
            written = continued(teacher.network, given, decoding, vocabulary=prompts.vocabulary, seed=draws)
            write_atomic(_batch(folder, place), _bytes(given, written))
        digests.append(file_digest(_batch(folder, place)))
        if progress is not None:
            progress(rows.stop, len(prompts))
    return digests


def _bytes(prompts: list[npt.NDArray[np.int64]], written: list[npt.NDArray[np.int64]]) -> bytes:
    texts = [np.concatenate(pair) for pair in zip(prompts, written, strict=True)]
    parts: dict[str, npt.NDArray[Any]] = {
        "tokens": np.concatenate(texts).astype(np.int32),
        "counts": np.array([len(text) for text in texts], dtype=np.int64),
        "starts": np.array([len(prompt) for prompt in prompts], dtype=np.int64),
    }
    return save(parts)


def _batch(folder: Path, place: int) -> Path:
    return folder / f"batch-{place:06d}.safetensors"


def _readable(path: Path, rows: int) -> bool:
    """Say whether a batch is there and whole; one that is not is written again, to the same texts."""
    try:
        return len(load(path.read_bytes())["counts"]) == rows
    except (OSError, SafetensorError, KeyError):
        return False


def _read(path: Path, digest: str) -> dict[str, npt.NDArray[Any]]:
    with storage_errors(path):
        if not path.is_file() or file_digest(path) != digest:
            do = "Delete the folder, and write the texts again."
            raise BookFormatError(
                expected("batch", "as it was written", "another file, or none", where=str(path), do=do)
            )
        return dict(load(path.read_bytes()))
