"""What a network costs: parameters, bytes, multiply-accumulates, and milliseconds a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bookkd.core.check import at_least
from bookkd.core.errors import DeviceError, expected
from bookkd.evaluation.intervals import Floats, Interval, bootstrap
from bookkd.zoo import count_parameters

__all__ = ["Cost", "Latency", "cost"]

_WARM_UP = 5
_REPLICATES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Latency:
    """Time of one batch in milliseconds, from views to logits.

    Args:
        p50: Median and its 95 % bootstrap interval.
        p95: 95th percentile and its interval.
    """

    p50: Interval
    p95: Interval


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: Number of parameters; tied ones count once.
        bytes: Size of parameters and saved buffers as they lie in memory.
        macs: Multiply-accumulates a sample in convolutions, matrix products and attention.
        latency_ms: By batch size.
        repeats: Timed batches behind each latency.
        device: Where it was measured.
        threads: Processor threads that torch used.
    """

    parameters: int
    bytes: int
    macs: int
    latency_ms: dict[int, Latency]
    repeats: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a result file."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
            "latency_ms": {
                str(size): {"p50": latency.p50.to_json(), "p95": latency.p95.to_json()}
                for size, latency in self.latency_ms.items()
            },
            "repeats": self.repeats,
            "device": self.device,
            "threads": self.threads,
        }


def cost(
    module: nn.Module,
    preprocess: Callable[[Tensor], Tensor],
    example: Sequence[int] | tuple[Tensor, ...],
    *,
    batch_sizes: Sequence[int] = (1, 64),
    repeats: int,
    device: str | torch.device,
) -> Cost:
    """Measure a network in evaluation mode; its training mode is restored.

    Latency runs from a batch of uint8 views on the device, through preprocessing, to logits, in inference mode, after five
    batches to warm up; a graphics processor is waited for. Nothing else should run beside it.

    Args:
        module: The network, on `device`.
        preprocess: What it does to views.
        example: Shape of one view, such as (3, 32, 32); or all that the network is given of one record, as tensors [1, ...], which is
            repeated.
        batch_sizes: Batches to time.
        repeats: Timed batches of each size.
        device: Where to measure.

    Raises:
        DeviceError: no such device, or the network lies on another.
        ConfigError: a number out of range.

    >>> flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> found = cost(flat, lambda views: views.float(), (3, 2, 2), batch_sizes=(1,), repeats=3, device="cpu")
    >>> found.parameters, found.bytes, found.macs
    (65, 260, 60)
    """
    at_least(repeats, 1, "repeats", where="cost")
    record = _pattern(example) if not any(isinstance(each, Tensor) for each in example) else cast(Any, example)
    for size in batch_sizes:
        at_least(size, 1, "batch_sizes", where="cost")
    place = _device(module, device)
    mode = {each: each.training for each in module.modules()}
    module.eval()
    try:
        macs = _macs(module, preprocess, _batch(1, record, place))
        latency = {size: _latency(module, preprocess, _batch(size, record, place), repeats) for size in batch_sizes}
    finally:
        for each, training in mode.items():
            each.training = training
    return Cost(
        parameters=count_parameters(module),
        bytes=_bytes(module),
        macs=macs,
        latency_ms=latency,
        repeats=repeats,
        device=str(place),
        threads=torch.get_num_threads(),
    )


def _device(module: nn.Module, device: str | torch.device) -> torch.device:
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            expected("device", "a device of this machine", str(device), where=f"cost: {error}")
        ) from error
    lies_on = next((parameter.device for parameter in module.parameters()), place)
    if lies_on != place:
        raise DeviceError(expected("device", f"where the network lies ({lies_on})", str(device), where="cost"))
    return place


def _pattern(view_shape: Any) -> tuple[Tensor, ...]:
    """Return a view of some shape; its values play no part in the time, and a pattern needs no generator."""
    for side in view_shape:
        at_least(side, 1, "view_shape", where="cost")
    return ((torch.arange(int(np.prod(view_shape))) % 251).to(torch.uint8).view(1, *view_shape),)


def _batch(size: int, record: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    return [each.expand(size, *each.shape[1:]).contiguous().to(device) for each in record]


def _bytes(module: nn.Module) -> int:
    state = [value for value in module.state_dict().values() if isinstance(value, Tensor)]
    seen = {(value.untyped_storage().data_ptr(), value.storage_offset(), value.shape): value for value in state}
    return sum(value.numel() * value.element_size() for value in seen.values())


def _macs(module: nn.Module, preprocess: Callable[[Tensor], Tensor], batch: Sequence[Tensor]) -> int:
    inputs = preprocess(batch[0])
    # The counter says floating-point operations: a multiply and an add are two.
    # Of attention it counts matrix products alone: neither the kernels that fuse them, nor the whole layers of torch's fast path.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(inputs, *batch[1:])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // (2 * len(batch[0]))


def _latency(
    module: nn.Module, preprocess: Callable[[Tensor], Tensor], batch: Sequence[Tensor], repeats: int
) -> Latency:
    times = np.empty(repeats)
    with torch.inference_mode():
        for repeat in range(-_WARM_UP, repeats):
            _wait(batch[0].device)
            start = time.perf_counter_ns()
            module(preprocess(batch[0]), *batch[1:])
            _wait(batch[0].device)
            if repeat >= 0:
                times[repeat] = (time.perf_counter_ns() - start) / 1e6
    p50, p95 = bootstrap(_percentiles(times), repeats, replicates=_REPLICATES, seed=0, level=_LEVEL)
    return Latency(p50, p95)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _percentiles(times: Floats) -> Callable[[Floats], Floats]:
    """Return the statistic counts -> (p50, p95): the least time with at least that share of the counts at or below it."""
    order = np.argsort(times)

    def statistic(counts: Floats) -> Floats:
        below = np.cumsum(counts[:, order], axis=1)
        # Whole percents of whole counts: no rounding can move the rank.
        ranks = [np.argmax(100 * below >= percent * len(times), axis=1) for percent in (50, 95)]
        return np.stack([times[order[rank]] for rank in ranks], axis=1)

    return statistic
