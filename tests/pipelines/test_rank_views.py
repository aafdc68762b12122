"""Recipes of views ranked by what a teacher says of them, from Python and by the program."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bookkd.cli import main
from bookkd.core.errors import ConfigError, UnknownNameError
from bookkd.evaluation import score_views
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions, make_book
from bookkd.pipelines.rank_views import rank_views, read_recipes
from bookkd.zoo import open_dataset

DATA = DataOptions("digits", limit=600)
HERE = "tests.pipelines.test_rank_views"
TEACHER = NetworkOptions(f"{HERE}:centroids", mean=(0.0,), std=(1.0,))
STILL = ViewOptions("none")
GENTLE = ViewOptions("digits", n_views=4, args={"degrees": 5.0, "shift": 0.03, "scale": 0.03})
RECIPES = {
    "still": STILL,
    "gentle": GENTLE,
    "mixup": replace(GENTLE, mix="mixup"),
    "black": ViewOptions(f"{HERE}:black", n_views=2),
}


def centroids(n_classes: int) -> nn.Module:
    """The classifier by the nearest mean of a class, as a network: right of nine digits in ten, and nothing to train."""
    digits = open_dataset("digits")
    images = torch.stack([image for image, _ in digits]).flatten(1).float() / 255
    means = torch.stack([images[torch.as_tensor(digits.labels) == each].mean(0) for each in range(n_classes)])
    layer = nn.Linear(64, n_classes)
    layer.weight.data, layer.bias.data = 2 * means, -means.square().sum(1)
    return nn.Sequential(nn.Flatten(), layer)


def black():
    return torch.zeros_like


@pytest.fixture(scope="module")
def ranking():
    return rank_views(RECIPES, data=DATA, teacher=TEACHER, passes=640, group_rows=20)


def test_the_order_and_what_is_said_of_views_that_show_nothing(ranking):
    found = {each.name: each for each in ranking.recipes}
    assert [each.name for each in ranking.recipes] == ["mixup", "gentle", "still", "black"]
    assert found["mixup"].to_best is None
    assert found["gentle"].to_best.value == found["gentle"].score.stddev.value - found["mixup"].score.stddev.value
    # 0 is the best of scores, and says that nothing is to be seen.
    assert found["black"].score.stddev.value < 1e-12
    assert [each.name for each in ranking.recipes if each.shows_little] == ["black"]
    assert found["black"].score.agreement.value < 0.2 < 0.85 < found["still"].score.agreement.value
    assert any("of black the teacher knows" in note for note in ranking.notes)


def test_no_more_passes_than_asked_for_and_the_cost_of_the_whole(ranking, tmp_path):
    assert ranking.teacher_forwards == 4 * (2 * 320 + 64)
    assert {each.score.groups for each in ranking.recipes} == {640 // 20}
    assert [each.records for each in ranking.recipes] == [2400, 2400, 600, 1200]
    book = make_book(str(tmp_path / "book"), data=DATA, teacher=TEACHER, views=RECIPES["mixup"])
    mixed = ranking.recipes[0].to_json()
    # A finished book has headers of its files too.
    assert mixed["bytes"] == pytest.approx(mixed["records"] * book["bytes_per_record"], rel=0.02)
    assert mixed["codec_bytes"]["dense float32"] == mixed["bytes"] + 2400 * 10 * 2
    assert 0 < mixed["seconds"] < 60


def test_the_score_is_that_of_the_teachers_own_pass():
    found = rank_views({"still": STILL}, data=DATA, teacher=TEACHER, passes=600, group_rows=600 // 2)
    network, preprocess = TEACHER.build(10, role="teacher")
    dataset = DATA.open()
    with torch.no_grad():
        logits = network(preprocess(torch.stack([image for image, _ in dataset])))
    whole = score_views(logits.numpy(), group_rows=300, labels=np.asarray(dataset.labels))
    for name in ("entropy", "sharpness", "agreement"):
        mine, theirs = (getattr(score, name).value for score in (found.recipes[0].score, whole))
        assert mine == pytest.approx(theirs, abs=1e-6)
    again = rank_views({"still": STILL}, data=DATA, teacher=TEACHER, passes=600, group_rows=300)
    assert again.recipes[0].score.to_json() == found.recipes[0].score.to_json()


def test_recipes_that_cannot_be_told_apart_are_named():
    found = rank_views(
        {"one": GENTLE, "two": replace(GENTLE, seed=2)}, data=DATA, teacher=TEACHER, passes=400, group_rows=20
    )
    assert len(found.notes) == 1
    assert "cannot be told from" in found.notes[0]


def test_some_classes_of_the_teachers_are_compared_with_all_that_it_may_say(ranking):
    some = replace(DATA, classes="7,3")
    found = rank_views(
        {"still": STILL, "mixed": RECIPES["mixup"]}, data=some, teacher=TEACHER, passes=100, group_rows=10
    )
    scores = {each.name: each for each in found.recipes}
    # A teacher that is right of nine digits in ten would agree with hardly any label that is a place among the two.
    assert scores["still"].score.agreement.value > 0.8
    assert not any(each.shows_little for each in found.recipes)
    assert scores["still"].codec_bytes["int8"] / scores["still"].records == 10 + 4 + 16


def written(tmp_path, **files: str) -> list[str]:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return [str(tmp_path / f"{name}.yaml") for name in files]


def test_recipes_are_files_of_views_files_of_make_and_names(tmp_path):
    files = written(
        tmp_path,
        plain="transform: crop-flip\nargs: {size: 8, padding: 1}\nmix: cutmix\nmix_alpha: '0.5'",
        made="data: {name: digits}\nviews: {transform: digits, n_views: 3}",
        short="views: digits",
    )
    given = ViewOptions(n_views=5, seed=7)
    assert read_recipes([*files, "jda"], given) == {
        "plain": ViewOptions("crop-flip", 5, 7, {"size": 8, "padding": 1}, "cutmix", 0.5),
        "made": ViewOptions("digits", 3, 7),
        "short": ViewOptions("digits", 5, 7),
        "jda": ViewOptions("jda", 5, 7),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transfrm: digits", r"Unknown key 'transfrm' of views of a.yaml. Nearest: transform"),
        ("n_views: many", r"views of a.yaml.n_views"),
        ("mix: blend", r"views of a.yaml.mix"),
        ("", r"Expected `recipe of views` to be keys with values, got an empty file"),
        ("[1]", r"Expected `recipe of views` to be keys with values, got \[1\] \(.*a.yaml\)"),
        ("views: [1]", r"Expected `views` to be keys with values, got \[1\]"),
        ("{", "Expected the recipe of views to be a readable YAML file"),
    ],
)
def test_refused_recipes(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_recipes(written(tmp_path, a=text), ViewOptions())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipes": {}}, ConfigError, r"`recipes` to be a whole number of at least 1"),
        ({"passes": 50}, ConfigError, r"`group_rows` to be between 1 and 25, got 64 \(plan --views\)"),
        # Of 150 samples three views each, so 133 of them: 399.
        (
            {"passes": 401, "group_rows": 200, "data": replace(DATA, limit=150)},
            ConfigError,
            r"between 1 and 199, got 200 .*of 399 passes",
        ),
        ({"recipes": {"a": ViewOptions("digts")}}, UnknownNameError, "Unknown transform 'digts'. Nearest: digits"),
    ],
)
def test_refusals(options, error, message):
    with pytest.raises(error, match=message):
        rank_views(**{"recipes": {"still": STILL}, "data": DATA, "teacher": TEACHER, **options})


def test_two_recipes_of_one_name():
    with pytest.raises(ConfigError, match="Give the files other names"):
        read_recipes(["digits", "digits"], ViewOptions())


def test_the_program_ranks_files_and_names(tmp_path, capsys):
    files = written(tmp_path, a="transform: digits\nmix: mixup", b="transform: digits\nn_views: 2")
    command = ["plan", "--data", "digits", "--data.limit", "300", "--teacher", TEACHER.name, "--passes", "256"]
    command += ["--teacher.mean", "[0.0]", "--teacher.std", "[1.0]", "--training.accelerator", "cpu"]
    assert main([*command, "--views", *files, "none", "--views.n_views", "4", "--group-rows", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {each["name"]: each["records"] for each in found["recipes"]} == {"a": 1200, "b": 600, "none": 300}
    assert {"stddev", "entropy", "sharpness", "agreement", "to_best", "seconds", "bytes"} <= set(found["recipes"][1])
    assert main([*command, f"--views={files[0]}"]) == 0
    out = capsys.readouterr().out
    assert "T. stddev" in out
    assert "4 groups of 64 rows" in out
    # One name that is no file is what it was: the views of a plan, which wants a student.
    assert main([*command, "--views", "digits"]) == 2
    assert "`student` to be the name of a network" in capsys.readouterr().err
