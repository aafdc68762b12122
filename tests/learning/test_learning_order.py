"""Which order a run takes, what it says about it, and that it keeps it."""

from __future__ import annotations

import json
import logging
from collections import Counter

import numpy as np
import pytest
from tests.learning.digits import TRAIN, StopError, assert_equal, book, run, stopped_after, teacher, training, views

from bookkd.book import Book
from bookkd.core.errors import BookKDError, CheckpointError, ConfigError
from bookkd.knowledge import Ensemble, StoredKnowledge, books_of
from bookkd.learning import Training, make_groups, order
from bookkd.learning.order import ReadingOrder, choose_order
from bookkd.making import merge
from bookkd.methods import Supervised
from bookkd.views import BlockWindow, Replay
from bookkd.zoo import SubsetDataset

GIB = 2**30


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    """A book whose hashing blocks have 4 rows."""
    return book(tmp_path_factory.mktemp("blocked") / "book", unit_rows=4).path


def chosen(stored, free, n_samples=60, **changes):
    return choose_order(Training(**changes), [StoredKnowledge(stored)], ["logits"], n_samples=n_samples, free=free)


def test_blocks_where_an_epoch_takes_more_than_half_of_the_free_memory(blocked):
    opened = Book(blocked)
    # 10 classes in float16, and a probe of 16 bytes a record.
    most = {name: entry.codec.bytes_per_record(entry.shape) for name, entry in opened.fields.items()}
    assert most == {"logits": 20, "probe/hash": 8, "probe/projections": 8}
    epoch = opened.bytes_per_record * 60
    assert chosen(blocked, 2 * int(epoch) + 2).window is None
    found = chosen(blocked, 2 * int(epoch) - 2)
    # A window is a quarter of what is free: with the next one, read ahead, half.
    assert found.window == BlockWindow(7, 4)
    assert chosen(blocked, 1).window == BlockWindow(1, 4)
    assert str(found).startswith("samples are shuffled by blocks of 4 rows in windows of 7: an epoch reads 0.01 MiB of")
    assert "of memory are free" in str(chosen(blocked, GIB))


def test_the_option_overrules_memory(blocked):
    assert chosen(blocked, 1, shuffle="rows") == ReadingOrder(None, "as asked")
    assert chosen(blocked, 1, shuffle="blocks", shuffle_window=3) == ReadingOrder(BlockWindow(3, 4), "as asked")
    assert chosen(blocked, GIB, shuffle="blocks").window == BlockWindow(15, 4)  # no wider than the epoch


