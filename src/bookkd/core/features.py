"""Names of what a network says inside: a layer, and what is kept of its output.

`features/<layer>` is the output of a layer as it is, `features/<layer>/<reduction>` what a reduction keeps of it:

| reduction | of a map [c, h, w] | keeps |
|---|---|---|
| `mean` | mean over positions, [c] | how strong each channel is |
| `attention` | squares, mean over channels, as one vector of norm 1, [h w] | where the network looks |
| `gram` | products of the channels, each of norm 1, [c, c] | which channels go together |
| `spatial` | products of the positions, each of norm 1, [h w, h w] | which positions are alike |
| `pool<k>` | mean over a grid of k x k, [c, k, k] | the map, coarser |
| `max<k>` | largest over a grid of k x k, [c, k, k] | the map, coarser |
| `fsp.<other>` | products of its channels with those of another layer, averaged over positions, [c, c'] | the flow between the layers |
| `paraphrase` | where the factors of the map are strong, as `attention`, [h w] | what the factors of a trained paraphraser say |
| `pca<d>` | what d directions of most variance tell, [d] or [d, h, w] | the map without what hardly varies |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bookkd.core.errors import ConfigError, expected
from bookkd.core.fields import check_field_name

__all__ = ["FEATURES", "REDUCTIONS", "Feature", "is_feature"]

FEATURES = "features/"
"""Begins the fields that are taken inside of a network."""

REDUCTIONS = {
    "mean": "positions: which of them were strong",
    "attention": "channels, and how strong the map is",
    "gram": "positions, and how strong each channel is",
    "spatial": "channels, and how strong each position is",
    "pool": "detail below the grid",
    "max": "all but the largest of each cell of the grid",
    "fsp": "positions",
    "pca": "directions of least variance",
    "paraphrase": "all but where the factors of its paraphraser are strong",
}
"""Reduction -> what it loses."""

_SIZED = re.compile(r"(pool|max|pca)([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Feature:
    """A field that is taken inside of a network.

    Args:
        layer: A name that the network gives its layer, or the path of a module in it.
        reduction: What is kept of its output, see `REDUCTIONS`; empty for all of it.
        size: Cells along each side of the grid of `pool` and `max`, or directions of `pca`; 0 for the others.
        other: The second layer of `fsp`; empty for the others.

    >>> Feature.of("features/layer3.0"), Feature.of("features/stage3/pool4").name
    (Feature(layer='layer3.0', reduction='', size=0, other=''), 'features/stage3/pool4')
    """

    layer: str
    reduction: str = ""
    size: int = 0
    other: str = ""

    def __post_init__(self) -> None:
        sized = self.reduction in ("pool", "max", "pca")
        if self.reduction and self.reduction not in REDUCTIONS:
            wish = f"one of {', '.join(_spelled(name) for name in REDUCTIONS)}"
            raise ConfigError(expected("reduction", wish, self.reduction, where=self.layer))
        if sized != (self.size > 0):
            raise ConfigError(expected("size", "above 0 for pool, max and pca alone", self.size, where=self.name))
        if (self.reduction == "fsp") != bool(self.other):
            raise ConfigError(expected("other", "a layer for fsp alone", self.other, where=self.name))
        check_field_name(self.name)

    @property
    def name(self) -> str:
        """The name of the field."""
        own = f"{self.reduction}{self.size or ''}{'.' if self.other else ''}{self.other}"
        return f"{FEATURES}{self.layer}" + (f"/{own}" if own else "")

    @property
    def constant(self) -> str:
        """What the reduction needs to know of the network once and for all, as constants begin with it; empty where nothing.

        >>> Feature.of("features/last/pca8").constant
        'pca/last'
        """
        begin = {"pca": "pca", "paraphrase": "paraphraser"}.get(self.reduction)
        return f"{begin}/{self.layer}" if begin else ""

    @property
    def loses(self) -> str:
        """What the reduction loses, in words; empty where nothing."""
        return REDUCTIONS.get(self.reduction, "")

    @classmethod
    def of(cls, name: str) -> Feature:
        """Return what a field's name says.

        Raises:
            ConfigError: for another name than `features/<layer>` or `features/<layer>/<reduction>`.
        """
        parts = name.removeprefix(FEATURES).split("/")
        wish = (
            f"{FEATURES}LAYER or {FEATURES}LAYER/REDUCTION, a reduction one of {', '.join(map(_spelled, REDUCTIONS))}"
        )
        if not is_feature(name) or not 1 <= len(parts) <= 2 or not all(parts):
            raise ConfigError(expected("field", wish, name))
        if len(parts) == 1:
            return cls(parts[0])
        sized = _SIZED.fullmatch(parts[1])
        if sized is not None:
            return cls(parts[0], sized[1], int(sized[2]))
        if parts[1].startswith("fsp."):
            return cls(parts[0], "fsp", other=parts[1].removeprefix("fsp."))
        if parts[1] not in REDUCTIONS or parts[1] in ("pool", "max", "fsp", "pca"):
            raise ConfigError(expected("field", wish, name))
        return cls(parts[0], parts[1])


def is_feature(name: str) -> bool:
    """Return whether a field is taken inside of a network.

    >>> is_feature("features/stage1"), is_feature("logits")
    (True, False)
    """
    return name.startswith(FEATURES)


def _spelled(reduction: str) -> str:
    return {"fsp": "fsp.<layer>"}.get(
        reduction, f"{reduction}<k>" if reduction in ("pool", "max", "pca") else reduction
    )
