"""A grown book is the one that would have been made in one go: views, samples, teachers, whatever was interrupted."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, book, teacher, to_float, views

from bookkd.book import Argmax, Auto, Book, GrowthWriter, Int8, Sampled, TopK, compact, verify
from bookkd.core.errors import BookMismatchError, ConfigError, ViewMismatchError
from bookkd.knowledge import Teacher
from bookkd.making import bake, grow, make, make_several, merge, repair
from bookkd.views import MixUp
from bookkd.zoo import ArrayDataset, SubsetDataset, open_dataset

DIGITS = open_dataset("digits", limit=96)
ROWS = np.arange(96)


def first(count):
    return SubsetDataset(DIGITS, ROWS[:count])


def made(path, count=60, n_views=2, **options):
    options = {"batch_size": 16, "unit_rows": 32, **options}
    given = (
        options.pop("teacher", teacher()),
        options.pop("dataset", first(count)),
        options.pop("views", views(n_views)),
    )
    return make(path, *given, task=TASK, **options)


def grown(path, count=60, n_views=2, **options):
    given = (
        options.pop("teacher", teacher()),
        options.pop("dataset", first(count)),
        options.pop("views", views(n_views)),
    )
    return grow(path, *given, task=TASK, **options)


# 60 ends within a block, a batch and a unit; 64 with each of them.
@pytest.mark.parametrize(
    ("had", "wanted"),
    [((60, 1), (60, 2)), ((64, 1), (96, 1)), ((60, 2), (96, 2)), ((48, 1), (96, 2)), ((33, 1), (65, 2))],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_grown_book_is_that_of_one_go(tmp_path, had, wanted, workers):
    old = made(tmp_path / "b", *had)
    whole = made(tmp_path / "whole", *wanted)
    found = grown(tmp_path / "b", *wanted, workers=workers)
    assert verify(found.path) == []
    assert found.plan.identity() == whole.plan.identity()
    for view in range(wanted[1]):
        mine, theirs = (each.read(np.arange(wanted[0]), view) for each in (found, whole))
        np.testing.assert_array_equal(mine["probe/hash"], theirs["probe/hash"])
        # Where a batch was cut at the end of the smaller book, its old rows were said in another batch.
        np.testing.assert_allclose(mine["logits"], theirs["logits"], rtol=2**-10, atol=1e-6)
    if had[0] % 16 == 0:
        assert found.content_digest == whole.content_digest
    new = wanted[0] * wanted[1] - had[0] * had[1]
    assert new <= found.cost["growth"]["teacher_forwards"] < new + 16 * had[1]
    assert found.cost["teacher_forwards"] == old.cost["teacher_forwards"] + found.cost["growth"]["teacher_forwards"]
    assert "fingerprint of the samples and probes of 6" in found.cost["growth"]["proven_by"] or had[0] * had[1] < 60
    assert grown(tmp_path / "b", *wanted).edition == 2  # nothing is missing any more


def spoken(seed):
    made = teacher(seed)
    made.name = f"teacher-{seed}"
    return made


def test_further_teachers_are_as_merged(tmp_path):
    ours = [made(tmp_path / str(seed), teacher=spoken(seed), codec=Int8() if seed == 2 else None) for seed in range(3)]
    wanted = merge(tmp_path / "merged", ours)
    second = grown(tmp_path / "0", teacher=spoken(1))
    assert second.content_digest == merge(tmp_path / "two", ours[:2]).content_digest
    third = grown(tmp_path / "0", teacher=[spoken(0), spoken(1), spoken(2)], codec=Int8())
    assert (third.edition, third.content_digest, third.fidelity) == (3, wanted.content_digest, wanted.fidelity)
    assert verify(third.path) == []
    assert third.cost["teacher_forwards"] == 3 * 120
    assert [each.name for each in third.plan.teachers] == ["teacher-0", "teacher-1", "teacher-2"]
    assert grown(tmp_path / "0", teacher=spoken(1)).edition == 3
    np.testing.assert_array_equal(
        Book(tmp_path / "0", edition=1).read(ROWS[:60], 1)["logits"],
        ours[0].read(ROWS[:60], 1)["logits"],
    )


SMALL = {"count": 32, "n_views": 1}


def test_constants_of_further_teachers(tmp_path):
    """A grown, a merged book and one made of several teachers in one go are one book; extraction and repair have them, too."""
    given = [{"classifier/weight": np.full((10, 3), seed, dtype=np.float32)} for seed in range(2)]
    ours = [made(tmp_path / str(seed), teacher=spoken(seed), constants=given[seed], **SMALL) for seed in range(2)]
    wanted = merge(tmp_path / "merged", ours)
    for place, each in enumerate(given):
        found = wanted.constants[f"members/{place}/classifier/weight"]
        np.testing.assert_array_equal(found, each["classifier/weight"], strict=True)
    second = grown(tmp_path / "0", teacher=spoken(1), constants=given[1:], **SMALL)
    assert (second.edition, second.content_digest) == (2, wanted.content_digest)
    assert verify(second.path) == []
    assert grown(tmp_path / "0", teacher=spoken(1), constants=given[1:], **SMALL).edition == 2
    assert grown(tmp_path / "0", teacher=[spoken(0), spoken(1)], constants=given, **SMALL).edition == 2
    assert grown(tmp_path / "0", 32, 2, teacher=[spoken(0), spoken(1)]).constants.keys() == second.constants.keys()
    with pytest.raises(ConfigError, match=r"`constants` to be of further teachers.*GrowthWriter"):
        grown(tmp_path / "0", 32, 3, teacher=[spoken(0), spoken(1)], constants=[{"else": np.ones(2)}])
    with pytest.raises(ConfigError, match="a mapping for each of 1 further teachers, got 2"):
        grown(tmp_path / "1", teacher=spoken(2), constants=given, **SMALL)
    several = [lambda seed=seed: spoken(seed) for seed in range(2)]
    options = {"task": TASK, "batch_size": 16, "unit_rows": 32}
    for _ in range(2):  # made, then found finished
        both = make_several(
            tmp_path / "both", several, first(32), views(1), constants=lambda each: given[int(each.name[-1])], **options
        )
        assert both.content_digest == wanted.content_digest
    with pytest.raises(BookMismatchError, match=r"constants\.members/0/classifier/weight"):
        make_several(tmp_path / "both", several, first(32), views(1), **options)
    with pytest.raises(BookMismatchError, match=r"constants\.classifier/weight"):
        made(tmp_path / "1", teacher=spoken(1), **SMALL)


def test_whose_constants_they_are_has_to_be_known(tmp_path):
    both = grown(made(tmp_path / "0", teacher=spoken(0), **SMALL).path, teacher=spoken(1), **SMALL)
    with GrowthWriter(both.path, both.plan, constants={"mean": np.ones(3)}) as writer:
        nobodys = writer.finish()
    other = made(tmp_path / "2", teacher=spoken(2), constants={"mean": np.ones(2)}, **SMALL)
    with pytest.raises(ConfigError, match=r"`constants` to be named members/<i>/.*got 'mean'"):
        merge(tmp_path / "m", [nobodys, other])
    baked = bake(tmp_path / "baked", [other], transforms=(), temperature=4.0)
    assert not baked.constants


def test_a_teacher_is_asked_again_and_constants_are_given_again(tmp_path):
    given = {"mean": np.ones((10, 2))}
    whole = made(tmp_path / "b", constants=given, **SMALL)
    next((tmp_path / "b" / "constants").iterdir()).write_bytes(b"")
    shard = next((tmp_path / "b").glob("view-*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-9])
    done = repair(tmp_path / "b", teacher(), first(32), views(1), task=TASK, constants=given)
    assert done.restored == (str(shard.relative_to(tmp_path / "b")),)  # the constant needed no teacher
    assert verify(tmp_path / "b") == []
    assert Book(tmp_path / "b").content_digest == whole.content_digest


def test_a_book_of_several_teachers_grows(tmp_path):
    both = [spoken(0), spoken(1)]
    options = {"task": TASK, "batch_size": 16, "unit_rows": 32}
    loaders = [lambda each=each: each for each in both]
    make_several(tmp_path / "b", loaders, first(48), views(1), **options)
    compact(tmp_path / "b")
    found = grown(tmp_path / "b", 96, 2, teacher=both)
    whole = make_several(tmp_path / "whole", loaders, first(96), views(2), **options)
    assert found.content_digest == whole.content_digest
    with pytest.raises(BookMismatchError, match="the book's own in their order, for more views or samples"):
        grown(tmp_path / "b", 96, 3, teacher=spoken(1))


def test_mixed_views_keep_the_partners_that_the_book_froze(tmp_path):
    mixed = views(2, mix=MixUp(1.0))
    made(tmp_path / "b", 48, views=mixed)
    found = grown(tmp_path / "b", 96, views=views(3, mix=MixUp(1.0)))
    whole = made(tmp_path / "whole", 96, views=views(3, mix=MixUp(1.0, pool=48)))
    assert found.content_digest == whole.content_digest


def other(name):
    images = torch.stack([image for image, _ in DIGITS])
    labels = np.asarray(DIGITS.labels).copy()
    if name == "pixels":
        images = images.clone()
        images[1] += 1
    if name == "labels":
        labels[7] = (labels[7] + 1) % 10
    if name == "order":
        images, labels = images.flip(0), labels[::-1].copy()
    return ArrayDataset("digits", images, labels, DIGITS.class_names)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"count": 40}, BookMismatchError, r"the book's 60 samples and more, got 40"),
        ({"n_views": 1}, BookMismatchError, r"n_views 2 \(this run has 1\)"),
        ({"dataset": other("pixels")}, BookMismatchError, "data content is"),
        ({"dataset": other("labels")}, BookMismatchError, "data labels is"),
        ({"dataset": other("order")}, BookMismatchError, "data labels is"),
        ({"views": views(3, seed=1)}, BookMismatchError, "seed: 0 and 1"),
        ({"teacher": spoken(1), "n_views": 3}, ConfigError, "60 samples and 2 views for a further teacher"),
        ({"codec": Int8(), "n_views": 3}, BookMismatchError, "fields.logits.codec"),
        ({"batch_size": 8, "n_views": 3}, BookMismatchError, r"batch_size 16 \(this run has 8\)"),
        ({"teacher": [spoken(1), spoken(0)]}, BookMismatchError, "List its own first"),
        ({"keys": ROWS[:60].astype(np.uint64), "n_views": 3}, BookMismatchError, "`keys` to be absent"),
    ],
)
def test_what_does_not_go_with_the_book_is_refused(tmp_path, changes, error, message):
    had = made(tmp_path / "b")
    with pytest.raises(error, match=message):
        grown(tmp_path / "b", **changes)
    found = Book(tmp_path / "b")
    assert (found.edition, found.content_digest) == (1, had.content_digest)
    assert not list((tmp_path / "b").glob("plan-*"))


def test_without_a_fingerprint_the_probes_prove_it(tmp_path):
    """A book of another producer: what its data are is said in words of its own."""
    import dataclasses

    from bookkd.book import BookWriter

    source = made(tmp_path / "source", 48)
    foreign = dataclasses.replace(source.plan, data={"name": "digits", "where": "a bucket"})
    with BookWriter(tmp_path / "b", foreign) as writer:
        for unit in writer.pending():
            writer.copy(unit, source.gather(np.arange(unit.start, unit.stop), unit.view))
        writer.finish()
    found = grown(tmp_path / "b", 96)
    assert found.cost["growth"]["proven_by"] == "probes of 64 records"
    assert found.plan.data["length"] == 96
    with BookWriter(tmp_path / "c", foreign) as writer:
        for unit in writer.pending():
            writer.copy(unit, source.gather(np.arange(unit.start, unit.stop), unit.view))
        writer.finish()
    with pytest.raises(ViewMismatchError):
        grown(tmp_path / "c", dataset=other("order"))
    bare = dataclasses.replace(foreign, fields={"logits": foreign.fields["logits"]})
    with BookWriter(tmp_path / "d", bare) as writer:
        for unit in writer.pending():
            writer.copy(unit, source.gather(np.arange(unit.start, unit.stop), unit.view, ["logits"]))
        writer.finish()
    with pytest.raises(BookMismatchError, match="a fingerprint of ours or probes"):
        grown(tmp_path / "d", 96)


def killed(work, at):
    """Run `work(progress)` in a child that kills itself at its `at`-th report; return whether it was killed."""
    child = os.fork()
    if child == 0:
        seen = []

        def progress(done, total):
            seen.append(done)
            if len(seen) > at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            work(progress)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_killed_at_every_batch(tmp_path):
    had = made(tmp_path / "b", 48, 1)
    wanted = made(tmp_path / "whole", 96, 2).content_digest
    at, kills = 0, 0
    while killed(lambda progress: grown(tmp_path / "b", 96, 2, progress=progress), at):
        kills += 1
        at += kills % 2
        found = Book(tmp_path / "b")
        assert (found.edition, found.content_digest) == (1, had.content_digest)
        assert kills < 40
    assert kills >= 4
    assert Book(tmp_path / "b").content_digest == wanted
    assert verify(tmp_path / "b") == []


def test_begun_with_other_options_is_refused(tmp_path):
    made(tmp_path / "b", 48, 1)

    def stop(done, total):
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grown(tmp_path / "b", 96, 2, progress=stop)
    with pytest.raises(
        BookMismatchError, match=r"as edition 2 was begun, with .*n_samples 96 \(this run has 48\).*--prune"
    ):
        grown(tmp_path / "b", 48, 2)
    changed = Teacher(teacher().network, lambda view: to_float(view), name="teacher")
    with pytest.raises((BookMismatchError, ConfigError)):
        grown(tmp_path / "b", 96, 2, teacher=changed)
    assert grown(tmp_path / "b", 96, 2).edition == 2


def test_the_same_book_helper_of_learning_grows(tmp_path):
    """A book that others made with the options of learning's tests, whose unit was all samples."""
    book(tmp_path / "b", views=views(1), unit_rows=None)
    found = grow(tmp_path / "b", teacher(), DIGITS_BEHIND, views(1), task=TASK)
    assert (found.n_samples, found.plan.block_rows) == (70, 32)
    assert verify(tmp_path / "b") == []


