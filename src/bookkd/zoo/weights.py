"""Weights as safetensors: read, written and named by their digest. Pickled files are refused, never opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bookkd.core.errors import BookFormatError, ConfigError, WeightsError, expected
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import read

__all__ = ["load_weights", "save_weights", "weights_digest"]

_COUNTER = "num_batches_tracked"
_SHOWN = 3


def load_weights(module: nn.Module, path: str | Path, *, strict: bool = True) -> tuple[str, ...]:
    """Copy the tensors of a safetensors file into a network.

    Counters of batch normalisation (`num_batches_tracked`), which old published files lack, are set to 0 where missing.

    Args:
        module: The network; changed in place.
        path: The file.
        strict: If true, names and shapes must agree exactly; if false, what fits is copied.

    Returns:
        Names of the network's tensors that were not in the file or had another shape there; empty if `strict`.

    Raises:
        WeightsError: no such file, a pickled checkpoint, a damaged file, other names or shapes, or nothing that fits.
    """
    path = Path(path)
    found = _read(path)
    wanted = _tensors(module)
    counters = {name for name in wanted if name.rpartition(".")[2] == _COUNTER and name not in found}
    missing = [name for name in wanted if name not in found and name not in counters]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if strict and (missing or unexpected or misshapen):
        raise WeightsError(_difference(path, found, wanted, missing, unexpected, misshapen))
    fitting = {name: found[name] for name in wanted if name in found and name not in misshapen}
    if wanted and not fitting:
        raise WeightsError(
            expected("weights", "a file with some tensors of the network", _list(sorted(found)), where=str(path))
        )
    fitting |= {name: torch.zeros_like(wanted[name]) for name in counters}
    module.load_state_dict(fitting, strict=False)
    return tuple(sorted(missing + misshapen))


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state of a network as safetensors: complete under its name, or not at all.

    Args:
        module: The network, on any device.
        path: The file; replaced if it exists.
        metadata: Text to keep in the header, such as the architecture and the accuracy.

    Raises:
        ConfigError: metadata that is not text.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    notes = dict(metadata or {})
    for key, value in notes.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ConfigError(expected("metadata", "text for every key", {key: value}, where=str(path)))
    # Cloning also separates tied tensors, which safetensors refuses to write twice.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in _tensors(module).items()
    }
    write_atomic(path, save(state, metadata=notes))


def weights_digest(module: nn.Module) -> str:
    """Return the blake3 of a network's state, as 64 hex digits: one name for one set of weights.

    The digest covers names in sorted order, dtypes, shapes and bytes, so it does not depend on device, memory layout or
    the order in which layers were made.

    >>> layer = nn.Linear(2, 1)
    >>> before = weights_digest(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1)
    >>> weights_digest(layer) == before
    False
    """
    digest = blake3()
    for name, value in sorted(_tensors(module).items()):
        digest.update(f"{len(name)}:{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(
                expected(name, "a tensor", type(value).__name__, where="state of the network")
                + " Keep other state out of state_dict(); a weights file holds tensors only."
            )
    return dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(expected("weights", "a safetensors file", "no such file", where=str(path)))
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(expected("weights", "a readable file", str(error), where=str(path))) from error
    # A safetensors file starts with the length of its header and "{"; a pickle with 0x80, torch's zip with "PK".
    if start[8:] != b"{":
        if start[:1] == b"{" and _is_state(path):
            run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
            raise WeightsError(
                expected("weights", "a safetensors file", "the state of a training run", where=str(path))
                + f" It is there to resume from; the network's weights are in {run / 'student.safetensors'}."
            )
        if (
            start[:1] == b"\x80"
            or start[:4] == b"PK\x03\x04"
            or path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl")
        ):
            raise WeightsError(_recipe(path))
        raise WeightsError(expected("weights", "a safetensors file", f"bytes that begin {start!r}", where=str(path)))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            expected("weights", "a whole safetensors file", str(error), where=str(path), do="The file is damaged.")
        ) from error


def _is_state(path: Path) -> bool:
    """Say whether a JSON file is a checkpoint of this package, which only names the file of its tensors."""
    try:
        return {"tensors", "state"} <= read(path).keys()
    except (BookFormatError, OSError):
        return False


def _recipe(path: Path) -> str:
    # torch.load takes a file's suffix at its word: a pickle that is named .safetensors needs another name first.
    misnamed = path.suffix == ".safetensors"
    source = path.with_suffix(".pth") if misnamed else path
    rename = f" Rename it to {source.name}, and then" if misnamed else " Then"
    return (
        f"Expected weights to be a safetensors file, got a pickled checkpoint ({path}), which could run code when opened."
        f" Make sure that you trust where it comes from.{rename} convert it with these two lines of Python:\n"
        f"import torch, safetensors.torch; state = torch.load({str(source)!r}, map_location='cpu', weights_only=True)\n"
        "safetensors.torch.save_file({k.removeprefix('module.'): v.contiguous().clone()"
        f" for k, v in state.get('state_dict', state).items()}}, {str(path.with_suffix('.safetensors'))!r})"
    )


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _difference(
    path: Path,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Sequence[str],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_list(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_list(unexpected)})")
    if misshapen:
        shapes = [f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}" for name in misshapen]
        parts.append(f"{len(misshapen)} of another shape ({_list(shapes)})")
    return (
        f"Expected weights to fit the network's {len(wanted)} tensors, got {'; '.join(parts)} ({path})."
        " Check the network's name, its arguments and the number of classes."
    )
