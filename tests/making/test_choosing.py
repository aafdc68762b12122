"""Codec auto: measured on the teacher's own records, kept by a resumed book, told and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.learning.digits import TASK, TRAIN, teacher, views
from tests.making.test_making import book

from bookkd.book import Auto, Book, BookWriter
from bookkd.book.choice import choose_codec
from bookkd.core.errors import BookMismatchError, ConfigError, FidelityError, TeacherOutputError
from bookkd.knowledge import LiveKnowledge
from bookkd.making import choosing, make, make_several
from bookkd.tasks import MultiLabel
from bookkd.views import Replay


def auto(path, max_kl=1e-5, **changes):
    return book(path, codec=Auto(max_kl), temperatures=(1.0, 4.0), **changes)


def test_the_smallest_that_meets_is_the_books(tmp_path):
    told = []
    made = auto(tmp_path / "b", told=told.append)
    (choice,) = told
    assert made.fields["logits"].codec == choice.codec
    assert made.plan.choice == json.loads(json.dumps(choice.to_json()))
    assert made.fidelity["logits"]["choice"]["max_kl"] == 1e-5
    assert choice.records == 120
    # The records are the book's, so that what was measured first is what was measured while writing.
    (taken,) = [each for each in choice.candidates if each.codec == choice.codec]
    for at, lost in taken.temperatures.items():
        found = made.fidelity["logits"]["temperatures"][f"{at:g}"]
        assert found.get("mean_of_every_class", found["mean"]) == pytest.approx(lost["mean"], rel=1e-2, abs=1e-9)
    # The passes of the measuring are counted too.
    assert made.cost["teacher_forwards"] == 240


def test_the_sample_is_spread_over_samples_and_views():
    knowledge = LiveKnowledge(teacher(), TASK)
    logits, ids = choosing.sample_logits(knowledge, Replay(TRAIN, views()), 16, records=12)
    assert logits.shape == (12, 10)
    np.testing.assert_array_equal(ids.samples, [0, 10, 20, 30, 40, 50] * 2)


def test_a_resumed_book_keeps_its_codec_without_measuring_again(tmp_path, monkeypatch):
    whole = auto(tmp_path / "whole")
    write_rows, rows = BookWriter.write_rows, []

    def stop(writer, view, start, arrays):
        rows.append(start)
        if len(rows) > 3:
            raise KeyboardInterrupt
        write_rows(writer, view, start, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(BookWriter, "write_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            auto(tmp_path / "b")
    asked = []
    monkeypatch.setattr(choosing, "choose_codec", lambda *args, **options: asked.append(args))
    resumed = auto(tmp_path / "b")
    assert asked == []
    assert resumed.content_digest == whole.content_digest
    assert auto(tmp_path / "b").content_digest == whole.content_digest
    with pytest.raises(BookMismatchError, match=r"`max_kl` to be 1e-05, which .* was begun with, got 0\.1"):
        auto(tmp_path / "b", max_kl=0.1)
    assert book(tmp_path / "b", codec=resumed.fields["logits"].codec).content_digest == whole.content_digest


def test_what_no_codec_meets_writes_nothing(tmp_path):
    with pytest.raises(FidelityError, match=r"at most 1e-05 at 1, 4 in at most 3 bytes, got at best"):
        book(tmp_path / "b", codec=Auto(1e-5, max_bytes=3))
    assert not (tmp_path / "b").exists()


def test_a_task_whose_records_are_no_distribution(tmp_path):
    task = MultiLabel(TASK.class_names)
    with pytest.raises(ConfigError, match=r"`codec` to be a codec by name, .* got 'auto' \(task multi-label\)"):
        make(tmp_path / "b", teacher(), TRAIN, views(), task=task, codec=Auto(), batch_size=16)


def test_a_teacher_that_says_nan(tmp_path):
    speaker = teacher()
    speaker.network.linear.weight.data.fill_(float("nan"))
    with pytest.raises(TeacherOutputError, match=r"NaN or infinity .codec auto."):
        auto(tmp_path / "b", teacher=speaker)


def test_each_of_several_teachers_has_its_own(tmp_path):
    def sure():
        speaker = teacher()
        speaker.network.linear.weight.data.mul_(60)
        speaker.network.linear.bias.data.mul_(60)
        return speaker

    options = {"task": TASK, "codec": Auto(2e-3), "temperatures": (1.0,), "batch_size": 16}
    made = make_several(tmp_path / "b", [teacher, sure], TRAIN, views(), **options)
    for place, speaker in enumerate([teacher(), sure()]):
        logits, ids = choosing.sample_logits(LiveKnowledge(speaker, TASK), Replay(TRAIN, views()), 16)
        expected = choose_codec(logits, Auto(2e-3), temperatures=(1.0,), ids=ids).codec
        assert made.fields[f"members/{place}/logits"].codec == expected
        assert made.fidelity[f"members/{place}/logits"]["choice"]["max_kl"] == 2e-3
    assert made.plan.choice == {}
    again = make_several(tmp_path / "b", [teacher, sure], TRAIN, views(), **options)
    assert again.content_digest == Book(tmp_path / "b").content_digest == made.content_digest
    with pytest.raises(BookMismatchError, match=r"`max_kl` to be 0\.002, which .* was begun with, got 0\.1"):
        make_several(tmp_path / "b", [teacher, sure], TRAIN, views(), **{**options, "codec": Auto(0.1)})