def test_blocks_are_halved_where_samples_lie_sorted_until_a_window_mixes_as_a_batch_does(blocked, monkeypatch):
    monkeypatch.setattr(order, "FINEST_READ", 1)
    record = Book(blocked).bytes_per_record
    for held, rows in ((32, 4), (16, 2), (8, 1), (4, 1)):
        free = int(4 * held * record) + 4
        found = choose_order(
            Training(batch_size=8), [StoredKnowledge(blocked)], ["logits"], n_samples=600, free=free, by_class=True
        )
        assert found.window == BlockWindow(held // rows, rows)
        assert ("finer than the book's" in found.reason) is (rows < 4)
        unsorted = chosen(blocked, free, n_samples=600, batch_size=8)
        assert unsorted.window == BlockWindow(held // 4, 4)


def test_finer_blocks_are_no_smaller_than_a_disk_reads_well(blocked, monkeypatch):
    record = Book(blocked).bytes_per_record

    def rows(least, **how):
        monkeypatch.setattr(order, "FINEST_READ", least)
        books = [StoredKnowledge(blocked)]
        found = choose_order(Training(), books, ["logits"], n_samples=600, free=int(80 * record), by_class=True, **how)
        return found.window.rows

    assert [rows(int(n * record) + 1) for n in (3, 2, 1)] == [4, 4, 2]
    # Each view is a file of its own: two views of a sample are two reads.
    assert rows(int(record) + 1, views_per_sample=2) == 2


def test_a_block_of_ones_own_size_stays(blocked):
    how = {"shuffle": "blocks", "shuffle_block_rows": 2}
    assert chosen(blocked, 1, **how, shuffle_window=3).window == BlockWindow(3, 2)
    assert chosen(blocked, GIB, **how).window == BlockWindow(30, 2)


def test_views_samples_and_several_books_count(blocked, stored):
    one = StoredKnowledge(blocked)
    free = int(Book(blocked).bytes_per_record * 60 * 2)

    def window(books, **epoch):
        return choose_order(Training(), books, ["logits"], free=free, **{"n_samples": 30, **epoch}).window

    assert window([one]) is None
    assert window([one], views_per_sample=2) is None
    assert window([one], n_samples=60, views_per_sample=2) is not None
    both = books_of(Ensemble([one, StoredKnowledge(stored)]))
    assert window(both, n_samples=60) == BlockWindow(1, Book(stored).plan.block_rows)


def test_where_nothing_is_read_or_known_it_is_rows(blocked, monkeypatch):
    assert choose_order(Training(), [], ["logits"], n_samples=10, free=1).window is None
    monkeypatch.setattr(order, "available_memory", lambda: None)
    assert "does not say" in str(chosen(blocked, None))
    with pytest.raises(
        ConfigError, match=r"`shuffle_window` to be given, since the system does not say.*shuffle_window"
    ):
        chosen(blocked, None, shuffle="blocks")
    with pytest.raises(ConfigError, match=r"`shuffle_window` to be given, since there is no book"):
        choose_order(Training(shuffle="blocks"), [], [], n_samples=10, free=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": "row"}, "Unknown shuffle 'row'. Nearest: rows"),
        ({"shuffle_window": 4}, r"`shuffle_window` to be None with shuffle auto, got 4.*--training.shuffle blocks"),
        (
            {"shuffle_block_rows": 4},
            r"`shuffle_block_rows` to be None with shuffle auto, got 4.*--training.shuffle blocks",
        ),
        ({"shuffle": "blocks", "shuffle_window": 0}, "`shuffle_window` to be a whole number of at least 1, got 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(BookKDError, match=message):
        Training(**options)


def seen_by(monkeypatch):
    """Return the list that is filled with the addresses that books are asked for, batch by batch."""
    asked, real = [], Book.read

    def reading(self, samples, views, fields=None):
        if list(fields) == ["logits"]:
            asked.append(list(zip(samples.tolist(), np.asarray(views).tolist(), strict=True)))
        return real(self, samples, views, fields)

    monkeypatch.setattr(Book, "read", reading)
    return asked


def test_a_run_by_blocks_reads_window_after_window_and_every_view_once(tmp_path, blocked, monkeypatch):
    asked = seen_by(monkeypatch)
    how = training(shuffle="blocks", shuffle_window=3, batch_size=8)
    learned = run(tmp_path / "run", knowledge_of=blocked, training=how)
    assert learned.order == ReadingOrder(BlockWindow(3, 4), "as asked")
    assert json.loads((tmp_path / "run" / "order.json").read_text()) == {
        "shuffle": "blocks", "window_blocks": 3, "block_rows": 4, "reason": "as asked",
    }  # fmt: skip
    rows = [sample for batch in asked for sample, _ in batch]
    # 15 blocks of 4 rows are 5 windows.
    assert [len({row // 4 for row in rows[start : start + 12]}) for start in range(0, 60, 12)] == [3] * 5
    # The last batch is filled up with rows of weight 0, here four of them.
    epochs = [asked[:8], asked[8:]]
    pairs = Counter(pair for epoch in epochs for pair in [pair for batch in epoch for pair in batch][:60])
    assert pairs == dict.fromkeys(((sample, view) for sample in range(60) for view in range(2)), 1)


def test_the_choice_is_said_and_kept_when_free_memory_changes(tmp_path, blocked, monkeypatch, caplog):
    epoch = Book(blocked).bytes_per_record * 60
    options = {"knowledge_of": blocked, "training": training(checkpoint_steps=3)}
    with monkeypatch.context() as patch:
        patch.setattr(order, "available_memory", lambda: int(epoch))
        whole = run(tmp_path / "whole", **options)
    caplog.clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="bookkd"):
        patch.setattr(order, "available_memory", lambda: int(epoch))
        stopped_after(patch, 5)
        with pytest.raises(StopError):
            run(tmp_path / "cut", **options)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "shuffled by blocks of 4 rows in windows of 3: an epoch reads" in said
    caplog.clear()
    monkeypatch.setattr(order, "available_memory", lambda: GIB)
    gone_on = run(tmp_path / "cut", **options)
    assert gone_on.order == whole.order
    assert gone_on.order.window == BlockWindow(3, 4)
    assert_equal(gone_on.student, whole.student)
    assert [record.getMessage() for record in caplog.records] == [said]
    caplog.clear()
    free = run(tmp_path / "free", **options)
    assert free.order.window is None
    assert not caplog.records
    with pytest.raises(AssertionError):
        assert_equal(free.student, whole.student)


def test_a_run_from_before_there_were_windows_goes_on_by_rows(tmp_path, blocked, monkeypatch):
    options = {"knowledge_of": blocked, "training": training(checkpoint_steps=3)}
    whole = run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stopped_after(patch, 5)
        with pytest.raises(StopError):
            run(tmp_path / "cut", **options)
    (tmp_path / "cut" / "order.json").unlink()
    monkeypatch.setattr(order, "available_memory", lambda: 1)
    gone_on = run(tmp_path / "cut", **options)
    assert gone_on.order == ReadingOrder(None, "as before")
    assert_equal(gone_on.student, whole.student)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "damaged",
        '{"shuffle": "blocks", "window_blocks": 0, "block_rows": 4, "reason": ""}',
        '{"shuffle": "rows"}',
    ],
)
def test_a_damaged_note_is_refused(tmp_path, blocked, monkeypatch, text):
    options = {"knowledge_of": blocked, "training": training(checkpoint_steps=1)}
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(StopError):
            run(tmp_path, **options)
    (tmp_path / "order.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"order.json to say how a run is shuffled.*--overwrite"):
        run(tmp_path, **options)


def test_both_doors_read_by_blocks_to_the_same_student(tmp_path, blocked):
    how = training(shuffle="blocks", shuffle_window=2)
    plain, lightning = (
        run(tmp_path / door, knowledge_of=blocked, training=how, door=door) for door in ("plain", "lightning")
    )
    assert_equal(plain.student, lightning.student, 1e-6)


@pytest.mark.parametrize(
    ("labels", "rows", "cautioned"),
    [
        (np.arange(100) // 10, None, True),
        (np.arange(100) % 10, None, False),
        (np.random.default_rng(0).permutation(np.arange(100) // 10), None, False),
        (np.arange(100) % 10, np.argsort(np.arange(100) % 10, kind="stable").argsort(), True),  # sorted in the book
        (np.zeros(100, dtype=int), None, False),  # one class alone
        (np.random.default_rng(0).random((100, 3)), None, False),
        (None, None, False),
    ],
)
def test_samples_sorted_by_class_are_told(labels, rows, cautioned):
    assert order.sorted_by_class(labels, rows) is cautioned


def test_the_caution_stands_in_the_log_and_in_the_folder(tmp_path, monkeypatch, caplog):
    by_class = np.argsort(np.asarray(TRAIN.labels), kind="stable")
    monkeypatch.setattr("tests.learning.digits.TRAIN", SubsetDataset(TRAIN, by_class))
    stored = book(tmp_path / "book", unit_rows=4).path
    learned = run(tmp_path / "run", knowledge_of=stored, training=training(shuffle="blocks", shuffle_window=3))
    assert "sorted by class" in learned.order.reason
    assert "sorted by class" in json.loads((tmp_path / "run" / "order.json").read_text())["reason"]
    assert [record.getMessage() for record in caplog.records] == [f"Note: {learned.order}"]


def test_a_window_that_is_the_whole_epoch_mixes_all_there_is(tmp_path, monkeypatch):
    by_class = np.argsort(np.asarray(TRAIN.labels), kind="stable")
    monkeypatch.setattr("tests.learning.digits.TRAIN", SubsetDataset(TRAIN, by_class))
    stored = book(tmp_path / "book", unit_rows=4).path
    learned = run(tmp_path / "run", knowledge_of=stored, training=training(shuffle="blocks", batch_size=64))
    assert learned.order.window.blocks * learned.order.window.rows >= 60
    assert "sorted by class" not in learned.order.reason


def test_a_loop_of_ones_own_takes_the_option_or_a_window():
    def groups(window=None, **changes):
        replay = Replay(TRAIN, views())
        return make_groups(replay, training(**changes), samples=60, n_views=2, window=window).sampler.window

    assert groups() is None
    assert groups(BlockWindow(3, 4)) == BlockWindow(3, 4)
    assert groups(shuffle="blocks", shuffle_window=2) == BlockWindow(2, 4096)
    assert groups(shuffle="blocks", shuffle_window=2, shuffle_block_rows=8) == BlockWindow(2, 8)
    with pytest.raises(ConfigError, match=r"`shuffle_window` to be given for shuffle blocks, got None \(make_groups\)"):
        groups(shuffle="blocks")


def test_labels_alone_are_shuffled_by_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "available_memory", lambda: 1)
    learned = run(tmp_path, method=Supervised())
    assert learned.order == ReadingOrder(None, "there is no book to read")


def test_what_is_read_ahead_is_what_the_method_asks_for(blocked, monkeypatch, tmp_path):
    other = book(tmp_path / "other", teacher=teacher(1), unit_rows=4)
    two = merge(tmp_path / "two", [Book(blocked), other]).path
    told = []
    monkeypatch.setattr(Book, "prefetch", lambda self, *args: told.append((self.n_samples, *args)))
    order.reading_ahead([StoredKnowledge(blocked), StoredKnowledge(two, [1])], ["logits", "own/logits"])(4, 8, 1)
    probes = ["probe/hash", "probe/projections"]
    assert told == [(60, 4, 8, 1, ["logits", *probes]), (60, 4, 8, 1, ["members/1/logits", *probes])]
