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
    first = last_json()
    assert first["teachers"] == ["digits-large"] * 3
    assert main(["merge", *books.split(","), "--out", str(tmp_path / "words"), "--json"]) == 0
    assert last_json()["content_digest"] == first["content_digest"]
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


def test_inspect_goes_back_to_the_first_teacher(tmp_path, capsys):
    """Of the last book of a chain of three, the teacher, its teacher, and the one before."""
    small = [*VIEWS, "1", *QUICK]
    path = "digits-large,bookkd.zoo.digits_net:digits_small,digits-small,digits-large"
    assert main(["chain", "--path", path, *DATA, *small, "--out", str(tmp_path / "chain")]) == 0
    capsys.readouterr()
    (last,) = (folder for folder in (tmp_path / "chain").iterdir() if folder.name.count("+") == 2)
    assert main(["inspect", str(last / "book")]) == 0
    lines = capsys.readouterr().out.partition("Lineage:")[2].splitlines()
    told = [line for line in lines if line.startswith("  ")][:3]
    names = ["digits-small", "bookkd.zoo.digits_net:digits_small", "digits-large"]
    assert [line.split()[0] for line in told] == names
    assert [len(line) - len(line.lstrip()) for line in told] == [2, 4, 6]
    assert [", taught by takd" in line for line in told] == [True, True, False]


def test_a_weak_and_a_small_teacher_are_accepted_with_their_accuracy_shown(tmp_path, capsys, last_json):
    """Reversed and defective teachers: early-stopped, of a small network, for a student that is larger."""
    run = ["learn", *LEARN, *VIEWS, "1", "--method", "supervised", "--out", str(tmp_path / "weak")]
    assert main(run) == 0
    weak = ["--teacher", "digits-small", "--teacher.weights", str(tmp_path / "weak" / "student.safetensors")]
    book = str(tmp_path / "book")
    options = ["--held_out", "test", "--accelerator", "cpu", "--batch_size", "32"]
    assert main(["make", *DATA, *weak, *VIEWS, "1", *options, "--out", book]) == 0
    capsys.readouterr()
    assert main(["inspect", book, "--json"]) == 0
    accuracy = last_json()["plan"]["teachers"][0]["accuracy"]
    assert 0 <= accuracy < 0.6
    assert main(["inspect", book]) == 0
    assert f"{accuracy:.4f} on test" in capsys.readouterr().out
    for student in ("digits-small", "digits-large"):
        run = ["learn", book, *LEARN, "--student", student, "--method", "tfkd-self", "--out", str(tmp_path / student)]
        assert main([*run, "--json"]) == 0
        assert last_json()["teacher_forwards"] == 0


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
