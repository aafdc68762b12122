"""Every verb does its work, prints for people and for programs, and shows an example in its help."""

from __future__ import annotations

import json

import pytest
from tests.cli.conftest import DATA, learn, make

from bookkd.cli import VERBS, main
from bookkd.core.names import import_reference
from bookkd.methods import METHODS


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"bookkd {verb}" in out.partition("example:")[2]
    assert "--json" in out


def test_the_overview_names_every_verb(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb}" in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_entry_of_the_table_is_a_verb_of_that_name(verb):
    assert import_reference(VERBS[verb], "verb").name == verb


def test_version(capsys):
    from bookkd import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["bookkd", __version__]


def test_make_then_inspect_then_verify(weights, tmp_path, capsys, last_json):
    out = tmp_path / "book"
    assert make(weights, out, "--json") == 0
    made = last_json()
    assert (made["records"], made["views"], made["cost"]["teacher_forwards"]) == (192, 2, 192)
    assert main(["inspect", str(out), "--json"]) == 0
    shown = last_json()
    assert shown["content_digest"] == made["content_digest"]
    assert shown["plan"]["fields"]["logits"]["codec"]["name"] == "dense"
    assert main(["inspect", str(out)]) == 0
    assert "digits-large" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out.strip() == f"{out} is whole."


def test_make_again_finds_the_book_finished(weights, made, last_json):
    assert make(weights, made, "--json") == 0
    assert last_json()["records"] == 192


def test_a_top_k_book_by_options_of_its_codec(weights, tmp_path, last_json):
    assert (
        make(weights, tmp_path / "b", "--codec", "top_k", "--codec.k", "3", "--codec.temperatures", "[1,4]", "--json")
        == 0
    )
    # 3 values of 2 bytes, 3 ids of 2 bytes, 2 log tail masses of 4 bytes, and the probe of 16 bytes; the rest is headers.
    assert 36 <= last_json()["bytes_per_record"] < 60


