"""What a network says inside: outputs of its modules, taken by hooks while it runs, and reduced to what is asked for.

No model is edited: modules are named by their paths, as `named_modules` spells them; `PATH:input` is what a module is given.
Hooks are there while the network is called and no longer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, TeacherOutputError, expected
from bookkd.core.features import FEATURES, Feature
from bookkd.core.fields import INPUT, LENGTH
from bookkd.core.names import nearest
from bookkd.losses import reductions
from bookkd.losses.targets import computing_dtype

__all__ = ["Capture", "layers_of", "shapes_of"]

_INPUT = ":input"
_CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)
"""Modules that take and give sequences [batch, channels, positions]; all others have the channels last."""
_STAGED = ("layer", "stages.", "denseblock", "stage")
"""What the modules are called, up to their number, that make up a network's stages: of torchvision's and timm's."""


def layers_of(network: nn.Module) -> dict[str, str]:
    """Return name -> module path of the layers that methods ask for by name.

    A network says them itself by an attribute `feature_layers`. Otherwise `stage1`, `stage2`, ... are its modules that are numbered
    as stages (`layer1` of torchvision's ResNets, `stages.0` of timm's networks), `last` the last of them, `pooled` what its last
    linear layer is given, and `pre1`, `pre2`, ... what the last activation of a stage is given, where that is a module `relu` or `act<i>` of
    the stage's last block; elsewhere say it by `feature_layers` or by a path.

    >>> from bookkd.zoo.resnet import resnet8
    >>> layers_of(resnet8(n_classes=10))
    {'stage1': 'layer1', 'stage2': 'layer2', 'stage3': 'layer3', 'last': 'layer3', 'pooled': 'linear:input', \
'pre1': 'layer1.0.relu:input', 'pre2': 'layer2.0.relu:input', 'pre3': 'layer3.0.relu:input'}
    """
    own = getattr(network, "feature_layers", None)
    if isinstance(own, Mapping):
        return {str(name): str(path) for name, path in own.items()}
    paths = [name for name, _ in network.named_modules() if name]
    found: dict[str, str] = {}
    for begin in _STAGED:
        stages = sorted(
            (path for path in paths if _number(path, begin) is not None), key=lambda path: _number(path, begin) or 0
        )
        if stages:
            found = {f"stage{place}": path for place, path in enumerate(stages, 1)}
            found["last"] = stages[-1]
            break
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if linear:
        found["pooled"] = f"{linear[-1]}{_INPUT}"
    return {**found, **_before_activation(network, found)}


def _before_activation(network: nn.Module, found: Mapping[str, str]) -> dict[str, str]:
    """Return `pre1`, `pre2`, ...: what the last activation of each stage is given.

    It is a module `relu` of the stage's last block, or `act1`, `act2`, ... as timm's ResNets have them, of which the last counts.
    """
    modules, before = dict(network.named_modules()), {}
    for name, path in found.items():
        last = [inner for inner in modules if inner.startswith(f"{path}.") and inner.count(".") == path.count(".") + 1]
        if not name.startswith("stage") or not last:
            continue
        inside = [inner for inner, _ in modules[last[-1]].named_children()]
        called = [inner for inner in inside if inner == "relu" or re.fullmatch(r"act\d", inner)]
        if called:
            before[f"pre{name.removeprefix('stage')}"] = f"{last[-1]}.{max(called)}{_INPUT}"
    return before


def _number(path: str, begin: str) -> int | None:
    """Return the number behind `begin` of a path that ends with it, at the top of the network or one level below."""
    name = path if begin.endswith(".") else path.rpartition(".")[2]
    rest = name.removeprefix(begin)
    return int(rest) if rest != name and rest.isdigit() and path.count(".") <= 1 else None


@dataclass(frozen=True, eq=False)
class _Watched:
    """An output that was taken whole: its version then, and whether the field is a view of it."""

    feature: Feature
    output: Tensor
    version: int
    viewed: bool


