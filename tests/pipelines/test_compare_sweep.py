"""Sweeps as YAML says them, and the arms that they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bookkd.core.errors import BookKDError, ConfigError
from bookkd.core.schedules import Linear
from bookkd.learning import Training
from bookkd.pipelines.compare.arms import baselines, expand
from bookkd.pipelines.compare.document import read_sweep, sweep_of
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.tasks import Classification

TASK = Classification(("a", "b"))
SMALL = {"students": "digits-small", "methods": "supervised"}


def names(document):
    return [arm.name for arm in expand(sweep_of(document), TASK)]


def test_a_whole_sweep_from_yaml(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        """
data: {name: digits, limit: 200}
views: {transform: digits, n_views: 4}
students: [digits-small, {name: resnet8, args: {width: 8}}]
methods:
  - supervised
  - {name: vanilla-kd, temperature: linear:8:1}
  - {name: bookkd, preset: regularised, weights: [0.6, 0.4], books: [both]}
books:
  one: books/one
  both: [books/one, books/two]
training: {epochs: 3, lr: 1e-2, accelerator: cpu}
seeds: [3, 5]
overrides:
  - {name: few labels, label_fraction: 0.1}
  - {name: all labels}
""",
        encoding="utf-8",
    )
    sweep = read_sweep(path)
    assert sweep.data == DataOptions("digits", limit=200)
    assert sweep.views == ViewOptions("digits", 4)
    assert sweep.students == (NetworkOptions("digits-small"), NetworkOptions("resnet8", args={"width": 8}))
    assert sweep.training == Training(epochs=3, lr=0.01, accelerator="cpu")
    assert sweep.seeds == (3, 5)
    assert sweep.methods[1].build().temperature == Linear(8.0, 1.0)
    assert sweep.methods[2].build().weights == (0.6, 0.4)
    assert sweep.methods[2].build().correct is True
    assert [source.books for source in sweep.books] == [("books/one",), ("books/one", "books/two")]
    # 2 students x (labels alone + vanilla-kd from 2 sources + bookkd from the one it names) x 2 overrides
    arms = expand(sweep, TASK)
    assert len(arms) == 2 * (1 + 2 + 1) * 2
    assert {arm.label_fraction for arm in arms} == {0.1, 1.0}
    assert len({arm.slug for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (2, (0, 1)),
        ([4, 2], (4, 2)),
        ("1,3", (1, 3)),
        (None, (0, 1, 2)),
    ],
)
def test_seeds_are_listed_or_counted(given, wanted):
    assert sweep_of({**SMALL, "seeds": given}).seeds == wanted


def test_methods_that_ask_nobody_are_not_repeated_for_every_source():
    document = {"students": "digits-small", "methods": "supervised,tfkd-reg,dml,vanilla-kd", "books": "one,two"}
    assert names({**document, "books": ["one", "two"]}) == [
        "supervised / digits-small",
        "tfkd-reg / digits-small",
        "dml / digits-small",
        "vanilla-kd / digits-small / one",
        "vanilla-kd / digits-small / two",
    ]
    # Text with commas is a list of books where lists may be text, one ensemble inside a label.
    assert [source.books for source in sweep_of({**SMALL, "books": {"both": "one,two"}}).books] == [("one", "two")]


def test_names_and_folders_depend_on_the_arm_alone():
    one = expand(sweep_of({**SMALL, "methods": "vanilla-kd", "books": {"a": "books/a"}}), TASK)
    more = {"students": "digits-small,resnet8", "methods": "dist,vanilla-kd", "books": {"z": "books/z", "a": "books/a"}}
    both = expand(sweep_of(more), TASK)
    assert one[0].name == "vanilla-kd / digits-small / a"
    assert {one[0].slug} & {arm.slug for arm in both} == {one[0].slug}
    assert re.fullmatch(r"[A-Za-z0-9._=+-]+", one[0].slug)


def test_an_override_changes_the_methods_that_have_its_options():
    document = {"students": "digits-small", "methods": "supervised,vanilla-kd", "books": {"a": "a"}}
    overrides = [{"name": f"T={t}", "method": {"temperature": t}, "training": {"lr": 0.1 * t}} for t in (2, 8)]
    arms = expand(sweep_of({**document, "overrides": overrides}), TASK)
    assert [arm.override for arm in arms] == ["", "T=2", "T=8"]
    assert [arm.training.lr for arm in arms] == [0.1, 0.2, pytest.approx(0.8)]
    assert [arm.method.build().temperature for arm in arms[1:]] == [2.0, 8.0]


def test_each_arm_is_held_against_labels_alone_with_its_student():
    document = {"students": "digits-small,resnet8", "methods": "vanilla-kd,supervised", "books": {"a": "a"}}
    sweep = sweep_of(document)
    arms = expand(sweep, TASK)
    found = {arms[one].name: arms[other].name for one, other in baselines(sweep, arms).items()}
    assert found == {
        "vanilla-kd / digits-small / a": "supervised / digits-small",
        "vanilla-kd / resnet8 / a": "supervised / resnet8",
    }
    named = sweep_of({**document, "baseline": "vanilla-kd / resnet8 / a"})
    assert set(baselines(named, expand(named, TASK)).values()) == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"studens": "resnet8"}, "Unknown key 'studens' of the sweep. Nearest: students"),
        ({"students": None}, "Expected `students` to be at least one"),
        ({"methods": []}, "Expected `methods` to be at least one"),
        ({"seeds": []}, "Expected `seeds` to be at least one"),
        ({"seeds": 0}, "Expected `seeds` to be at least one"),
        ({"seeds": [1, 1]}, "without repeats, got 1 twice"),
        ({"seeds": ["x"]}, "Expected `seeds` to be whole numbers, or how many"),
        ({"seeds": -1}, "Expected `seeds` to be"),
        ({"methods": "vanila-kd", "books": {"a": "a"}}, "Unknown method 'vanila-kd'. Nearest: vanilla-kd"),
        ({"methods": "vanilla-kd"}, "Expected `books` to be one for method vanilla-kd to learn from"),
        ({"methods": [{"name": "vanilla-kd", "temprature": 3}]}, "Unknown key 'temprature' of method vanilla-kd. Nearest: temperature"),
        ({"methods": [{"name": "vanilla-kd", "temperature": "hot"}]}, "to be a number or a schedule such as linear:4:1, got 'hot'"),
        ({"methods": [{"name": "vanilla-kd", "temperature": -1}]}, "Expected `temperature` to be"),
        ({"methods": [{"name": "vanilla-kd", "preset": "kears"}]}, "Nearest: keras"),
        ({"methods": [{"temperature": 3}]}, "Expected `methods` to be names, or mappings with a name"),
        ({"methods": "supervised,supervised"}, "without repeats"),
        ({"students": "digits-small,digits-small"}, "without repeats"),
        ({"students": [{"args": {}}]}, "Expected `students` to be names of networks"),
        ({"training": {"epoch": 3}}, "Unknown key 'epoch' of training. Nearest: epochs"),
        ({"training": {"epochs": 0}}, "Expected `epochs` to be a whole number of at least 1"),
        ({"training": {"epochs": "many"}}, "Expected `training.epochs` to be a whole number"),
        ({"training": {"seed": 3}}, "Expected `training.seed` to be absent"),
        ({"training": [3]}, "Expected `training` to be keys with values"),
        ({"data": {"limit": "x"}}, "Expected `data.limit` to be"),
        ({"label_fraction": 0}, "Expected `label_fraction` to be"),
        ({"label_fraction": 1.5}, "Expected `label_fraction` to be"),
        ({"validation": "test"}, "The test split is for the report alone"),
        ({"test": "train"}, "Expected `test` to be another split than the data's"),
        ({"validation_fraction": 0.9}, "Expected `validation_fraction` to be"),
        ({"validation": "val", "validation_fraction": 0.1}, "absent where a split is given"),
        ({"baseline": "superviset / digits-small"}, "Unknown arm 'superviset / digits-small'"),
        ({"overrides": [{"training": {}}]}, "Expected `overrides[0].name` to be"),
        ({"overrides": [{"name": "x", "traning": {}}]}, "Unknown key 'traning' of overrides[0]. Nearest: training"),
        ({"overrides": [{"name": "x", "method": {"temperature": 3}}]}, "Expected `overrides.method` to be options of supervised"),
        ({"overrides": [{"name": "x"}, {"name": "x"}]}, "without repeats"),
        ({"overrides": [{"name": "x", "training": {"lr": "fast"}}]}, "Expected `overrides[0].training.lr` to be a number"),
        ({"books": {"a": "a", "b": []}}, "Expected `source` to be of books or of teachers"),
        ({"books": [{"name": "a", "path": "x"}]}, "Unknown key 'path' of books. Nearest: paths"),
        ({"books": ["x/a", "y/a"]}, "without repeats, got a twice"),
        ({"teachers": {"live": "digits-large"}}, "Expected `teacher.weights` to be a safetensors file"),
        ({"methods": [{"name": "vanilla-kd", "books": ["a"]}], "books": {"b": "b"}}, "Unknown book 'a'"),
        ({"replicates": -1}, "Expected `replicates` to be"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_refused_in_one_line(changes, message):
    with pytest.raises(BookKDError, match=re.escape(message)) as caught:
        expand(sweep_of({**SMALL, **changes}), TASK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "3"])
def test_a_file_that_is_no_sweep(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BookKDError, match=r"Expected .*sweep") as caught:
        read_sweep(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BookKDError, match=r"nowhere\.yaml"):
        read_sweep(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_called_empty_by_its_name(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"`sweep` to be keys with values, got an empty file \(.*sweep\.yaml\)\. Write"
    ):
        read_sweep(path)


def test_labels_of_several_books_and_of_method_options_are_in_the_name():
    document = {
        "students": [{"name": "resnet8", "args": {"width": 8}}],
        "methods": [{"name": "vanilla-kd", "temperature": 8.0, "preset": "keras"}],
        "books": ["books/a", ["books/a", "books/b"]],
    }
    assert names(document) == [
        "vanilla-kd keras temperature=8 / resnet8 width=8 / a",
        "vanilla-kd keras temperature=8 / resnet8 width=8 / a+b",
    ]


def test_the_sweep_of_the_guide_is_one():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "compare.md"
    text = re.search(r"```yaml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)[1]
    arms = expand(sweep_of(yaml.safe_load(text)), Classification(tuple("0123456789")))
    assert len(arms) == 2 * (1 + 2 + 1) * 2
    assert arms[6].name == "bookkd regularised / resnet8 / both / 10 % of the labels"
