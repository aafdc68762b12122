"""Chains on digits: links through books alone, shared prefixes, resumption, generations, the choice of an assistant."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
import torch

from bookkd.book import Book, TopK, lineage_tree
from bookkd.core.errors import ConfigError, FidelityError, UnknownNameError
from bookkd.knowledge import lineage_of_weights
from bookkd.learning import Training
from bookkd.methods import (
    AT,
    DIST,
    DML,
    MLKD,
    OFD,
    TAKD,
    BetaLabelSmoothing,
    SelfDistillation,
    SimKD,
    Supervised,
    TfKDReg,
    VanillaKD,
)
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions, learn_student, make_book
from bookkd.pipelines.chain import (
    Chain,
    all_paths,
    chain_of,
    folder_name,
    measured,
    nearest_to_mean,
    networks_of,
    run_chain,
    trainer,
)
from bookkd.zoo import SubsetDataset, load_weights, save_weights

# Networks of the user's own, which are the pair of the zoo under other names.
MIDDLE, OTHER = "bookkd.zoo.digits_net:digits_large", "bookkd.zoo.digits_net:digits_small"
SHORT = Training(epochs=1, batch_size=64, accelerator="cpu")


def chain(out, **changes):
    options = {"data": DataOptions("digits", limit=128), "views": ViewOptions("digits", 1), "method": TAKD()}
    return Chain(out=out, **{**options, "training": SHORT, "say": lambda text: None, **changes})


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


@pytest.mark.parametrize("method", [AT(layers=("stage1", "stage2")), OFD(layers=("pre1", "pre2"))])
def test_books_of_a_chain_hold_what_its_method_reads_inside(tmp_path, method):
    shared, path = chain(tmp_path, method=method), ("digits-large", "digits-large", "digits-small")
    found = run_chain(shared, [path])
    assert found["networks"][0]["teacher_forwards"] == 0
    for teacher in (path[:1], path[:2]):
        book = Book(shared.folder(teacher) / "book")
        assert {name for name in book.fields if name.startswith("features/")} == {
            f"features/{layer}{'/attention' if method.name == 'at' else ''}" for layer in method.layers
        }
        assert set(book.constants) == ({"margins/pre1", "margins/pre2"} if method.name == "ofd" else set())


def test_a_student_with_its_teachers_classifier_teaches_the_next(tmp_path):
    shared = chain(tmp_path, method=SimKD())
    found = run_chain(shared, [("digits-large", "digits-small", "digits-small")])
    assert found["paths"][0]["trainings"] == 3
    first, second = (
        Book(shared.folder(path) / "book") for path in (("digits-large",), ("digits-large", "digits-small"))
    )
    np.testing.assert_array_equal(first.constants["classifier/weight"], second.constants["classifier/weight"])


def test_samples_as_they_are_have_one_view(tmp_path):
    found = run_chain(chain(tmp_path, views=ViewOptions()), [("digits-small", "digits-small")])
    assert found["networks"][1]["book"]["records"] == 128


def test_arguments_of_the_first_network_are_those_that_it_is_trained_with(tmp_path):
    first = NetworkOptions(args={"in_channels": 1}, mean=(0.3,), std=(0.4,))
    shared = chain(tmp_path, first=first)
    run_chain(shared, [("digits-large", "digits-small")])
    options = json.loads((shared.folder(("digits-large",)) / "run" / "options.json").read_text())["student"]
    assert (options["args"], options["mean"], options["std"]) == ({"in_channels": 1}, [0.3], [0.4])


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


def test_a_larger_assistant_is_noted_before_anything_is_trained(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(trainer, "learn_student", lambda *args, **options: pytest.fail(f"trained after {said}"))
    with pytest.raises(pytest.fail.Exception, match="digits-large is larger than its teacher digits-small"):
        run_chain(chain(tmp_path, say=said.append), [("digits-small", "digits-large")])
    monkeypatch.undo()
    found = run_chain(chain(tmp_path, say=said.append), [("digits-small", "digits-large")])
    note = "digits-large is larger than its teacher digits-small (94,410 parameters against 2,942)"
    assert found["notes"][0].startswith(note)
    with pytest.raises(UnknownNameError, match="Unknown network 'digits-smal'"):
        run_chain(chain(tmp_path / "b"), [("digits-large", "digits-small", "digits-smal")])
    assert not (tmp_path / "b").exists()


def test_each_network_is_trained_measured_and_written_down_once(tmp_path, monkeypatch):
    count = {"trained": 0, "measured": 0, "books": 0}

    def counted(module, name, what):
        real = getattr(module, name)

        def wrapper(*args, **options):
            count[what] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, name, wrapper)

    counted(trainer, "learn_student", "trained")
    counted(trainer, "make_book", "books")
    counted(measured, "predictions_of", "measured")
    # Three paths: large, large-large and large-large-large teach, and each has a small student.
    paths = all_paths(["digits-large", "digits-large", "digits-large", "digits-small"])
    found = run_chain(chain(tmp_path), paths)
    assert len(paths) == 3
    assert len(found["networks"]) == 6
    assert count == {"trained": 6, "measured": 6, "books": 3}
    # The book notes what was measured, and nobody measured it again.
    book = Book(tmp_path / "digits-large+digits-large" / "book")
    assert book.plan.teachers[0].accuracy == found["networks"][1]["accuracy"]
    assert book.plan.teachers[0].split == "test"
    again = run_chain(chain(tmp_path), paths)
    assert again == found
    assert count["measured"] == 6


def test_measures_are_kept_for_the_same_weights_alone(tmp_path):
    shared, path = chain(tmp_path), ("digits-small",)
    first = run_chain(shared, [path])["networks"][0]
    [kept] = shared.folder(path).glob("measured-*.json")
    text = json.loads(kept.read_text())
    text["measures"]["accuracy"] = 2.0
    kept.write_text(json.dumps(text))
    assert run_chain(shared, [path])["networks"][0]["accuracy"] == 2.0  # taken from the file
    network, _ = NetworkOptions("digits-small").build(10, role="student", seed=9)
    save_weights(network, shared.weights(path))
    assert run_chain(shared, [path])["networks"][0]["accuracy"] != 2.0  # of other weights
    shared = chain(tmp_path / "b")
    run_chain(shared, [path])
    [kept] = shared.folder(path).glob("measured-*.json")
    kept.write_text("{")  # damaged
    assert run_chain(shared, [path])["networks"][0]["accuracy"] == first["accuracy"]
    # Code of the user's own may change under its name.
    shared = chain(tmp_path / "c")
    run_chain(shared, [(OTHER,)])
    assert not list(shared.folder((OTHER,)).glob("measured-*"))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("a-b", "c"), ("a", "b-c")),
        (("a+b",), ("a", "b")),
        (("a%2Bb",), ("a+b",)),
        (("digits-small",), ("digits", "small")),
        (("a:B",), ("a%3AB",)),
    ],
)
def test_folders_tell_paths_apart(one, two):
    assert folder_name(one) != folder_name(two)
    for path in (one, two):
        assert tuple(unquote(name) for name in folder_name(path).split("+")) == path
        assert "/" not in folder_name(path)


def test_paths_that_would_share_a_folder_are_refused(tmp_path):
    # One folder where a disk does not tell capitals from small letters.
    paths = [("digits-small", "mine:Net"), ("digits-small", "mine:net")]
    with pytest.raises(
        ConfigError, match="`path` to be one with a folder of its own, got digits-small -> mine:net besi"
    ):
        run_chain(chain(tmp_path), paths)
    with pytest.raises(ConfigError, match="got alone beside networks on labels alone"):
        run_chain(chain(tmp_path), [("alone",)])
    with pytest.raises(ConfigError, match="`path` to be without repeats"):
        run_chain(chain(tmp_path), [("digits-small",), ("digits-small",)])
    assert all_paths(["a", "b", "b", "c"]) == [("a", "c"), ("a", "b", "c"), ("a", "b", "b", "c")]


def accuracy_on(options, dataset):
    """By hand, apart from what is tested."""
    network, preprocess = options.build(10, role="student")
    network.eval()
    with torch.no_grad():
        views = torch.stack([dataset[place][0] for place in range(len(dataset))])
        return float((network(preprocess(views)).argmax(-1).numpy() == dataset.labels).mean())


def test_the_assistant_is_chosen_on_samples_that_no_network_learns_from(tmp_path, monkeypatch):
    assert nearest_to_mean(0.9, 0.7, {"a": 0.89, "b": 0.82, "c": 0.71}) == "b"
    parts, real = [], trainer.learn_student

    def learned(*args, **options):
        parts.append(options["part"])
        return real(*args, **options)

    monkeypatch.setattr(trainer, "learn_student", learned)
    shared = chain(tmp_path)
    found = chain_of(shared, "digits-large,digits-small", candidates=f"{MIDDLE},{OTHER}", validation_fraction=0.25)
    whole = shared.data.open()
    kept = parts[0]
    held = np.setdiff1d(np.arange(len(whole)), kept)
    assert len(kept) == found["train_samples"] == 96
    assert all(np.array_equal(part, kept) for part in parts)
    assert len(parts) == 3 + 1 + 3  # on labels alone, the teacher, and three that are taught
    # Every choice is of accuracies on the samples that were held out; every report is of the test split.
    unseen = SubsetDataset(whole, held)
    for name, record in found["alone"].items():
        weights = str(tmp_path / "alone" / folder_name([name]) / "run" / "student.safetensors")
        assert record["accuracy"] == pytest.approx(accuracy_on(NetworkOptions(name, weights=weights), unseen))
        assert record["split"] == found["chosen_on"] == "32 held-out samples of train"
        assert record["epochs"] == 1
    assert list(found["alone"]) == [MIDDLE, OTHER, "digits-small"]
    teacher = shared.network(("digits-large",))
    assert found["teacher_accuracy"] == pytest.approx(accuracy_on(teacher, unseen))
    assert found["networks"][0]["accuracy"] == pytest.approx(accuracy_on(teacher, shared.data.other("test").open()))
    assert {entry["split"] for entry in found["networks"]} == {"test"}
    mean = (found["teacher_accuracy"] + found["alone"]["digits-small"]["accuracy"]) / 2
    distance = {name: abs(found["alone"][name]["accuracy"] - mean) for name in (MIDDLE, OTHER)}
    assert distance[found["chosen"]] == min(distance.values())
    assert [entry["path"] for entry in found["paths"]] == [
        ["digits-large", "digits-small"],
        ["digits-large", found["chosen"], "digits-small"],
    ]
    assert not any("flatters" in note for note in found["notes"])
    assert json.loads((tmp_path / "chain.json").read_text()) == found
    # The book is about all samples, so that others can learn from it.
    assert Book(shared.folder(("digits-large",)) / "book").n_samples == 128


def test_an_assistant_is_chosen_on_a_split_of_its_own_and_the_choice_counts_to_its_path(tmp_path):
    data = DataOptions("tests.pipelines.compare_parts:three_parts")
    found = chain_of(
        chain(tmp_path, data=data), "digits-large,digits-small", candidates=f"{MIDDLE},{OTHER}", validation="valid"
    )
    assert (found["chosen_on"], found["train_samples"], found["notes"][1:]) == ("valid", 128, [])
    assert {record["split"] for record in found["alone"].values()} == {"valid"}
    direct, assisted = found["paths"]
    # Teacher and student; teacher, assistant and student, after two candidates and the student on labels alone.
    assert (direct["trainings"], assisted["trainings"]) == (2, 3 + 3)
    learned = [entry["seconds"] + entry["book_seconds"] for entry in found["networks"] if len(entry["path"]) != 2]
    middle = next(entry for entry in found["networks"] if entry["path"] == ["digits-large", found["chosen"]])
    on_labels = [record["seconds"] for record in found["alone"].values()]
    assert min(on_labels) > 0
    total = sum(learned) + middle["seconds"] + middle["book_seconds"] + sum(on_labels)
    assert assisted["seconds"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"method": MLKD()}, ConfigError, "`n_views` to be at least 2 for method mlkd, got 1"),
        (
            {"method": MLKD(), "views": ViewOptions("digits", 2), "training": replace(SHORT, batch_size=15)},
            ConfigError,
            r"`batch_size` to be a multiple of views_per_sample = 2, got 15 \(chain\)",
        ),
        (
            {"method": DIST(), "training": replace(SHORT, batch_size=256)},
            ConfigError,
            r"`batch_size` to be at most 1(28|15) for 1(28|15) samples, got 256 \(chain\)",
        ),
        ({"method": DIST(), "codec": TopK(4, (1.0,))}, FidelityError, r"dense for method dist.* --codec dense"),
        ({"codec": TopK(4, (1.0, 4.0))}, FidelityError, r"temperature 5 for method takd.* promises 1, 4 \(chain\)"),
        ({"codec": TopK(20, (5.0,))}, ConfigError, "`k` to be"),
        ({"training": replace(SHORT, patience=2)}, ConfigError, "`training.patience` to be absent, got 2"),
        (
            {"training": replace(SHORT, schedule="plateau")},
            ConfigError,
            "`training.schedule` to be another than plateau",
        ),
        *(
            (
                {"method": method},
                ConfigError,
                f"`method` to be one that learns from a book, got {method.name}, .* Use takd",
            )
            for method in (Supervised(), TfKDReg(), BetaLabelSmoothing(), DML())
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_teacher_is(tmp_path, changes, error, match):
    for options in ({}, {"candidates": MIDDLE, "validation_fraction": 0.1}, {"every": True}):
        with pytest.raises(error, match=match):
            chain_of(chain(tmp_path, **changes), "digits-large,digits-small", **options)
    assert list(tmp_path.iterdir()) == []


def test_networks_are_not_measured_on_what_they_learn_from(tmp_path):
    with pytest.raises(
        ConfigError, match=r"`test` to be another split than the data's, got 'train' \(chain\)\. .*--test"
    ):
        chain(tmp_path, test="train")


def test_a_given_teacher_may_have_seen_what_is_held_out(tmp_path):
    run_chain(chain(tmp_path / "a"), [("digits-large",)])
    weights = str(chain(tmp_path / "a").weights(("digits-large",)))
    said = []
    shared = chain(tmp_path / "b", first=NetworkOptions(weights=weights), say=said.append)
    found = chain_of(shared, "digits-large,digits-small", candidates=MIDDLE)
    assert found["train_samples"] == 115  # a tenth is held out
    assert "the weights of digits-large are given" in found["notes"][-1]
    assert said.index(found["notes"][-1]) < next(place for place, text in enumerate(said) if "learns from" in text)


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
        ("56,8", {"candidates": "20,,14"}, "`candidates` to be networks with commas between, got '20,,14'"),
        ("56,8", {"candidates": "20,14,20"}, "`candidates` to be without repeats, got resnet20 twice"),
        ("56,8", {"candidates": "20,56"}, "other networks than teacher and student, got resnet56, the teacher"),
        ("56,8", {"candidates": "8,20"}, "other networks than teacher and student, got resnet8, the student"),
        ("56,8", {"candidates": "20", "validation": "train"}, "`validation` to be another split than the data's"),
        (
            "56,8",
            {"candidates": "20", "validation": "valid", "validation_fraction": 0.1},
            "absent where a split is given",
        ),
        ("56,8", {"candidates": "20", "validation": "test"}, "`validation` to be another split than test, got 'test'"),
        (
            "56,8",
            {"candidates": "20", "validation_fraction": 0.0},
            "`validation_fraction` to be a number above 0, got 0",
        ),
        ("56,8", {"candidates": "20", "validation_fraction": 0.6}, "`validation_fraction` to be between 0 and 0.5"),
        (
            "56,8",
            {"candidates": "20", "validation": "no"},
            "This is the split of `validation`: pass --validation SPLIT",
        ),
        ("56,8", {"validation": "test"}, "`validation` to be absent without candidates"),
        ("56,8", {"validation_fraction": 0.1}, "`validation_fraction` to be absent without candidates, got 0.1"),
    ],
)
def test_contradictions(tmp_path, path, options, match):
    with pytest.raises(ConfigError, match=match):
        chain_of(chain(tmp_path), path, **options)
    assert networks_of("56,8") == ("resnet56", "resnet8")
    assert list(tmp_path.iterdir()) == []
    mixed = chain(tmp_path, views=ViewOptions("digits", 1, mix="mixup"))
    with pytest.raises(ConfigError, match="`validation` to be a split of its own where views are mixed"):
        chain_of(mixed, "digits-large,digits-small", candidates=MIDDLE)


def test_paths_of_different_teachers_are_refused(tmp_path):
    for paths in ([], [()], [("digits-large",), ("digits-small",)]):
        with pytest.raises(ConfigError, match="`path` to be networks from one teacher on"):
            run_chain(chain(tmp_path), paths)