DIGITS_BEHIND = SubsetDataset(open_dataset("digits"), np.concatenate([TRAIN.indices, np.arange(10)]))


@pytest.mark.parametrize("codec", [Sampled(9, 2.0), Argmax(), TopK(3, (1.0, 4.0)), None])
def test_books_of_every_codec_grow(tmp_path, codec):
    """Also one of two teachers that keep their logits otherwise: what the book has stays, unless it is named."""
    ours = [made(tmp_path / str(seed), 48, 1, teacher=spoken(seed), codec=codec if seed else None) for seed in (0, 1)]
    merge(tmp_path / "b", ours)
    found = grown(tmp_path / "b", 96, 2, teacher=[spoken(0), spoken(1)])
    wanted = [
        made(tmp_path / f"w{seed}", 96, 2, teacher=spoken(seed), codec=codec if seed else None) for seed in (0, 1)
    ]
    assert found.content_digest == merge(tmp_path / "whole", wanted).content_digest
    assert verify(found.path) == []
    assert compact(found.path).content_digest == found.content_digest


def test_a_codec_that_was_chosen_stays_chosen(tmp_path):
    auto = Auto(max_kl=0.5)
    had = made(tmp_path / "b", 48, 1, codec=auto)
    found = grown(tmp_path / "b", 96, 2, codec=auto)
    assert found.fields["logits"].codec == had.fields["logits"].codec
    assert found.plan.choice == had.plan.choice != {}
    assert found.fidelity["logits"]["choice"] == had.fidelity["logits"]["choice"]
    assert found.fidelity["logits"]["n"] > had.fidelity["logits"]["n"]
    with pytest.raises(ConfigError, match=r"a codec by name, for a further teacher, got '?auto"):
        grown(tmp_path / "b", 96, 2, teacher=spoken(1), codec=auto)


def test_draws_of_several_teachers_are_said_again_to_the_byte(tmp_path):
    ours = [made(tmp_path / str(seed), 48, 1, teacher=spoken(seed), codec=Sampled(9)) for seed in (0, 1)]
    book = merge(tmp_path / "b", ours)
    shard = next(book.path.rglob("*.safetensors"))
    before = shard.read_bytes()
    shard.write_bytes(before[:-400])
    repair(book.path, [spoken(0), spoken(1)], first(48), views(1), task=TASK)
    assert shard.read_bytes() == before
