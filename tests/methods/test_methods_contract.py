"""What every method of the table keeps to."""

from __future__ import annotations

import dataclasses
import importlib
import re

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TEST, run, student, to_float, training, weights
from tests.learning.digits import book as book_of_digits
from tests.losses.cases import V3, Z3
from tests.methods import feature_cases, pixels
from tests.methods.cases import (
    CONTRADICTIONS,
    DEFAULTS,
    GATE_ENTROPY,
    NEEDS,
    REFUSED,
    RELATIONAL,
    SPEECH,
    TOTALS,
    VIEWS,
)
from tests.methods.speech import TWO_FRAMES, learn_tones, speech_total
from tests.methods.speech import book as book_of_tones

from bookkd.core.errors import ConfigError, UnknownNameError
from bookkd.core.fields import IGNORE_LABEL, LABEL, SAMPLE_WEIGHT, WEIGHT
from bookkd.core.protocols import Needs
from bookkd.core.schedules import Clock, Linear
from bookkd.knowledge import StoredKnowledge, Teacher, check_needs
from bookkd.learning import Cohort, Validation
from bookkd.losses import DenseTarget, beta_targets
from bookkd.methods import METHODS, Card, VanillaKD, build_method, method_class
from bookkd.objectives import Objective
from bookkd.shaping import GateTree
from bookkd.tasks import Classification

HEADINGS = ("What it does", "When to use", "Parameters", "What it costs", "What it clashes with", "Source")
STUDENT = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 3.5, -1.0]], dtype=torch.float64)
LABELS = torch.tensor([1])
THREE = Classification(("a", "b", "c"))


DEFAULTS = {**DEFAULTS, **feature_cases.DEFAULTS, **pixels.DEFAULTS}
TOTALS = {**TOTALS, **feature_cases.TOTALS, **pixels.TOTALS}
NEEDS = {**NEEDS, **{name: feature_cases.needs(name) for name in feature_cases.FEATURES}, **pixels.NEEDS}
REFUSED = [*REFUSED, *feature_cases.REFUSED, *pixels.REFUSED]
CONTRADICTIONS = [*CONTRADICTIONS, *feature_cases.CONTRADICTIONS]


def worked_sample(name):
    """Student, teacher and labels of the worked sample, each row once a view."""
    if name in feature_cases.FEATURES:
        rows = len(next(iter(feature_cases.FEATURES[name].values()))[0])
        return STUDENT.repeat(rows, 1), TEACHER.repeat(rows, 1), LABELS.repeat(rows)
    if name not in RELATIONAL:
        return STUDENT, TEACHER, LABELS
    labels = torch.tensor([1, IGNORE_LABEL, IGNORE_LABEL])
    rows = torch.tensor(Z3, dtype=torch.float64), V3, labels
    return tuple(given.repeat_interleave(VIEWS.get(name, 1), 0) for given in rows)


def total(method, student=None, teacher=TEACHER, labels=LABELS, clock=None):
    """The loss of a batch by the method's own objective, in float64; every peer of a cohort says what the student says."""
    if method.name in pixels.PIXELS:
        return pixels.pixel_total(method)
    if method.name in SPEECH:
        return speech_total(method)
    if student is None:
        student, teacher, labels = worked_sample(method.name)
    objective, clock = method.objective(THREE), clock or Clock()
    batch = {LABEL: labels, WEIGHT: torch.ones(len(labels), dtype=torch.float64)}
    batch[SAMPLE_WEIGHT] = batch[WEIGHT]
    weights = THREE.weights(batch)
    fields = {"logits": student, **{f"peers/{i}/logits": student for i in range(method.cohort)}}
    fields["gates/entropy"] = torch.full((len(labels),), GATE_ENTROPY, dtype=torch.float64)
    own = {} if method.name in feature_cases.FEATURES else own_targets(method, batch)
    targets = {"logits": DenseTarget(teacher), **own}
    if method.name in feature_cases.FEATURES:
        mine, theirs = feature_cases.sides(method.name)
        fields, targets = {**fields, **mine}, {**targets, **theirs}
    shapes = {name: tuple(value.shape[1:]) for name, value in fields.items()}
    shapes |= {f"teacher/{name}": tuple(getattr(each, "logits", each).shape[1:]) for name, each in targets.items()}
    for each in objective.connectors:
        module = each.made(shapes, feature_cases.CONSTANTS.get(method.name, {}))
        module = feature_cases.identity(module) if method.name in feature_cases.FEATURES else module
        fields |= each.added(module, fields, targets)
    sums = objective.sums(fields, targets, batch, weights, clock)
    return objective.loss(sums, objective.totals(batch, weights), clock)


def own_targets(method, batch):
    """What the method's own knowledge says: the draw of Beta smoothing is fixed at 0.8, so that the total can be worked."""
    if method.name == "beta-smoothing":
        smoothed = beta_targets(STUDENT.log_softmax(-1), batch[LABEL], torch.full((len(batch[LABEL]),), 0.8).double())
        return {"own/beta": DenseTarget(smoothed.log())}
    sources = method.own_knowledge(None, THREE, None, 0)
    return {name: target for source in sources for name, target in source.targets(batch).items()}


