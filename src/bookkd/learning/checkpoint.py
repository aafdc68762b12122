"""Checkpoints without pickle: a tree of plain values as JSON, its tensors as safetensors, bound by a hash.

`state.ckpt` is JSON; it names `state.<digest>.safetensors` beside it. The tensors are written first, the JSON replaces
the old one in a single rename, and only then are older tensors deleted: a crash leaves the old checkpoint or the new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from bookkd.core.errors import BookFormatError, CheckpointError, expected
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import pretty, read

__all__ = ["load_checkpoint", "remove_checkpoint", "save_checkpoint"]

FORMAT = 2


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.generic):
        return _encode(value.item(), tensors, where)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            raise CheckpointError(
                expected(
                    where, "an array of numbers", str(value.dtype), where="checkpoint", do="Keep numbers in the state."
                )
            )
        # A copy in native byte order and C order: torch takes no other, nor read-only memory.
        return {"$numpy": _encode(torch.from_numpy(value.astype(value.dtype.newbyteorder("="))), tensors, where)}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A clone of its own for each: safetensors refuses tensors that share memory (tied weights do).
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, list):
        return [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, tensors, f"{where}.{key}") for key, item in value.items()}
        pairs = [[_encode(k, tensors, where), _encode(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]
        return {"$pairs": pairs}
    raise CheckpointError(
        f"Expected checkpoint entry {where} to be a tensor or a plain value, got {type(value).__name__}. "
        "Nothing is pickled: keep numbers, strings, lists, dicts and tensors in the state."
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key == "$tensor":
            return tensors[inner]
        if key == "$numpy":
            return _decode(inner, tensors).numpy()
        if key == "$tuple":
            return tuple(_decode(item, tensors) for item in inner)
        if key == "$pairs":
            return {_decode(k, tensors): _decode(v, tensors) for k, v in inner}
        if key == "$float":
            return float(inner)
    return {key: _decode(item, tensors) for key, item in value.items()}


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a tree of plain values and tensors.

    Args:
        path: The JSON file; the tensors go beside it.
        state: Dicts, lists, tuples, numbers, strings, None, tensors and numpy arrays.

    Raises:
        CheckpointError: for a value of another type, naming its place.
        StorageError: if the disk is full or read-only; the old checkpoint stays.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, tensors, "state")
    data = save_tensors(tensors)
    digest = xxhash.xxh3_128_hexdigest(data)
    beside = path.with_name(f"{path.stem}.{digest[:16]}.safetensors")
    write_atomic(beside, data)
    write_atomic(path, pretty({"format": FORMAT, "tensors": beside.name, "digest": digest, "state": tree}))
    for old in path.parent.glob(f"{path.stem}.{'[0-9a-f]' * 16}.safetensors"):
        if old.name != beside.name:
            old.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Args:
        path: The JSON file.
        map_location: Device of the tensors; None is the CPU.

    Raises:
        CheckpointError: missing, damaged or of a newer format.
    """
    path = Path(path)
    advice = "Delete the checkpoint folder to start again."
    if not path.is_file():
        raise CheckpointError(f"Expected a checkpoint at {path}, got nothing. Check the path.")
    try:
        document = read(path, str(path))
        if document.get("format") != FORMAT:
            raise CheckpointError(
                f"Expected checkpoint format {FORMAT} in {path}, got {document.get('format')!r}. Update bookkd or start again."
            )
        beside = path.with_name(Path(str(document["tensors"])).name)
        data = beside.read_bytes()
        if xxhash.xxh3_128_hexdigest(data) != document["digest"]:
            raise CheckpointError(f"Expected {beside} to have its recorded hash, got other bytes. {advice}")
        tensors = load_tensors(data)
        if map_location is not None:
            tensors = {name: tensor.to(map_location) for name, tensor in tensors.items()}
        found: dict[str, Any] = _decode(document["state"], tensors)
    except CheckpointError:
        raise
    except (BookFormatError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"Expected {path} to be a whole checkpoint, got {type(error).__name__}: {error}. {advice}"
        ) from error
    return found


def remove_checkpoint(path: str | Path) -> None:
    """Delete a checkpoint and its tensors."""
    path = Path(path)
    path.unlink(missing_ok=True)
    for old in path.parent.glob(f"{path.stem}.{'[0-9a-f]' * 16}.safetensors"):
        old.unlink(missing_ok=True)
