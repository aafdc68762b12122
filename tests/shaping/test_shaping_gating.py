"""Gated weights of all layers at once: what the layers would work out one by one, held for one pass."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from bookkd.shaping import GatedStudent, gates_of, insert_gates
from bookkd.zoo import create_network

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drawn(network, seed=0):
    """Return the network with gates that differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gates in gates_of(network).values():
            gates.logits.copy_(torch.randn(gates.logits.shape, generator=generator, dtype=torch.float64))
    return network


def gated(**options):
    network = create_network("resnet8", n_classes=10).double()
    insert_gates(network, **options)
    return drawn(network)


def prepared(network, inputs):
    """Return what a pass gives for which all gated weights were worked out at once."""
    with GatedStudent(network).prepared():
        return network(inputs)


def gradients(network, inputs=X, run=prepared):
    network.zero_grad()
    output = run(network, inputs)
    output.square().sum().backward()
    return [output.detach(), *(None if each.grad is None else each.grad.clone() for each in network.parameters())]


def plainly(network, inputs):
    return network(inputs)


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, rtol=1e-9, atol=1e-11)


def weight_of(network, path):
    return network.get_submodule(path).parametrizations.weight.original


def held(network):
    return [
        gates.ready.take(weight_of(network, path), gates.logits) is not None
        for path, gates in gates_of(network).items()
    ]


def mixed():
    network = create_network("resnet8", n_classes=10).double()
    insert_gates(network, ["layer1"], temperature=0.4)
    insert_gates(network, ["layer2"], keep_scale=False)
    insert_gates(network, ["layer3"], blocks=8)
    return drawn(network)


def frozen():
    network = gated()
    paths = list(gates_of(network))
    weight_of(network, paths[0]).requires_grad_(False)
    gates_of(network)[paths[1]].logits.requires_grad_(False)
    for each in (weight_of(network, paths[2]), gates_of(network)[paths[2]].logits):
        each.requires_grad_(False)
    return network


def without_gradients_of_gates():
    network = gated()
    for gates in gates_of(network).values():
        gates.logits.requires_grad_(False)
    return network


NETWORKS = {
    "layers": gated,
    "classifier": lambda: gated(classifier="linear"),
    "options that differ": mixed,
    "frozen parts": frozen,
    "frozen gates": without_gradients_of_gates,
}


@pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)
def test_values_and_gradients_are_those_of_layers_one_by_one(made):
    network = made()
    with GatedStudent(network).prepared():
        assert sum(held(network)) == len(gates_of(network)) - (made is frozen)
    assert_same(gradients(network), gradients(network, run=plainly))


def test_they_are_held_for_the_pass_and_no_longer():
    network = gated()
    with GatedStudent(network).prepared():
        assert all(held(network))
        with torch.no_grad():
            assert not any(held(network))  # another's pass inside works them out anew
    assert not any(held(network))
    with torch.no_grad(), GatedStudent(network).prepared(), torch.enable_grad():
        assert not any(held(network))
    with pytest.raises(ValueError, match="stop"), GatedStudent(network).prepared():
        raise ValueError("stop")
    assert not any(held(network))


def test_weights_that_change_behind_a_pass_are_gated_as_they_are():
    network = gated()
    prepared(network, X)  # whose loss is dropped
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert_close(network(X), copy.deepcopy(network)(X))


@pytest.mark.parametrize("what", ["original", "logits"])
def test_what_was_exchanged_for_one_call_is_looked_at(what):
    network = gated()
    other = {name: 2 * value.detach() for name, value in network.named_parameters() if name.endswith(what)}
    assert other
    with GatedStudent(network).prepared():
        found = torch.func.functional_call(network, other, (X,))
    assert_close(found, torch.func.functional_call(copy.deepcopy(network), other, (X,)))


def test_a_network_whose_loss_was_dropped_is_freed():
    network = gated()
    alive = weakref.ref(weight_of(network, "layer1.0.conv1"))
    prepared(network, X)
    del network
    gc.collect()
    assert alive() is None


