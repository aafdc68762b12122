"""A student that hands its last maps to the classifier of its teacher, through a trained projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from bookkd.core.errors import ConfigError, expected
from bookkd.shaping.base import Shaped

__all__ = ["REUSED", "ReusedClassifier", "ReusingStudent", "check_classifier"]

REUSED = "reused_classifier"
"""What a weights file calls the configuration of such a student."""
_INPUT = ":input"
_MOST = 2**16
"""Channels and classes that a file may ask for."""


class ReusedClassifier(nn.Module):
    """A trunk, a projector r and a frozen classifier: W mean over positions of r(F) + b, F the trunk's last maps.

    r is a 1 x 1 convolution to `width` channels, a 3 x 3 one, and a 1 x 1 one to those of the classifier, each with batch normalisation and
    ReLU. The trunk's own classifier is taken out, where it is a linear layer.

    Args:
        trunk: A network; its last linear layer is changed in place.
        last: Path of the module whose output is F, or `PATH:input`.
        channels: Of F.
        grid: Largest grid of what r gives; larger F are averaged to it.
        weight: W, shape [classes, c_T].
        bias: b, shape [classes].
        width: Channels in the middle of r.
        pooled: Path of what the trunk's own classifier is given, such as `fc:input`; empty to leave it.

    >>> trunk = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    >>> student = ReusedClassifier(trunk, "0", 4, (3, 3), torch.zeros(5, 6), torch.zeros(5), width=3)
    >>> student(torch.zeros(2, 1, 3, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        trunk: nn.Module,
        last: str,
        channels: int,
        grid: Sequence[int],
        weight: Tensor,
        bias: Tensor,
        *,
        width: int,
        pooled: str = "",
    ) -> None:
        super().__init__()
        self.configuration: dict[str, Any] = {
            "last": last, "channels": channels, "grid": list(grid), "shape": list(weight.shape), "width": width, "pooled": pooled,
        }  # fmt: skip
        self.trunk, self.last = trunk, last
        self.grid = (int(grid[0]), int(grid[1]))
        own = pooled.removesuffix(_INPUT)
        if own and pooled.endswith(_INPUT) and isinstance(trunk.get_submodule(own), nn.Linear):
            parent, _, name = own.rpartition(".")
            setattr(trunk.get_submodule(parent), name, nn.Identity())
        wide = weight.shape[1]
        layers: list[nn.Module] = []
        for before, behind, size in ((channels, width, 1), (width, width, 3), (width, wide, 1)):
            layers += [
                nn.Conv2d(before, behind, size, padding=size // 2, bias=False),
                nn.BatchNorm2d(behind),
                nn.ReLU(),
            ]
        self.projector = nn.Sequential(*layers)
        self.classifier = nn.Linear(wide, len(weight))
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            self.classifier.bias.copy_(bias)
        self.classifier.requires_grad_(False)

    @classmethod
    def around(cls, trunk: nn.Module, configuration: Any) -> ReusedClassifier:
        """Return one of the `configuration` of another, such as a weights file notes, around a fresh trunk; its weights are to be loaded.

        Raises:
            ConfigError: for what is no configuration, or of another trunk.
        """
        wish, do = "what a ReusedClassifier notes of itself", "Name the network that the student was."
        try:
            sizes = [*configuration["shape"], *configuration["grid"], configuration["channels"], configuration["width"]]
            paths = [configuration["last"], configuration["pooled"]]
            if len(sizes) != 6 or any(type(each) is not int or not 0 < each <= _MOST for each in sizes):
                raise ValueError(sizes)
            for path in paths:
                trunk.get_submodule(path.removesuffix(_INPUT))
            classes, wide = configuration["shape"]
            more = {name: configuration[name] for name in ("last", "channels", "grid", "width", "pooled")}
            return cls(trunk, weight=torch.zeros(classes, wide), bias=torch.zeros(classes), **more)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(expected("configuration", wish, str(error), where=type(trunk).__name__, do=do)) from error

    @property
    def feature_layers(self) -> dict[str, str]:
        """Names of what it has in place of the trunk's own: the projector's maps, and their mean that the classifier is given."""
        own = getattr(self.trunk, "feature_layers", None)
        inner = {f"{name}": f"trunk.{path}" for name, path in own.items()} if isinstance(own, Mapping) else {}
        return {**inner, "last": "projector", "pooled": f"classifier{_INPUT}"}

    def forward(self, views: Tensor, *more: Any) -> Tensor:
        """Return the logits of the teacher's classifier."""
        taken: list[Tensor] = []
        module = self.trunk.get_submodule(self.last.removesuffix(_INPUT))
        if self.last.endswith(_INPUT):
            hook = module.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
        else:
            hook = module.register_forward_hook(lambda _, __, output: taken.append(output))
        try:
            self.trunk(views, *more)
        finally:
            hook.remove()
        maps = taken[-1]
        size = (min(self.grid[0], maps.shape[-2]), min(self.grid[1], maps.shape[-1]))
        if tuple(maps.shape[-2:]) != size:
            maps = adaptive_avg_pool2d(maps, size)
        logits: Tensor = self.classifier(self.projector(maps).mean((2, 3)))
        return logits


class ReusingStudent(Shaped):
    """A student with the teacher's classifier; it is kept as it learnt, since its own classifier never did.

    Args:
        student: With the classifier.
    """

    def __init__(self, student: ReusedClassifier) -> None:
        super().__init__(student)

    def layers(self, named: Mapping[str, str]) -> Mapping[str, str]:
        """Return the trunk's layers at their paths, but the last, which is what the projector gives."""
        student = cast(ReusedClassifier, self.student)
        return {**{name: f"trunk.{path}" for name, path in named.items()}, **student.feature_layers}


def check_classifier(weight: Tensor, maps: Sequence[int], n_outputs: int, where: str) -> None:
    """Refuse a classifier that is not of the teacher's last maps, or of other classes.

    Raises:
        ConfigError: naming which.
    """
    if len(maps) != 3 or maps[0] != weight.shape[1]:
        wish = f"maps of {weight.shape[1]} channels, as the teacher's classifier is given"
        raise ConfigError(expected("features/last", wish, f"shape {list(maps)}", where=where))
    if len(weight) != n_outputs:
        do = "Learn all classes of the teacher."
        raise ConfigError(expected("classes", f"the {len(weight)} of the classifier", n_outputs, where=where, do=do))
