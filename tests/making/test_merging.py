"""Books put together: the same records to the bit, the same targets however teachers are spread, nothing half-done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TEST, TRAIN, book, run, student, teacher, to_float, training, views, weights

from bookkd.book import Argmax, Book, Dense, Int8, RaggedArray, Sampled, TopK, lineage_tree, verify
from bookkd.core.errors import (
    BookMismatchError,
    ConfigError,
    DataError,
    FidelityError,
    UnknownNameError,
)
from bookkd.knowledge import Ensemble, LiveKnowledge, StoredKnowledge, Teacher, lineage_of_weights, teachers_behind
from bookkd.losses import SampledTarget, soft_target_kl
from bookkd.making import bake, make, make_several, merge
from bookkd.methods import BookKD, Supervised, VanillaKD
from bookkd.objectives import Extract, Flatten
from bookkd.tasks import Classification
from bookkd.views import Replay, collate
from bookkd.zoo import SubsetDataset, create_network, load_weights, open_dataset

ROWS = torch.arange(len(TRAIN))
BATCH = {"sample": ROWS, "view": ROWS % 2, "label": torch.as_tensor(TRAIN.labels)}
KL = {"temperature": 4.0, "t_squared": True, "class_reduction": "sum"}


def spoken(seed, accuracy=None):
    made = teacher(seed)
    made.accuracy, made.split, made.name = accuracy, None if accuracy is None else "test", f"teacher-{seed}"
    return made


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    return [book(root / str(seed), teacher=spoken(seed, 0.5 + seed / 10)) for seed in range(3)]


@pytest.fixture(scope="module")
def merged(three, tmp_path_factory):
    return merge(tmp_path_factory.mktemp("merged") / "all", three)


def log_b(knowledge, temperature=4.0):
    return knowledge.targets(BATCH, ["logits"])["logits"].log_probabilities(temperature)


def test_records_are_copied_to_the_bit(three, merged):
    assert verify(merged.path) == []
    members = [f"members/{place}/logits" for place in range(3)]
    assert list(merged.fields) == [*members, "probe/hash", "probe/projections"]
    rows = np.arange(len(TRAIN))
    for place, one in enumerate(three):
        for view in range(2):
            mine = merged.gather(rows, view, [f"members/{place}/logits"])[f"members/{place}/logits/values"]
            np.testing.assert_array_equal(mine, one.gather(rows, view, ["logits"])["logits/values"])
    assert [found.name for found in merged.plan.teachers] == ["teacher-0", "teacher-1", "teacher-2"]
    assert merged.fidelity["members/1/logits"] == three[1].fidelity["logits"]
    assert merged.cost["teacher_forwards"] == 3 * 2 * len(TRAIN)


@pytest.mark.parametrize(
    "codec",
    [Int8(), TopK(k=3, temperatures=(1.0, 4.0)), Sampled(7), Argmax()],
    ids=["int8", "top_k", "sampled", "argmax"],
)
def test_every_codec_is_copied_without_encoding_again(tmp_path, codec):
    two = [book(tmp_path / str(seed), teacher=spoken(seed), codec=codec) for seed in range(2)]
    found = merge(tmp_path / "both", two)
    rows = np.arange(len(TRAIN))
    for place, one in enumerate(two):
        mine, theirs = found.gather(rows, 1, [f"members/{place}/logits"]), one.gather(rows, 1, ["logits"])
        for part, array in theirs.items():
            copied = mine[f"members/{place}/{part}"]
            if isinstance(array, RaggedArray):
                np.testing.assert_array_equal(copied.offsets, array.offsets)
                copied, array = copied.values, array.values
            np.testing.assert_array_equal(copied, array)
    assert verify(found.path) == []


def test_targets_are_the_same_however_teachers_are_spread(three, merged, tmp_path):
    pair = merge(tmp_path / "pair", three[:2])
    several = [
        StoredKnowledge(merged),
        Ensemble([StoredKnowledge(one) for one in three]),
        Ensemble([StoredKnowledge(pair), StoredKnowledge(three[2])]),
    ]
    wanted = torch.stack([log_b(StoredKnowledge(one)).exp().double() for one in three]).mean(0)
    for knowledge in several:
        torch.testing.assert_close(log_b(knowledge).exp().double(), wanted, rtol=1e-6, atol=1e-6)
        target = knowledge.targets(BATCH, ["logits"])["logits"]
        assert target.accuracies == (0.5, 0.6, 0.7)
        changed = BookKD(weights="accuracy", ensemble="logit").teacher_transforms()[0].teacher(target, BATCH)
        assert changed.weights == pytest.approx((0.5 / 1.8, 0.6 / 1.8, 0.7 / 1.8))


def test_stored_and_live_ensembles_say_the_same(three):
    live = Ensemble([LiveKnowledge(spoken(seed), TASK) for seed in range(3)])
    replay = Replay(TRAIN, views(), probe_share=0.0)
    batch = collate([replay[(int(row), int(view))] for row, view in zip(ROWS, ROWS % 2, strict=True)])
    stored = Ensemble([StoredKnowledge(one) for one in three])
    z = torch.zeros(len(TRAIN), 10)
    mine, theirs = (soft_target_kl(z, k.targets(batch)["logits"], **KL).mean() for k in (stored, live))
    assert float(mine) == pytest.approx(float(theirs), rel=1e-3)
    assert live.teacher_forwards == 3 * len(TRAIN)
    assert stored.teacher_forwards == 0


def test_a_student_of_the_merged_book_is_that_of_the_three_books(three, merged, tmp_path):
    options = {"method": BookKD(), "training": training(epochs=1)}
    one = run(tmp_path / "a", knowledge=StoredKnowledge(merged), network=student(), **options)
    other = run(tmp_path / "b", knowledge=Ensemble([StoredKnowledge(b) for b in three]), network=student(), **options)
    for name, value in weights(one.student).items():
        torch.testing.assert_close(value, weights(other.student)[name], rtol=1e-5, atol=1e-6)
    lineage = lineage_of_weights(tmp_path / "a" / "student.safetensors")
    assert lineage["method"]["name"] == "bookkd"
    assert lineage["parents"] == [found.digest for found in merged.plan.teachers]


def test_a_killed_merge_is_gone_on_with(three, merged, tmp_path, monkeypatch):
    from bookkd.book import BookWriter

    kept = BookWriter.copy
    done = []

    def failing(self, unit, parts):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        kept(self, unit, parts)

    monkeypatch.setattr(BookWriter, "copy", failing)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "all", three)
    monkeypatch.setattr(BookWriter, "copy", kept)
    seen = []
    again = merge(tmp_path / "all", three, progress=lambda n, total: seen.append((n, total)))
    assert again.content_digest == merged.content_digest
    assert seen[0][0] > 32  # the two units of before were not copied again
    assert seen[-1] == (120, 120)


def test_a_merge_is_not_gone_on_with_from_other_records(three, tmp_path, monkeypatch):
    from bookkd.book import BookWriter

    with BookWriter(tmp_path / "again", three[1].plan, keys=three[1].keys) as writer:
        for unit in writer.pending():
            said = three[1].read(np.arange(unit.start, unit.stop), unit.view)
            writer.write(unit, {**said, "logits": said["logits"] + np.float16(1)})
        other = writer.finish()
    with monkeypatch.context() as patch:
        patch.setattr(BookWriter, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path / "all", three)
    begun = " and ".join(each.content_digest for each in three)
    with pytest.raises(BookMismatchError, match=f"to come from {begun}, got .*{other.content_digest}"):
        merge(tmp_path / "all", [three[0], other, three[2]])


def interrupt(*args, **options):
    raise KeyboardInterrupt


TURNED = np.arange(len(TRAIN))[::-1].copy()
OTHERS = {
    "data": (open_dataset("digits", split="test", limit=len(TRAIN)), TASK, r"other data labels \("),
    "fewer samples": (open_dataset("digits", limit=40), TASK, r"other n_samples \(60 and 40\)"),
    "order of samples": (SubsetDataset(TRAIN, TURNED), TASK, r"other data labels \("),
    "classes": (TRAIN, Classification((*TRAIN.class_names[:-1], "ten")), r"other class_names\[9\] \('9' and 'ten'\)"),
    "order of classes": (
        TRAIN,
        Classification((TRAIN.class_names[1], TRAIN.class_names[0], *TRAIN.class_names[2:])),
        r"other class_names\[0\] \('0' and '1'\)",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_books_of_other_samples_classes_or_order_are_no_ensemble(three, tmp_path, what):
    dataset, task, match = OTHERS[what]
    other = make(tmp_path / "other", spoken(7), dataset, views(), task=task, codec=Dense(), batch_size=16)
    match = rf"same data, views and classes, got .* with .*{match}"
    with pytest.raises(BookMismatchError, match=match):
        Ensemble([StoredKnowledge(three[0]), StoredKnowledge(other)])
    with pytest.raises(BookMismatchError, match=match):
        merge(tmp_path / "x", [three[0], other])
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_merged_is_refused(three, merged, tmp_path):
    with pytest.raises(ConfigError, match=r"`books` to be at least two, got 1 \(merge\)"):
        merge(tmp_path / "x", three[:1])
    other = book(tmp_path / "other", teacher=spoken(7), views=views(seed=5))
    with pytest.raises(
        BookMismatchError, match=r"same data, views and classes, got .* with other views seed \(0 and 5\)"
    ):
        merge(tmp_path / "x", [three[0], other])
    with pytest.raises(BookMismatchError, match=r"other views seed \(0 and 5\)"):
        Ensemble([Ensemble([StoredKnowledge(three[0])]), Ensemble([StoredKnowledge(other)])])
    sparse = book(tmp_path / "sparse", teacher=spoken(7), codec=TopK(k=3, temperatures=(4.0,)))
    with pytest.raises(FidelityError, match=r"`logits` to be of every class in an ensemble, got a sparse codec"):
        Ensemble([StoredKnowledge(three[0]), StoredKnowledge(sparse)])
    baked = bake(tmp_path / "baked", three, transforms=(), temperature=4.0)
    with pytest.raises(ConfigError, match=r"`books` to be of what teachers said, got a baked one"):
        merge(tmp_path / "x", [baked, three[0]])
    assert not (tmp_path / "x").exists()


class TestSeveral:
    def test_is_the_merge_of_books_of_each(self, three, merged, tmp_path):
        alive = []

        def loader(seed):
            def load():
                alive.append(seed)
                return spoken(seed, 0.5 + seed / 10)

            return load

        loaders = [loader(seed) for seed in range(3)]
        options = {"task": TASK, "codec": Dense(), "batch_size": 16, "unit_rows": 32}
        seen = []
        made = make_several(
            tmp_path / "all", loaders, TRAIN, views(), progress=lambda n, total: seen.append((n, total)), **options
        )
        assert made.content_digest == merged.content_digest
        assert alive == [0, 1, 2]
        assert seen[-1] == (360, 360)
        assert not (tmp_path / "all.parts").exists()
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(tmp_path / "all.parts") not in maps.read_text()
        again = make_several(tmp_path / "all", loaders, TRAIN, views(), **options)
        assert again.content_digest == merged.content_digest
        with pytest.raises(BookMismatchError, match=r"teachers\[1\]\.digest"):
            make_several(tmp_path / "all", [loaders[0], loaders[0], loaders[2]], TRAIN, views(), **options)

    @pytest.mark.parametrize("out", [".", "../here"])
    def test_in_the_working_folder(self, merged, tmp_path, monkeypatch, out):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        loaders = [lambda seed=seed: spoken(seed) for seed in range(3)]
        options = {"task": TASK, "codec": Dense(), "batch_size": 16, "unit_rows": 32}
        made = make_several(out, loaders, TRAIN, views(), **options)
        assert made.content_digest == merged.content_digest
        assert [path.name for path in tmp_path.iterdir()] == ["here"]
        with pytest.raises(
            ConfigError, match=r"`path` to be a folder in another, got '/' \(making a book of several\)"
        ):
            make_several("/", loaders, TRAIN, views(), **options)

    def test_is_gone_on_with_from_its_parts(self, merged, tmp_path):
        options = {"task": TASK, "codec": Dense(), "batch_size": 16, "unit_rows": 32}

        def broken():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_several(tmp_path / "all", [lambda: spoken(0), broken, lambda: spoken(2)], TRAIN, views(), **options)
        first = Book(tmp_path / "all.parts" / "00").content_digest
        made = make_several(
            tmp_path / "all", [lambda seed=seed: spoken(seed) for seed in range(3)], TRAIN, views(), **options
        )
        assert made.content_digest == merged.content_digest
        assert first
        with pytest.raises(ConfigError, match=r"`teachers` to be at least two, got 1"):
            make_several(tmp_path / "one", [lambda: spoken(0)], TRAIN, views(), **options)


class TestBake:
    METHOD = BookKD(correct=True, flatten=0.1, weights=(1.0, 2.0, 3.0))

    def baked(self, path, three, **options):
        changes = self.METHOD.teacher_transforms()
        labels = np.asarray(TRAIN.labels)
        return bake(path, three, **{"transforms": changes, "temperature": 4.0, "labels": labels, **options})

    def read_time(self, three):
        target = Ensemble([StoredKnowledge(one) for one in three]).targets(BATCH)["logits"]
        for change in self.METHOD.teacher_transforms():
            target = change.teacher(target, BATCH)
        return target.log_probabilities(4.0)

    def test_says_what_reading_the_books_says(self, three, tmp_path):
        found = self.baked(tmp_path / "baked", three)
        assert verify(found.path) == []
        torch.testing.assert_close(log_b(StoredKnowledge(found)), self.read_time(three), rtol=0, atol=2e-3)
        assert found.bytes_per_record < 0.6 * merge(tmp_path / "all", three).bytes_per_record

    def test_says_what_it_lost_and_how_it_was_made(self, three, tmp_path):
        found = self.baked(tmp_path / "baked", three, codec=Int8())
        ((temperature, measured),) = found.fidelity["logits"]["temperatures"].items()
        assert float(temperature) == 4.0
        assert 0 < measured["mean"] < 1e-2
        recorded = json.loads((found.path / "plan.json").read_text())["fields"]["logits"]["baked"]
        assert recorded["temperature"] == 4.0
        assert [change["name"] for change in recorded["transforms"]] == ["Combine", "Correct", "Flatten"]
        assert recorded["transforms"][0]["weights"] == [1.0, 2.0, 3.0]
        assert recorded["books"] == [one.content_digest for one in three]

    def test_another_temperature_is_refused(self, three, tmp_path):
        found = self.baked(tmp_path / "baked", three)
        with pytest.raises(FidelityError, match=r"`temperature` to be 4 of a baked book, got 2\.0"):
            log_b(StoredKnowledge(found), 2.0)
        with pytest.raises(FidelityError, match=r"to honour temperature 8 for method vanilla-kd"):
            run(None, knowledge=StoredKnowledge(found), method=VanillaKD(temperature=8.0), network=student())
        learned = run(None, knowledge=StoredKnowledge(found), network=student(), training=training(epochs=1))
        assert learned.history[-1]["step"] > 0

    def test_sparse_it_keeps_no_other_promise_of_its_codec(self, three, tmp_path):
        found = self.baked(tmp_path / "baked", three, codec=TopK(k=3, temperatures=(2.0, 4.0)))
        target = StoredKnowledge(found).targets(BATCH)["logits"]
        assert target.temperatures == (4.0,)
        whole = self.read_time(three).exp()
        kept = whole.gather(-1, target.indices).sum(-1)
        torch.testing.assert_close(1 - target.log_tail(4.0).exp(), kept, rtol=0, atol=2e-3)
        with pytest.raises(FidelityError, match=r"one that the sparse target promises \(4\), got 2\.0"):
            target.log_tail(2.0)

    def test_drawn_it_serves_at_its_temperature_alone(self, three, tmp_path):
        found = self.baked(tmp_path / "baked", three, codec=Sampled(4096, 4.0))
        target = StoredKnowledge(found).targets(BATCH)["logits"]
        assert (type(target), target.temperature) == (SampledTarget, 4.0)
        away = (target.probabilities() - self.read_time(three).exp()).abs().max()
        assert away < 5 * (0.25 / 4096) ** 0.5
        with pytest.raises(FidelityError, match=r"codec sampled promises \(1\), got 4"):
            self.baked(tmp_path / "other", three, codec=Sampled(7))
        with pytest.raises(FidelityError, match="of codec argmax"):
            self.baked(tmp_path / "hard", three, codec=Argmax())

    def test_in_an_ensemble_its_temperature_binds_all(self, three, tmp_path):
        four, two = (
            bake(tmp_path / str(temperature), three[:1], transforms=(), temperature=temperature)
            for temperature in (4.0, 2.0)
        )
        whole = StoredKnowledge(three[1])
        assert Ensemble([StoredKnowledge(four), whole]).fields["logits"].temperatures == (4.0,)
        assert Ensemble([whole]).fields["logits"].temperatures == ()
        with pytest.raises(FidelityError, match="`members` to be baked at one temperature, got 4 and 2"):
            Ensemble([StoredKnowledge(four), StoredKnowledge(two)])

    def test_a_whole_teacher_is_the_same_at_its_temperature(self, three, tmp_path):
        found = bake(tmp_path / "same", three[:1], transforms=(), temperature=4.0)
        torch.testing.assert_close(log_b(StoredKnowledge(found)), log_b(StoredKnowledge(three[0])), rtol=0, atol=2e-3)

    def test_other_labels_make_another_book(self, three, tmp_path):
        self.baked(tmp_path / "baked", three)
        others = (np.asarray(TRAIN.labels) + 3) % 10
        with pytest.raises(BookMismatchError, match=r"baked\.labels"):
            self.baked(tmp_path / "baked", three, labels=others)

    def test_a_baked_book_and_a_codec_of_another_temperature_are_refused_before_anything_is_written(
        self, three, tmp_path
    ):
        once = self.baked(tmp_path / "once", three)
        with pytest.raises(ConfigError, match="`books` to be of what teachers said, got a baked one"):
            self.baked(tmp_path / "twice", [once])
        with pytest.raises(FidelityError, match="to be one that the codec top_k promises"):
            self.baked(tmp_path / "sparse", three, codec=TopK(k=3, temperatures=(1.0,)))
        assert not (tmp_path / "twice").exists()
        assert not (tmp_path / "sparse").exists()

    def test_what_cannot_be_baked_is_refused(self, three, tmp_path):
        with pytest.raises(DataError, match=r"`labels` to be one for each of 60 samples, got 3"):
            self.baked(tmp_path / "x", three, labels=np.zeros(3, dtype=np.int64))
        with pytest.raises(ConfigError, match=r"`batch` to be one with `label`"):
            self.baked(tmp_path / "y", three, labels=None)
        with pytest.raises(ConfigError, match="leave every class some probability, got Extract, which does not"):
            bake(tmp_path / "z", three, transforms=(Extract(4.0),), temperature=4.0)
        with pytest.raises(ConfigError, match="`temperature` to be a number above 0"):
            bake(tmp_path / "w", three, transforms=(Flatten(0.1),), temperature=0.0)
        with pytest.raises(ConfigError, match="`books` to be at least one, got 0"):
            bake(tmp_path / "w", [], transforms=(), temperature=1.0)


def test_lineage_goes_back_to_the_first_teacher(three, tmp_path):
    run(
        tmp_path / "assistant",
        knowledge=StoredKnowledge(three[0]),
        network=student("digits-small"),
        training=training(epochs=1),
    )
    file = tmp_path / "assistant" / "student.safetensors"
    network = create_network("digits-small", n_classes=10)
    load_weights(network, file)
    assistant = Teacher(network, to_float, name="assistant", lineage=lineage_of_weights(file))
    second = make(tmp_path / "second", assistant, TRAIN, views(), task=TASK, batch_size=16)
    run(tmp_path / "last", knowledge=StoredKnowledge(second), training=training(epochs=1))
    last = lineage_of_weights(tmp_path / "last" / "student.safetensors")
    assert [entry["name"] for entry in last["ancestors"]] == ["assistant", "teacher-0"]
    assert last["parents"] == [assistant.digest]
    lines = list(lineage_tree(Book(second.path).plan.teachers[0]))
    assert [(depth, text.split()[0]) for depth, text in lines] == [(0, "assistant"), (1, "teacher-0")]
    assert "taught by vanilla-kd" in lines[0][1]
    # Who taught a teacher tells people; it does not make another book.
    plain = Teacher(network, to_float, name="assistant")
    assert (
        make(tmp_path / "plain", plain, TRAIN, views(), task=TASK, batch_size=16).content_digest
        == second.content_digest
    )
    assert len(TEST) == 40


def test_a_book_that_gives_views_alone_taught_nothing(three, tmp_path):
    run(tmp_path / "plain", knowledge=StoredKnowledge(three[0]), method=Supervised(), training=training(epochs=1))
    assert lineage_of_weights(tmp_path / "plain" / "student.safetensors")["parents"] == []


def test_weights_without_a_lineage_or_with_a_damaged_one_have_none(tmp_path):
    from bookkd.zoo import save_weights

    network = student()
    for place, notes in enumerate(({}, {"bookkd": "{"}, {"bookkd": "[]"}, {"bookkd": '{"lineage": {"parents": 3}}'})):
        save_weights(network, tmp_path / f"{place}.safetensors", notes)
        assert lineage_of_weights(tmp_path / f"{place}.safetensors") is None
    assert lineage_of_weights(tmp_path / "nothing.safetensors") is None


def test_one_teacher_of_several_is_read_as_if_the_book_were_its_own(three, merged):
    for chosen in (1, "teacher-1"):
        alone, own = StoredKnowledge(merged, [chosen]), StoredKnowledge(three[1])
        assert [found.name for found in alone.teachers] == ["teacher-1"]
        assert set(alone.fields) == {"members/1/logits", "logits"}
        assert alone.fields["logits"] == own.fields["logits"]
        assert torch.equal(log_b(alone), log_b(own))
    with pytest.raises(UnknownNameError, match="Unknown field 'members/0/logits'"):
        StoredKnowledge(merged, [1]).targets(BATCH, ["members/0/logits"])


def test_some_teachers_are_an_ensemble_of_those_alone(three, merged):
    some, apart = (
        StoredKnowledge(merged, ["teacher-2", 0]),
        Ensemble([StoredKnowledge(three[place]) for place in (2, 0)]),
    )
    assert torch.allclose(log_b(some), log_b(apart), atol=1e-6)
    assert some.targets(BATCH, ["logits"])["logits"].accuracies == apart.targets(BATCH, ["logits"])["logits"].accuracies
    assert [found.name for found in teachers_behind(some)] == ["teacher-2", "teacher-0"]
    assert StoredKnowledge(merged).teachers == merged.plan.teachers


def test_a_run_from_one_teacher_is_not_gone_on_with_from_another(merged, tmp_path):
    run(tmp_path / "run", knowledge=StoredKnowledge(merged, [0]))
    found = json.loads((tmp_path / "run" / "config.json").read_text())["knowledge"]
    assert found == {"book": merged.content_digest, "teachers": [merged.plan.teachers[0].digest]}
    for other in (StoredKnowledge(merged, [1]), StoredKnowledge(merged)):
        with pytest.raises(ConfigError, match="knowledge"):
            run(tmp_path / "run", knowledge=other)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([3], "`teachers` to be places from 0 to 2, got 3"),
        ([], "`teachers` to be at least one"),
        ([0, "teacher-0"], "`teachers` to be without repeats"),
        (["teacher-9"], "Unknown teacher 'teacher-9'"),
    ],
)
def test_teachers_that_cannot_be_chosen(merged, chosen, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        StoredKnowledge(merged, chosen)


def test_a_baked_book_keeps_its_teachers_together(merged, tmp_path):
    baked = bake(tmp_path / "baked", [merged], transforms=(), temperature=4.0)
    assert StoredKnowledge(baked, [0, 1, 2]).teachers == baked.plan.teachers
    with pytest.raises(ConfigError, match="to be all of the book, which keeps what they say together"):
        StoredKnowledge(baked, [1])
