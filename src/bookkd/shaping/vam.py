"""The virtual attention module: gates inside ordinary convolutions, which fold into the weights once training is over.

Reconstructed: the formulas of the paper could not be read, and the released code has none of this module; what is written here
follows a published summary. A convolution W [outputs, inputs, ...] is split into n blocks of outputs and m blocks of inputs, and

    W'[block j, block i] = s alpha_ji W[block j, block i],  alpha = softmax over i of A / tau,

with trained logits A [n, m], 0 at the start, and s = m (or 1, where the scale is not kept). With s = m equal gates are no change at
all, so that a student begins as it would without. The layer computes with W' in place of W and nothing else, so that W' in its
place is the same network: folding is exact, whatever normalisation stands behind.

Source: Xue et al., "KDExplainer: A Task-oriented Attention Model for Explaining Knowledge Distillation", IJCAI 2021, arXiv
2105.04181. The gates of a classifier, one row a class, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import nearest
from bookkd.losses import student_entropy
from bookkd.shaping.base import ParameterGroup, Shaped
from bookkd.shaping.gates import GATE_ENTROPY, GateTable, gate_record, gate_shares, table_of
from bookkd.shaping.gating import Ready, gate_at_once, of_pairs

__all__ = ["GatedStudent", "VirtualGates", "find_classifier", "fold", "gates_of", "insert_gates"]

_WEIGHT = "weight"
_WHERE = "virtual attention module"


class VirtualGates(nn.Module):
    """Turns a weight into the gated one; a parametrization of `torch.nn.utils.parametrize`.

    Args:
        children: n, blocks of outputs.
        parents: m, blocks of inputs.
        temperature: tau, above 0.
        keep_scale: Whether s is m, so that equal gates change nothing; else 1.

    >>> gates = VirtualGates(2, 2)
    >>> weight = torch.arange(16.0).reshape(4, 4)
    >>> bool((gates(weight) == weight).all())
    True
    """

    def __init__(self, children: int, parents: int, *, temperature: float = 1.0, keep_scale: bool = True) -> None:
        super().__init__()
        at_least(children, 1, "children", where="virtual gates")
        at_least(parents, 2, "parents", where="virtual gates", do="One parent alone takes the whole share.")
        self.temperature = positive(temperature, "temperature", where="virtual gates")
        self.keep_scale = keep_scale
        self.logits = nn.Parameter(torch.zeros(children, parents))
        self.ready = Ready()

    @property
    def shares(self) -> Tensor:
        """Alpha, shape [n, m]."""
        return gate_shares(self.logits, self.temperature)

    @property
    def entropy(self) -> Tensor:
        """Mean entropy of a child's gates, in nats, a scalar."""
        return student_entropy(self.logits, temperature=self.temperature).mean()

    @property
    def configuration(self) -> tuple[int, int, float, bool]:
        """What two gates must have in common to be the same."""
        return (*self.logits.shape, self.temperature, self.keep_scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Return W', of the shape and layout of W."""
        ready = self.ready.take(weight, self.logits)
        return weight * of_pairs(self.shares * self.scale, weight) if ready is None else ready

    @property
    def scale(self) -> int:
        """The factor s."""
        return self.logits.shape[1] if self.keep_scale else 1

    def extra_repr(self) -> str:
        """Describe it."""
        children, parents = self.logits.shape
        return f"children={children}, parents={parents}, temperature={self.temperature:g}, keep_scale={self.keep_scale}"


def insert_gates(
    network: nn.Module,
    layers: Sequence[str] = (),
    *,
    blocks: int = 4,
    classifier: str | None = None,
    temperature: float = 1.0,
    keep_scale: bool = True,
) -> tuple[str, ...]:
    """Put gates into a network, in place; its module paths stay what they are, `fold` takes them out again.

    Gates that are there already, of the same options, stay.

    Args:
        network: Any network with convolutions.
        layers: Module paths of convolutions, or of parts such as a stage, of which all convolutions that can have gates get them;
            empty for the whole network.
        blocks: n and m: blocks of outputs and of inputs of each convolution, at least 2.
        classifier: Module path of a linear layer whose outputs are classes: it gets gates of one row a class.
        temperature: tau, above 0.
        keep_scale: Whether equal gates change nothing.

    Returns:
        The paths of the layers that have gates.

    Raises:
        ConfigError: for a path that the network does not have (the nearest are listed), and for a layer that cannot have
            gates, or a network without any that can, with the reason.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    >>> insert_gates(net, blocks=4)
    ('1',)
    >>> insert_gates(net, ["2"])
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `layer` to be one that can have 4 x 4 gates, got 2: it has 8 groups, so that no output reads more than its own inputs (virtual attention module). Leave it out.
    """
    at_least(blocks, 2, "blocks", where=_WHERE)
    chosen = _shapes(network, (layers,) if isinstance(layers, str) else layers, blocks, classifier)
    made = {
        path: VirtualGates(*shape, temperature=temperature, keep_scale=keep_scale) for path, shape in chosen.items()
    }
    present = gates_of(network)
    for path, gates in made.items():  # before any is put in: a network that is refused stays as it was
        if path in present and present[path].configuration != gates.configuration:
            do = "Call bookkd.shaping.fold(network) first."
            got = f"others at {path}: {present[path].extra_repr()}"
            raise ConfigError(expected("gates", f"those asked for ({gates.extra_repr()})", got, where=path, do=do))
    for path, gates in made.items():
        if path not in present:
            module = _module(network, path)
            weight = cast(Tensor, module.weight)
            gates.to(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
            parametrize.register_parametrization(module, _WEIGHT, gates)
    return tuple(gates_of(network))


def _shapes(
    network: nn.Module, layers: Sequence[str], blocks: int, classifier: str | None
) -> dict[str, tuple[int, int]]:
    """Return the children and parents of each layer that is to have gates, after the check that it can."""
    chosen = dict.fromkeys(_chosen(network, layers, blocks), (blocks, blocks))
    if classifier is not None:
        linear = _module(network, classifier)
        if not isinstance(linear, nn.Linear):
            got = f"{classifier}, a {type(linear).__name__}"
            raise ConfigError(expected("classifier", "a linear layer", got, where=_WHERE))
        chosen[classifier] = (linear.out_features, blocks)
    if not chosen:
        whys = [f"{path}: {_reason(network, path, (blocks, blocks))}" for path in _convolutions(network)]
        got = "; ".join(whys[:3]) or "a network without convolutions"
        wish, do = (
            f"with a convolution that can have {blocks} x {blocks} gates",
            "Pass fewer blocks, or another student.",
        )
        raise ConfigError(expected("student", wish, got, where=_WHERE, do=do))
    for path, shape in chosen.items():
        reason = _reason(network, path, shape)
        if reason:
            wish, got = f"one that can have {shape[0]} x {shape[1]} gates", f"{path}: {reason}"
            raise ConfigError(expected("layer", wish, got, where=_WHERE, do="Leave it out."))
    return chosen


def fold(network: nn.Module) -> nn.Module:
    """Write the gated weights in place of the weights and take the gates out: the same outputs, from the plain network again.

    Args:
        network: With gates or without; changed in place.

    Returns:
        The network.

    >>> net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    >>> names = list(net.state_dict())
    >>> _ = insert_gates(net, ["1"], blocks=2)
    >>> list(fold(net).state_dict()) == names, gates_of(net)
    (True, {})
    """
    for path in gates_of(network):
        _fold_layer(_module(network, path))
    return network


def _fold_layer(module: nn.Module) -> None:
    """Put W' in place of W, as `remove_parametrizations` does, but leave the class alone, which a deep copy of the layer shares."""
    with torch.no_grad():
        weight = cast(Tensor, module.weight).clone()
    original = _original(module)
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    with torch.no_grad():
        original.copy_(weight)
    # In front of the bias, where it was: optimizers count parameters in their order.
    module._parameters = {_WEIGHT: original, **module._parameters}


def gates_of(network: nn.Module) -> dict[str, VirtualGates]:
    """Return the gates of a network by the module path of their layer, in the order of its modules."""
    found = ((path, _gates(module)) for path, module in network.named_modules())
    return {path: gates for path, gates in found if gates is not None}


def find_classifier(network: nn.Module, n_classes: int) -> str:
    """Return the module path of the last linear layer of a network that has an output for each class.

    Raises:
        ConfigError: if it has none.

    >>> find_classifier(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), 3)
    '1'
    """
    linear = [
        path for path, each in network.named_modules() if isinstance(each, nn.Linear) and each.out_features == n_classes
    ]
    if not linear:
        wish = f"a network with a linear layer of {n_classes} outputs"
        do = "Leave out --method.classifier."
        raise ConfigError(expected("student", wish, type(network).__name__, where=_WHERE, do=do))
    return str(linear[-1])


class GatedStudent(Shaped):
    """A student with virtual gates, which are folded when learning has ended.

    Args:
        student: Has gates, see `insert_gates`.
        lr: Peak learning rate of the gates; None for the student's.
        class_names: Of the classifier's rows, where it has gates.
    """

    def __init__(self, student: nn.Module, *, lr: float | None = None, class_names: Sequence[str] = ()) -> None:
        super().__init__(student)
        self.lr = lr
        self.class_names = tuple(class_names)
        self.gates = gates_of(student)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Work the gated weights of all layers out at once, for the pass inside, wherever it learns and is not compiled."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _is_compiled(self.student):
            yield
            return
        alike: dict[tuple[Any, ...], list[tuple[VirtualGates, Tensor]]] = {}
        for path, gates in self.gates.items():
            weight = _original(self.student.get_submodule(path))
            if weight.requires_grad or gates.logits.requires_grad:
                kind = (*gates.configuration, gates.logits.dtype, gates.logits.device)
                alike.setdefault(kind, []).append((gates, weight))
        try:
            for some in alike.values():
                every, weights = zip(*some, strict=True)
                logits = [gates.logits for gates in every]
                gated = gate_at_once(weights, logits, temperature=every[0].temperature, scale=every[0].scale)
                for gates, weight, result in zip(every, weights, gated, strict=True):
                    gates.ready.put(weight, gates.logits, result)
            yield
        finally:
            for gates in self.gates.values():
                gates.ready.clear()

    def fields(self) -> dict[str, Tensor]:
        """Return the sum over layers of the mean entropy of a child's gates."""
        # Gates of equally many parents at once: a step is not to pay for each layer.
        alike: dict[tuple[int, float], list[VirtualGates]] = {}
        for gates in self.gates.values():
            alike.setdefault((gates.logits.shape[1], gates.temperature), []).append(gates)
        sums = []
        for (_, temperature), some in alike.items():
            entropies = student_entropy(torch.cat([gates.logits for gates in some]), temperature=temperature)
            shares = [1 / len(gates.logits) for gates in some for _ in gates.logits]
            sums.append(
                (entropies * entropies.new_tensor(shares)).sum()
            )  # a product of matrices would be rounded by autocast
        return {GATE_ENTROPY: torch.stack(sums).sum()}

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the logits of the gates, which have no weight decay: it would only pull them to equal shares."""
        return (ParameterGroup(tuple(gates.logits for gates in self.gates.values()), self.lr),)

    def logged(self) -> dict[str, float]:
        """Return how spread the gates of each layer are, 0 to 1."""
        return {f"gates/{table.layer}": table.spread for table in self.tables()}

    def tables(self) -> tuple[GateTable, ...]:
        """Return the gates as plain numbers, one table a layer."""
        return tuple(self._tables())

    def finish(self) -> dict[str, Any]:
        """Fold the gates into the weights, and return their tables."""
        record = gate_record("vam", self.tables())
        self.student, self.gates = fold(self.student), {}
        return record

    def _tables(self) -> Iterator[GateTable]:
        for path, gates in self.gates.items():
            classes = isinstance(_module(self.student, path), nn.Linear) and len(self.class_names) == len(gates.logits)
            yield table_of(path, gates.shares, rows=self.class_names if classes else None, of_classes=classes)


def _gates(module: nn.Module) -> VirtualGates | None:
    if not parametrize.is_parametrized(module, _WEIGHT):
        return None
    last = cast(Any, module.parametrizations)[_WEIGHT][-1]
    return last if isinstance(last, VirtualGates) else None


def _original(module: nn.Module) -> nn.Parameter:
    """Return W of a layer with gates."""
    return cast(nn.Parameter, cast(Any, module.parametrizations)[_WEIGHT].original)


def _is_compiled(network: nn.Module) -> bool:
    """Whether the network runs as a graph, which works its gated weights out itself."""
    return getattr(network, "_compiled_call_impl", None) is not None or hasattr(network, "_orig_mod")


def _chosen(network: nn.Module, layers: Sequence[str], blocks: int) -> list[str]:
    """Return the paths of the convolutions that are to have gates: those named, and of parts those that can."""
    found: dict[str, None] = {}
    for path in layers or ("",):
        if _is_convolution(_module(network, path)) and path:
            found[path] = None
            continue
        inside = [
            inner
            for inner in _convolutions(network)
            if not path or inner.startswith(f"{path}.")
            if not _reason(network, inner, (blocks, blocks))
        ]
        if path and not inside:
            wish, got = f"a part with a convolution that can have {blocks} x {blocks} gates", path
            raise ConfigError(expected("layers", wish, got, where=_WHERE))
        found |= dict.fromkeys(inside)
    return list(found)


def _convolutions(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if _is_convolution(module)]


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def _module(network: nn.Module, path: str) -> nn.Module:
    known = dict(network.named_modules())
    if path not in known:
        near = ", ".join(nearest(path, [name for name in known if name])[:5]) or "none"
        raise ConfigError(f"Expected `layers` to be module paths of the student, got {path!r}. Nearest: {near}.")
    found: nn.Module = known[path]
    return found


def _reason(network: nn.Module, path: str, shape: tuple[int, int]) -> str:
    """Say why a layer cannot have gates that fold exactly; nothing where it can."""
    module = _module(network, path)
    if _gates(module) is not None:
        return ""
    weight = getattr(module, _WEIGHT, None)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "it is a transposed convolution, whose weight has its inputs first"
    if isinstance(weight, nn.UninitializedParameter):
        return "its inputs are not known yet; pass a batch through the student first"
    if parametrize.is_parametrized(module) or _WEIGHT not in module._parameters:
        return "its weight is computed from others already, into which gates would not fold"
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return "its weight holds no floating-point numbers"
    sharing = sum(other is weight for each in network.modules() for other in each._parameters.values())
    if sharing > 1:
        return "another layer shares its weight, which folding would change"
    if getattr(module, "groups", 1) > 1:
        groups = getattr(module, "groups", 1)
        return f"it has {groups} groups, so that no output reads more than its own inputs"
    sizes = tuple(weight.shape[:2])
    for what, size, count in zip(("outputs", "inputs"), sizes, shape, strict=True):
        if size % count:
            return f"its {size} {what} do not divide into {count} blocks"
    return ""
