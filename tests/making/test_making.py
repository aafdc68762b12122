"""A finished book is what the teacher says about every view, however often making was interrupted."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, teacher, to_float, views
from torch import nn

from bookkd.book import Argmax, Book, Dense, Int8, Sampled, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, DeviceError, TeacherOutputError
from bookkd.knowledge import Teacher
from bookkd.making import find_batch_size, make
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import ArrayDataset, create_network, open_dataset

ROOT = Path(__file__).parents[2]


def book(path, **changes):
    given = {"teacher": teacher(), "dataset": TRAIN, "views": views(), "batch_size": 16, "unit_rows": 32, **changes}
    first = [given.pop(name) for name in ("teacher", "dataset", "views")]
    return make(path, *first, task=TASK, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return book(tmp_path_factory.mktemp("making") / "whole")


def said(network, view):
    """What the network says about every sample's view, asked directly and one sample at a time."""
    replay = Replay(TRAIN, views())
    with torch.no_grad():
        rows = [network(to_float(replay[Pick(sample, view)]["input"][None])) for sample in range(60)]
    return torch.cat(rows)


@pytest.mark.parametrize("view", [0, 1])
def test_records_are_the_teachers_words_rounded_to_float16(whole, view):
    stored = torch.from_numpy(whole.read(np.arange(60), np.full(60, view), ["logits"])["logits"])
    spoken = said(teacher().network.eval(), view)
    assert stored.dtype == torch.float16
    # Half a unit in the last place of float16, and the rounding of another batch size.
    torch.testing.assert_close(stored.float(), spoken, rtol=2**-11, atol=1e-5)


def test_the_book_describes_itself(whole):
    plan = whole.plan
    assert (whole.n_samples, whole.n_views, plan.batch_size, plan.unit_rows) == (60, 2, 16, 32)
    assert plan.class_names == TASK.class_names
    assert plan.task == "classification"
    assert [(one.name, one.digest, one.parameters) for one in plan.teachers] == [("teacher", teacher().digest, 94_410)]
    assert set(whole.fields) == {"logits", "probe/hash", "probe/projections"}
    assert whole.cost["teacher_forwards"] == whole.cost["records"] == 120
    assert whole.cost["seconds"] > 0
    # Any process that has loaded torch holds more than 50 MB and, here, less than 20 GB.
    assert 5e7 < whole.cost["peak_memory_bytes"] < 2e10


def test_a_finished_book_is_returned_as_it_is(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    again = book(whole.path, batch_size=None, unit_rows=None)
    assert again.content_digest == whole.content_digest
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_the_book(tmp_path, whole, workers):
    assert book(tmp_path / "book", workers=workers).content_digest == whole.content_digest


@pytest.mark.parametrize("records", [0, 16, 40, 64, 100])
def test_an_interrupted_book_ends_as_an_uninterrupted_one(tmp_path, whole, records):
    def stop(count, total):
        if count > records:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        book(tmp_path / "book", progress=stop)
    assert not list((tmp_path / "book").glob("edition*"))
    seen = []
    # The batch size that was begun with is taken from the plan.
    finished = book(tmp_path / "book", batch_size=None, unit_rows=None, progress=lambda *at: seen.append(at))
    assert finished.content_digest == whole.content_digest
    assert seen[-1] == (120, 120)
    # Whole units (32 and 28 rows) are kept.
    kept = {0: 0, 16: 32, 40: 32, 64: 60, 100: 92}[records]
    assert finished.cost["teacher_forwards"] == 120 - kept
    assert seen[0][0] == kept + 16


SCRIPT = """
import os, signal, sys, torch
from tests.making.test_making import book
torch.set_num_threads(1)
def kill(count, total):
    if count > 70:
        os.kill(os.getpid(), signal.SIGKILL)
book(sys.argv[1], progress=kill)
"""


def test_killed_with_sigkill(tmp_path, whole):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "book")]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    finished = book(tmp_path / "book")
    assert finished.content_digest == whole.content_digest
    assert finished.cost["teacher_forwards"] == 60


