"""Pickles are described and never run; arrays come out as torch and numpy put them in."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from bookkd.core.errors import DataError
from bookkd.interchange._pickles import MAX_STEPS, Call, Name, read_pickle
from bookkd.interchange._tensors import _Resolver, load_arrays, widened

BOTH = pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])


def saved(value, *, new=True):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def assert_same(found, wanted):
    wanted = (
        wanted.float().numpy()
        if isinstance(wanted, torch.Tensor) and wanted.dtype == torch.bfloat16
        else np.asarray(wanted)
    )
    assert found.dtype == wanted.dtype.newbyteorder("=")
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)


FLOATS = ("float32", "float64", "float16", "bfloat16")
NAMES = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64")
TENSORS = {
    **{name: torch.tensor([[1, 0, 3], [4, 5, 100]]).to(getattr(torch, name)) for name in NAMES},
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "part": torch.arange(10)[3:8:2],
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}


@BOTH
@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name, new):
    (found,) = load_arrays(saved([TENSORS[name]], new=new), "x")
    assert_same(widened(found), TENSORS[name])


@BOTH
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u2", "?", ">f4", ">i8"])
def test_arrays_of_numpy(dtype, new):
    array = np.array([[0, 1, 2], [3, 4, 5]], dtype=dtype)
    found = load_arrays(saved({"c": array, "fortran": np.asfortranarray(array), "n": 2}, new=new), "x")
    assert_same(found["c"], array)
    assert_same(found["fortran"], array)
    assert found["n"] == 2


@BOTH
def test_a_shared_storage_is_read_for_each_tensor(new):
    whole = torch.arange(6.0)
    first, second = load_arrays(saved([whole[:2], whole[4:]], new=new), "x")
    assert (first.tolist(), second.tolist()) == ([0, 1], [4, 5])


class Runs:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@BOTH
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Runs(), r"(posix|nt)\.mkdir, which is no array"),
        ([torch.zeros(1), Runs()], r"(posix|nt)\.mkdir, which is no array"),
        ({"a": np.array([Runs()], dtype=object)}, "content that is no bytes|numpy array of"),
        (torch.float32, "torch.float32, which is no array"),
        (torch.nn.ReLU(), "which is no array"),
    ],
)
def test_anything_but_arrays_is_refused_by_name(value, said, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said):
        load_arrays(saved(value, new=new), "file.tar")
    assert not list(tmp_path.iterdir())


def test_a_call_is_a_note():
    found = read_pickle(io.BytesIO(pickle.dumps(Runs())))
    assert isinstance(found, Call)
    assert (found.what, found.arguments) == (Name(os.mkdir.__module__, "mkdir"), ("was-run",))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_in_every_protocol(protocol):
    value = {"a": [1, -2, 2**40, 2.5, None, True], "b": ("x", b"y", (), (1,), (1, 2, 3, 4)), 3: {}}
    found = read_pickle(io.BytesIO(pickle.dumps(value, protocol)))
    if protocol == 2:  # which has no bytes: they are a call of _codecs.encode
        assert found["b"][1].what == Name("_codecs", "encode")
        found["b"] = (found["b"][0], b"y", *found["b"][2:])
    assert found == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}(.",
        b"\x80\x02)R.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02h\x05.",
        b"\x80\x02}(]K\x01u.",  # a list as key
        b"\x80\x02r\xff\xff\xff\xff.",  # memo in a place far away
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # bytes longer than any memory
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        b"\x80\x02c__builtin__\neval\n" + b"\x81" * 3,
        b"(i__main__\nX\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_what_is_no_pickle_of_arrays(data):
    with pytest.raises(ValueError):
        read_pickle(io.BytesIO(data))


def test_steps_are_counted():
    with pytest.raises(ValueError, match="more than"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * MAX_STEPS + b"N."))


def test_ten_objects_that_hold_each_other_cost_nothing():
    value = [torch.zeros(1)]
    for _ in range(6):
        value = [value] * 50  # 50**6 leaves, one of each level
    found = load_arrays(saved(value), "x")
    assert found[0] is found[49]


@BOTH
@pytest.mark.parametrize("make", [lambda a: a.T, lambda a: a.bfloat16()], ids=["transposed", "bfloat16"])
def test_many_tensors_of_one_storage_take_no_memory(make, new):
    whole = make(torch.ones(100, 2000))
    data = saved([whole.view(whole.shape) for _ in range(200)], new=new)
    tracemalloc.start()
    found = load_arrays(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 200
    assert peak < 2**20  # views: one copy of the storage alone would be 400 or 800 kB, and there are 200 tensors
    assert (widened(found[199]) == 1).all()


def test_a_storage_with_another_checksum_is_refused():
    data = bytearray(saved([torch.full((64,), 7.0)]))
    place = bytes(data).index(np.full(64, 7, np.float32).tobytes())
    data[place] ^= 1
    with pytest.raises(DataError, match="another checksum than its content"):
        load_arrays(bytes(data), "x")


def test_many_arrays_of_one_text_are_bounded():
    one = pickle.dumps(np.ones(10_000, np.float32), 2)
    machine = read_pickle(io.BytesIO(one))
    resolver = _Resolver(lambda key: b"", len(one))
    calls = [Call(machine.what, machine.arguments, machine.state) for _ in range(100)]
    with pytest.raises(ValueError, match="more arrays than"):
        resolver.resolve(calls)


def test_an_object_that_holds_itself():
    value = []
    value.append(value)
    with pytest.raises(DataError, match="too deep"):
        load_arrays(saved(value), "x")


def rewritten(data, change):
    """Return a zip archive of torch.save with the entries that `change` gives."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            for name, content, kind in change(info.filename, source.read(info)):
                target.writestr(name, content, compress_type=kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, c: [(n, c, zipfile.ZIP_DEFLATED)], "compressed"),
        (lambda n, c: [(n, b"big" if n.endswith("byteorder") else c, 0)], "big-endian"),
        (lambda n, c: [] if n.endswith("/0") else [(n, c, 0)], "archive/data/0"),
        (lambda n, c: [(n, c[:-4] if n.endswith("/0") else c, 0)], "leaves its storage"),
        (lambda n, c: [(n, c, 0), (n.replace("archive", "other"), c, 0)], "2 entries data.pkl"),
        (lambda n, c: [(n, c.replace(b"FloatStorage", b"OtherStorage"), 0)], "unknown storage"),
    ],
)
def test_archives_that_are_changed(change, said):
    with pytest.raises(DataError, match=said):
        load_arrays(rewritten(saved([torch.ones(4)]), change), "x")


@BOTH
def test_random_damage_is_an_error_or_nothing(new):
    data = saved([torch.arange(50.0), np.arange(5)], new=new)
    draws, refused = np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(data)
        for place in draws.integers(0, len(data), draws.integers(1, 5)):
            damaged[place] = draws.integers(256)
        if draws.random() < 0.3:
            damaged = damaged[: draws.integers(len(data))]
        try:
            load_arrays(bytes(damaged), "x")
        except DataError:  # anything else fails the test
            refused += 1
    assert refused > 100
