"""Rounds of interactive learning: what they come to, that they go on where they stopped, and when feedback is given."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tests.learning import digits
from tests.learning.digits import StopError, assert_equal

from bookkd.book import Book, Dense, TopK
from bookkd.core.errors import ConfigError
from bookkd.evaluation import pairwise_kl
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Learner, Run, Training, Validation, learn, measuring
from bookkd.learning.measuring import measure_sequences
from bookkd.making import make_several
from bookkd.methods import DIL, Supervised, VanillaKD
from bookkd.pipelines.rounds import Feedback, Rounds, run_rounds, said_on, student_again
from bookkd.pipelines.rounds.measured import measures_of
from bookkd.pipelines.rounds.networks import Networks
from bookkd.tasks import CausalLM, MultiLabel, Regression, Tagging
from bookkd.views import Views
from bookkd.zoo import GRUTagger, SequenceDataset, SubsetDataset, TokenDataset, load_weights, open_dataset

NAMES = ("falls", "stays", "rises")
TASK, VIEWS = Tagging(NAMES), Views(None, n_views=1)


def melodies(count, seed):
    """Walks over 8 tokens; the label says whether the next step goes down, stays or goes up, with some noise."""
    rng, inputs, labels = np.random.default_rng(seed), [], []
    for _ in range(count):
        steps = rng.integers(-1, 2, int(rng.integers(2, 9)))
        walk = np.clip(4 + np.cumsum(steps), 0, 7)
        noisy = rng.random(len(steps)) < 0.1
        inputs.append(walk)
        labels.append(np.where(noisy, rng.integers(0, 3, len(steps)), np.diff(walk, append=walk[-1]).clip(-1, 1) + 1))
    return SequenceDataset.of("melodies", inputs, labels, class_names=NAMES)


TRAIN, TEST = melodies(48, 0), melodies(30, 1)
small, large = (partial(GRUTagger, 3, tokens=8, width=width, dropout=0.1) for width in (6, 10))
TRAINING = Training(epochs=2, batch_size=12, optimizer="adamw", lr=0.02, accelerator="cpu", seed=5)


def settings(out, **changes):
    given = {
        "student": small,
        "assistants": (large, large),
        "method": DIL(assistants=2),
        "data": TRAIN,
        "validation": TEST,
        "task": TASK,
        "training": TRAINING,
        "rounds": 2,
        "say": lambda line: None,
        **changes,
    }
    return Rounds(out=out, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("rounds") / "whole"
    return settings(out), run_rounds(settings(out))


def network_of(result, entry, make=small):
    network = make()
    load_weights(network, result.folder / entry["weights"])
    return network.eval()


def test_folders_are_those_of_the_rounds(whole):
    _, result = whole
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "config.json",
        "round-0",
        "round-1",
        "round-2",
        "rounds.json",
    ]
    found = {path.name for path in (result.folder / "round-2").iterdir()}
    assert found == {"assistant-1", "assistant-2", "book", "round.json", "student", "student-book"}
    book, back = (Book(result.folder / "round-2" / name) for name in ("book", "student-book"))
    assert {name for name in book.fields if not name.startswith("probe")} == {"members/0/logits", "members/1/logits"}
    assert [teacher.name for teacher in book.plan.teachers] == ["round-1/assistant-1", "round-1/assistant-2"]
    assert [teacher.name for teacher in back.plan.teachers] == ["round-2/student"]


def test_who_learnt_from_whom_is_noted(whole):
    _, result = whole
    warm, first, second = result.rounds
    assert [record["round"] for record in result.rounds] == [0, 1, 2]
    assert first["student"]["taught_by"] == [assistant["digest"] for assistant in warm["assistants"]]
    assert second["student"]["parent"] == first["student"]["digest"]
    for before, after in zip(warm["assistants"], first["assistants"], strict=True):
        assert after["parent"] == before["digest"]
        assert after["taught_by"] == [first["student"]["digest"]]
    text = (result.folder / "rounds.json").read_text()
    assert json.loads(text)["rounds"] == list(result.rounds)
    book = Book(result.folder / second["book"]["path"])
    assert book.content_digest == second["book"]["content_digest"]
    # The lineage of a member goes back over the student to the assistants of the warm-up.
    ancestors = [entry["digest"] for entry in book.plan.teachers[0].lineage["ancestors"]]
    assert ancestors == [first["student"]["digest"], *(assistant["digest"] for assistant in warm["assistants"])]


def test_measures_are_those_of_the_networks(whole):
    _, result = whole
    record = result.rounds[2]
    members = [
        said_on(Learner(network_of(result, entry, large), TASK), Validation(TEST)) for entry in record["assistants"]
    ]
    together = torch.stack([member.logits.softmax(-1) for member in members]).mean(0)
    right = (together.argmax(-1) == members[0].labels).double().mean()
    assert record["ensemble"]["accuracy"] == pytest.approx(float(right))
    assert record["ensemble"]["nll"] == pytest.approx(
        float(torch.nn.functional.nll_loss(together.log(), members[0].labels)), rel=1e-5
    )
    best = max(entry["accuracy"] for entry in record["assistants"])
    assert record["gain"] == pytest.approx(float(right) - best)
    p, q = (torch.distributions.Categorical(logits=member.logits.double()) for member in members)
    apart = (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)) / 2
    assert record["diversity"] == pytest.approx(float(apart.mean()), rel=1e-6)


def test_the_round_is_chosen_by_validation(whole):
    _, result = whole
    scores = {record["round"]: record["student"]["accuracy"] for record in result.rounds[1:]}
    assert result.chosen == max(scores, key=lambda number: (scores[number], -number))
    assert_equal(result.student, network_of(result, result.best["student"]))
    scores = {record["round"]: record["ensemble"]["accuracy"] for record in result.rounds}
    assert result.best["ensemble"]["accuracy"] == max(scores.values())
    assert len(result.best["ensemble"]["members"]) == 2


def test_a_run_that_was_killed_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch):
    """Killed inside a warm-up, the student's training and the feedback (8 steps each), and between two of them."""
    _, result = whole
    given = settings(tmp_path / "cut", training=replace(TRAINING, checkpoint_steps=1))
    for steps in (3, 9, 8, 7):
        with monkeypatch.context() as patch:
            killed_after(patch, steps)
            with pytest.raises(StopError):
                run_rounds(given)
    assert (given.folder(1) / "assistant-1" / "config.json").exists()
    assert not (given.folder(1) / "assistant-1" / "result.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Networks, "learnt", _stop)
        with pytest.raises(StopError):
            run_rounds(given)
    again = run_rounds(given)
    assert_equal(again.student, result.student)
    for mine, theirs in zip(again.rounds, result.rounds, strict=True):
        assert [entry["digest"] for entry in mine["assistants"]] == [entry["digest"] for entry in theirs["assistants"]]
    # Finished, it is read: neither books nor checkpoints are asked for.
    shutil.rmtree(given.folder(1) / "book")
    assert_equal(run_rounds(given).student, result.student)


def killed_after(monkeypatch, steps):
    """End a process that has done so many steps of whatever trainings."""
    real, done = Run.optimizer_step, []

    def failing(self, *args, **kwargs):
        if len(done) == steps:
            raise StopError
        done.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Run, "optimizer_step", failing)