def other_data():
    images = torch.stack([image for image, _ in TRAIN])
    return ArrayDataset("digits", 255 - images, np.asarray(TRAIN.labels), TRAIN.class_names)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "begun"])
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"teacher": teacher(seed=1)}, r"teachers\[0\]\.digest"),
        ({"teacher": Teacher(teacher().network, lambda view: view.float(), name="teacher")}, r"teachers\[0\]\.mode"),
        ({"dataset": other_data()}, r"data\.samples"),
        ({"dataset": open_dataset("digits", limit=50)}, r"data\.length|n_samples"),
        ({"views": Views(None, 2, 0)}, r"views\."),
        ({"views": views(seed=1)}, r"views\.seed 0 \(this run has 1\)"),
        ({"views": views(n_views=3)}, r"n_views 2 \(this run has 3\)"),
        ({"codec": Int8()}, r"fields\.logits\.codec"),
        ({"batch_size": 8}, r"batch_size 16 \(this run has 8\)"),
        ({"keys": np.arange(60, dtype=np.uint64)}, r"keys_digest"),
    ],
    ids=["teacher", "preprocess", "data", "length", "transform", "seed", "views", "codec", "batch", "keys"],
)
def test_another_run_is_refused_by_name(tmp_path, whole, begun, finished, changes, match):
    with pytest.raises(BookMismatchError, match=f"{match}.*Give another path, or the options that the book was made"):
        book(whole.path if finished else begun, **changes)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    path = tmp_path_factory.mktemp("making") / "begun"

    def stop(count, total):
        if count > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        book(path, progress=stop)
    return path


class Odd(nn.Module):
    """Says what it is told to about dark images, after some batches."""

    def __init__(self, change, after=3):
        super().__init__()
        self.inner = create_network("digits-small", n_classes=10)
        self.change, self.after, self.calls = change, after, 0

    def forward(self, x):
        self.calls += 1
        logits = self.inner(x)
        return self.change(logits) if self.calls > self.after else logits


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda said: said.masked_fill(torch.arange(len(said))[:, None] == 2, float("nan")), r"nan|NaN|finite"),
        (lambda said: said * float("inf"), r"finite|inf|nan"),
        (
            lambda said: said[:, :9],
            r"Expected `logits` to be \[batch, 10\], got shape \(12, 9\).*Teacher odd, view 0, samples from 48",
        ),
        (lambda said: said.sum(), r"Expected `logits` to be \[batch, 10\].*view 0, samples from 48"),
        (lambda said: None, r"Expected `logits` to be \[batch, 10\], got"),
        (lambda said: said * 1e6, r"65504|float16|range"),
    ],
    ids=["nan", "infinity", "width", "scalar", "nothing", "range"],
)
def test_what_cannot_be_stored_is_refused_and_nothing_of_its_unit_kept(tmp_path, change, match):
    odd = Teacher(Odd(change), to_float, name="odd")
    with pytest.raises(TeacherOutputError, match=match):
        book(tmp_path / "book", teacher=odd)
    # The first unit of 32 rows was whole, the second not.
    assert len(list((tmp_path / "book").rglob("*.safetensors"))) == 1
    odd.network.after = 10**6
    assert book(tmp_path / "book", teacher=odd).n_samples == 60


def test_the_message_names_sample_and_view(tmp_path):
    odd = Teacher(Odd(lambda said: said.masked_fill(torch.arange(len(said))[:, None] == 2, float("nan"))), to_float)
    with pytest.raises(TeacherOutputError, match=r"sample 50\b.*view 0|view 0.*sample 50\b"):
        book(tmp_path / "book", teacher=odd)


def test_batch_statistics_do_not_move(tmp_path, whole):
    speaker = teacher()
    speaker.network.train()
    before = {name: value.clone() for name, value in speaker.network.state_dict().items()}
    assert book(tmp_path / "book", teacher=speaker).content_digest == whole.content_digest
    for name, value in speaker.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_transform_with_a_generator_of_its_own_is_refused(tmp_path):
    own = np.random.default_rng(0)
    seen = Views(lambda image: image + torch.from_numpy(own.integers(0, 9, (1, 8, 8))), 2, name="own")
    with pytest.raises(ConfigError, match=r"Expected `transform` to be bit-equal when replayed in another order"):
        book(tmp_path / "book", views=seen)
    assert not (tmp_path / "book").exists()


