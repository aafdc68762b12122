"""One network as a teacher: made ready to speak, and named so that a book can say who spoke."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bookkd.book import TeacherInfo
from bookkd.core.called import check_called
from bookkd.zoo import count_parameters, weights_digest

__all__ = ["Teacher"]


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _as_is(views: Tensor) -> Tensor:
    return views


@dataclass(eq=False)
class Teacher:
    """A network in evaluation mode, without gradients, in the memory layout that is fast on its device.

    The network that is given is changed in place: frozen, moved, put into evaluation mode. Copy one that is to train on.

    Args:
        network: Returns what the task's `fields` understands.
        preprocess: The network's own deterministic preprocessing of a view (resize, normalise, dtype).
        name: Shown in reports and stored in books.
        accuracy: Held-out accuracy, if known, 0 to 1; of numbers R^2, which has no least value.
        split: The split it was measured on.
        device: Where it runs.
        amp: Autocast on a GPU; the logits come out as float32 in any case.
        lineage: Who taught it, see `bookkd.book.lineage_of`; None where nobody did or nobody knows.
        layers: Name -> module path of its layers, over those that it has by itself, see `bookkd.knowledge.layers_of`.
        constants: What is known of it once and for all, by name, such as the directions that `pca<d>` keeps, on the CPU; books hold them
            too. What is missing is worked out where it is needed, see `bookkd.knowledge.constants`.
    """

    network: nn.Module
    preprocess: Callable[[Tensor], Tensor] = _as_is
    name: str = "teacher"
    accuracy: float | None = None
    split: str | None = None
    device: str | torch.device = "cpu"
    amp: bool = True
    lineage: Mapping[str, Any] | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    _digest: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        self.to(self.device)

    def knowing(self, constants: Mapping[str, Tensor]) -> Teacher:
        """Return this teacher with further constants; the network is the same."""
        other = copy.copy(self)
        other.constants = {**self.constants, **constants}
        return other

    def to(self, device: str | torch.device) -> None:
        """Move the network to a device, in the memory layout that is fast there."""
        self.device = torch.device(device)
        self.network = self.network.eval().requires_grad_(False).to(self.device)
        if self.device.type == "cpu":
            # Worth 2-4x for small convolutional networks on a CPU; a no-op for layers without 4-d weights.
            self.network = self.network.to(memory_format=torch.channels_last)

    @property
    def digest(self) -> str:
        """blake3 of the weights, computed once."""
        if not self._digest:
            self._digest = weights_digest(self.network)
        return self._digest

    @property
    def mode(self) -> str:
        """How it runs: "eval", with what the network says of its `mode` and its preprocessing in words.

        A book is not gone on with by one that runs otherwise.
        """
        own = getattr(self.network, "mode", "")
        found = f"eval, {own}" if isinstance(own, str) and own else "eval"
        if self.preprocess is _as_is:
            return found
        if hasattr(self.preprocess, "__qualname__"):
            return f"{found}, {self.preprocess.__module__}:{self.preprocess.__qualname__}"
        return f"{found}, " + " ".join(_ADDRESS.sub("", repr(self.preprocess)).split())

    @property
    def info(self) -> TeacherInfo:
        """What a book notes of it."""
        return TeacherInfo(
            name=self.name,
            digest=self.digest,
            parameters=self.parameters,
            bytes=self.bytes,
            accuracy=self.accuracy,
            split=self.split,
            mode=self.mode,
            lineage=self.lineage,
        )

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return count_parameters(self.network)

    @property
    def bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.network.state_dict().values())

    def __call__(self, views: Tensor, *more: Any) -> object:
        """Pass a batch through preprocessing and network, without deciding on gradients.

        Args:
            views: Preprocessed before the network takes them.
            more: What the task gives its networks behind the views, such as the lengths of sequences; tensors are moved along.

        Raises:
            ConfigError: for a network that is not called with these.
        """
        check_called(self.network, (views, *more))
        # Again at every call: with BatchNorm in training mode a record would depend on its batch.
        self.network.eval()
        device = torch.device(self.device)
        inputs = self.preprocess(views.to(device, non_blocking=True))
        if inputs.ndim == 4 and device.type == "cpu":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        use_amp = self.amp and device.type == "cuda"
        with torch.autocast(device.type) if use_amp else contextlib.nullcontext():
            return self.network(inputs, *(each.to(device) if isinstance(each, Tensor) else each for each in more))
