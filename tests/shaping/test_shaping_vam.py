"""Gates inside convolutions: the card's numbers, exact folding, and layers that are refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models.resnet import BasicBlock, Bottleneck

from bookkd.core.errors import ConfigError
from bookkd.methods import VAM
from bookkd.shaping import GatedStudent, VirtualGates, find_classifier, fold, gates_of, insert_gates
from bookkd.zoo import create_network, load_weights, save_weights

# Card kdexplainer, test 4.
A = torch.tensor([[0.2, 0.9], [0.5, -0.1]], dtype=torch.float64)
ALPHA = [[0.331812, 0.668188], [0.645656, 0.354344]]
W = (torch.arange(16, dtype=torch.float64) - 7).reshape(4, 4) / 8


def drawn(network, seed=0):
    """Give gates values far from equal shares, and BatchNorm statistics of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gates in gates_of(network).values():
            gates.logits.copy_(1.5 * torch.randn(gates.logits.shape, generator=generator))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return network


def gates_with(logits, **options):
    gates = VirtualGates(*logits.shape, **options).double()
    with torch.no_grad():
        gates.logits.copy_(logits)
    return gates


def test_the_worked_layer_of_the_card():
    conv = nn.Conv2d(4, 4, 1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(W[..., None, None])
    insert_gates(nn.Sequential(conv), blocks=2, keep_scale=False)
    gates = conv.parametrizations.weight[0].double()
    with torch.no_grad():
        gates.logits.copy_(A)
    x = torch.tensor([1, -1, 2, 0.5], dtype=torch.float64).view(1, 4, 1, 1)
    torch.testing.assert_close(gates.shares, torch.tensor(ALPHA, dtype=torch.float64), rtol=0, atol=1e-6)
    wanted = torch.tensor([-1.043758, -0.208523, 0.273637, 0.716566], dtype=torch.float64)
    torch.testing.assert_close(conv(x).flatten(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(gates.entropy.item(), (0.635455 + 0.650094) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parents", [2, 4])
def test_equal_gates_are_no_change_to_the_bit(parents):
    weight = torch.randn(8, 8, 3, 3)
    assert torch.equal(VirtualGates(4, parents)(weight), weight)
    without = VirtualGates(4, parents, keep_scale=False)(weight)
    torch.testing.assert_close(without, weight / parents)


def test_a_constant_added_to_a_row_changes_nothing():
    weight, shifted = W.clone(), A + torch.tensor([[3.0], [-2.0]])
    torch.testing.assert_close(gates_with(A)(weight), gates_with(shifted)(weight), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep_scale", [True, False])
def test_gradients(keep_scale):
    gates = gates_with(A, temperature=0.7, keep_scale=keep_scale)
    weight = torch.randn(4, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def gated(weight, logits):
        return torch.func.functional_call(gates, {"logits": logits}, weight)

    assert torch.autograd.gradcheck(gated, (weight, A.clone().requires_grad_()))


def resnet():
    return create_network("resnet8", n_classes=10), torch.randn(3, 3, 32, 32)


def basic():
    down = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    return BasicBlock(8, 16, stride=2, downsample=down), torch.randn(3, 8, 8, 8)


def bottleneck():
    return Bottleneck(32, 8, dilation=2), torch.randn(3, 32, 8, 8)


def lines():
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3, bias=False)), torch.randn(3, 4, 9)


@pytest.mark.parametrize("make", [resnet, basic, bottleneck, lines])
def test_folding_keeps_outputs_and_structure(make):
    torch.manual_seed(0)
    network, x = make()
    plain = copy.deepcopy(network)
    paths = insert_gates(network)
    assert paths
    drawn(network).eval()
    gated = network(x)
    assert (gated - plain.eval()(x)).abs().max() > 1e-3
    wanted = {path: dict(network.named_modules())[path].weight.detach().clone() for path in paths}
    assert fold(network) is network
    torch.testing.assert_close(network(x), gated, rtol=0, atol=1e-6)
    # Equal latency: the same modules and tensors in the same order, and nothing beside them.
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [(n, type(m)) for n, m in network.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    for path, weight in wanted.items():
        assert torch.equal(network.state_dict()[f"{path}.weight"], weight)
    assert not any(parametrize.is_parametrized(module) for module in network.modules())


def test_gates_in_training_mode_too():
    torch.manual_seed(0)
    network, x = basic()
    insert_gates(network)
    other = fold(copy.deepcopy(drawn(network)))
    torch.testing.assert_close(network.train()(x), other.train()(x), rtol=0, atol=1e-6)


def test_layout_of_weights_stays():
    network = create_network("resnet8", n_classes=10)  # channels_last
    conv = network.layer2[0].conv2
    stride = conv.weight.stride()
    insert_gates(network)
    assert conv.weight.stride() == stride == fold(network).layer2[0].conv2.weight.stride()


def test_a_gated_network_is_saved_and_loaded(tmp_path):
    network = drawn(insert_into(create_network("resnet8", n_classes=10)))
    save_weights(network, tmp_path / "gated.safetensors")
    names = load_file(tmp_path / "gated.safetensors")
    assert names["layer1.0.conv1.parametrizations.weight.0.logits"].shape == (4, 4)
    other = insert_into(create_network("resnet8", n_classes=10))
    load_weights(other, tmp_path / "gated.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(other.eval()(x), network.eval()(x))
    # What is exported is folded: a plain network reads it.
    save_weights(fold(network), tmp_path / "plain.safetensors")
    plain = create_network("resnet8", n_classes=10)
    load_weights(plain, tmp_path / "plain.safetensors")
    assert torch.equal(plain.eval()(x), network(x))


def insert_into(network, *args, **options):
    insert_gates(network, *args, **options)
    return network


def test_layers_are_chosen_by_path():
    network = create_network("resnet8", n_classes=10)
    assert insert_gates(network, ["layer2", "layer3.0.conv1"], blocks=2) == (
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
    )
    assert insert_gates(network, ["layer2"], blocks=2)[0] == "layer2.0.conv1"  # those that are there stay
    with pytest.raises(
        ConfigError, match=r"`gates` to be those asked for \(children=4.*got others at layer2\.0\.conv1"
    ):
        insert_gates(network, ["layer1", "layer2"], blocks=4)
    assert not any(path.startswith("layer1") for path in gates_of(network)), "of what is refused nothing is put in"
    with pytest.raises(ConfigError, match=r"module paths of the student, got 'layer4'\. Nearest: layer"):
        insert_gates(network, ["layer4"])
    with pytest.raises(ConfigError, match=r"`layers` to be a part with a convolution.*got 'linear'"):
        insert_gates(network, ["linear"])


def test_the_classifier_has_a_row_for_each_class():
    network = create_network("resnet8", n_classes=10)
    assert find_classifier(network, 10) == "linear"
    insert_gates(network, ["layer3"], classifier="linear")
    names = [f"digit {i}" for i in range(10)]
    table = GatedStudent(drawn(network), class_names=names).tables()[-1]
    assert (table.layer, table.rows, table.of_classes) == ("linear", tuple(names), True)
    assert [sum(row) for row in table.shares] == pytest.approx([1.0] * 10)
    x = torch.randn(2, 3, 32, 32)
    before = network.eval()(x)
    torch.testing.assert_close(fold(network)(x), before, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"a network with a linear layer of 7 outputs, got 'CifarResNet'"):
        find_classifier(network, 7)
    with pytest.raises(ConfigError, match=r"`classifier` to be a linear layer, got conv1, a Conv2d"):
        insert_gates(network, classifier="conv1")


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.two.weight = self.one.weight


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "it has 8 groups"),
        (nn.ConvTranspose2d(8, 8, 3), "transposed"),
        (nn.Conv2d(3, 8, 3), "its 3 inputs do not divide into 4 blocks"),
        (nn.Conv2d(8, 6, 3), "its 6 outputs do not divide into 4 blocks"),
        (weight_norm(nn.Conv2d(8, 8, 3)), "computed from others"),
        (nn.LazyConv2d(8, 3), "not known yet"),
    ],
)
def test_layers_that_would_not_fold_are_refused_with_the_reason(layer, reason):
    network = nn.Sequential(layer, nn.Conv2d(4, 4, 1))
    with pytest.raises(
        ConfigError, match=rf"`layer` to be one that can have 4 x 4 gates, got 0: .*{reason}.*Leave it out"
    ):
        insert_gates(network, ["0"])
    assert insert_gates(network) == ("1",)
    with pytest.raises(ConfigError, match=rf"`student` to be with a convolution that can have.*{reason}"):
        insert_gates(nn.Sequential(layer))


def test_shared_weights_and_networks_without_convolutions_are_refused():
    with pytest.raises(ConfigError, match=r"got one: another layer shares its weight"):
        insert_gates(Shared(), ["one"])
    with pytest.raises(ConfigError, match=r"`student` to be with a convolution.*got a network without convolutions"):
        insert_gates(nn.Linear(4, 4))


def test_the_entropy_of_all_layers_is_the_sum_of_their_means():
    network = drawn(insert_into(create_network("resnet8", n_classes=10), classifier="linear"))
    shaped = GatedStudent(network)
    (entropy,) = shaped.fields().values()
    parts = [torch.distributions.Categorical(logits=g.logits).entropy().mean() for g in gates_of(network).values()]
    torch.testing.assert_close(entropy, torch.stack(parts).sum())
    record = shaped.finish()
    assert len(record["gates"]["tables"]) == len(parts)
    assert gates_of(shaped.student) == {}


def test_the_entropy_is_exact_under_autocast():
    network = create_network("resnet8", n_classes=4)
    insert_gates(network, blocks=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (entropy,) = GatedStudent(network).fields().values()
    assert entropy.item() == pytest.approx(len(gates_of(network)) * math.log(4), rel=1e-6)


def test_one_layer_is_one_layer():
    assert insert_gates(create_network("resnet8", n_classes=4), "layer2") == insert_gates(
        create_network("resnet8", n_classes=4), ["layer2"]
    )
    assert VAM(layers="layer2").layers == ("layer2",)
