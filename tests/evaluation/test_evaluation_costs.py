"""Cost: parameters, bytes and multiply-accumulates by hand; percentiles against numpy; modes and devices."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

from bookkd.core.errors import ConfigError, DeviceError
from bookkd.evaluation import cost
from bookkd.evaluation.costs import _percentiles
from bookkd.evaluation.intervals import resample
from bookkd.zoo import Preprocess, create_network, create_preprocess


def test_resnet20_by_hand():
    found = cost(
        create_network("resnet20", n_classes=10),
        create_preprocess("resnet20"),
        (3, 32, 32),
        batch_sizes=(1, 2),
        repeats=2,
        device="cpu",
    )
    stages = 6 * 2304 * 1024 + (4608 + 5 * 9216) * 256 + (18432 + 5 * 36864) * 64
    assert found.macs == 432 * 1024 + stages + 640 == 40_551_040
    assert found.parameters == 269_722
    # 19 normalisations: running mean and variance of 688 channels in float32, a counter of 8 bytes each.
    assert found.bytes == 4 * (269_722 + 2 * 688) + 19 * 8
    assert set(found.latency_ms) == {1, 2}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scratch", torch.zeros(100), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.flatten(1)))


def test_tied_parameters_and_unsaved_buffers():
    found = cost(Tied().half().float(), Preprocess(), (1, 2, 2), batch_sizes=(1,), repeats=1, device="cpu")
    assert (found.parameters, found.bytes, found.macs) == (16, 64, 32)


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_by_hand():
    """Of each head L^2 d multiply-adds for the scores and as many for the sum, on every device."""
    found = cost(Attention(), Preprocess(), (2, 5, 4), batch_sizes=(1,), repeats=1, device="cpu")
    assert found.macs == 2 * (5 * 5 * 4 + 5 * 5 * 4)
    # A whole layer: projections of queries, keys, values and output, attention, and two linear maps.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = cost(layer, Preprocess(), (torch.zeros(1, 5, 8),), batch_sizes=(1,), repeats=1, device="cpu")
    assert found.macs == 5 * 4 * 8 * 8 + 2 * 2 * 5 * 5 * 4 + 5 * 2 * 8 * 16


class Sleeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(x), self.training, torch.is_grad_enabled()))
        time.sleep(0.003)
        return x.flatten(1)


def test_latency_is_of_warm_batches_in_evaluation_mode():
    module = nn.Sequential(Sleeper(), nn.Dropout()).train()
    module[1].eval()
    found = cost(module, Preprocess(), (1, 2, 2), batch_sizes=(3,), repeats=8, device="cpu")
    latency = found.latency_ms[3]
    assert 3 <= latency.p50.low <= latency.p50.value <= latency.p50.high <= latency.p95.high
    assert latency.p50.value <= latency.p95.value
    assert module[0].calls == [(1, False, False)] + [(3, False, False)] * (5 + 8)
    assert [each.training for each in module.modules()] == [True, True, False]
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["latency_ms"]["3"]["p50"]["value"] == latency.p50.value
    assert (plain["device"], plain["repeats"], plain["macs"]) == ("cpu", 8, 0)


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")


def test_mode_is_restored_after_a_failure():
    module = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        cost(module, Preprocess(), (1, 2, 2), repeats=1, device="cpu")
    assert module.training


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 100])
def test_percentiles_against_numpy(n: int):
    times = np.random.default_rng(n).exponential(size=n)
    counts = np.concatenate([np.ones((1, n)), resample(lambda counts: counts, n, replicates=30, seed=0)])
    found = _percentiles(times)(counts)
    for row, each in zip(found, counts.astype(int), strict=True):
        wanted = np.quantile(np.repeat(times, each), (0.5, 0.95), method="inverted_cdf")
        assert row.tolist() == wanted.tolist()


def test_refusals():
    network, shape = nn.Flatten(), (1, 2, 2)
    with pytest.raises(DeviceError, match=r"`device` to be a device of this machine, got 'nonsense'"):
        cost(network, Preprocess(), shape, repeats=1, device="nonsense")
    with pytest.raises(DeviceError, match=r"`device` to be where the network lies \(cpu\), got 'meta'"):
        cost(nn.Linear(2, 2), Preprocess(), shape, repeats=1, device="meta")
    with pytest.raises(ConfigError, match=r"`repeats` to be a whole number of at least 1, got 0"):
        cost(network, Preprocess(), shape, repeats=0, device="cpu")
    with pytest.raises(ConfigError, match=r"`batch_sizes` to be a whole number of at least 1, got 0"):
        cost(network, Preprocess(), shape, batch_sizes=(0,), repeats=1, device="cpu")
    with pytest.raises(ConfigError, match=r"`view_shape` to be a whole number of at least 1, got 0"):
        cost(network, Preprocess(), (0, 2), repeats=1, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a graphics processor is there")
def test_an_absent_device_is_an_error_of_ours():
    with pytest.raises(DeviceError, match=r"a device of this machine, got 'cuda'"):
        cost(nn.Flatten(), Preprocess(), (1, 2, 2), repeats=1, device="cuda")
