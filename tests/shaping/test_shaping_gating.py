"""Gated weights of all layers at once: what the layers would work out one by one, held for one pass and its gradient."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bookkd.shaping import GatedStudent, gates_of, insert_gates
from bookkd.zoo import create_network

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gated(**options):
    generator = torch.Generator().manual_seed(0)
    network = create_network("resnet8", n_classes=10).double()
    insert_gates(network, **options)
    with torch.no_grad():
        for gates in gates_of(network).values():
            gates.logits.copy_(torch.randn(gates.logits.shape, generator=generator, dtype=torch.float64))
    return network


def gradients(network, inputs=X):
    network.zero_grad()
    output = network(inputs)
    output.square().sum().backward()
    return [output.detach(), *(each.grad for each in network.parameters())]


@pytest.mark.parametrize(
    "options",
    [{}, {"classifier": "linear"}, {"keep_scale": False, "temperature": 0.4, "blocks": 8}],
    ids=["layers", "classifier", "options"],
)
def test_values_and_gradients_are_those_of_layers_one_by_one(options):
    network = gated(**options)
    wanted = gradients(network)
    GatedStudent(network).prepare()
    assert all(gates.ready.take(weight_of(network, path)) is not None for path, gates in gates_of(network).items())
    for found, expected in zip(gradients(network), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def weight_of(network, path):
    return network.get_submodule(path).parametrizations.weight.original


def held(network):
    return [gates.ready.take(weight_of(network, path)) is not None for path, gates in gates_of(network).items()]


def test_they_are_held_until_the_gradient_has_passed_and_no_longer():
    network = gated()
    shaped = GatedStudent(network)
    shaped.prepare()
    output = network(X)
    assert all(held(network))
    with torch.no_grad():
        assert not any(held(network))  # another's pass, such as validation, works them out anew
    output.sum().backward()
    assert not any(held(network))
    with torch.no_grad():
        shaped.prepare()
    assert not any(held(network))


def test_a_weight_that_was_exchanged_is_gated_itself():
    network = gated()
    GatedStudent(network).prepare()
    twice = {name: 2 * value.detach() for name, value in network.named_parameters() if name.endswith("original")}
    found = torch.func.functional_call(network, twice, (X,))
    torch.testing.assert_close(found, torch.func.functional_call(copy.deepcopy(network), twice, (X,)))


def test_a_copy_in_the_middle_of_a_step_begins_without():
    network = gated()
    GatedStudent(network).prepare()
    network(X)
    other = copy.deepcopy(network)
    assert all(held(network))
    assert not any(held(other))
    torch.testing.assert_close(gradients(other), gradients(network))


class Halves(nn.Module):
    """Two parts, the second run again in the backward pass instead of being remembered; a third part is not run."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.parts = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)).double()
        self.again = False
        with torch.no_grad():
            for each in self.parameters():
                each.copy_(torch.randn(each.shape, generator=generator))

    def forward(self, maps):
        first = self.parts[0](maps).tanh()
        return checkpoint(self.parts[1], first, use_reentrant=False) if self.again else self.parts[1](first)


def test_students_that_are_run_again_in_the_backward_pass_and_layers_that_are_not_run():
    network, maps = Halves(), X[:, :1].expand(-1, 4, -1, -1)
    insert_gates(network, blocks=2)
    wanted = gradients(network, maps)
    for network.again in (False, True):
        GatedStudent(network).prepare()
        for found, expected in zip(gradients(network, maps), wanted, strict=True):
            torch.testing.assert_close(found, expected)
    names = [name for name, _ in network.named_parameters()]
    idle = [name for name, gradient in zip(names, wanted[1:], strict=True) if gradient is None]
    assert idle == [name for name in names if name.startswith("parts.2.")]


def test_weights_of_half_precision_stay_so():
    network = create_network("resnet8", n_classes=10).to(torch.bfloat16)
    insert_gates(network)
    GatedStudent(network).prepare()
    gates_and_weights = [(gates, weight_of(network, path)) for path, gates in gates_of(network).items()]
    for gates, weight in gates_and_weights:
        found = gates.ready.take(weight)
        assert (found.dtype, found.stride()) == (weight.dtype, weight.stride())
    network(X.to(torch.bfloat16)).sum().backward()
    assert all(gates.logits.grad.dtype == torch.float32 for gates, _ in gates_and_weights)


def test_a_compiled_student_works_them_out_itself(monkeypatch):
    network = gated()
    GatedStudent(network).prepare()
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert not any(held(network))