def _stop(*_, **__):
    raise StopError


def test_a_round_is_learnt_again_from_its_books(whole):
    given, result = whole
    for number in (1, 2):
        again = student_again(given, number)
        assert_equal(again, network_of(result, result.rounds[number]["student"]), tolerance=1e-6)
    with pytest.raises(ConfigError, match=r"`round` to be a finished one, got 3"):
        student_again(given, 3)


def test_without_feedback_it_is_distillation_of_several_teachers(tmp_path):
    """To the bit, with the pieces that a user would put together, and the assistants as they were after the warm-up."""
    given = settings(
        tmp_path / "off", feedback=Feedback(on=False), method=DIL(assistants=2, temperature=3.0, alpha=0.7)
    )
    result = run_rounds(given)
    teachers = []
    for place in (1, 2):
        network = given.network(place)
        how = replace(TRAINING, seed=given.seed(0, place))
        learn(network, TRAIN, VIEWS, task=TASK, method=Supervised(), training=how)
        teachers.append(partial(Teacher, network))
    book = make_several(tmp_path / "book", teachers, TRAIN, VIEWS, task=TASK, codec=Dense())
    student, method = given.network(0), VanillaKD(temperature=3.0, kd_weight=0.7, ce_weight=1 - 0.7)
    for number in (1, 2):
        how = replace(TRAINING, seed=given.seed(number, 0))
        learn(student, TRAIN, VIEWS, task=TASK, method=method, knowledge=StoredKnowledge(book), training=how)
        assert_equal(network_of(result, result.rounds[number]["student"]), student)
    assert [record["assistants"] for record in result.rounds[1:]] == [result.rounds[0]["assistants"]] * 2
    assert result.rounds[2]["book"] == result.rounds[1]["book"]
    assert not (given.folder(2) / "book").exists()
    assert {each["why_not"] for each in result.rounds[2]["feedback"]} == {"feedback is off"}


