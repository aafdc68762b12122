"""What a book says is what the teacher said, within the error that the codec states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, book, teacher, to_float, views

from bookkd.book import Argmax, BookWriter, Dense, FieldPlan, Int8, Plan, Pooled, Sampled, TopK
from bookkd.core.errors import ConfigError, FidelityError, UnknownNameError, ViewMismatchError
from bookkd.core.fields import INPUT, SAMPLE, VIEW, FieldInfo
from bookkd.core.protocols import Knowledge, Needs
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, check_fields, check_needs
from bookkd.losses import ClassTarget, DenseTarget, SampledTarget, SparseTarget
from bookkd.methods import Supervised, VanillaKD
from bookkd.views import Pick, Replay, collate
from bookkd.zoo import create_preprocess

PICKS = [Pick(sample, view) for sample, view in zip(range(0, 60, 2), [0, 1] * 15, strict=True)]
LIVE = LiveKnowledge(teacher(), TASK)


def sharp_teacher():
    """A teacher that is as sure of itself as a trained one: untrained logits differ too little to test a codec."""
    speaker = teacher()
    with torch.no_grad():
        speaker.network.linear.weight.mul_(12)
    return speaker


@pytest.fixture(scope="module")
def batch():
    return collate([Replay(TRAIN, views())[pick] for pick in PICKS])


def loss(knowledge, batch, temperature):
    objective = VanillaKD(temperature=temperature).objective(TASK)
    student = torch.randn(len(PICKS), 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = TASK.weights(batch)
    targets = knowledge.targets(batch, ["logits"])
    sums = objective.sums({"logits": student}, targets, batch, weights, Clock())
    return float(objective.loss(sums, objective.totals(batch, weights), Clock()))


@pytest.mark.parametrize(
    ("codec", "tolerance"),
    [(Dense("float32"), 1e-6), (Dense(), 1e-3), (Int8(), 1e-2), (TopK(10, (1.0, 4.0)), 1e-2)],
    ids=["float32", "float16", "int8", "top-k"],
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_stored_and_live_give_the_same_loss(tmp_path, batch, codec, tolerance, temperature):
    speaker = sharp_teacher()
    stored = StoredKnowledge(book(tmp_path / "book", teacher=speaker, codec=codec))
    live = loss(LiveKnowledge(speaker, TASK), batch, temperature)
    assert loss(stored, batch, temperature) == pytest.approx(live, rel=tolerance)


def test_top_k_loss_is_that_of_classes_and_rest(tmp_path, batch):
    """Independent reference: KL over the three kept classes and one bucket for the rest, from the teacher's own logits."""
    speaker = sharp_teacher()
    stored = StoredKnowledge(book(tmp_path / "book", teacher=speaker, codec=TopK(3, (1.0, 4.0))))
    (target,) = stored.targets(batch, ["logits"]).values()
    assert isinstance(target, SparseTarget)
    temperature = 4.0
    with torch.no_grad():
        logits = speaker(batch[INPUT]).double()
    student = torch.randn(len(PICKS), 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept = logits.topk(3).indices
    assert (kept.sort().values == target.indices.sort().values).all()

    def bucketed(values):
        inside = (values / temperature).softmax(-1).gather(-1, kept)
        return torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1)

    p, q = bucketed(logits), bucketed(student)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    objective = VanillaKD(temperature=temperature, kd_weight=1.0, ce_weight=0.0).objective(TASK)
    weights = TASK.weights(batch)
    sums = objective.sums({"logits": student}, {"logits": target}, batch, weights, Clock())
    assert float(sums.sum() / weights.sum()) == pytest.approx(float(expected), rel=1e-3)


def test_targets_are_the_teachers_logits(tmp_path, batch):
    stored = StoredKnowledge(book(tmp_path / "book", codec=Dense("float32")))
    assert isinstance(stored, Knowledge)
    assert isinstance(LIVE, Knowledge)
    said, spoken = stored.targets(batch)["logits"], LIVE.targets(batch)["logits"]
    assert isinstance(said, DenseTarget)
    assert not spoken.logits.requires_grad
    assert not spoken.logits.is_inference()
    torch.testing.assert_close(said.logits, spoken.logits, rtol=1e-5, atol=1e-6)
    assert stored.fields["logits"] == FieldInfo((10,))
    assert set(stored.fields) == {"logits"}
    with pytest.raises(UnknownNameError, match=r"Unknown field 'logit'\. Nearest: logits"):
        stored.targets(batch, ["logit"])
    with pytest.raises(UnknownNameError, match=r"Unknown field 'features'"):
        LIVE.targets(batch, ["features"])


def test_teacher_forwards(tmp_path, batch):
    knowledge = LiveKnowledge(teacher(), TASK)
    knowledge.targets(batch)
    knowledge.targets(batch)
    assert knowledge.teacher_forwards == 2 * len(PICKS)
    stored = StoredKnowledge(book(tmp_path / "book"))
    stored.targets(batch)
    assert stored.teacher_forwards == 0


