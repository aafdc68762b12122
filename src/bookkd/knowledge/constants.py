"""What is known of a teacher once and for all, not once a record: worked out of its weights, or of a first sample of views.

| constant | is | worked out of |
|---|---|---|
| `classifier/weight`, `classifier/bias` | the last linear layer, which is given the mean of the layer `last` | the weights |
| `margins/<layer>` | what a negative value of each channel is on average | the batch normalisation before the activation |
| `pca/<layer>` | the mean of the channels, and the directions of most variance below it, [1 + d, c] | maps of a sample |
| `paraphraser/<layer>/weight<i>`, `.../bias<i>` | the three convolutions that make factors of a map | training on maps of a sample |

The sample is `SAMPLES` records of the first view, or as many as there are, spread evenly over the samples. A book and a live teacher
on the same samples and views work out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, expected
from bookkd.core.features import Feature, is_feature
from bookkd.core.names import choose
from bookkd.knowledge.capture import Capture
from bookkd.knowledge.teacher import Teacher
from bookkd.losses import overhaul_margins
from bookkd.objectives.adapters import Paraphraser
from bookkd.tasks import Task
from bookkd.views import CachedViews, Pick, Replay, collate

__all__ = ["CONSTANTS", "SAMPLES", "STEPS", "Source", "missing_constants", "trained_paraphraser", "work_out"]

SAMPLES = 2048
"""Records of which directions are worked out and paraphrasers trained."""
STEPS = 300
"""Optimizer steps of a paraphraser."""
_BATCH, _LR = 64, 1e-3
_INPUT = ":input"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, eq=False)
class Source:
    """What constants are worked out of.

    Args:
        teacher: The network, ready to speak.
        task: Gives the network its inputs.
        replay: Views of the samples.
        fields: That are kept of the inside of the teacher, which say how many directions are wanted.
    """

    teacher: Teacher
    task: Task
    replay: Replay | CachedViews
    fields: tuple[str, ...] = ()

    def capture(self, *layers: str) -> Capture:
        """Return what takes the outputs of some layers."""
        names = [Feature(layer).name for layer in layers]
        return Capture(self.teacher.network, names, layers=self.teacher.layers, role="teacher")

    def outputs(self, *layers: str, most: int = SAMPLES) -> list[Tensor]:
        """Return what some layers give for the sample, float32 on the CPU, without gradient."""
        rows, capture = len(self.replay), self.capture(*layers)
        count = min(most, rows)
        chosen = [place * rows // count for place in range(count)]
        found: list[list[Tensor]] = [[] for _ in layers]
        for start in range(0, count, _BATCH):
            picks = [Pick(int(self.replay.rows[row]), 0) for row in chosen[start : start + _BATCH]]
            inputs = self.task.inputs(collate([self.replay[pick] for pick in picks]))
            with torch.no_grad():
                _, said = capture(lambda inputs=inputs: self.teacher(*inputs))  # type: ignore[misc]
            for each, values in zip(found, said.values(), strict=True):
                each.append(values.float().cpu())
        return [torch.cat(each) for each in found]


def _classifier(source: Source, rest: str) -> dict[str, Tensor]:
    """Return the last linear layer, after proof that it is given the mean of the last map."""
    choose(rest, ("weight", "bias"), "constant", where="classifier")
    network, capture = source.teacher.network, source.capture("last", "pooled")
    linear = network.get_submodule(capture.path("pooled").removesuffix(_INPUT))
    if not capture.path("pooled").endswith(_INPUT) or not isinstance(linear, nn.Linear):
        do = "Name it by the teacher's layers, such as {'pooled': 'fc:input'}."
        raise ConfigError(expected("pooled", "what a linear layer is given", capture.path("pooled"), do=do))
    maps, vectors = source.outputs("last", "pooled", most=8)
    means = maps.mean((2, 3)) if maps.ndim == 4 else maps
    if means.shape != vectors.shape or not torch.allclose(means, vectors, rtol=1e-3, atol=1e-4):
        do = "Name by the teacher's layers the map whose mean over positions its classifier is given, as 'last'."
        got = f"{capture.path('last')} of shape {list(maps.shape[1:])}"
        where = "the teacher's classifier"
        raise ConfigError(expected("last", "the map whose mean the classifier is given", got, where=where, do=do))
    weight = linear.weight.detach().float().cpu()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float().cpu()
    return {"classifier/weight": weight.clone(), "classifier/bias": bias.clone()}


def _margins(source: Source, layer: str) -> dict[str, Tensor]:
    """Return the margin of each channel before an activation."""
    path = source.capture(layer).path(layer)
    norm = _norm_before(source.teacher.network, path)
    if norm is None or norm.weight is None:
        do = "Name a layer that is a batch normalisation, or what the activation behind one is given."
        raise ConfigError(expected(layer, "a layer behind a batch normalisation", path, where="margins", do=do))
    mean, deviation = (getattr(norm, part).detach().float().cpu() for part in ("bias", "weight"))
    return {f"margins/{layer}": overhaul_margins(mean, deviation)}


def _norm_before(network: nn.Module, path: str) -> nn.Module | None:
    """Return the batch normalisation that a path names, the last inside of what it names, or the one beside it."""
    name = path.removesuffix(_INPUT)
    module = network.get_submodule(name)
    inside = [each for each in module.modules() if isinstance(each, _NORMS)]
    if inside and not path.endswith(_INPUT):
        return inside[-1]
    parent = network.get_submodule(name.rpartition(".")[0])
    beside = list(parent.named_children())
    if isinstance(parent, nn.Sequential):
        beside = beside[: [each for _, each in beside].index(module)]
    # Of a block the last one: an activation that runs several times may be registered before it.
    norms = [each for _, each in beside if isinstance(each, _NORMS)]
    return norms[-1] if norms else None


def _pca(source: Source, layer: str) -> dict[str, Tensor]:
    """Return the mean and the directions of most variance of the channels, over records and positions."""
    features = [Feature.of(name) for name in source.fields if is_feature(name)]
    wanted = max([each.size for each in features if each.constant == f"pca/{layer}"], default=0)
    (maps,) = source.outputs(layer)
    rows = maps.movedim(1, -1).reshape(-1, maps.shape[1]).double()
    wanted = wanted or rows.shape[1]
    if wanted > rows.shape[1]:
        wish = f"at most {rows.shape[1]}, the channels of the layer"
        raise ConfigError(expected("directions", wish, wanted, where=f"pca/{layer}"))
    mean = rows.mean(0)
    centred = rows - mean
    _, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    basis = directions.T.flip(0)[:wanted]
    # Up to their sign; of each, the largest part is positive.
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return {f"pca/{layer}": torch.cat([mean[None], basis * largest.sign()]).float()}


def _paraphraser(source: Source, layer: str) -> dict[str, Tensor]:
    """Return the convolutions that make factors of a layer's maps, trained to rebuild the maps from the factors."""
    layer = layer.partition("/")[0]
    (maps,) = source.outputs(layer)
    if maps.ndim != 4:
        raise ConfigError(
            expected(layer, "maps [channels, height, width]", f"shape {list(maps.shape[1:])}", where="paraphraser")
        )
    trained = trained_paraphraser(maps, source.teacher.device)
    return {f"paraphraser/{layer}/{name}": values for name, values in trained.constants().items()}


