"""Learning from what is inside of a teacher: connectors in the shapes of both sides, from books as from live teachers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from tests.learning.digits import StopError, assert_equal, stopped_after, without_seconds
from torch import nn

from bookkd.book import Dense, Int8
from bookkd.core.errors import ConfigError
from bookkd.core.fields import SAMPLE_WEIGHT
from bookkd.core.schedules import Clock, During, Linear
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, constants
from bookkd.learning import Cohort, Learner, LearningWarning, Step, Training, learn, learner_for, offer_needs
from bookkd.learning.configuration import silent_labels
from bookkd.losses import claims, nst
from bookkd.making import make
from bookkd.methods import build_method
from bookkd.methods.base import BaseMethod, Card
from bookkd.objectives import Connector, ConnectorModule, Objective, bind, weighted
from bookkd.tasks import Classification
from bookkd.views import Replay, Views
from bookkd.zoo.resnet import resnet8

CLASSES = tuple("abcd")
TASK, VIEWS = Classification(CLASSES), Views(None, n_views=1)


@claims()
def distance(student, teacher):
    """Mean squared error of each sample."""
    return (student - teacher).square().flatten(1).mean(1)


class Fit(ConnectorModule):
    def __init__(self, mine, theirs):
        super().__init__()
        self.fit = nn.Conv2d(mine, theirs, 1)

    def forward(self, features):
        return self.fit(features)


class Embed(ConnectorModule):
    """Embeds both sides, as methods do whose teacher's side is trained too."""

    def __init__(self, mine, theirs):
        super().__init__()
        self.mine, self.theirs = nn.Linear(mine, 3), nn.Linear(theirs, 3)

    def forward(self, student, teacher):
        return self.mine(student), self.theirs(teacher)


@dataclass(frozen=True)
class Hint(BaseMethod):
    layer: str = "last"
    name: ClassVar[str] = "hint"
    card: ClassVar[Card] = Card("a hint", "none", "features", "certain")

    def objective(self, task):
        maps = f"features/{self.layer}"
        fit = Connector("fit", maps, "fitted", lambda s: Fit(s[maps][0], s[f"teacher/{maps}"][0]), weight_decay=None)
        both = Connector(
            "embed", ("features/pooled", "teacher/features/pooled"), ("mine", "theirs"),
            lambda s: Embed(s["features/pooled"][0], s["teacher/features/pooled"][0]),
        )  # fmt: skip
        terms = (
            bind(distance, "fitted", teacher=maps, name="hint", over=SAMPLE_WEIGHT),
            bind(distance, "mine", teacher="theirs", own=True, gradient=True, name="both", over=SAMPLE_WEIGHT),
            task.label_term(weight=1.0, label_smoothing=0.0),
        )
        return Objective(terms, (fit, both))


class Images(torch.utils.data.Dataset):
    name, class_names = "images", CLASSES

    def __len__(self):
        return 12

    def __getitem__(self, row):
        generator = torch.Generator().manual_seed(row)
        return torch.rand(3, 8, 8, generator=generator), row % 4


def network(seed, width):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet8(n_classes=4, width=width)


@pytest.fixture(scope="module")
def teacher():
    return Teacher(network(0, 6))


@pytest.fixture(scope="module")
def book(teacher, tmp_path_factory):
    names = list(Hint().needs(TASK).fields)
    assert sorted(names) == ["features/last", "features/pooled"]
    path = tmp_path_factory.mktemp("books") / "b"
    return make(path, teacher, Images(), VIEWS, task=TASK, features=names, feature_codec=Dense("float32"))


def trained(knowledge, **changes):
    student = network(1, 4)
    torch.manual_seed(7)
    training = Training(epochs=2, batch_size=6, lr=0.05, accelerator="cpu", seed=3)
    return learn(student, Images(), VIEWS, task=TASK, method=Hint(), knowledge=knowledge, training=training, **changes)


def test_a_book_teaches_what_a_live_teacher_teaches(book, teacher):
    live, stored = (trained(each) for each in (LiveKnowledge(teacher, TASK), StoredKnowledge(book)))
    assert (live.teacher_forwards, stored.teacher_forwards) == (24, 0)
    for one, two in zip(live.student.parameters(), stored.student.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks for module in stored.student.modules())
    assert {name for name in stored.student.state_dict() if "fit" in name or "embed" in name} == set()