def test_beta_0_is_not_the_same_as_no_feedback(tmp_path):
    result = run_rounds(settings(tmp_path / "labels", method=DIL(assistants=2, beta=0.0), rounds=1))
    warm, first = (record["assistants"] for record in result.rounds)
    assert all(one["digest"] != other["digest"] for one, other in zip(warm, first, strict=True))
    assert (first[0]["method"]["name"], first[0]["taught_by"]) == ("supervised", [])


def test_gates_of_the_feedback(tmp_path):
    feedback = Feedback(first_round=2, margin=0.0, ramp=True)
    assistants = (large, partial(GRUTagger, 3, tokens=8, width=2, bidirectional=False))
    warm_up = replace(TRAINING, epochs=12)
    learnt = {"training": replace(TRAINING, epochs=6), "warm_up": warm_up}
    result = run_rounds(settings(tmp_path / "gates", feedback=feedback, assistants=assistants, **learnt))
    first, second = (record["feedback"] for record in result.rounds[1:])
    assert [each["why_not"] for each in first] == ["feedback begins in round 2"] * 2
    score = result.rounds[2]["student"]["accuracy"]
    theirs = [assistant["accuracy"] for assistant in result.rounds[1]["assistants"]]
    assert [each["why_not"] is None for each in second] == [score >= one for one in theirs]
    assert 0 < sum(each["why_not"] is None for each in second) < 2
    # The ramp ends at 1 in the last round.
    assert {each["beta"] for each in second if each["why_not"] is None} == {0.5}


def test_feedback_stops_where_assistants_are_alike(tmp_path):
    feedback = Feedback(least_diversity=1e3)
    result = run_rounds(settings(tmp_path / "alike", feedback=feedback, rounds=1))
    assert all("nats apart after round 0, less than 1000" in each["why_not"] for each in result.rounds[1]["feedback"])
    same = [torch.randn(5, 3)] * 3
    assert pairwise_kl(same) == pytest.approx(0, abs=1e-12)


def test_the_best_is_kept_where_that_is_asked_for(tmp_path):
    worse = replace(TRAINING, lr=3.0)
    given = settings(
        tmp_path / "best", keep_best=True, feedback_training=worse, warm_up=replace(TRAINING, epochs=8), rounds=1
    )
    result = run_rounds(given)
    kept, warm = result.rounds[1]["assistants"], result.rounds[0]["assistants"]
    assert [entry["digest"] for entry in kept] == [entry["digest"] for entry in warm]
    assert all(entry["tried"]["round"] == 1 and entry["tried"]["accuracy"] <= entry["accuracy"] for entry in kept)