def trained_paraphraser(maps: Tensor, device: str | torch.device) -> Paraphraser:
    """Return an auto-encoder that has learnt for `STEPS` steps to rebuild maps, the same each time on one machine.

    Args:
        maps: Shape [n, channels, height, width].
        device: Where it learns.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = Paraphraser(maps.shape[1])
    trained.to(device)
    optimizer = torch.optim.Adam(trained.parameters(), lr=_LR)
    order = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(maps), (min(_BATCH, len(maps)),), generator=order)
            batch = maps[chosen].to(device)
            optimizer.zero_grad(set_to_none=True)
            (trained(batch) - batch).square().mean().backward()
            optimizer.step()
    return trained


CONSTANTS: Mapping[str, Callable[[Source, str], dict[str, Tensor]]] = {
    "classifier": _classifier,
    "margins": _margins,
    "paraphraser": _paraphraser,
    "pca": _pca,
}
"""First part of a constant's name -> what works it out, from the rest of the name."""


def missing_constants(
    known: Mapping[str, object], needed: Iterable[str], fields: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the names of constants that are needed, by themselves or by fields inside of a teacher, and not known.

    Args:
        known: Constants by name.
        needed: Names of constants.
        fields: Names of fields; others than `features/...` are passed over.

    >>> missing_constants({"classifier/bias": 0}, ["classifier/bias", "classifier/weight"], ["features/last/pca4"])
    ('classifier/weight', 'pca/last')
    """
    read = [Feature.of(name).constant for name in fields if is_feature(name)]
    wanted = dict.fromkeys([*needed, *(name for name in read if name)])
    return tuple(
        name for name in wanted if name not in known and not any(each.startswith(f"{name}/") for each in known)
    )


def work_out(names: Iterable[str], source: Source) -> dict[str, Tensor]:
    """Return constants of a teacher, on the CPU; of some names those that belong to them, such as both parts of a classifier.

    Args:
        names: Such as `classifier/weight`, `margins/pre1`, `pca/last`, `paraphraser/last`.
        source: What they are worked out of.

    Raises:
        UnknownNameError: for a constant that nothing here works out; pass it to `make(constants=...)`.
        ConfigError: for a layer that the teacher has not, or that is not what the constant is of.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        if name in found or any(each.startswith(f"{name}/") for each in found):
            continue
        kind, _, rest = name.partition("/")
        found |= CONSTANTS[choose(kind, CONSTANTS, "constant")](source, rest)
    return found
