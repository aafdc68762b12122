"""`bookkd merge`, `chain`, `make` with several teachers, `inspect` with a lineage: through the program."""

from __future__ import annotations

import json

import pytest

from bookkd.cli import main

DATA = ["--data", "digits", "--data.limit", "96"]
VIEWS = ["--views", "digits", "--views.n_views"]
QUICK = ["--training.epochs", "1", "--training.accelerator", "cpu"]
LEARN = ["--student", "digits-small", *DATA, *QUICK, "--validate_on", "", "--loggers", "csv"]


@pytest.fixture(scope="module")
def several(weights, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    listed = json.dumps([{"name": "digits-large", "weights": str(weights)}] * 2)
    out = str(root / "both")
    options = [*VIEWS, "2", "--accelerator", "cpu", "--batch_size", "32"]
    assert main(["make", *DATA, "--teachers", listed, *options, "--out", out]) == 0
    teacher = ["--teacher", "digits-large", "--teacher.weights", str(weights)]
    assert main(["make", *DATA, *teacher, *options, "--out", str(root / "one")]) == 0
    return root


def test_a_book_of_several_teachers(several, capsys):
    assert main(["inspect", str(several / "both")]) == 0
    shown = capsys.readouterr().out
    assert "members/0/logits" in shown
    assert "members/1/logits" in shown
    assert not (several / "both.parts").exists()


def test_merge_and_bake(several, tmp_path, capsys, last_json):
    books = f"{several / 'both'},{several / 'one'}"
    assert main(["merge", books, "--out", str(tmp_path / "all"), "--json"]) == 0
    assert last_json()["teachers"] == ["digits-large"] * 3
    bake = ["--bake", "--method", "bookkd", "--method.preset", "regularised", "--codec", "int8", *DATA]
    assert main(["merge", books, *bake, "--out", str(tmp_path / "baked"), "--json"]) == 0
    found = last_json()
    assert found["bytes_per_record"] < 50
    assert "serves temperature 4 alone" in found["notes"][0]
    assert main(["inspect", str(tmp_path / "baked")]) == 0
    assert "baked at temperature 4" in capsys.readouterr().out
    run = ["learn", str(tmp_path / "baked"), *LEARN, "--method.temperature", "3", "--out", str(tmp_path / "run")]
    assert main(run) == 2
    assert "to honour temperature 3" in capsys.readouterr().err


def test_learning_from_several_books_and_as_a_cohort(several, tmp_path, last_json):
    books = f"{several / 'both'},{several / 'one'}"
    combined = ["--method", "bookkd", "--method.ensemble", "logit"]
    assert main(["learn", books, *LEARN, "--json", *combined, "--out", str(tmp_path / "a")]) == 0
    assert last_json()["teacher_forwards"] == 0
    assert main(["learn", *LEARN, "--json", "--method", "dml", "--out", str(tmp_path / "b")]) == 0
    assert last_json()["method"] == "dml"
    assert (tmp_path / "b" / "student-1.safetensors").exists()


def test_chain(tmp_path, capsys, last_json):
    small = [*VIEWS, "1", *QUICK]
    argv = ["chain", "--path", "digits-large,digits-small", *DATA, *small, "--out", str(tmp_path / "chain")]
    assert main([*argv, "--json"]) == 0
    assert [entry["network"] for entry in last_json()["networks"]] == ["digits-large", "digits-small"]
    assert main(argv) == 0
    assert "digits-large > digits-small" in capsys.readouterr().out
    candidates = ["--candidates", "bookkd.zoo.digits_net:digits_large", "--out", str(tmp_path / "chosen")]
    assert main([*argv, *candidates]) == 0
    out = capsys.readouterr().out
    assert "accuracy on 10 held-out samples of train" in out
    assert "Assistant: bookkd.zoo.digits_net:digits_large, the nearest to the mean" in out


def test_contradictions_are_one_line(several, tmp_path, capsys):
    one = str(several / "one")
    cases = [
        (["merge", one, "--out", str(tmp_path / "x")], "`books` to be at least two, got 1"),
        (["merge", f"{one},{several / 'none'}", "--out", str(tmp_path / "x")], "to be a book"),
        (["chain", "--path", "56,,8", "--out", str(tmp_path / "x")], "`path` to be networks with commas between"),
        (
            ["chain", "--path", "digits-large,digits-small", "--method", "mlkd", *DATA, "--out", str(tmp_path / "x")],
            "`n_views` to be at least 2 for method mlkd, got 1 (chain). Pass --views NAME --views.n_views 2.",
        ),
        (
            ["make", *DATA, "--teacher", "digits-large", "--teachers", '[{"name": "resnet8"}]'],
            "absent where teachers are listed",
        ),
        (
            ["merge", one, "--bake", "--method", "supervised", "--out", str(tmp_path / "x")],
            "one with a fixed temperature",
        ),
    ]
    for argv, said in cases:
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