def test_a_view_that_the_teacher_did_not_see_is_refused_in_a_batch(tmp_path, batch):
    stored = StoredKnowledge(book(tmp_path / "book"))
    stored.targets(batch)
    swapped = {**batch, SAMPLE: batch[SAMPLE].flip(0)}
    with pytest.raises(ViewMismatchError, match=r"got another one in \d+ of 30 records, first sample 58, view"):
        stored.targets(swapped)
    moved = {**batch, VIEW: 1 - batch[VIEW]}
    with pytest.raises(ViewMismatchError, match="Expected the replayed view to be the input that the teacher saw"):
        stored.targets(moved)
    unproven = {key: value for key, value in swapped.items() if not key.startswith("probe")}
    assert stored.targets(unproven)["logits"].logits.shape == (30, 10)


def test_a_teacher_stays_in_evaluation_mode(batch):
    speaker = Teacher(teacher().network, to_float)
    expected = speaker(batch[INPUT])
    before = {name: value.clone() for name, value in speaker.network.state_dict().items()}
    speaker.network.train()
    torch.testing.assert_close(speaker(batch[INPUT]), expected, rtol=0, atol=0)
    for name, value in speaker.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in speaker.network.parameters())


def test_a_teacher_describes_itself():
    speaker = teacher()
    assert speaker.parameters == 94_410
    # Weights in float32, running means and variances too, and three counters of 8 bytes.
    assert speaker.bytes == 4 * (94_410 + 2 * (32 + 64 + 128)) + 3 * 8
    assert speaker.digest == teacher().digest != teacher(seed=1).digest


STORED = type("Stored", (), {"fields": {"logits": FieldInfo((10,), True, (1.0, 4.0))}})


@pytest.mark.parametrize(
    ("needs", "knowledge", "error", "match"),
    [
        (Needs({"logits": (4.0,)}), None, ConfigError, r"knowledge of logits for method m, got none\. Pass a book"),
        (Needs(live_teacher=True), None, ConfigError, r"knowledge of a live teacher for method m, got none"),
        (Needs(live_teacher=True), STORED, ConfigError, r"a live teacher for method m, got a book"),
        (
            Needs({"features/layer1": ()}),
            STORED,
            ConfigError,
            r"field 'features/layer1' for method m, got logits\. Make a book that holds it: bookkd make \.\.\. --features features/layer1",
        ),
        (
            Needs({"mean": ()}),
            STORED,
            ConfigError,
            r"field 'mean' .* got logits\. .*: bookkd make \.\.\. --task regression",
        ),
        (Needs({"logits": (2.0,)}), STORED, FidelityError, r"honour temperature 2 .* promises 1, 4\. Use one of these"),
        (Needs({"logits": (4.0,)}, dense=("logits",)), STORED, FidelityError, r"'logits' to be dense for method m"),
        (
            Needs(dense=("logits",), fields={"logits": ()}),
            STORED,
            FidelityError,
            r"bookkd make \.\.\. --codec dense, or --codec int8",
        ),
    ],
)
def test_needs_that_are_not_met(needs, knowledge, error, match):
    with pytest.raises(error, match=match):
        check_needs(needs, knowledge, "m")


def test_needs_that_are_met():
    check_needs(Needs(), None, "m")
    check_needs(Needs({"logits": (1.0, 4.0)}), STORED, "m")
    check_needs(Needs({"logits": (7.0,)}), LIVE, "m")
    check_needs(Needs(live_teacher=True), LIVE, "m")
    check_needs(Supervised().needs(TASK), STORED, "m")


def test_a_sparse_book_refuses_what_it_cannot_honour(tmp_path):
    stored = StoredKnowledge(book(tmp_path / "book", codec=TopK(3, (1.0, 4.0))))
    check_needs(VanillaKD(temperature=4.0).needs(TASK), stored, "vanilla-kd")
    with pytest.raises(FidelityError, match="honour temperature 3 for method vanilla-kd"):
        check_needs(VanillaKD(temperature=3.0).needs(TASK), stored, "vanilla-kd")
    with pytest.raises(FidelityError, match="dense for method vanilla-kd, got a sparse codec"):
        check_needs(VanillaKD(soft_loss="mse", class_reduction="mean").needs(TASK), stored, "vanilla-kd")


def test_rows_of_unknown_labels_still_have_targets(tmp_path, batch):
    stored = StoredKnowledge(book(tmp_path / "book"))
    said = stored.targets({**batch, "label": torch.full((30,), -1)})["logits"]
    assert np.isfinite(said.logits.numpy()).all()


def test_a_teacher_says_how_it_runs():
    network = teacher().network
    assert Teacher(network).mode == "eval"
    assert Teacher(network, to_float).mode == "eval, tests.learning.digits:to_float"
    assert Teacher(network, create_preprocess("digits-large")).mode.startswith("eval, Preprocess(mean=")


