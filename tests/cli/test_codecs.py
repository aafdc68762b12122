"""`make --codec auto`, `sampled` and `argmax` from the command line, and what `learn` says to their books."""

from __future__ import annotations

import json

import pytest
from tests.cli.conftest import learn, make

from bookkd.cli import main


def test_auto_prints_its_table_takes_a_codec_and_says_so(weights, tmp_path, capsys):
    assert make(weights, tmp_path / "b", "--codec", "auto", "--max_kl", "1e-5") == 0
    captured = capsys.readouterr()
    for word in ("argmax", "dense float16", "int8", "sampled 50", "192 records", "1e-05", "T = 4"):
        assert word in captured.err
    assert "Codec of logits: " in captured.out
    (taken,) = [
        line
        for line in captured.err.splitlines()
        if line.strip().startswith("│ * ") or (" * " in line and "taken" not in line)
    ]
    assert " yes " in taken
    assert main(["inspect", str(tmp_path / "b"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["plan"]["choice"]["chosen"] == shown["plan"]["fields"]["logits"]["codec"]
    assert shown["plan"]["choice"]["temperatures"] == [1.0, 4.0]
    assert main(["inspect", str(tmp_path / "b")]) == 0
    assert "max_kl" in capsys.readouterr().out


def test_auto_is_gone_on_with_and_measures_no_second_time(weights, tmp_path, capsys, refused):
    options = ["--codec", "auto", "--codec.max_kl", "1e-5", "--temperatures", "[2]"]
    assert make(weights, tmp_path / "b", *options) == 0
    capsys.readouterr()
    assert make(weights, tmp_path / "b", *options, "--json") == 0
    captured = capsys.readouterr()
    assert "records, asked" not in captured.err
    assert json.loads(captured.out.splitlines()[-1])["chosen"]["logits"]["temperatures"] == [2.0]
    line = refused(make(weights, tmp_path / "b", "--codec", "auto", "--temperatures", "[2]"))
    assert "`max_kl` to be 1e-05" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_kl", "1e-30", "--max_bytes", "39"], "at most 1e-30 at 1, 4 in at most 39 bytes, got at best dense"),
        (["--max_kl", "1e-5", "--max_bytes", "2"], "in at most 2 bytes"),
        (["--max_kl", "0"], "`max_kl` to be a number above 0"),
        (["--codec.k", "3"], "Unknown option --codec.k"),
    ],
)
def test_auto_that_nothing_meets(weights, tmp_path, refused, more, message):
    assert message in refused(make(weights, tmp_path / "b", "--codec", "auto", *more))
    assert not (tmp_path / "b").exists()


def test_options_of_auto_mean_nothing_to_a_codec_by_name(weights, tmp_path, refused):
    line = refused(make(weights, tmp_path / "b", "--codec", "int8", "--max_kl", "1"))
    assert "Unknown option --max_kl of bookkd make with --codec int8." in line


def test_a_student_at_a_temperature_that_auto_did_not_measure_is_told(weights, tmp_path, capsys):
    options = ["--codec", "auto", "--max-kl", "1e-3", "--temperatures", "[1]"]  # a dash is as good as an underscore
    assert make(weights, tmp_path / "b", *options) == 0
    assert learn(tmp_path / "b", tmp_path / "cold", "--method.temperature", "1") == 0
    assert "was chosen for temperature" not in capsys.readouterr().out
    assert learn(tmp_path / "b", tmp_path / "hot", "--method.temperature", "4") == 0
    said = "the codec of logits was chosen for temperature 1; at 4, where the method learns, nothing was measured."
    assert said in capsys.readouterr().out


def test_a_copy_cannot_choose_its_codec_without_the_teacher(weights, tmp_path, refused):
    assert make(weights, tmp_path / "b") == 0
    line = refused(main(["copy", str(tmp_path / "b"), str(tmp_path / "c"), "--codec", "auto"]))
    assert "got auto, which measures on what the teacher says" in line
    assert "bookkd make ... --codec auto" in line


def test_a_copy_says_what_every_class_loses_and_what_it_no_longer_serves(weights, tmp_path, capsys, last_json):
    assert make(weights, tmp_path / "b", "--temperatures", "[1, 4]") == 0
    copy = ["copy", str(tmp_path / "b"), str(tmp_path / "c"), "--codec", "top_k", "--codec.k", "4"]
    assert main([*copy, "--json"]) == 0
    lost = last_json()["fidelity"]["logits"]
    capsys.readouterr()
    assert main(copy) == 0
    out = capsys.readouterr().out
    assert f"T^2 KL {lost['temperatures']['1']['mean_of_every_class']:.2g} on average, what was left out" in out
    assert "logits at temperature 4: no longer served; " in out


def test_draws_teach_at_their_temperature_and_nothing_else(weights, tmp_path, refused):
    assert make(weights, tmp_path / "b", "--codec", "sampled", "--codec.draws", "20") == 0
    assert learn(tmp_path / "b", tmp_path / "run", "--method.temperature", "1") == 0
    line = refused(learn(tmp_path / "b", tmp_path / "hot", "--method.temperature", "4"))
    assert "honour temperature 4" in line
    assert "promises 1 and keeps 0." in line
    assert line.endswith("make the book with --codec.temperature 4.")
    line = refused(learn(tmp_path / "b", tmp_path / "other", "--method", "dkd"))
    assert "to be dense for method dkd" in line
    assert "mass that it keeps at temperature 4, as measured while making: 0." in line
    line = refused(learn(tmp_path / "b", tmp_path / "own", "--method", "bookkd", "--method.temperature", "1"))
    assert "not linear in it, got draws, which bias them (noise of its gradient at temperature 1" in line


def test_classes_alone_are_refused_with_their_agreement(weights, tmp_path, refused):
    assert make(weights, tmp_path / "b", "--codec", "argmax") == 0
    line = refused(learn(tmp_path / "b", tmp_path / "run"))
    assert "likeliest classes, which agree with it in 1.0000 of the records measured" in line


@pytest.mark.parametrize("name", ["raw", "pooled"])
def test_codecs_of_no_logits_are_none_to_choose(weights, tmp_path, refused, name):
    assert f"Unknown codec '{name}'" in refused(make(weights, tmp_path / "b", "--codec", name))
