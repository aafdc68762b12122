"""Chains on digits: links through books alone, shared prefixes, resumption, generations, the choice of an assistant."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bookkd.book import Book, lineage_tree
from bookkd.core.errors import ConfigError
from bookkd.knowledge import lineage_of_weights
from bookkd.learning import Training
from bookkd.methods import TAKD, SelfDistillation, VanillaKD
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions, learn_student, make_book
from bookkd.pipelines.chain import Chain, all_paths, nearest_to_mean, run_chain
from bookkd.pipelines.chains import chain_of, networks_of
from bookkd.zoo import load_weights

SHORT = Training(epochs=1, batch_size=64, accelerator="cpu")


def chain(out, **changes):
    options = {"data": DataOptions("digits", limit=128), "views": ViewOptions("digits", 1), "method": TAKD()}
    return Chain(out=out, training=SHORT, say=lambda text: None, **{**options, **changes})


def test_a_chain_of_assistants_goes_through_books_alone(tmp_path):
    shared = chain(tmp_path)
    path = ("digits-large", "digits-large", "digits-small")
    found = run_chain(shared, [path])
    assert [entry["network"] for entry in found["networks"]] == list(path)
    records = [entry["teacher_forwards"] for entry in found["networks"]]
    assert records == [0, 128, 128]  # each book once, and no pass while learning
    assert found["paths"][0]["teacher_forwards"] == 256
    assert found["paths"][0]["trainings"] == 3
    assert json.loads((tmp_path / "chain.json").read_text())["paths"][0]["path"] == list(path)
    last = lineage_of_weights(shared.weights(path))
    assert [entry["name"] for entry in last["ancestors"]] == ["digits-large", "digits-large"]
    book = Book(shared.folder(path[:2]) / "book")
    assert [text.split()[0] for _, text in lineage_tree(book.plan.teachers[0])] == ["digits-large", "digits-large"]
    # What is there already is not done again.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    again = run_chain(shared, [path])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == before
    assert [entry["accuracy"] for entry in again["networks"]] == [entry["accuracy"] for entry in found["networks"]]


def test_without_an_assistant_it_is_vanilla_distillation_to_the_bit(tmp_path):
    method = TAKD(temperature=4.0, alpha=0.5)
    shared = chain(tmp_path / "chain", method=method)
    run_chain(shared, [("digits-large", "digits-small")])
    teacher = NetworkOptions("digits-large", weights=str(shared.weights(("digits-large",))))
    common = {"data": shared.data, "views": shared.views}
    make_book(str(tmp_path / "book"), teacher=teacher, accelerator="cpu", **common)
    learn_student(
        str(tmp_path / "run"),
        student=NetworkOptions("digits-small"),
        method=VanillaKD(temperature=4.0, kd_weight=0.5, ce_weight=0.5),
        book=str(tmp_path / "book"),
        training=SHORT,
        validate_on="",
        loggers=(),
        **common,
    )
    networks = [NetworkOptions("digits-small").build(10, role="student")[0] for _ in range(2)]
    load_weights(networks[0], tmp_path / "run" / "student.safetensors")
    load_weights(networks[1], shared.weights(("digits-large", "digits-small")))
    for mine, theirs in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert mine.equal(theirs)


def test_generations_start_anew_and_measure_their_diversity(tmp_path):
    shared = chain(tmp_path, method=SelfDistillation())
    found = chain_of(shared, "digits-small", generations=3)
    assert [len(entry["path"]) for entry in found["networks"]] == [1, 2, 3]
    seeds = [shared.seed(("digits-small",) * length) for length in (1, 2, 3)]
    assert len(set(seeds)) == 3
    for entry in found["networks"]:
        assert 0 < entry["uncertainty"] < 2.31
        assert entry["confidence_variance"] > 0


def test_all_paths_share_what_they_have_in_common(tmp_path):
    paths = all_paths(["digits-large", "resnet8", "digits-small"])
    assert paths == [("digits-large", "digits-small"), ("digits-large", "resnet8", "digits-small")]
    # Card takd: five sizes give eight chains.
    assert len(all_paths(["10", "8", "6", "4", "2"])) == 8
    shared = chain(tmp_path)
    found = chain_of(shared, "digits-large,digits-large,digits-small", every=True)
    assert len(found["paths"]) == 2
    assert len(found["networks"]) == 4
    assert found["notes"] == []


def test_a_larger_assistant_is_noted(tmp_path):
    found = run_chain(chain(tmp_path), [("digits-small", "digits-large")])
    assert found["notes"][0].startswith(
        "digits-large is larger than its teacher digits-small (94,410 parameters against"
    )


def test_the_assistant_is_the_one_nearest_to_the_mean(tmp_path):
    assert nearest_to_mean(0.9, 0.7, {"a": 0.89, "b": 0.82, "c": 0.71}) == "b"
    found = chain_of(chain(tmp_path), "digits-large,digits-small", candidates="digits-small,digits-large")
    assert found["chosen"] in found["alone"]
    assert [len(entry["path"]) for entry in found["paths"]] == [2, 3]


def test_weights_of_the_first_network_are_taken_as_they_are(tmp_path):
    run_chain(chain(tmp_path / "a"), [("digits-large",)])
    weights = chain(tmp_path / "a").weights(("digits-large",))
    shared = chain(tmp_path / "b", first=NetworkOptions(weights=str(weights)))
    found = run_chain(shared, [("digits-large", "digits-small")])
    assert found["networks"][0]["weights"] == str(weights)
    assert not (tmp_path / "b" / "digits-large" / "run").exists()


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        ("56,,8", {}, "`path` to be networks with commas between, got '56,,8'"),
        ("56", {"every": True}, "`path` to be a teacher and a student at least"),
        ("56,20,8", {"candidates": "14"}, "`path` to be a teacher and a student, with candidates"),
        ("56,8", {"every": True, "generations": 2}, "to be one at most, got 'several'"),
        ("56,8", {"generations": 0}, "`generations` to be a whole number of at least 1, got 0"),
    ],
)
def test_contradictions(tmp_path, path, options, match):
    with pytest.raises(ConfigError, match=match):
        chain_of(chain(tmp_path), path, **options)
    assert networks_of("56,8") == ("resnet56", "resnet8")
    assert replace(chain(tmp_path), test="test").test == "test"


def test_paths_of_different_teachers_are_refused(tmp_path):
    for paths in ([], [()], [("digits-large",), ("digits-small",)]):
        with pytest.raises(ConfigError, match="`path` to be networks from one teacher on"):
            run_chain(chain(tmp_path), paths)
