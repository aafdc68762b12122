"""The heavy part of encoding in torch: the same records as in numpy, on the one device that every machine has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, teacher, views

from bookkd.book import RowIds, Sampled, TopK
from bookkd.book.codecs import heavy as module
from bookkd.book.codecs.heavy import InNumpy, heavy, worked_out_by
from bookkd.making import make, on_device
from bookkd.making.on_device import OnDevice, encoding_on

ROWS, CLASSES = 30, 300


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 4 * CLASSES)
    monkeypatch.setattr(on_device, "_VALUES", 7 * CLASSES)


def rows_of(kind):
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(ROWS, CLASSES)) * 3).astype(np.float32)
    if kind == "ties":
        rows = np.round(rows)
    if kind == "ruled out":
        rows[:, 5:] = -np.inf
    if kind == "sure":  # so much that nothing is left of the others beside the first
        rows[:, 7] += 2000
        rows[::2, 9] += 1990
    return rows.astype(np.float16) if kind == "narrow" else rows


KINDS = ["usual", "ties", "ruled out", "sure", "narrow"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 8, CLASSES])
def test_the_largest_are_the_same(kind, k):
    rows = rows_of(kind)
    here, there = (each.largest(rows, k, (1.0, 4.0)) for each in (InNumpy(), OnDevice("cpu")))
    np.testing.assert_array_equal(there.classes, here.classes)
    np.testing.assert_array_equal(there.values, here.values)
    np.testing.assert_allclose(there.log_tails, here.log_tails, rtol=1e-12, atol=1e-13)
    parts = [np.lexsort((np.arange(CLASSES), -row.astype(np.float64)))[:k] for row in rows]
    np.testing.assert_array_equal(here.classes, parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "codec", [TopK(8, (1.0, 4.0)), TopK(5, always=(3, 250)), Sampled(50), Sampled(9, 2.0, seed=4)], ids=repr
)
def test_records_are_the_same_to_the_bit(kind, codec):
    rows, ids = rows_of(kind), RowIds(np.arange(ROWS), 1, "logits")
    here = codec.encode(rows, ids)
    with worked_out_by(OnDevice("cpu")):
        there = codec.encode(rows, ids)
    for part, array in here.items():
        mine, theirs = (getattr(each, "values", each) for each in (array, there[part]))
        assert mine.tobytes() == theirs.tobytes(), part
    decoded = codec.decode(there, (CLASSES,))  # refuses what is no record
    assert len(decoded) == ROWS
    assert all(len(getattr(part, "values", part)) == 0 for part in codec.encode(rows[:0], ids.part(slice(0))).values())


def test_a_class_that_is_ruled_out_is_drawn_by_no_rounding(monkeypatch):
    """As if the device had added up in parallel, and a sum had risen where nothing is added."""
    rows = np.full((2, 4), -np.inf)
    rows[:, [0, 3]] = 0.0
    exact, risen = torch.cumsum, torch.tensor([[1.0, 1.5, 1.5, 2.0]] * 2, dtype=torch.float64)
    uniforms = np.array([[0.1, 0.6], [0.2, 0.9]])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cumsum", lambda steps, dim, out: out.copy_(risen))
        found = OnDevice("cpu").draw(rows, 1.0, uniforms)
    assert torch.cumsum is exact
    np.testing.assert_array_equal(found, [[0, 3], [0, 3]])


def test_the_device_of_the_teacher_decides():
    usual = heavy()
    assert isinstance(usual, InNumpy)
    for device in ("cpu", "mps"):
        with encoding_on(device):
            assert heavy() is usual
    with encoding_on("cuda"):
        assert isinstance(heavy(), OnDevice)
        assert heavy().device.type == "cuda"
    assert heavy() is usual


@pytest.mark.parametrize("codec", [TopK(3, (1.0, 4.0)), Sampled(20)], ids=lambda codec: codec.name)
def test_a_book_is_made_with_it(tmp_path, monkeypatch, codec):
    used = []

    def encoding(device):
        used.append(device.type)
        return worked_out_by(OnDevice(device))

    books = []
    for name in ("here", "there"):
        books.append(make(tmp_path / name, teacher(), TRAIN, views(), task=TASK, codec=codec, batch_size=16))
        monkeypatch.setattr("bookkd.making.local.encoding_on", encoding)
    assert used == ["cpu"]
    assert books[0].content_digest == books[1].content_digest