def student_of(name, seed):
    """A small student that the method takes."""
    if name == "kdexplainer":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return GateTree(10, in_channels=1, channels=(8, 8, 4), pool=1, hidden=8)
    return student("digits-small" if name == "vam" or name in feature_cases.FEATURES else "dropping", seed=seed)


def test_table_and_cases_are_one():
    assert set(METHODS) == set(DEFAULTS) == set(NEEDS) == set(TOTALS) == {name for name, *_ in REFUSED}


@pytest.mark.parametrize("name", sorted(METHODS))
class TestEveryMethod:
    def test_is_a_frozen_dataclass_of_its_name(self, name):
        chosen = method_class(name)
        assert chosen.name == name
        assert dataclasses.is_dataclass(chosen)
        method = chosen()
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, dataclasses.fields(method)[0].name, 1)
        assert method == chosen()
        assert hash(method) == hash(chosen())

    def test_defaults_are_those_of_the_card(self, name):
        assert dataclasses.asdict(method_class(name)()) == DEFAULTS[name]

    def test_module_is_its_card(self, name):
        text = importlib.import_module(METHODS[name].partition(":")[0]).__doc__
        places = [text.find(f"\n{heading}: ") for heading in HEADINGS]
        assert min(places) > 0, dict(zip(HEADINGS, places, strict=True))
        assert places == sorted(places)
        for field in dataclasses.fields(method_class(name)):
            assert re.search(rf"\b{field.name}: ", method_class(name).__doc__), field.name

    def test_card_of_the_table(self, name):
        card = method_class(name).card
        assert isinstance(card, Card)
        assert card.status in ("certain", "reconstructed")
        assert all((card.title, card.source, card.needs))

    def test_objective_and_needs(self, name):
        method, task = (
            method_class(name)(),
            TWO_FRAMES if name in SPEECH else pixels.TWO_CLASSES if name in pixels.PIXELS else TASK,
        )
        objective = method.objective(task)
        assert isinstance(objective, Objective)
        fields, dense = NEEDS[name]
        # bookkd shows the entropy of the teacher, uld sorts it, ccskd asks whether it is right: draws would bias all of them.
        more = {"nonlinear": ("logits",)} if name in ("bookkd", "ccskd", "uld") else {}
        more |= {"validation": True} if name == "adaptive-label-smoothing" else {}
        constants = tuple(feature_cases.CONSTANTS.get(name, ()))
        more |= {"constants": constants} if constants else {}
        assert method.needs(task) == Needs(fields=fields, dense=dense, views_per_sample=VIEWS.get(name, 1), **more)
        assert {name: at for name, at in objective.needs().items() if not name.startswith("own/")} == fields
        assert len(method.handlers()) == (name == "kdexplainer")  # which cools its gates

    def test_total_on_the_worked_sample(self, name):
        # Cards give six digits, of which a large weight leaves fewer.
        weight = {**feature_cases.DEFAULTS, **pixels.DEFAULTS}.get(name, {}).get("weight", 1.0)
        scale = 10.0 if name == "ccskd" else max(1.0, weight)
        assert total(method_class(name)()).item() == pytest.approx(TOTALS[name], abs=1e-6 * scale)

    def test_presets_build(self, name):
        for preset, values in method_class(name).presets.items():
            method = build_method(name, preset)
            # A schedule is a dataclass of its own.
            given = {
                key: dataclasses.asdict(each) if dataclasses.is_dataclass(each) else each
                for key, each in values.items()
            }
            assert {**DEFAULTS[name], **given} == dataclasses.asdict(method)
            assert torch.isfinite(total(method))

    @pytest.mark.filterwarnings("ignore:method .* gives labels no weight:UserWarning")  # of those that begin without
    def test_learns_on_the_digits(self, name, stored, tmp_path):
        method = method_class(name)()
        if name in pixels.PIXELS:
            pixels.learn_shapes(method, tmp_path)
            return
        if name in SPEECH:
            learn_tones(method, book_of_tones(tmp_path))
            return
        inside = [field for field in method.needs(TASK).fields if field.startswith("features/")]
        # fsp compares products of channels, and so wants a teacher of the student's widths.
        speaker = {"teacher": Teacher(student("digits-small", seed=9), to_float)} if name == "fsp" else {}
        path = book_of_digits(tmp_path / "book", serve=[method], **speaker).path if inside else stored
        knowledge = StoredKnowledge(path)
        check_needs(method.needs(TASK), knowledge, name)
        peers = [student_of(name, seed) for seed in range(method.cohort)]
        before = [weights(peer) for peer in peers]
        network = peers[0] if method.cohort == 1 else Cohort(peers)
        learned = run(
            None,
            method=method,
            knowledge=knowledge,
            training=training(epochs=2, batch_size=30),
            network=network,
            validation=Validation(TEST) if method.needs(TASK).validation else None,
        )
        # 60 samples: two whole batches a view, so that methods that relate the rows of a batch see all of them.
        assert learned.history[-1]["step"] == 4 * VIEWS.get(name, 1)
        # simkd keeps another network, around the one that was given.
        assert [getattr(learned.student, "trunk", learned.student), *learned.peers] == peers
        for peer, old in zip(peers, before, strict=True):
            assert any(not torch.equal(value, old[key]) for key, value in peer.state_dict().items())

    def test_an_unknown_option_lists_the_nearest(self, name):
        option = dataclasses.fields(method_class(name))[0].name
        with pytest.raises(ConfigError, match=rf"option of method {name}, got '{option}s'\. Nearest: {option}"):
            build_method(name, **{f"{option}s": 1})

    def test_an_unknown_preset_lists_the_nearest(self, name):
        preset = next(iter(method_class(name).presets))
        with pytest.raises(
            UnknownNameError, match=rf"Unknown preset '{preset}x' \(method {name}\)\. Nearest: {preset}"
        ):
            build_method(name, f"{preset}x")