class Capture:
    """Takes some fields inside of a network while it is called.

    Args:
        network: Of any kind.
        fields: Names such as `features/stage3` or `features/layer3.0.conv1/mean`, see `bookkd.core.features`.
        layers: Name -> module path, over those of `layers_of`.
        constants: What reductions need to know, such as `pca/<layer>` -> [1 + d, c], the mean first; see `bookkd.knowledge.constants`.
        role: "teacher" or "student", for errors.

    Raises:
        ConfigError: for a module path that the network has not; the nearest are listed.

    >>> network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    >>> capture = Capture(network, ["features/0/mean"])
    >>> output, fields = capture(lambda: network(torch.zeros(3, 1, 5, 5)))
    >>> list(output.shape), list(fields["features/0/mean"].shape)
    ([3, 2], [3, 4])
    """

    def __init__(
        self,
        network: nn.Module,
        fields: Sequence[str],
        *,
        layers: Mapping[str, str] | None = None,
        constants: Mapping[str, Tensor] | None = None,
        role: Literal["teacher", "student"] | None = None,
    ) -> None:
        self.network = network
        self.role = role
        self.features = tuple(Feature.of(name) for name in dict.fromkeys(fields))
        self.layers = {**layers_of(network), **(layers or {})}
        self.constants = dict(constants or {})
        named = [layer for feature in self.features for layer in (feature.layer, feature.other) if layer]
        self._modules = {layer: self._module(layer) for layer in dict.fromkeys(named)}
        # By field and mode: whether any pass with gradients so far changed the output in place.
        self._changed: dict[tuple[str, bool], bool] = {}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(feature.name for feature in self.features)

    @property
    def named(self) -> tuple[str, ...]:
        """The layers that fields are taken of."""
        return tuple(self._modules)

    def path(self, layer: str) -> str:
        """Return the module path of a layer."""
        return self.layers.get(layer, layer)

    def __call__(self, run: Callable[[], Any], batch: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Tensor]]:
        """Call `run`, which calls the network, and return what it gives and the fields, [batch, ...] each.

        Of a module that runs several times the last output is taken. A field without a reduction may be a view of the network's own
        map, where earlier passes with gradients left that map as it was: do not change it in place.

        Args:
            run: Calls the network.
            batch: What the network is called with; of sequences, by whose `length` padding is told from positions.

        Raises:
            ConfigError: for a module that did not run, for what would depend on the padding of sequences, and for a map that the network
                changes in place though earlier passes left it alone.
            TeacherOutputError: for an output that is no tensor, or that a reduction is not of.
        """
        taken: dict[str, Tensor] = {}
        watched: list[_Watched] = []
        pairs = [feature for feature in self.features if feature.other]
        whole = [Feature(layer) for layer in {layer for pair in pairs for layer in (pair.layer, pair.other)}]
        alone = {feature.name: feature for feature in (*self.features, *whole) if not feature.other}
        hooks = [self._hook(feature, taken, watched, batch or {}) for feature in alone.values()]
        try:
            said = run()
        finally:
            for hook in hooks:
                hook.remove()
        self._check_unchanged(watched)
        for feature in alone.values():
            if feature.name not in taken:
                wish, got = "one that runs when the network is called", self.path(feature.layer)
                do = "Name one that its forward pass calls; bookkd inspect --model lists them."
                raise ConfigError(expected("module", wish, got, where=self._where, do=do))
        for pair in pairs:
            first, second = taken[Feature(pair.layer).name], taken[Feature(pair.other).name]
            self._refuse_padded(pair, first, batch or {})
            taken[pair.name] = reductions.fsp_matrix(first, second)
        return said, {feature.name: taken[feature.name] for feature in self.features}

    def _hook(
        self,
        feature: Feature,
        taken: dict[str, Tensor],
        watched: list[_Watched],
        batch: Mapping[str, Any],
    ) -> Any:
        module, path = self._modules[feature.layer], self.path(feature.layer)

        def keep(values: Any) -> None:
            output = _tensor(values, path, self._where)
            # At once, and a copy of what is not reduced: the network may go on to change it in place.
            if feature.reduction:
                taken[feature.name] = self._reduced(feature, output, batch)
                return
            # Inside of a compiled graph nothing says whether a tensor is changed in place.
            if not output.requires_grad or torch.compiler.is_compiling():
                taken[feature.name] = output.clone()
                return
            viewed = not self._changed.get((feature.name, self.network.training), True)
            watched.append(_Watched(feature, output, output._version, viewed))
            # A view, so that gradients meet in the same order in either case and a run goes on to the same weights.
            taken[feature.name] = output.view_as(output) if viewed else output.clone()

        if path.endswith(_INPUT):
            return module.register_forward_pre_hook(lambda _, given: keep(given[0] if given else None))
        return module.register_forward_hook(lambda _, given, output: keep(output))

    def _check_unchanged(self, watched: Sequence[_Watched]) -> None:
        """Remember which outputs the network changes in place, and refuse a change of one that was taken without a copy."""
        for each in watched:
            mode, changed = (each.feature.name, self.network.training), each.output._version != each.version
            self._changed[mode] = changed or self._changed.get(mode, False)
            if changed and each.viewed:
                wish, got = (
                    "one whose output is left as it is, as in earlier passes",
                    f"{self.path(each.feature.layer)}, changed in place",
                )
                do = "Let what follows it work out of place (inplace=False)."
                raise ConfigError(expected("module", wish, got, where=self._where, do=do))

    def _reduced(self, feature: Feature, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        if feature.reduction == "mean" and output.ndim == 3:
            return self._mean_of_positions(feature, output, batch)
        vector = feature.reduction == "pca" and output.ndim == 2
        if output.ndim != 4 and not vector:
            wish = f"[batch, channels, height, width], to take {feature.reduction} of it"
            got = f"shape {list(output.shape)}"
            raise TeacherOutputError(expected(feature.layer, wish, got, where=self._where))
        self._refuse_padded(feature, output, batch)
        if feature.constant:
            return self._with_constants(feature, output)
        reduce: dict[str, Callable[..., Tensor]] = {
            "mean": reductions.channel_mean,
            "attention": reductions.attention_map,
            "gram": reductions.channel_gram,
            "spatial": reductions.spatial_gram,
            "pool": reductions.average_pool,
            "max": reductions.max_pool,
        }
        sized = {"size": feature.size} if feature.size else {}
        return reduce[feature.reduction](output, **sized)

    def _mean_of_positions(self, feature: Feature, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean over the positions of sequences that are no padding, [batch, channels]."""
        values = output.to(computing_dtype(output.dtype))
        values = values.mT if self._channels_first(feature.layer) else values
        lengths = batch.get(LENGTH)
        if lengths is None:
            return values.mean(1)
        if values.shape[1] != batch[INPUT].shape[1]:
            self._refuse_padded(feature, output, batch)
        here = torch.arange(values.shape[1], device=values.device) < lengths.to(values.device).unsqueeze(1)
        found: Tensor = values.masked_fill(~here.unsqueeze(2), 0).sum(1) / here.sum(1, keepdim=True).clamp_min(1)
        return found

    def _channels_first(self, layer: str) -> bool:
        """Return whether a layer's sequences are [batch, channels, positions], as its last module with parameters gives them."""
        having = [each for each in self._modules[layer].modules() if any(True for _ in each.parameters(recurse=False))]
        place = 0 if self.path(layer).endswith(_INPUT) else -1
        return bool(having) and isinstance(having[place], _CHANNELS_FIRST)

    def _refuse_padded(self, feature: Feature, output: Tensor, batch: Mapping[str, Any]) -> None:
        """Refuse what would be reduced over the padding of sequences, too."""
        if output.ndim > 2 and batch.get(LENGTH) is not None:
            wish = f"as many positions as the sequences have, {batch[INPUT].shape[1]}, to take their mean"
            do = "What else is kept of them would depend on how far they are padded: name another layer."
            got = f"{feature.reduction} of shape {list(output.shape)}"
            raise ConfigError(expected(feature.name, wish, got, where=self._where, do=do))

    def _with_constants(self, feature: Feature, output: Tensor) -> Tensor:
        """Return what is kept by a reduction that has to know the network."""
        do = "Pass the constants of a book that keeps this field; bookkd.making.make works them out."
        if feature.reduction == "pca":
            basis = self.constants.get(feature.constant)
            if basis is None or len(basis) <= feature.size:
                got = "none" if basis is None else f"{len(basis) - 1}"
                raise ConfigError(
                    expected("directions", f"known, {feature.size} of them", got, where=feature.name, do=do)
                )
            return reductions.principal(output, basis[: feature.size + 1].to(output))
        every = {name: values for name, values in self.constants.items() if name.startswith(f"{feature.constant}/")}
        if not every:
            raise ConfigError(expected("paraphraser", "known", "none", where=feature.name, do=do))
        layers = range(1, len(every) // 2 + 1)
        sides = ([every[f"{feature.constant}/{part}{place}"] for place in layers] for part in ("weight", "bias"))
        return reductions.paraphrase(output, *sides)

    @property
    def _where(self) -> str:
        return f"{self.role + ' ' if self.role else ''}{type(self.network).__name__}"

    def _module(self, layer: str) -> nn.Module:
        path = self.path(layer).removesuffix(_INPUT)
        modules: dict[str, nn.Module] = dict(self.network.named_modules())
        if path not in modules or not path:
            names = [*self.layers, *(name for name in modules if name)]
            near = ", ".join(nearest(path, names)[:5]) or "none"
            do = f"Nearest: {near}. bookkd inspect --model lists them all"
            do += f"; --{self.role}.layers gives names to paths." if self.role else "."
            got = layer if path == layer else f"{layer}, which is {path} by its layers"
            raise ConfigError(expected("module path", f"one of {self._where}", got, where=f"{FEATURES}{layer}", do=do))
        return modules[path]


def shapes_of(
    capture: Capture, run: Callable[[], Any], batch: Mapping[str, Any] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return field -> shape of one record, by calling `run` without gradient.

    Args:
        capture: Of the network that `run` calls.
        run: Passes at least one sample through the network.
        batch: As of `Capture`.
    """
    with torch.no_grad():
        _, fields = capture(run, batch)
    return {name: tuple(values.shape[1:]) for name, values in fields.items()}


def _tensor(output: Any, path: str, where: str) -> Tensor:
    """Return the tensor of an output: itself, the first of a tuple, or the last hidden state as Transformers spell it."""
    found = getattr(output, "last_hidden_state", output)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim < 2:
        got = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise TeacherOutputError(expected(path, "a module that gives a floating tensor [batch, ...]", got, where=where))
    return found