def test_gradients_reach_connectors_on_both_sides_and_no_teacher(book):
    method, knowledge, replay = Hint(), StoredKnowledge(book), Replay(Images(), VIEWS)
    offer_needs(method, TASK, knowledge, replay)
    learner = learner_for(network(1, 4), TASK, method, replay=replay, knowledge=knowledge)
    batch = replay.batch([(row, 0) for row in range(6)])
    Step(method.objective(TASK), TASK, knowledge).loss(learner, batch, Clock()).loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learner.parts.parameters()
    )
    said = learner.eval()(batch)
    assert "fitted" in said
    assert "mine" not in said  # connectors of the teacher's fields are left out where nobody teaches


@pytest.fixture(scope="module")
def served(teacher, tmp_path_factory):
    """A book with what a few methods read, and the method of each."""
    methods = {
        "hint": Hint(),
        "crd": build_method("crd", negatives=5),
        "vid": build_method("vid"),
        "reviewkd": build_method("reviewkd", width=8),
    }
    path = tmp_path_factory.mktemp("books") / "served"
    return make(path, teacher, Images(), VIEWS, task=TASK, serve=list(methods.values())), methods


@pytest.mark.parametrize("name", ["hint", "crd", "vid", "reviewkd"])
def test_a_killed_run_goes_on_to_the_same_weights(served, tmp_path, monkeypatch, name):
    """Connectors are in the checkpoint, and which records a step contrasts is a matter of the step."""
    book, methods = served

    def trained(out):
        training = Training(epochs=3, batch_size=6, lr=0.05, accelerator="cpu", seed=3)
        knowledge = StoredKnowledge(book)
        return learn(
            network(1, 4), Images(), VIEWS, task=TASK, method=methods[name], knowledge=knowledge, training=training, out=out
        )  # fmt: skip

    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(StopError):
            trained(tmp_path / "cut")
    gone_on = trained(tmp_path / "cut")
    assert_equal(gone_on.student, whole.student)
    assert without_seconds(gone_on.history) == without_seconds(whole.history)


INSIDE = [
    "ab", "at", "cc", "ccskd", "crd", "fitnets", "fsp", "ft", "nst", "ofd", "pkt", "reviewkd", "rkd", "simkd", "sp", "vid",
]  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_losses_of_stored_features_are_those_of_live_ones(teacher, tmp_path, monkeypatch, name):
    """Within the error of their codec, term by term."""
    monkeypatch.setattr(constants, "STEPS", 3)
    method = build_method(name, **({"negatives": 0} if name == "crd" else {}))
    terms = []
    for codec in (None, Dense("float16"), Int8()):
        knowledge = LiveKnowledge(Teacher(teacher.network), TASK)
        if codec is not None:
            knowledge = StoredKnowledge(
                make(tmp_path / codec.name, Teacher(teacher.network), Images(), VIEWS, task=TASK, serve=[method],
                     codec=Dense("float32"), feature_codec=codec, batch_size=6)
            )  # fmt: skip
        replay = Replay(Images(), VIEWS)
        offer_needs(method, TASK, knowledge, replay)
        torch.manual_seed(3)
        learner = learner_for(network(1, 6), TASK, method, replay=replay, knowledge=knowledge)
        batch = replay.batch([(row, 0) for row in range(8)])
        found = Step(method.objective(TASK), TASK, knowledge).loss(learner, batch, Clock())
        terms.append({name: float(value) for name, value in found.terms.items()})
    live, half, int8 = terms
    assert len(live) >= 1
    assert half == pytest.approx(live, rel=2e-3, abs=1e-4)
    assert int8 == pytest.approx(live, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("name", ["vid", "reviewkd", "crd"])
def test_connectors_begin_as_the_seed_says(served, name):
    """And not as what was drawn before in the process, which a sweep may do in any order."""
    book, methods = served

    def trained(seed):
        torch.rand(7)
        training = Training(epochs=1, batch_size=6, lr=0.05, accelerator="cpu", seed=seed)
        return learn(
            network(1, 4), Images(), VIEWS, task=TASK, method=methods[name], knowledge=StoredKnowledge(book), training=training
        ).student.state_dict()  # fmt: skip

    one, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(one[key], again[key]) for key in one)
    # The order of the samples is another, too; what the connectors begin with is seen in the learner.
    parts = [
        learner_for(
            network(1, 4), TASK, methods[name], replay=Replay(Images(), VIEWS), knowledge=StoredKnowledge(book), seed=seed
        ).parts.state_dict()
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert all(torch.equal(parts[0][key], parts[1][key]) for key in parts[0])
    assert any(not torch.equal(parts[0][key], parts[2][key]) for key in parts[0])
    assert other.keys() == one.keys()


def test_a_learner_that_knows_nothing_of_the_inside_is_refused(served):
    book, methods = served
    batch, knowledge = Replay(Images(), VIEWS).batch([(0, 0), (1, 0)]), StoredKnowledge(book)
    for name, lacking in (("hint", "features/last"), ("vid", "features/stage1")):
        step = Step(methods[name].objective(TASK), TASK, knowledge)
        said = rf"`learner` to be built for {lacking}, which the objective looks at, got .*learner_for"
        with pytest.raises(ConfigError, match=said):
            step.loss(Learner(network(1, 4), TASK), batch, Clock())


@pytest.mark.parametrize("names", ["stage2/mean", ["features/stage2/mean", "nonsense"]])
def test_what_is_no_field_is_not_kept_as_nothing(teacher, tmp_path, names):
    with pytest.raises(ConfigError, match="`field` to be features/LAYER or features/LAYER/REDUCTION"):
        make(tmp_path / "book", teacher, Images(), VIEWS, task=TASK, features=names)
    assert not (tmp_path / "book").exists()


def test_one_name_is_one_name(teacher, tmp_path):
    one = make(tmp_path / "one", teacher, Images(), VIEWS, task=TASK, features="features/stage2/mean", serve="at")
    assert sorted(one.fields)[:2] == ["features/stage1/attention", "features/stage2/attention"]
    assert "features/stage2/mean" in one.fields


class Staged(nn.Module):
    """Convolutions one behind the other, each a stage."""

    def __init__(self, *widths):
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairs)
        self.linear = nn.Linear(widths[-1], 4)
        self.feature_layers = {f"stage{place}": f"stages.{place - 1}" for place in range(1, len(widths) + 1)}

    def forward(self, images):
        for stage in self.stages:
            images = stage(images)
        return self.linear(images.mean((2, 3)))