def test_an_empty_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="Expected `dataset` to be at least one sample, got 0"):
        book(tmp_path / "book", dataset=[])


def test_the_callers_generators_stay_where_they_are(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    book(tmp_path / "book")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_size_is_found_and_kept(tmp_path):
    first = book(tmp_path / "book", batch_size=None)
    assert json.loads((tmp_path / "book" / "plan.json").read_text())["batch_size"] == first.plan.batch_size


def test_a_batch_size_that_nobody_chose_is_the_same_in_every_run(tmp_path):
    one, other = (book(tmp_path / name, batch_size=None) for name in ("one", "other"))
    assert one.plan.batch_size == other.plan.batch_size == 256
    assert one.content_digest == other.content_digest


@pytest.mark.parametrize("most", [1, 5, 16, 31, 64, 255])
def test_the_batch_size_fits_into_memory(most):
    def forward(batch):
        if len(batch) > most:
            raise MemoryError

    size = find_batch_size(forward, torch.zeros(1, 8, 8))
    assert size <= most < 2 * size
    with pytest.raises(DeviceError, match=r"`memory` to be enough for one view .*Use a device with more memory"):
        find_batch_size(lambda batch: forward(batch.repeat(most + 1, 1, 1, 1)), torch.zeros(1, 8, 8))


def test_memory_that_the_allocator_refuses_is_memory_that_is_not_there():
    sizes = []

    def forward(batch):
        sizes.append(len(batch))
        if len(batch) > 16:
            torch.empty(2**50)  # the error of the allocator itself

    assert find_batch_size(forward, torch.zeros(1, 8, 8)) == 16
    assert sizes == [8, 256, 128, 64, 32, 16]
    with pytest.raises(RuntimeError, match="shapes cannot"):
        find_batch_size(lambda batch: batch.reshape(-1) @ torch.zeros(3, 3), torch.zeros(1, 8, 8))


def test_a_batch_that_would_take_more_than_half_of_the_memory_is_not_tried(monkeypatch):
    from bookkd.making import batch_size

    sizes = []
    taken = iter([100, 100 + 8 * 50])  # a view takes 50
    monkeypatch.setattr(batch_size, "available_memory", lambda: 10_000)
    monkeypatch.setattr(batch_size, "forget_peak_memory", lambda: True)
    monkeypatch.setattr(batch_size, "peak_memory", lambda: next(taken))
    assert (
        find_batch_size(lambda batch: sizes.append(len(batch)), torch.zeros(1, 8, 8)) == 64
    )  # 100 would be half of it
    assert sizes == [8, 64]


def test_where_memory_cannot_be_measured_the_book_is_made_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert book(tmp_path / "book").cost["peak_memory_bytes"] is None


def test_keys_of_the_data_set_are_the_books(tmp_path):
    @dataclasses.dataclass
    class Keyed:
        keys: list

        def __len__(self):
            return len(TRAIN)

        def __getitem__(self, index):
            return TRAIN[index]

    mine = [1000 + 7 * row for row in range(len(TRAIN))]
    assert book(tmp_path / "own", dataset=Keyed(mine)).keys.tolist() == mine
    given = np.arange(len(TRAIN), dtype=np.uint64)
    assert book(tmp_path / "given", dataset=Keyed(mine), keys=given).keys.tolist() == given.tolist()
    assert book(tmp_path / "none", dataset=Keyed(["a"] * len(TRAIN))).keys is None


@pytest.mark.parametrize("codec", [Dense("float32"), TopK(3, (1.0, 4.0)), Int8(), Sampled(8), Argmax()])
def test_codecs(tmp_path, codec):
    made = book(tmp_path / "book", codec=codec)
    assert made.fields["logits"].codec == codec
    assert Book(made.path).content_digest == made.content_digest
    assert "logits" in made.fidelity
