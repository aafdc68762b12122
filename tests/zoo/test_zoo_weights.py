"""Weights: round trips, the digest, and one error for each way in which a file can be wrong."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bookkd.core.errors import ConfigError, StorageError, WeightsError
from bookkd.learning.checkpoint import save_checkpoint
from bookkd.zoo import create_network, load_weights, save_weights, weights_digest


def network(n_classes: int = 10) -> nn.Module:
    return create_network("digits-small", n_classes=n_classes)


def test_round_trip_keeps_every_bit(tmp_path: Path):
    source, target = network(), network()
    source.train()(torch.rand(4, 1, 8, 8))  # moves the running statistics and counters
    save_weights(source, tmp_path / "net.safetensors", {"arch": "digits-small"})
    assert load_weights(target, tmp_path / "net.safetensors") == ()
    assert weights_digest(source) == weights_digest(target)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(source.eval()(x), target.eval()(x))
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["arch"] == "digits-small"
    assert [each.name for each in tmp_path.iterdir()] == ["net.safetensors"]


def test_create_network_takes_weights(tmp_path: Path):
    source = network()
    save_weights(source, tmp_path / "net.safetensors")
    target = create_network("digits-small", n_classes=10, weights=tmp_path / "net.safetensors")
    assert weights_digest(source) == weights_digest(target)


def test_tied_tensors_are_written_apart(tmp_path: Path):
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    save_weights(tied, tmp_path / "tied.safetensors")
    with safe_open(tmp_path / "tied.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["0.weight", "1.weight"]
    assert load_weights(tied, tmp_path / "tied.safetensors") == ()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "net.safetensors"
    save_weights(network(), path)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bookkd.core.files.os.fsync", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        save_weights(network(), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["net.safetensors"]


def test_write_errors(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file to be a folder, got a file"):
        save_weights(network(), tmp_path / "file" / "net.safetensors")
    with pytest.raises(ConfigError, match=r"`metadata` to be text for every key, got \{'epochs': 3}"):
        save_weights(network(), tmp_path / "net.safetensors", {"epochs": 3})


def test_missing_counters_are_zero(tmp_path: Path):
    source = network()
    state = {k: v.contiguous() for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    target = network()
    target.train()(torch.rand(4, 1, 8, 8))
    assert target.bn1.num_batches_tracked == 1
    assert load_weights(target, tmp_path / "old.safetensors") == ()
    assert target.bn1.num_batches_tracked == 0
    assert weights_digest(target) == weights_digest(source)


def test_other_shapes_names_and_counts_are_named(tmp_path: Path):
    path = tmp_path / "net.safetensors"
    save_weights(network(7), path)
    with pytest.raises(WeightsError, match=r"2 of another shape \(linear.weight \(7, 16\) for \(10, 16\), linear.bias"):
        load_weights(network(), path)
    save_weights(create_network("resnet8", n_classes=10), path)
    with pytest.raises(WeightsError, match=r"\d+ missing \(.* and \d+ more\); \d+ unexpected \(.* and \d+ more\)"):
        load_weights(network(), path)


def test_loose_loading_says_what_kept_its_values(tmp_path: Path):
    path = tmp_path / "net.safetensors"
    source, target = network(7), network()
    head = target.linear.weight.detach().clone()
    save_weights(source, path)
    assert load_weights(target, path, strict=False) == ("linear.bias", "linear.weight")
    assert torch.equal(target.linear.weight, head)
    assert torch.equal(target.conv2.weight, source.conv2.weight)


def test_loose_loading_refuses_a_file_of_which_nothing_fits(tmp_path: Path):
    save_file({"other": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"a file with some tensors of the network, got 'other'"):
        load_weights(network(), tmp_path / "net.safetensors", strict=False)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.bin"])
@pytest.mark.parametrize("new_format", [True, False])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str, new_format: bool):
    path = tmp_path / name
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match=r"(?s)got a pickled checkpoint .*weights_only=True"):
        load_weights(network(), path)


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "net.safetensors"])
def test_a_checkpoint_of_our_own_is_no_pickle(tmp_path: Path, name: str):
    save_checkpoint(tmp_path / name, {"step": 3, "student": network().state_dict()})
    weights = re.escape(str(tmp_path / "student.safetensors"))
    message = rf"got the state of a training run \(.*\)\. .* weights are in {weights}\."
    with pytest.raises(WeightsError, match=message):
        load_weights(network(), tmp_path / name)
    (tmp_path / name).write_text('{"state": {}}')
    with pytest.raises(WeightsError) as caught:
        load_weights(network(), tmp_path / name)
    assert "training run" not in str(caught.value)
    (tmp_path / name).write_text('{"state": {')
    with pytest.raises(WeightsError):
        load_weights(network(), tmp_path / name)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_pickle_with_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("net.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="pickled checkpoint"):
        load_weights(network(), "net.safetensors")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(("name", "wrapped"), [("net.pth", True), ("net.bin", False), ("net.safetensors", False)])
def test_the_recipe_converts(tmp_path: Path, name: str, wrapped: bool):
    source, target = network(), network()
    state = {f"module.{name}": value for name, value in source.state_dict().items()} if wrapped else source.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / name)
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / name)
    advice, *recipe = str(caught.value).splitlines()
    assert len(recipe) == 2
    if name == "net.safetensors":
        assert "Rename it to net.pth" in advice
        (tmp_path / name).rename(tmp_path / "net.pth")
    exec("\n".join(recipe), {})
    load_weights(target, tmp_path / "net.safetensors")
    assert weights_digest(target) == weights_digest(source)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(WeightsError, match="a safetensors file, got no such file"):
        load_weights(network(), tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(network(), tmp_path)
    other = tmp_path / "page.safetensors"
    other.write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=r"got bytes that begin b'<html>no"):
        load_weights(network(), other)
    whole = tmp_path / "net.safetensors"
    save_weights(network(), whole)
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"a whole safetensors file, got .* The file is damaged"):
        load_weights(network(), whole)


def test_digest_does_not_depend_on_layout_or_order():
    first = create_network("digits-small", n_classes=10)
    digest = weights_digest(first)
    assert weights_digest(first.to(memory_format=torch.contiguous_format)) == digest
    state = first.state_dict()
    again = nn.Module()
    for name in sorted(state, reverse=True):
        owner = again
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_buffer(leaf, state[name])
    assert list(again.state_dict()) != list(state)
    assert weights_digest(again) == digest


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(0, 31))
def test_digest_sees_every_bit(element: int, bit: int):
    layer = nn.Linear(2, 3, bias=False)
    digest = weights_digest(layer)
    with torch.no_grad():
        layer.weight.view(-1).view(torch.int32)[element] ^= (1 << bit) if bit < 31 else -(1 << 31)
    assert weights_digest(layer) != digest


def test_digest_sees_name_shape_and_dtype():
    def digest(name: str, value: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, value)
        return weights_digest(module)

    zeros = torch.zeros(2, 3)
    others = [digest("a", zeros.T.contiguous()), digest("b", zeros), digest("a", zeros.to(torch.int32))]
    assert digest("a", zeros) not in others
    assert len(set(others)) == 3
    assert digest("a", torch.zeros((), dtype=torch.bfloat16)) != digest("a", torch.ones((), dtype=torch.bfloat16))


class Stateful(nn.Linear):
    def get_extra_state(self) -> dict:
        return {"calls": 3}

    def set_extra_state(self, state: dict) -> None:
        pass


def test_state_that_is_no_tensor_is_refused():
    with pytest.raises(WeightsError, match="`_extra_state` to be a tensor, got 'dict'"):
        weights_digest(Stateful(2, 2))