@pytest.mark.parametrize(("name", "option", "value", "match"), REFUSED)
def test_options_out_of_range_are_refused(name, option, value, match):
    with pytest.raises(ConfigError, match=match):
        build_method(name, **{option: value})


@pytest.mark.parametrize(("name", "options", "match"), CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(name, options, match):
    with pytest.raises(ConfigError, match=match):
        build_method(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beta-smoothing", {"confidence": "book", "momentum": 0.999}),
        ("bookkd", {"learn_scale": False, "scale_lr": 0.05}),
        ("bookkd", {"ce_weight": 0.0}),
        ("bookkd", {"ce_weight": 0.0, "label_smoothing": 0.0}),
        ("extractive-kd", {"share": 0.0, "rank": 1}),
    ],
)
def test_a_default_contradicts_nothing(name, options):
    method = build_method(name, **options)
    assert {key: getattr(method, key) for key in options} == options


def test_an_unknown_method_lists_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown method 'vanila-kd'\. Nearest: vanilla-kd, "):
        build_method("vanila-kd")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "class D: pass",
            "got one without name, card, presets, cohort, passes, objective, needs, handlers, own_knowledge, shape",
        ),
        (
            "D = 3",
            "got one without name, card, presets, cohort, passes, objective, needs, handlers, own_knowledge, shape",
        ),
        ("from bookkd.methods import Supervised\nD = Supervised()", "got something else"),
    ],
)
def test_what_is_no_method_is_refused(tmp_path, monkeypatch, text, match):
    name = f"no_method_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"Expected `method` to be a dataclass with .*{match} \({name}:D\)"):
        build_method(f"{name}:D")


def test_a_method_of_a_users_own(tmp_path, monkeypatch, stored):
    (tmp_path / "my_methods.py").write_text(
        "from dataclasses import dataclass\n"
        "from bookkd.methods import VanillaKD\n"
        "@dataclass(frozen=True)\n"
        "class Halved(VanillaKD):\n"
        "    share: float = 0.5\n"
        "    name = 'halved'\n"
        "    def objective(self, task):\n"
        "        from bookkd.objectives import Objective, weighted\n"
        "        terms = super().objective(task).terms\n"
        "        return Objective((weighted(terms[-1], self.share),))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = build_method("my_methods:Halved", share=0.25)
    assert float(total(method)) == pytest.approx(0.25 * 0.636975, abs=1e-6)
    learned = run(None, method=method, knowledge_of=stored, training=training(epochs=1))
    record = learned.history[0]
    assert record["train/loss"] == pytest.approx(0.25 * record["train/soft_target"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"got 'shares'\. Nearest: share"):
        build_method("my_methods:Halved", shares=1)
    with pytest.raises(
        ConfigError, match=r"'my_methods:Halve' to exist, got no 'Halve' in my_methods\. Nearest: Halved"
    ):
        build_method("my_methods:Halve")


def test_a_scheduled_weight_and_temperature():
    method = VanillaKD(ce_weight=1.0, kd_weight=Linear(0.0, 1.0), temperature=Linear(4.0, 1.0))
    assert method.needs(TASK) == Needs(fields={"logits": ()}, dense=("logits",))
    # Weight 0 of the soft term: cross-entropy alone. At the end: T = 1.
    assert float(total(method, clock=Clock(0, 0, 10))) == pytest.approx(0.464369, abs=1e-6)
    assert float(total(method, clock=Clock(10, 1, 10))) == pytest.approx(0.464369 + 0.136520, abs=1e-6)


def test_channel_wise_distillation_leaves_void_pixels_out():
    labels, louder = (0, 0, 0, -1), pixels.F_T + np.array([[0, 0, 0, 9], [0, 0, 0, 0]])
    totals = [
        [
            pixels.pixel_total(build_method("cwd", preset, ce_weight=0.0), labels, said).item()
            for said in (pixels.F_T, louder)
        ]
        for preset in (None, "released")
    ]
    assert totals[0][0] == pytest.approx(totals[0][1], abs=1e-12)
    assert totals[0][0] > 0
    assert abs(totals[1][0] - totals[1][1]) > 0.01