class Parts(nn.Module):
    """Two parts, the second run again in the backward pass instead of being remembered; a third part is not run."""

    def __init__(self, reentrant):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.parts = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)).double()
        self.reentrant = reentrant
        insert_gates(self, blocks=2)
        with torch.no_grad():
            for each in self.parameters():
                each.copy_(torch.randn(each.shape, generator=generator))

    def forward(self, maps):
        first = self.parts[0](maps).tanh()
        if self.reentrant is None:
            return self.parts[1](first)
        return checkpoint(self.parts[1], first, use_reentrant=self.reentrant)


MAPS = X[:, :1].expand(-1, 4, -1, -1)


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["plain", "run again", "run again, reentrant"])
@pytest.mark.parametrize("how", ["once", "kept and twice", "two passes, one backward", "two passes, two backwards"])
def test_students_that_are_run_again_and_layers_that_are_not_run(reentrant, how):
    def learnt(network, run):
        one = run(network, MAPS).square().sum()
        two = run(network, 2 * MAPS).square().sum() if how.startswith("two") else None
        if how == "two passes, one backward":
            (one + two).backward()
        elif how == "two passes, two backwards":
            one.backward()
            two.backward()
        elif how == "once":
            one.backward()
        else:
            one.backward(retain_graph=True)
            one.backward()
        return [parameter.grad for parameter in network.parameters()]

    network = Parts(reentrant)
    found = learnt(network, prepared)
    assert_same(found, learnt(Parts(None), plainly))
    idle = [name for (name, _), gradient in zip(network.named_parameters(), found, strict=True) if gradient is None]
    assert idle == [name for name, _ in network.named_parameters() if name.startswith("parts.2.")]


def test_gradients_of_gradients():
    network = gated()
    parameters = list(network.parameters())

    def penalised(run):
        loss = run(network, X).square().sum()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), parameters)

    assert_same(penalised(prepared), penalised(plainly))


def test_functional_gradients():
    network = gated()

    class Shown(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, inputs):
            return prepared(self.network, inputs)

    shown = Shown().eval()
    parameters = {name: value.detach() for name, value in shown.named_parameters()}
    found = torch.func.grad(lambda given: torch.func.functional_call(shown, given, (X,)).square().sum())(parameters)
    assert_same(found.values(), gradients(network.eval(), run=plainly)[1:])


def test_weights_of_half_precision_stay_so():
    network = gated().to(torch.bfloat16)
    for gates in gates_of(network).values():
        gates.float()
    with GatedStudent(network).prepared():
        for path, gates in gates_of(network).items():
            weight = weight_of(network, path)
            found = gates.ready.take(weight, gates.logits)
            assert (found.dtype, found.stride()) == (weight.dtype, weight.stride())
            gates.ready.clear()
            assert torch.equal(found, network.get_submodule(path).weight)
    weight, gates = weight_of(network, "layer1.0.conv1"), gates_of(network)["layer1.0.conv1"]
    outer = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    wide = copy.deepcopy(gates)
    (wide(weight.detach().float()) * outer.float()).sum().backward()
    with GatedStudent(network).prepared():
        gates.ready.take(weight, gates.logits).backward(outer)
    # The products are rounded to 16 bits once, and summed in 32.
    assert_close(gates.logits.grad, wide.logits.grad, rtol=1e-2, atol=2e-3)


def test_a_compiled_student_works_them_out_itself():
    network = create_network("resnet8", n_classes=10)
    insert_gates(network)
    wrapped = torch.compile(network, backend="eager")
    with GatedStudent(wrapped).prepared():
        assert not any(held(network))
    network.compile(backend="eager")
    with GatedStudent(network).prepared():
        assert not any(held(network))
        network(X.float()).sum().backward()
    assert all(gates.logits.grad is not None for gates in gates_of(network).values())