def test_one_assistant_and_other_settings(tmp_path):
    given = settings(tmp_path / "one", assistants=(large,), method=DIL(assistants=1), rounds=1, by="nll")
    result = run_rounds(given)
    assert result.rounds[1]["diversity"] is None
    assert result.rounds[1]["gain"] == 0
    more = run_rounds(replace(given, rounds=2))  # goes on
    assert more.rounds[:2] == result.rounds
    with pytest.raises(
        ConfigError, match=r"`out` to be the folder of the same rounds, got one of another method .*own"
    ):
        run_rounds(replace(given, method=DIL(assistants=1, alpha=0.4)))
    with pytest.raises(ConfigError, match=r"`assistants` to be 3, as the method's, got 2"):
        settings(tmp_path, method=DIL())
    with pytest.raises(ConfigError, match=r"`ramp_epochs` to be 0 by rounds, got 2 .*Feedback\(ramp=True\)"):
        settings(tmp_path, method=DIL(assistants=2, ramp_epochs=2))


def test_networks_share_no_seed(tmp_path):
    given = [settings(tmp_path, training=replace(TRAINING, seed=seed)) for seed in (0, 1, 2, 1009)]
    seeds = [each.seed(number, place) for each in given for number in range(3) for place in range(3)]
    assert len(set(seeds)) == len(seeds)


def test_validation_sets_larger_than_memory_come_to_the_same(whole, monkeypatch):
    """Parts of few samples, and passes of fewer, in place of all at once."""
    given, result = whole
    monkeypatch.setattr(measuring, "_MOST", 2 * 3 * 8 * 3)  # 2 networks say 3 classes at 8 positions of 3 samples
    passes, runner = [], Networks(given)
    real = Learner.forward

    def counted(self, batch):
        passes.append(len(batch["input"]))
        return real(self, batch)

    monkeypatch.setattr(Learner, "forward", counted)
    record = result.rounds[2]
    found = runner.together(record["assistants"])
    assert set(passes) == {3}
    for name, value in found["ensemble"].items():
        assert value == pytest.approx(record["ensemble"][name], rel=1e-6)
    assert found["gain"] == pytest.approx(record["gain"], abs=1e-12)
    assert found["diversity"] == pytest.approx(record["diversity"], rel=1e-6)
    passes.clear()
    alone = measures_of(runner.learner(runner.load(0, record["student"])), Validation(TEST, batch_size=4))
    assert alone == pytest.approx({name: record["student"][name] for name in alone}, rel=1e-6)
    assert set(passes) == {4, 2}


def test_nll_may_decide(tmp_path, monkeypatch):
    """By early stopping, the margin, what is kept and which round is chosen."""
    asked = []
    monkeypatch.setattr(
        Validation,
        "score",
        lambda self, metrics, task, real=Validation.score: asked.append(self.metric) or real(self, metrics, task),
    )
    result = run_rounds(
        settings(
            tmp_path / "nll", by="nll", keep_best=True, feedback=Feedback(margin=0.05), validation=Validation(TEST),
            training=replace(TRAINING, patience=2), warm_up=replace(TRAINING, epochs=6),
        )
    )  # fmt: skip
    assert set(asked) == {"nll"}
    for before, record in zip(result.rounds, result.rounds[1:], strict=False):
        score = record["student"]["nll"]
        for parent, assistant, feedback in zip(
            before["assistants"], record["assistants"], record["feedback"], strict=True
        ):
            assert (feedback["why_not"] is None) == (score <= parent["nll"] + 0.05)
            assert assistant["nll"] <= parent["nll"]
        if before["round"]:
            assert score <= before["student"]["nll"]
    scores = {record["round"]: record["student"]["nll"] for record in result.rounds[1:]}
    assert scores[result.chosen] == min(scores.values())


