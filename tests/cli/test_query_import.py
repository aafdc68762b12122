"""`bookkd stats`, `query` and `import`: through the program."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.cli.user_code import numbered
from tests.interchange import builders

from bookkd.book import BookWriter, Dense, FieldPlan, Plan
from bookkd.cli import main
from bookkd.pipelines.statistics import describe_records

DATA = ["--data", "digits", "--data.limit", "96"]


def test_stats_and_query(book, capsys, last_json):
    assert main(["query", str(book), "select 1"]) == 2
    assert "Run: bookkd stats" in capsys.readouterr().err
    assert main(["stats", str(book), *DATA]) == 0
    assert "Statistics of 192 records (2 views, 1 teacher) with labels" in capsys.readouterr().out
    assert (
        main(["query", str(book), "select count(*) as n, sum(teacher_correct::int) as right from records", "--json"])
        == 0
    )
    found = last_json()
    assert found["columns"] == ["n", "right"]
    assert found["rows"][0][0] == 192
    assert 0 <= found["rows"][0][1] <= 192


def test_a_table_is_short_and_csv_is_whole(book, capsys):
    assert main(["stats", str(book)]) == 0
    assert "without labels (pass --data)" in capsys.readouterr().out
    sql = "select sample, view, null as nothing, '[red]' as text from records order by sample, view"
    assert main(["query", str(book), sql]) == 0
    shown = capsys.readouterr()
    assert "152 more rows; pass --limit N, --csv or --json." in shown.err
    assert shown.out.count("[red]") == 40
    assert main(["query", str(book), sql, "--limit", "3"]) == 0
    shown = capsys.readouterr()
    assert "There are more than 3 rows" in shown.err
    assert shown.out.count("[red]") == 3
    assert main(["query", str(book), sql, "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["sample,view,nothing,text", "0,0,,[red]"]
    assert len(lines) == 193


def test_statistics_elsewhere_and_labels_of_a_file(book, tmp_path, capsys, last_json):
    np.save(tmp_path / "labels.npy", np.zeros(96, np.int64))
    out = str(tmp_path / "stats")
    assert main(["stats", str(book), "--labels", str(tmp_path / "labels.npy"), "--out", out, "--json"]) == 0
    assert last_json()["labels"] is True
    assert not (book / "stats").exists()
    assert main(["query", str(book), "select max(label) from records", "--stats", out, "--json"]) == 0
    assert last_json()["rows"] == [[0]]


def test_constants_are_shown(tmp_path, capsys, last_json):
    plan = Plan(4, 1, {"logits": FieldPlan((3,), Dense())})
    with BookWriter(tmp_path / "b", plan, constants={"classifier/weight": np.arange(6.0).reshape(3, 2)}) as writer:
        writer.write_rows(0, 0, {"logits": np.eye(4, 3)})
        writer.finish()
    assert main(["inspect", str(tmp_path / "b"), "--json"]) == 0
    found = last_json()["constants"]["classifier/weight"]
    assert (found["shape"], found["dtype"]) == ([3, 2], "float64")
    assert (tmp_path / "b" / found["file"]).stat().st_size == found["bytes"]
    assert main(["stats", str(tmp_path / "b"), "--json"]) == 0
    figures = last_json()["constants"]["classifier/weight"]
    assert (figures["min"], figures["mean"], figures["max"]) == (0.0, 2.5, 5.0)
    assert figures["std"] == pytest.approx((35 / 12) ** 0.5)  # of six numbers in a row
    capsys.readouterr()
    for verb in ("inspect", "stats"):
        assert main([verb, str(tmp_path / "b")]) == 0
        shown = capsys.readouterr().out
        assert "classifier/weight" in shown
        assert "3x2" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "digits"], "`data` to be the data set of the book, got other"),
        (["--data", "digits-angle"], "one class a sample"),
        (["--labels", "nowhere.npy"], "`labels` to be a NumPy file"),
        ([*DATA, "--labels", "nowhere.npy"], "from --data or from a file, not both"),
    ],
)
def test_labels_that_are_not_those_of_the_book(book, capsys, options, said):
    assert main(["stats", str(book), *options]) == 2
    assert said in capsys.readouterr().err


def test_labels_of_a_file_are_no_pickle(book, tmp_path, capsys):
    np.save(tmp_path / "labels.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert main(["stats", str(book), "--labels", str(tmp_path / "labels.npy")]) == 2
    assert "`labels` to be a NumPy file" in capsys.readouterr().err


def test_import(tmp_path, capsys, last_json):
    builders.fkd(tmp_path / "labels")
    argv = ["import", "--from", "fkd", str(tmp_path / "labels"), "--n_classes", "20", "--out", str(tmp_path / "book")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "15 records (5 samples x 3 views)" in shown
    assert "Kept mass 0." in shown
    assert "Note: labels are marginal k5" in shown
    assert main([*argv, "--json"]) == 0  # a finished import stays
    assert last_json()["samples"] == 5
    assert main(["verify", str(tmp_path / "book")]) == 0
    assert main(["inspect", str(tmp_path / "book")]) == 0
    assert "top_k" in capsys.readouterr().out
    assert main(["stats", str(tmp_path / "book")]) == 0
    assert main(["query", str(tmp_path / "book"), "select count(*) from records where confidence > 0", "--json"]) == 0
    assert last_json()["rows"] == [[15]]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--from", "fdk", "x"], "Unknown format 'fdk'. Nearest: fkd"),
        (["--from", "fkd", "x"], "Pass --n_classes"),
        (["--from", "fkd", "x", "--n_classes", "1"], "`n_classes` to be a whole number of at least 2"),
        (["--from", "vllm-jsonl", "x", "--n_classes", "10"], "a file of JSON lines"),
        (["--from", "fkd", "x", "--n_classes", "10", "--k", "0"], "`k` to be a whole number of at least 1"),
        (["x"], "source_format"),
    ],
)
def test_import_of_nothing(tmp_path, capsys, argv, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *argv]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()


def test_learning_from_an_imported_book_says_what_is_missing(tmp_path, capsys):
    builders.fkd(tmp_path / "labels", classes=10)
    out = str(tmp_path / "book")
    assert main(["import", "--from", "fkd", str(tmp_path / "labels"), "--n_classes", "10", "--out", out]) == 0
    argv = ["learn", out, "--student", "digits-small", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    assert "views.transform" in capsys.readouterr().err


def test_json_is_one_line(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"logprobs": [{"1": -0.1, "2": -3.0}]}) + "\n")
    argv = ["import", "--from", "vllm-jsonl", str(path), "--n_classes", "5", "--out", str(tmp_path / "book"), "--json"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["records"] == 1


def test_labels_by_key_are_said_to_be_unproven(tmp_path):
    """Keys that are numbers fit any data that are numbered so."""
    lines = [{"logprobs": [{"1": -0.5, "3": -2.0}] * 4}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = [
        "import",
        "--from",
        "vllm-jsonl",
        str(tmp_path / "a.jsonl"),
        "--n_classes",
        "10",
        "--out",
        str(tmp_path / "b"),
    ]
    assert main(argv) == 0

    class Numbered:
        name = "numbered"

        def open(self):
            return numbered()

    told = describe_records(str(tmp_path / "b"), data=Numbered(), out=str(tmp_path / "stats"))
    assert told["labels"]
    assert "labels are matched by key alone" in told["notes"][0]