def test_draws_and_classes_are_targets_of_their_own(tmp_path, batch):
    spoken = LIVE.targets(batch)["logits"].logits
    stored = StoredKnowledge(book(tmp_path / "drawn", codec=Sampled(4096)))
    said = stored.targets(batch)["logits"]
    assert isinstance(said, SampledTarget)
    # The variance of a share is p (1 - p) / draws.
    assert (said.probabilities() - spoken.softmax(-1)).abs().max() < 5 * math.sqrt(0.25 / 4096)
    assert said.noise == stored.book.fidelity["logits"]["temperatures"]["1"]["gradient_error"] > 0
    hard = StoredKnowledge(book(tmp_path / "hard", codec=Argmax())).targets(batch)["logits"]
    assert isinstance(hard, ClassTarget)
    assert hard.classes.tolist() == spoken.argmax(-1).tolist()


def test_refusals_tell_what_was_measured(tmp_path):
    few = StoredKnowledge(book(tmp_path / "few", codec=TopK(2, (1.0,))))
    kept = few.book.fidelity["logits"]["unpromised"]["4"]["kept_mass"]
    error = few.book.fidelity["logits"]["temperatures"]["1"]["gradient_error"]
    with pytest.raises(FidelityError, match=f"promises 1 and keeps {kept:.3g} of the mass at 4"):
        check_needs(VanillaKD(temperature=4.0).needs(TASK), few, "m")
    with pytest.raises(
        FidelityError, match=f"dense for method m, .*at temperature 1, as measured while making: {error:.2g}"
    ):
        check_needs(VanillaKD(temperature=1.0, soft_loss="mse", class_reduction="mean").needs(TASK), few, "m")
    with pytest.raises(FidelityError, match=f"got 4, where the kept classes have {kept:.3g} of the mass"):
        few.targets({"sample": torch.arange(2), "view": torch.zeros(2, dtype=torch.int64)})["logits"].log_tail(4.0)

    drawn = StoredKnowledge(book(tmp_path / "drawn", codec=Sampled(20)))
    noise = drawn.book.fidelity["logits"]["temperatures"]["1"]["gradient_error"]
    check_needs(VanillaKD(temperature=1.0).needs(TASK), drawn, "m")
    with pytest.raises(FidelityError, match=r"honour temperature 4 .* promises 1 and keeps"):
        check_needs(VanillaKD(temperature=4.0).needs(TASK), drawn, "m")
    with pytest.raises(FidelityError, match=f"not linear in it, got draws, .*noise .* making: {noise:.2g}"):
        check_needs(Needs({"logits": (1.0,)}, nonlinear=("logits",)), drawn, "m")
    check_needs(Needs({"logits": (1.0,)}, nonlinear=("logits",)), few, "m")

    hard = StoredKnowledge(book(tmp_path / "hard", codec=Argmax()))
    with pytest.raises(FidelityError, match=r"likeliest classes, which agree with it in 1\.0000 of the records"):
        check_needs(VanillaKD(temperature=1.0).needs(TASK), hard, "m")


def test_an_edition_that_tells_something_else_spoils_no_refusal():
    odd = {"temperatures": [], "unpromised": {"4": {"kept_mass": "all"}}, "top1_agreement": None}
    for sparse in (False, True):
        info = FieldInfo((10,), True, (1.0,), hard=sparse, measured=odd)
        with pytest.raises(FidelityError):
            check_fields(Needs({"logits": (4.0,)}), {"logits": info}, "m")


def test_a_student_learns_from_draws(tmp_path, batch):
    """The term of vanilla distillation, from draws: its gradient is near the live one, and nearer with more draws."""
    term = next(term for term in VanillaKD(temperature=1.0).objective(TASK).terms if term.teacher)
    student = torch.randn(30, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    clock = Clock()

    def slope(knowledge):
        value = term.value({"logits": student}, knowledge.targets(batch), batch, clock).mean()
        return torch.autograd.grad(value, student)[0]

    true = slope(LIVE)
    away = [
        (slope(StoredKnowledge(book(tmp_path / f"{draws}", codec=Sampled(draws)))) - true).norm() / true.norm()
        for draws in (16, 4096)
    ]
    # The noise falls with the root of the draws: to a sixteenth.
    assert away[1] < away[0] / 8


def test_pooled_features_have_the_shape_that_is_left(tmp_path):
    maps = np.random.default_rng(0).normal(size=(5, 3, 4, 4))
    plan = Plan(5, 1, {"features/last": FieldPlan((3, 4, 4), Pooled())})
    with BookWriter(tmp_path / "b", plan) as writer:
        writer.write_rows(0, 0, {"features/last": maps})
        stored = StoredKnowledge(writer.finish())
    assert stored.fields["features/last"] == FieldInfo((3,))
    said = stored.targets({"sample": torch.arange(5), "view": torch.zeros(5, dtype=torch.int64)})["features/last"]
    np.testing.assert_allclose(said.numpy(), maps.mean(axis=(2, 3)), rtol=2**-10, atol=1e-6)