def test_every_stage_is_looked_at_that_both_networks_have(tmp_path):
    """Card ccskd: 64 + 128 + 256 + 512 channel means of a ResNet-34, 1,920 bytes as float16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        four, three = Staged(64, 128, 256, 512), Staged(4, 4, 4)
    book = make(tmp_path / "book", Teacher(four), Images(), VIEWS, task=TASK, serve=["ccskd"])
    plans = {name: plan for name, plan in book.fields.items() if name.startswith("features/")}
    assert list(plans) == [f"features/stage{stage}/mean" for stage in (1, 2, 3, 4)]
    assert sum(plan.bytes_per_record for plan in plans.values()) == 1920

    def terms(student, **options):
        method = build_method("ccskd", "labels-from-the-start", **options)
        training = Training(epochs=1, batch_size=6, accelerator="cpu")
        history = learn(
            student, Images(), VIEWS, task=TASK, method=method, knowledge=StoredKnowledge(book), training=training
        ).history
        return {name.rpartition("stage")[2] for name in history[-1] if "stage" in name}

    assert terms(Staged(4, 4, 4, 4)) == {"1", "2", "3", "4"}
    assert terms(Staged(4, 4, 4, 4), layers=("stage2",)) == {"2"}
    assert terms(three) == {"1", "2", "3"}


def test_another_layer_of_the_student_is_taken_by_name(book):
    with pytest.raises(ConfigError, match=r"`module path` to be one of student CifarResNet, got last, which is layer9"):
        trained(StoredKnowledge(book), layers={"last": "layer9"})
    with pytest.raises(ConfigError, match=r"got 'nowhere' \(features/nowhere\)"):
        learn(
            network(1, 4), Images(), VIEWS, task=TASK, method=Hint("nowhere"), knowledge=LiveKnowledge(Teacher(network(0, 6)), TASK),
            training=Training(epochs=1, batch_size=6, accelerator="cpu"),
        )  # fmt: skip


def test_features_are_read_of_one_student(book):
    class Pair(Hint):
        cohort = 2

    with pytest.raises(ConfigError, match=r"`students` to be one, to read features/last of it, got 2"):
        learn(
            Cohort([network(1, 4), network(2, 4)]), Images(), VIEWS, task=TASK, method=Pair(), knowledge=StoredKnowledge(book),
            training=Training(epochs=1, batch_size=6, accelerator="cpu"),
        )  # fmt: skip


def learnt(method, book, epochs=1):
    training = Training(epochs=epochs, batch_size=6, accelerator="cpu")
    return learn(network(1, 4), Images(), VIEWS, task=TASK, method=method, knowledge=book, training=training)


def test_shapes_that_do_not_fit_are_refused_before_the_first_batch(book, teacher, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"`features/last` to be of a shape that fits the teacher's \[24, 2, 2\], got \[16, 2, 2\] of the student "
        r"\(method hint, term plain\)",
    ):
        learnt(Plain(), StoredKnowledge(book))
    assert learnt(Plain(of=nst), StoredKnowledge(book)).epoch == 1  # which takes other channels


@dataclass(frozen=True)
class Plain(Hint):
    of: object = distance

    def objective(self, task):
        maps = "features/last"
        own = bind(self.of, maps, teacher=maps, name="plain", over=SAMPLE_WEIGHT)
        return Objective((own, task.label_term(weight=1.0, label_smoothing=0.0)))


@pytest.mark.parametrize(
    ("name", "options", "do"),
    [
        ("fsp", {}, "--method.begin_epochs below 1 or more"),
        ("ccskd", {}, "--method.preset labels-from-the-start or more"),
    ],
)
def test_a_run_that_ends_before_its_labels_begin_says_so(name, options, do):
    method = build_method(name, **options)
    live = LiveKnowledge(Teacher(network(0, 4)), TASK)
    with pytest.warns(LearningWarning, match=f"method {name} gives labels no weight in any of the 1 epochs.*{do}"):
        learned = learnt(method, live)
    assert do in learned.notes[0]


def test_what_learns_labels_in_time_or_not_at_all_says_nothing():
    for method in (
        build_method("fsp", begin_epochs=1),
        build_method("fsp", ce_weight=0.0),
        build_method("ccskd", "clean"),
    ):
        assert silent_labels(method, method.objective(TASK), 61) == ""
    ramped = build_method("vanilla-kd", ce_weight=Linear(0.0, 1.0))
    assert silent_labels(ramped, ramped.objective(TASK), 1) == ""


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_what_only_the_beginning_reads_is_not_read_after_it(name, monkeypatch):
    """Neither asked of the teacher nor fitted, so that infinite features do no harm then; records have no figure of it."""
    asked, real = [], LiveKnowledge.targets

    def targets(self, batch, fields):
        said = real(self, batch, fields)
        asked.append(tuple(fields))
        after = len(asked) > 2
        return {field: torch.full_like(value, torch.inf) if after else value for field, value in said.items()}

    monkeypatch.setattr(LiveKnowledge, "targets", targets)
    fitted, forward = [], ConnectorModule.__call__

    def counted(self, *given):
        fitted.append(len(asked))
        return forward(self, *given)

    monkeypatch.setattr(ConnectorModule, "__call__", counted)
    learned = learnt(
        build_method(name, begin_epochs=1), LiveKnowledge(Teacher(network(0, 6 if name == "ab" else 4)), TASK), 2
    )
    first, second = learned.history
    assert len(asked) == 2  # batches of the first epoch
    assert all(read and all(field.startswith("features/") for field in read) for read in asked)
    assert max(fitted, default=0) <= 2
    own = {"ab": "boundary", "fsp": "flow"}[name]
    assert [key for key in first if "/" in key and own not in key] == ["train/loss"]
    assert {key for key in second if "/" in key} == {"train/cross_entropy", "train/loss"}
    assert all(torch.isfinite(value).all() for value in learned.student.state_dict().values())


def test_what_is_idle_has_a_gradient_of_zero(book):
    """So that weight decay and momentum act on it as where it is worked out, and processes wait for none."""
    method, knowledge, replay = Hint(), StoredKnowledge(book), Replay(Images(), VIEWS)
    offer_needs(method, TASK, knowledge, replay)
    learner = learner_for(network(1, 4), TASK, method, replay=replay, knowledge=knowledge)
    objective = method.objective(TASK)
    terms = tuple(
        weighted(term, During(1.0, 1, None)) if term.name != "cross_entropy" else term for term in objective.terms
    )
    step = Step(replace(objective, terms=terms), TASK, knowledge)
    losses = step.loss(learner, replay.batch([(row, 0) for row in range(6)]), Clock())
    assert list(losses.terms) == ["cross_entropy"]
    losses.loss.backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    assert all(not parameter.grad.any() for parameter in learner.parts.parameters())
    assert learner.student.linear.weight.grad.any()