def test_verify_names_a_flipped_bit_and_exits_with_1(book, capsys):
    shard = next(book.glob("view-0001/*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(book)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "view 1" in lines[0]
    assert "view-0001" in lines[0]
    assert main(["verify", str(book), "--json"]) == 1
    fault = json.loads(capsys.readouterr().out)["faults"][0]
    # The flip is in the last row of the shard.
    assert fault["view"] == 1
    assert fault["start"] <= 95 < fault["stop"]


def test_learn_writes_a_run_that_is_not_repeated(made, tmp_path, last_json):
    assert learn(made, tmp_path / "run", "--json") == 0
    first = last_json()
    assert first["teacher_forwards"] == 0
    assert first["method"] == "vanilla-kd"
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "options.json",
        "result.json",
        "student.safetensors",
    ):
        assert (tmp_path / "run" / name).is_file(), name
    before = (tmp_path / "run" / "student.safetensors").stat().st_mtime_ns
    assert learn(made, tmp_path / "run", "--json") == 0
    assert (tmp_path / "run" / "student.safetensors").stat().st_mtime_ns == before
    assert last_json()["epochs"] == 1


def test_learn_with_loggers_and_validation(made, tmp_path, last_json):
    more = ["--loggers", "[csv,tensorboard]", "--validate_on", "test", "--label_fraction", "0.5", "--json"]
    assert learn(made, tmp_path / "run", *more) == 0
    assert 0 <= last_json()["metrics"]["accuracy"] <= 1
    assert list((tmp_path / "run" / "logs").rglob("metrics.csv"))
    assert list((tmp_path / "run" / "logs").rglob("events.out.tfevents*"))


def test_learn_online_counts_teacher_passes(weights, tmp_path, last_json):
    argv = ["learn", *DATA, "--student", "digits-small", "--teacher", "digits-large", "--teacher.weights", str(weights)]
    argv += ["--training.epochs", "1", "--training.batch_size", "32", "--validate_on", "", "--loggers", "[]"]
    assert main([*argv, "--training.accelerator", "cpu", "--out", str(tmp_path / "run"), "--json"]) == 0
    assert last_json()["teacher_forwards"] == 96


def test_a_book_or_teacher_that_the_method_does_not_ask_is_noted(made, weights, tmp_path, last_json):
    assert learn(made, tmp_path / "plain", "--method", "supervised", "--json") == 0
    noted = "method supervised learns from no teacher: "
    assert last_json()["notes"] == [f"{noted}of the book its data and views alone were used."]
    argv = ["learn", *DATA, "--student", "digits-small", "--teacher", "digits-large", "--teacher.weights", str(weights)]
    argv += ["--training.epochs", "1", "--training.batch_size", "32", "--validate_on", "", "--loggers", "[]"]
    argv += ["--training.accelerator", "cpu", "--json", "--method", "supervised"]
    assert main([*argv, "--out", str(tmp_path / "live")]) == 0
    found = last_json()
    assert found["notes"] == [f"{noted}the live teacher was not asked."]
    assert found["teacher_forwards"] == 0
    # Asked, neither is noted.
    more = ["--method", "beta-smoothing", "--method.confidence", "book", "--json"]
    assert learn(made, tmp_path / "ranked", *more) == 0
    assert last_json()["notes"] == []


def test_labels_without_weight_are_noted_and_not_warned_of_too(weights, tmp_path, capsys, recwarn):
    argv = ["learn", *DATA, "--student", "digits-small", "--teacher", "digits-large", "--teacher.weights", str(weights)]
    argv += ["--method", "ccskd", "--training.epochs", "1", "--training.batch_size", "32", "--validate_on", ""]
    assert main([*argv, "--loggers", "[]", "--training.accelerator", "cpu", "--out", str(tmp_path / "run")]) == 0
    told = "method ccskd gives labels no weight in any of the 1 epochs"
    said = capsys.readouterr()
    assert (said.out + said.err).count(told) == 1
    assert not any(told in str(each.message) for each in recwarn)


def test_learn_takes_yaml_and_overrides(made, tmp_path, last_json):
    config = tmp_path / "run.yaml"
    config.write_text(
        "method: {name: vanilla-kd, temperature: 2}\nstudent: {name: digits-small}\ntraining: {epochs: 3, batch_size: 32}\n"
    )
    assert learn(made, tmp_path / "run", "--config", str(config), "--training.epochs", "2", "--json") == 0
    assert last_json()["epochs"] == 2
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert resolved["method"]["temperature"] == 2
    assert resolved["training"]["epochs"] == 2


def test_presets_and_schedules_of_a_method(made, tmp_path, last_json):
    more = ["--method.preset", "keras", "--method.temperature", "linear:4:1", "--json"]
    assert learn(made, tmp_path / "run", *more) == 0
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert resolved["method"]["t_squared"] is False
    assert resolved["method"]["temperature"] == {"Linear": {"start": 4.0, "end": 1.0}}


def test_evaluate_compares_with_a_book_or_a_teacher(weights, made, capsys):
    argv = ["evaluate", "--student", "digits-large", "--student.weights", str(weights), "--book", str(made)]
    assert main([*argv, "--teacher", "digits-large", "--teacher.weights", str(weights)]) not in (0, None)
    assert "Expected `teacher` to be none beside a book, got 'digits-large' (evaluate)." in capsys.readouterr().err


def test_evaluate_against_a_teacher(weights, made, tmp_path, last_json, capsys):
    assert learn(made, tmp_path / "run") == 0
    argv = ["evaluate", "--student", "digits-small", "--student.weights", str(tmp_path / "run" / "student.safetensors")]
    argv += ["--teacher", "digits-large", "--teacher.weights", str(weights), "--replicates", "50"]
    assert main(argv) == 0
    assert "agreement" in capsys.readouterr().out
    assert main([*argv, "--latency", "false", "--json"]) == 0
    found = last_json()
    assert {
        "accuracy",
        "top5",
        "nll",
        "brier",
        "ece",
        "balanced_accuracy",
        "macro_f1",
        "agreement",
        "teacher_kl",
    } <= set(found["metrics"])
    assert (
        found["metrics"]["accuracy"]["low"]
        <= found["metrics"]["accuracy"]["value"]
        <= found["metrics"]["accuracy"]["high"]
    )
    assert "cost" not in found


def test_methods_and_a_card(capsys, last_json):
    assert main(["methods", "--json"]) == 0
    found = {entry["name"]: entry for entry in last_json()["methods"]}
    assert set(found) == set(METHODS)
    assert found["dkd"]["source"] == "Zhao et al., CVPR 2022, arXiv 2203.08679"
    assert found["dkd"]["needs"] == "logits of one view, dense, and labels"
    assert (found["dkd"]["status"], found["extractive-kd"]["status"]) == ("certain", "reconstructed")
    assert main(["methods", "vanilla-kd"]) == 0
    assert "arXiv 1503.02531" in capsys.readouterr().out


def test_short_names_and_the_book_from_yaml(made, tmp_path, last_json):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"book: {made}\nstudent: digits-small\nmethod: supervised\ndata: {{name: digits, limit: 96}}\nvalidate_on: ''\n"
        "loggers: csv\ntraining: {epochs: 1, batch_size: 32, accelerator: cpu}\n"
    )
    assert main(["learn", "--config", str(config), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert last_json()["method"] == "supervised"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["knowledge"] is not None


def test_what_print_config_prints_can_be_given_back(made, tmp_path, capsys):
    verb = import_reference(VERBS["learn"], "verb")
    argv = [
        str(made),
        "--student",
        "digits-small",
        "--method.temperature",
        "2",
        "--method.preset",
        "keras",
        "--data.limit",
        "96",
    ]
    argv += ["--data.args", '{"a": {"b": 1}}', "--training.clip_norm", "1.5"]
    with pytest.raises(SystemExit):
        verb.parse([*argv, "--print_config"])
    config = tmp_path / "printed.yaml"
    config.write_text(capsys.readouterr().out)
    assert f"book: {made}" in config.read_text()
    assert verb.parse(["--config", str(config)]) == verb.parse(argv)


def test_a_part_of_the_data_learns_from_the_book_of_the_whole(weights, tmp_path, last_json):
    whole = ["--data.limit", "null", "--views", "none"]
    assert make(weights, tmp_path / "b", *whole) == 0
    assert learn(tmp_path / "b", tmp_path / "run", "--data.limit", "40", "--label_fraction", "0.5", "--json") == 0
    assert last_json()["epochs"] == 1


def test_sql_that_begins_with_a_comment_stays_what_it_is():
    from bookkd.cli.query import VERB

    sql = "-- most-sensitive\nselect a - b from records"
    assert VERB.parse(["BOOK", sql])["sql"] == sql