def test_what_was_kept_is_what_is_returned_again(tmp_path):
    given = settings(tmp_path / "kept", keep_best=True)
    run_rounds(given)
    path = given.folder(2) / "round.json"
    record = json.loads(path.read_text())
    first = json.loads((given.folder(1) / "round.json").read_text())["student"]
    path.write_text(json.dumps({**record, "student": {**first, "tried": {}}}))  # as where round 2 made it no better
    network = small()
    load_weights(network, given.out / first["weights"])
    assert_equal(student_again(given, 2), network)


def test_what_would_fail_late_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"`codec` to be one that keeps every value, got .?top_k"):
        settings(tmp_path, codec=TopK(2, (1.0, 2.0)))
    settings(tmp_path, codec=TopK(2, (1.0, 2.0)), assistants=(large,), method=DIL(assistants=1))
    with pytest.raises(ConfigError, match=r"`metric` to be accuracy, as by, got .?nll"):
        settings(tmp_path, validation=Validation(TEST, metric="nll"))
    for name, given in (("student", {"student": small()}), (r"assistants\[1\]", {"assistants": (large, large())})):
        with pytest.raises(ConfigError, match=rf"`{name}` to be a callable that makes a network, got a"):
            settings(tmp_path, **given)


class Tokens(torch.nn.Module):
    """A causal network."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cells, self.head = (
            torch.nn.Embedding(8, 6),
            torch.nn.GRU(6, 6, batch_first=True),
            torch.nn.Linear(6, 8),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(self.embed(tokens))[0])


def test_rounds_of_other_tasks(tmp_path):
    """A language model, where both sides see the same prefix, and images with their preprocessing."""
    text = TokenDataset.of("text", [TRAIN[row][0] for row in range(30)], vocabulary=8)
    of_text = {"task": CausalLM(8), "data": text, "validation": text, "student": Tokens, "assistants": (Tokens, Tokens)}
    found = run_rounds(settings(tmp_path / "text", **of_text, rounds=1, by="nll"))
    measured = measure_sequences(found.student, text, CausalLM(8), replicates=0)
    assert found.rounds[1]["student"]["nll"] == pytest.approx(measured.metrics["nll"].value, rel=1e-6)
    images = {"task": digits.TASK, "data": digits.TRAIN, "views": digits.views(), "preprocess": digits.to_float}
    images |= {"student": digits.Dropping, "assistants": (digits.Dropping, digits.Dropping)}
    found = run_rounds(settings(tmp_path / "images", **images, validation=digits.TEST, rounds=1))
    assert Book(found.folder / "round-1" / "book").n_views == 2
    assert 0 < found.rounds[1]["ensemble"]["accuracy"] <= 1


def of_pairs():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 10))


def test_tasks_without_one_class_are_refused(tmp_path):
    numbers = {
        "task": Regression(("x",)),
        "data": digits.TRAIN,
        "validation": digits.TEST,
        "preprocess": digits.to_float,
    }
    with pytest.raises(ConfigError, match=r"`task` to be one that method dil-seq2seq serves"):
        settings(tmp_path, **numbers)
    pairs = open_dataset("digits-pairs", limit=20)
    several = {
        **numbers,
        "task": MultiLabel(pairs.class_names),
        "data": pairs,
        "validation": pairs,
        "student": of_pairs,
    }
    with pytest.raises(ConfigError, match=r"`task` to be one of one class a sample or position, got .?multi-label"):
        run_rounds(settings(tmp_path / "several", **several))
    with pytest.raises(ConfigError, match=r"`validation` to be at least one sample, got 0"):
        run_rounds(settings(tmp_path / "several", validation=SubsetDataset(TEST, np.empty(0, np.int64))))
    assert not (tmp_path / "several").exists()
