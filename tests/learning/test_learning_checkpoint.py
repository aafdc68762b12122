"""Checkpoints hold a tree of plain values exactly, and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bookkd.core.errors import CheckpointError, StorageError
from bookkd.learning.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    # A transposed tensor is not contiguous.
    return values.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else values


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    dtype = draw(st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", "<u4", ">f4", "<c8"]))
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | tensors() | arrays() | st.just("$tensor")
KEYS = TEXT | st.integers() | st.sampled_from(["$tensor", "$float", "$pairs", "$numpy", "$tuple"])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.just(()) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(map(repr, sorted(one, key=repr))) == list(map(repr, sorted(other, key=repr)))
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype.newbyteorder("=")
        assert one.shape == other.shape
        assert one.tobytes() == other.astype(one.dtype).tobytes()
    elif isinstance(one, float):
        assert (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    else:
        assert one == other


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_round_trip(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("checkpoint") / "state.ckpt"
    save_checkpoint(path, {"tree": tree})
    assert_same(load_checkpoint(path)["tree"], tree)


def test_numpy_scalars_become_numbers_and_shared_memory_is_kept_apart(tmp_path):
    tied = torch.arange(4.0)
    state = {"a": tied, "b": tied, "part": tied[1:3], "n": np.int64(3), "x": np.float32(0.5), "t": np.bool_(True)}
    save_checkpoint(tmp_path / "s.ckpt", state)
    found = load_checkpoint(tmp_path / "s.ckpt")
    assert (found["n"], found["x"], found["t"]) == (3, 0.5, True)
    assert torch.equal(found["a"], found["b"])
    assert found["part"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("value", "where"),
    [(object(), r"state\.a\.b\[1\]"), ({1, 2}, r"state\.a\.b\[1\]"), (np.array(["x"]), r"state\.a\.b\[1\]")],
    ids=["object", "set", "array of text"],
)
def test_other_values_are_refused_by_their_place(tmp_path, value, where):
    with pytest.raises(CheckpointError, match=where):
        save_checkpoint(tmp_path / "s.ckpt", {"a": {"b": [0, value]}})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"weights": torch.arange(6.0), "steps": 3})
    return path


def tensors_of(path):
    (found,) = path.parent.glob("last.*.safetensors")
    return found


def test_nothing_is_pickled(saved):
    assert json.loads(saved.read_text())["state"]["steps"] == 3
    data = tensors_of(saved).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F32"}


def test_a_second_checkpoint_takes_the_place_of_the_first(saved):
    save_checkpoint(saved, {"weights": torch.zeros(6), "steps": 4})
    assert len(list(saved.parent.iterdir())) == 2
    assert load_checkpoint(saved)["steps"] == 4
    other = saved.with_name("best.ckpt")
    save_checkpoint(other, {"weights": torch.ones(6)})
    assert load_checkpoint(saved)["weights"].sum() == 0
    remove_checkpoint(saved)
    assert sorted(path.name.split(".")[0] for path in saved.parent.iterdir()) == ["best", "best"]


def test_a_crash_between_the_files_leaves_the_old_checkpoint(saved, monkeypatch):
    from bookkd.learning import checkpoint

    real = checkpoint.write_atomic

    def failing(path, data):
        if path.suffix == ".ckpt":
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_atomic", failing)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"weights": torch.zeros(6), "steps": 4})
    assert load_checkpoint(saved)["steps"] == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def rewritten(change):
    def damage(path):
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


WHOLE = r"to be a whole checkpoint, got .*Delete the checkpoint folder to start again"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.unlink(), "Expected a checkpoint at .*, got nothing"),
        (cut, WHOLE),
        (lambda path: path.write_bytes(b""), WHOLE),
        (lambda path: path.write_bytes(b"[1, 2]"), WHOLE),
        (lambda path: path.write_bytes(b"\x80\x04\x95"), WHOLE),
        (lambda path: tensors_of(path).unlink(), WHOLE),
        (lambda path: cut(tensors_of(path)), "to have its recorded hash, got other bytes"),
        (lambda path: flip(tensors_of(path)), "to have its recorded hash, got other bytes"),
        (rewritten(lambda found: found.update(format=1)), r"Expected checkpoint format 2 in .*, got 1\. Update bookkd"),
        (rewritten(lambda found: found.pop("format")), r"got None\. Update bookkd or start again"),
        (rewritten(lambda found: found.pop("state")), WHOLE),
        (rewritten(lambda found: found.pop("digest")), WHOLE),
        (rewritten(lambda found: found.update(tensors=3)), WHOLE),
        (rewritten(lambda found: found["state"].update(weights={"$tensor": "9"})), WHOLE),
        (rewritten(lambda found: found["state"].update(steps={"$float": "import os"})), WHOLE),
        (rewritten(lambda found: found["state"].update(steps={"$pairs": [[1]]})), WHOLE),
        (rewritten(lambda found: found["state"].update(steps={"$pairs": [[{"$tuple": [[]]}, 1]]})), WHOLE),
    ],
)
def test_damage_is_one_error(saved, damage, match):
    damage(saved)
    with pytest.raises(CheckpointError, match=match) as raised:
        load_checkpoint(saved)
    assert "\n" not in str(raised.value)


def test_the_tensors_stand_beside_the_checkpoint(saved, tmp_path_factory):
    """A name that leads elsewhere is not followed."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / tensors_of(saved).name
    tensors_of(saved).rename(elsewhere)
    document = json.loads(saved.read_text())
    saved.write_text(json.dumps({**document, "tensors": str(elsewhere)}))
    with pytest.raises(CheckpointError, match=WHOLE):
        load_checkpoint(saved)


def test_a_folder_that_may_not_be_written_keeps_the_old_checkpoint(saved):
    blocked = saved.parent / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match=r"file to be a folder, got a file"):
        save_checkpoint(blocked / "last.ckpt", {"steps": 1})
    assert load_checkpoint(saved)["steps"] == 3
