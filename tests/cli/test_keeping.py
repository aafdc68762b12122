"""`make --grow`, `compact`, `repair`, `copy`, `extract` and the editions of `inspect`: through the program."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import DATA, TEACHER, VIEWS, learn, make

from bookkd.book import Book, verify
from bookkd.cli import main

ROOT = Path(__file__).parents[2]
SAY = [*TEACHER, "--teacher.weights"]


@pytest.fixture(scope="module")
def large(weights, tmp_path_factory):
    """A book of three views, made in one go."""
    path = tmp_path_factory.mktemp("large") / "book"
    assert make(weights, path, "--views.n_views", "3") == 0
    return path


def test_a_book_grows_by_views(weights, book, large, capsys, refused):
    line = refused(make(weights, book, "--views.n_views", "3"))
    assert "n_views 2 (this run has 3)" in line
    assert "run it with --grow" in line
    assert make(weights, book, "--views.n_views", "3", "--grow") == 0
    shown = capsys.readouterr().out
    assert "Note: edition 2: 96 samples through a teacher" in shown
    assert "proven by fingerprint of the samples and probes of 64 records" in " ".join(shown.split())
    assert Book(book).content_digest == Book(large).content_digest
    assert make(weights, book, "--views.n_views", "3", "--grow") == 0
    assert "nothing was missing" in capsys.readouterr().out
    assert main(["inspect", str(book)]) == 0
    shown = capsys.readouterr().out
    assert "Editions" in shown
    assert Book(book, edition=1).content_digest[:16] in shown
    assert make(weights, book, "--views.n_views", "3") == 0  # the same command without --grow finds its book, too


def test_a_book_whose_codec_was_chosen_grows_with_it(weights, tmp_path, capsys):
    asked = ["--codec", "auto", "--codec.max_kl", "0.01"]
    assert make(weights, tmp_path / "b", *asked) == 0
    before = Book(tmp_path / "b")
    assert before.plan.choice
    assert make(weights, tmp_path / "b", "--views.n_views", "3", "--grow", *asked) == 0
    after = Book(tmp_path / "b")
    assert (after.n_views, after.edition) == (3, 2)
    assert after.fields == before.fields
    assert after.plan.choice == before.plan.choice
    assert verify(tmp_path / "b") == []


def test_what_has_no_effect_is_said(weights, book, capsys):
    assert make(weights, book, "--views.n_views", "3", "--grow", "--unit_rows", "32") == 0
    assert "a unit stays at the book's 96 samples, not 32" in " ".join(capsys.readouterr().out.split())


def test_grow_on_a_new_folder_makes_the_book(weights, large, tmp_path):
    assert make(weights, tmp_path / "b", "--views.n_views", "3", "--grow") == 0
    assert Book(tmp_path / "b").content_digest == Book(large).content_digest


def test_a_book_grows_by_samples_and_is_learnt_from(weights, tmp_path, last_json):
    assert make(weights, tmp_path / "b", "--data.limit", "64") == 0
    assert make(weights, tmp_path / "b", "--data.limit", "96", "--grow", "--json") == 0
    found = last_json()
    assert (found["samples"], found["records"]) == (96, 192)
    assert learn(tmp_path / "b", tmp_path / "run") == 0


def test_compact_and_prune(weights, book, last_json, capsys):
    assert make(weights, book, "--views.n_views", "3", "--grow") == 0
    capsys.readouterr()
    digest = Book(book).content_digest
    assert main(["compact", str(book), "--prune", "--json"]) == 0
    found = last_json()
    # One unit a view: nothing is to be put together, and the older edition goes.
    assert (found["edition"], found["compacted"], found["pruned"]["editions"]) == (2, False, [1])
    assert Book(book).content_digest == digest
    assert verify(book) == []
    assert main(["compact", str(book)]) == 0
    assert "compact already: 3 files for 3 views" in capsys.readouterr().out


def test_compact_puts_files_together(weights, tmp_path, capsys):
    assert make(weights, tmp_path / "b", "--unit_rows", "32") == 0
    capsys.readouterr()
    assert main(["compact", str(tmp_path / "b")]) == 0
    assert "edition 2: compacted to 2 files for 2 views" in capsys.readouterr().out


def spoil(book):
    shard = next((book / "view-0001").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-20] ^= 4
    shard.write_bytes(data)
    return shard


def test_what_a_worker_of_a_loader_refuses_is_one_line_too(weights, tmp_path, refused):
    asked = ["--views", "auto-augment", "--views.args", "{}", "--workers", "1"]
    line = refused(main(["make", *DATA, *SAY, str(weights), *asked, "--out", str(tmp_path / "b")]))
    assert line.startswith("bookkd: error: Expected `views` to be one that takes these samples, got auto-augment: ")
    assert "Original" not in line
    assert "sample 0, view 0" in line


def test_repair(weights, book, capsys, refused):
    digest = Book(book).content_digest
    before = {path: path.read_bytes() for path in book.rglob("*") if path.is_file()}
    shard = spoil(book)
    assert "Name the teacher and the data" in refused(main(["repair", str(book)]))
    other = weights.with_name("other.safetensors")
    from bookkd.zoo import create_network, save_weights

    save_weights(create_network("digits-large", n_classes=10), other)
    assert "with the same weights" in refused(main(["repair", str(book), *DATA, *SAY, str(other)]))
    assert "data" in refused(
        main(["repair", str(book), "--data", "digits", "--data.split", "test", *SAY, str(weights)])
    )
    assert main(["repair", str(book), *DATA, *SAY, str(weights)]) == 0
    assert f"Restored view-0001/{shard.name}" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in book.rglob("*") if path.is_file()} == before
    assert main(["repair", str(book)]) == 0
    assert "is whole" in capsys.readouterr().out
    assert Book(book).content_digest == digest


def test_copy(book, tmp_path, capsys, refused):
    assert main(["copy", str(book), str(tmp_path / "same")]) == 0
    assert "the same content" in capsys.readouterr().out
    assert Book(tmp_path / "same").content_digest == Book(book).content_digest
    assert main(["copy", str(book), str(tmp_path / "small"), "--codec", "int8"]) == 0
    assert "against the records of the book" in " ".join(capsys.readouterr().out.split())
    assert Book(tmp_path / "small").fields["logits"].codec.name == "int8"
    assert main(["copy", str(book), str(tmp_path / "top"), "--codec", "top_k", "--codec.k", "3"]) == 0
    assert "keeps every class" in refused(main(["copy", str(tmp_path / "top"), str(tmp_path / "x"), "--codec", "int8"]))
    assert "Nearest" in refused(main(["copy", str(book), str(tmp_path / "x"), "--codec", "int9"]))


def test_extract(book, tmp_path, capsys, refused, last_json):
    assert main(["extract", str(book), str(tmp_path / "part"), "--classes", "7,3", "--views", "0:1"]) == 0
    assert "given that it is one of them" in " ".join(capsys.readouterr().out.split())
    part = Book(tmp_path / "part")
    assert (part.plan.class_names, part.n_views) == (("7", "3"), 1)
    whole = Book(book).read(np.arange(96), 0, ["logits"])["logits"]
    np.testing.assert_array_equal(part.read(np.arange(96), 0, ["logits"])["logits"], whole[:, [7, 3]])
    (tmp_path / "ids.txt").write_text("5\n90\n17\n")
    assert main(["extract", str(book), str(tmp_path / "some"), "--samples", str(tmp_path / "ids.txt"), "--json"]) == 0
    assert last_json()["samples"] == 3
    assert Book(tmp_path / "some").keys.tolist() == [5, 90, 17]
    assert "a range such as 0:1000" in refused(main(["extract", str(book), str(tmp_path / "x"), "--samples", "many"]))
    assert "none of them" in refused(main(["extract", str(book), str(tmp_path / "x")]))
    assert "Nearest" in refused(main(["extract", str(book), str(tmp_path / "x"), "--classes", "7,zero"]))


def test_a_student_learns_from_the_first_samples(book, tmp_path, refused):
    half = ["--data", "digits", "--data.limit", "48"]
    assert main(["extract", str(book), str(tmp_path / "half"), "--samples", "0:48", *half]) == 0
    run = ["--student", "digits-small", "--training.epochs", "1", "--training.accelerator", "cpu", "--loggers", "[]"]
    argv = ["learn", str(tmp_path / "half"), *half, *run, "--validate_on", "", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    other = ["--data", "digits", "--data.limit", "47"]
    assert "the 48 samples of the part" in refused(
        main(["extract", str(book), str(tmp_path / "x"), "--samples", "0:48", *other])
    )
    assert main(["extract", str(book), str(tmp_path / "bare"), "--samples", "0:48"]) == 0
    argv = ["learn", str(tmp_path / "bare"), *half, *run, "--validate_on", "", "--out", str(tmp_path / "run2")]
    assert "part_of" in refused(main(argv))


def test_samples_that_are_renumbered_are_not_learnt_from_by_mistake(book, tmp_path, refused, capsys):
    assert main(["extract", str(book), str(tmp_path / "some"), "--samples", "48:96"]) == 0
    assert "views cannot be drawn again" in " ".join(capsys.readouterr().out.split())
    run = ["--student", "digits-small", "--training.epochs", "1", "--training.accelerator", "cpu", "--loggers", "[]"]
    argv = [
        "learn",
        str(tmp_path / "some"),
        "--data",
        "digits",
        "--data.limit",
        "48",
        *run,
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*argv, "--validate_on", ""]) == 2


def test_a_further_teacher(weights, book, tmp_path, capsys):
    from bookkd.zoo import create_network, save_weights

    save_weights(create_network("digits-small", n_classes=10), tmp_path / "second.safetensors")
    second = ["--teacher", "digits-small", "--teacher.weights", str(tmp_path / "second.safetensors")]
    argv = ["make", *DATA, *second, *VIEWS, "--out", str(book)]
    assert main([*argv, "--json"]) == 2
    assert "--grow" in capsys.readouterr().err
    assert main([*argv, "--grow"]) == 0
    found = Book(book)
    assert [teacher.name for teacher in found.plan.teachers] == ["digits-large", "digits-small"]
    assert {"members/0/logits", "members/1/logits"} < set(found.fields)
    assert main(["extract", str(book), str(tmp_path / "one"), "--teachers", "digits-large"]) == 0
    assert Book(tmp_path / "one").content_digest == Book(book, edition=1).content_digest
    capsys.readouterr()
    assert main(["inspect", str(book), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(each["number"], each["n_teachers"]) for each in shown["editions"]] == [(1, 1), (2, 2)]
    assert shown["growth_begun"] is None


def test_the_commands_of_the_guide(weights, tmp_path, monkeypatch, capsys):
    from bookkd.zoo import create_network, save_weights

    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.safetensors").write_bytes(weights.read_bytes())
    save_weights(create_network("digits-large", n_classes=10), tmp_path / "two.safetensors")
    page = (ROOT / "docs" / "guides" / "growing.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in page.split("```console\n")[1:]]
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 11
    for command in commands:
        words = shlex.split(command.removeprefix("$ bookkd "))
        if words[0] == "repair":
            spoil(tmp_path / words[1])
        expected = 0
        assert main(words) == expected, (command, capsys.readouterr())
        if words[0] in ("verify", "repair"):
            assert verify(words[1]) == []
    first = Book("books/first")
    assert (first.n_samples, first.n_views, Book("books/one").n_views) == (300, 2, 4)
