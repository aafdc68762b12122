"""Networks: counts and names against the published weights, option-A shortcuts, foreign libraries, the user's own code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tests.zoo import cases
from torch import nn

from bookkd.core.errors import ConfigError, UnknownNameError
from bookkd.zoo import NETWORKS, create_network
from bookkd.zoo.digits_net import DigitsNet
from bookkd.zoo.resnet import BasicBlock, CifarResNet


def own_network(n_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, n_classes))


def torch_style(num_classes: int) -> nn.Module:
    return nn.Linear(3, num_classes)


def fixed_width() -> nn.Module:
    return nn.Linear(3, 4)


def no_network(n_classes: int) -> list[int]:
    return [n_classes]


CONSTANT = 3


def test_every_name_has_a_case():
    assert set(NETWORKS) == set(cases.NETWORKS)


@pytest.mark.parametrize(("name", "parameters"), cases.NETWORKS.items())
def test_parameters_and_logits(name: str, parameters: int):
    network = create_network(name, n_classes=10).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    shape = (2, 1, 8, 8) if name.startswith("digits") else (2, 3, 32, 32)
    assert network(torch.rand(shape)).shape == ((2, 10, 32, 32) if name.startswith("unet-") else (2, 10))


def test_names_are_those_of_the_published_weights():
    state = create_network("resnet20", n_classes=10).state_dict()
    assert sorted(name for name in state if not name.endswith("num_batches_tracked")) == cases.RESNET20_NAMES
    assert state["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert state["linear.weight"].shape == (10, 64)


def test_width_and_input_channels():
    network = create_network("resnet14", n_classes=100, args={"width": 32, "in_channels": 1})
    assert network.conv1.weight.shape == (32, 1, 3, 3)
    assert network.linear.weight.shape == (100, 128)
    assert network(torch.rand(2, 1, 20, 20)).shape == (2, 100)


def test_shortcut_subsamples_and_pads_on_both_sides():
    block = BasicBlock(2, 4, 2)
    x = torch.arange(1, 33.0).view(1, 2, 4, 4)
    expected = torch.zeros(1, 4, 2, 2)
    expected[0, 1] = torch.tensor([[1.0, 3.0], [9.0, 11.0]])
    expected[0, 2] = torch.tensor([[17.0, 19.0], [25.0, 27.0]])
    assert torch.equal(block.shortcut(x), expected)
    nn.init.zeros_(block.bn2.weight)  # the residual branch then says 0, and the block is its shortcut
    assert torch.equal(block(x), expected)


def test_shortcut_of_equal_shape_is_the_input():
    x = torch.rand(1, 3, 4, 4)
    assert BasicBlock(3, 3, 1).shortcut(x) is x


def test_convolutions_lie_in_channels_last():
    network = create_network("digits-large", n_classes=10)
    assert network.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_same_seed_same_network():
    torch.manual_seed(5)
    first = create_network("digits-small", n_classes=10)
    torch.manual_seed(5)
    second = create_network("digits-small", n_classes=10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:mobilenetv3_small_050.lamb_in1k", "torchvision:resnet18"])
def test_foreign_networks(name: str):
    network = create_network(name, n_classes=7).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_torchvision_networks_with_a_second_output_return_logits_alone():
    network = create_network("torchvision:googlenet", n_classes=5).train()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def test_foreign_arguments():
    network = create_network("timm:resnet18", n_classes=7, args={"in_chans": 1}).eval()
    assert network(torch.rand(1, 1, 32, 32)).shape == (1, 7)


def test_own_code():
    network = create_network(f"{__name__}:own_network", n_classes=3, args={"width": 5})
    assert network(torch.rand(2, 6)).shape == (2, 3)
    assert create_network(f"{__name__}:torch_style", n_classes=6)(torch.rand(1, 3)).shape == (1, 6)
    assert create_network(f"{__name__}:fixed_width", n_classes=6)(torch.rand(1, 3)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        ("resnet21", None, UnknownNameError, r"Unknown network 'resnet21'. Nearest: resnet14, resnet20"),
        ("timm:resnet1", None, UnknownNameError, r"Unknown timm network 'resnet1'. Nearest: resnet18"),
        ("torchvision:resnt18", None, UnknownNameError, r"Unknown torchvision network 'resnt18'. Nearest: resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", None, UnknownNameError, r"Unknown torchvision network"),
        (
            "resnet20",
            {"depth": 4},
            ConfigError,
            r"that it takes \(in_channels, width\), got \{'depth': 4\} \(network resnet20",
        ),
        ("resnet20", {"n_classes": 4}, ConfigError, r"without 'n_classes', which has an option of its own"),
        ("resnet20", {"width": 0}, ConfigError, r"Expected `width` to be a whole number of at least 1, got 0"),
        ("timm:resnet18", {"foo": 1}, ConfigError, r"network timm:resnet18: .*unexpected keyword argument 'foo'"),
        ("torchvision:resnet18", {"foo": 1}, ConfigError, r"network torchvision:resnet18: .*'foo'"),
        (f"{__name__}:no_network", None, ConfigError, r"a callable that returns a torch.nn.Module, got \[3\]"),
        (f"{__name__}:CONSTANT", None, ConfigError, r"a callable that returns a torch.nn.Module, got 3"),
        (f"{__name__}:own_network", {"depth": 1}, ConfigError, r"arguments that it takes \(width\)"),
        ("not_a_module_here:Net", None, ConfigError, r"to be importable"),
    ],
)
def test_refusals(name: str, args: dict | None, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        create_network(name, n_classes=3, args=args)


def test_classes_are_counted():
    with pytest.raises(ConfigError, match="`n_classes` to be a whole number of at least 1, got 0"):
        create_network("resnet8", n_classes=0)
    with pytest.raises(ConfigError, match="`blocks` to be a whole number of at least 1"):
        CifarResNet(0, n_classes=2)
    with pytest.raises(ConfigError, match="`channels` to be three numbers"):
        DigitsNet((1, 2), n_classes=2)


def test_import_is_light():
    # Reading a name must not cost the seconds that torchvision, timm or torchmetrics take to import.
    code = "import sys, bookkd.zoo, bookkd.evaluation; print([m for m in ('torchvision', 'timm', 'torchmetrics', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
