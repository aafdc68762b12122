"""What the students of a sweep cost: measured once for each network, before anything else runs beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bookkd.core.errors import BookFormatError
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import digest, pretty, read
from bookkd.evaluation import cost
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.shared import Shared
from bookkd.pipelines.evaluate_student import example_of
from bookkd.pipelines.options import NetworkOptions

__all__ = ["cost_of", "costs_of", "key_of"]

_REPEATS = 50


def key_of(student: NetworkOptions) -> str:
    """Return what stands for a network in the table of costs; its values do not count."""
    return digest({**plain(student), "weights": None})


def _sizes(shared: Shared) -> tuple[int, ...]:
    return (1, 64) if shared.sweep.latency else ()


def cost_of(shared: Shared, network: nn.Module, preprocess: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return what a network costs here, as `evaluation.Cost.to_json` gives it."""
    example = example_of(shared.samples.test, shared.samples.task)
    device = shared.device
    return cost(
        network.to(device), preprocess, example, batch_sizes=_sizes(shared), repeats=_REPEATS, device=device
    ).to_json()


def costs_of(shared: Shared, students: Sequence[NetworkOptions], path: Path) -> dict[str, dict[str, Any]]:
    """Return the cost of each network, measured where the file does not have it for this device and number of threads.

    Args:
        shared: Gives device, classes and the shape of a view.
        students: The networks.
        path: File of the table; written again.
    """
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, BookFormatError):
        known = read(path)
    sizes = _sizes(shared)
    device, threads = shared.device, torch.get_num_threads()
    for student in students:
        found = known.get(key_of(student), {})
        same = (found.get("device"), found.get("threads")) == (str(device), threads)
        if same and set(found["latency_ms"]) >= {str(size) for size in sizes}:
            continue
        network, preprocess = student.for_data(shared.samples.whole).build(shared.width, role="student")
        known[key_of(student)] = cost_of(shared, network, preprocess)
    write_atomic(path, pretty(known))
    return known
