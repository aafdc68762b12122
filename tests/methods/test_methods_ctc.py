"""Methods of speech: the card's identities by their own objectives, and students that learn from books."""

from __future__ import annotations

import pytest
import torch
from tests.losses.speech_cases import SAID
from tests.methods.speech import ONE, TWO, TWO_FRAMES, VIEWS, book, learn_tones, speech_total, taught, training
from tests.zoo.tones import model

from bookkd.book import Argmax, Dense, Sampled, TopK
from bookkd.core.errors import ConfigError, DataError, FidelityError
from bookkd.core.schedules import Clock, Linear
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, check_needs
from bookkd.learning import Cohort, Learner, Step, Validation, learn
from bookkd.learning.configuration import check_heads
from bookkd.learning.measuring import measure_sequences
from bookkd.losses import ClassTarget, DenseTarget
from bookkd.making import make, merge
from bookkd.methods import CTCKD, DML, ConsKD, Supervised, build_method
from bookkd.objectives import Frames
from bookkd.tasks import CTC
from bookkd.views import Replay, Views
from bookkd.zoo import SpecAugment

CTC_OF = {"one": 0.504357, "two": 0.579058}
KL_OF = {"one": 0.162295, "two": 0.349024}


def value(method, *args, **options):
    return float(speech_total(method, *args, **options).detach())


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (CTCKD(form="l2"), CTC_OF["one"] + 0.090612),
        (CTCKD(form="guided"), CTC_OF["one"] - 0.628532),
        (CTCKD(kd_weight=2.0, ctc_weight=0.0), 2 * KL_OF["one"]),
        (CTCKD(heads=1), 0.75 * (CTC_OF["one"] + KL_OF["one"]) + 0.25 * (CTC_OF["two"] + KL_OF["two"])),
        (ConsKD(form="l2", consistency_weight=0.0), 0.541707 + (0.090612 + 0.226115) / 2),
        (ConsKD(form="guided", consistency_weight=0.0), 0.541707 - (0.628532 + 0.540539) / 2),
        (ConsKD(kd_weight=0.0, consistency_weight=0.0), 0.541707),  # the mean of both CTC losses
        (ConsKD(consistency_weight=0.0), 0.541707 + 0.255660),  # the fair baseline
        (build_method("cons-kd", "cr-ctc"), 0.541707 + 0.2 * 0.045345),
    ],
)
def test_worked_totals(method, wanted):
    assert value(method) == pytest.approx(wanted, abs=1.5e-6)


def test_passes_may_change_places():
    assert value(ConsKD(), TWO, ONE) == pytest.approx(value(ConsKD()), abs=1e-12)


def test_passes_that_are_the_same_are_plain_distillation():
    assert value(ConsKD(), ONE, ONE) == pytest.approx(value(CTCKD(), ONE), abs=1e-12)


def test_gradients_flow_through_both_passes_and_through_neither_view_alone():
    """d/dz1 of the consistency, from the card: through both passes, and with the other side stopped."""
    both = ((-0.063403, 0.086285, -0.022882), (0.093576, -0.086747, -0.006829))
    stopped = ((-0.032715, 0.043996, -0.011281), (0.049970, -0.047201, -0.002769))
    for between, wanted in (("passes", both), ("views", stopped)):
        one = ONE.clone().requires_grad_()
        with_it = speech_total(ConsKD(between=between), one, TWO)
        without = speech_total(ConsKD(between=between, consistency_weight=0.0), one, TWO)
        (slope,) = torch.autograd.grad(with_it - without, one)
        torch.testing.assert_close(slope, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_consistency_is_ramped_and_scheduled():
    plain, clock = value(ConsKD(consistency_weight=0.0)), Clock(epoch=0.0)
    ramped = [value(ConsKD(ramp_epochs=4), clock=Clock(epoch=epoch)) - plain for epoch in (0.0, 1.0, 5.0)]
    assert ramped == pytest.approx([0.045345 / 4, 0.045345 / 2, 0.045345], abs=1e-6)
    fading = ConsKD(consistency_weight=Linear(1.0, 0.0), ramp_epochs=2)
    assert value(fading, clock=Clock(step=5, total_steps=10, epoch=3.0)) - plain == pytest.approx(0.0226725, abs=1e-6)
    assert value(ConsKD(kd_weight=Linear(0.0, 1.0)), clock=clock) == pytest.approx(0.541707 + 0.045345, abs=1.5e-6)


def test_reduction_is_one_rule_for_all_terms():
    frames = CTC(TWO_FRAMES.class_names, reduction="frames")
    for method in (CTCKD(), ConsKD(), ConsKD(between="views")):
        assert value(method, task=frames) == pytest.approx(value(method) / 2, abs=1e-12)


def test_frames_that_are_left_out_are_zero_and_still_counted():
    """Frame 0 of the card's teacher says a symbol, frame 1 the blank."""
    first = float((SAID[0].exp() * (SAID[0] - ONE[0].log_softmax(-1))).sum())
    for frames, wanted in (("non-blank", first), ("spikes", 0.162295), ("all", 0.162295)):
        assert value(CTCKD(ctc_weight=0.0, frames=frames)) == pytest.approx(wanted, abs=1e-6)
    one = ONE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(speech_total(CTCKD(ctc_weight=0.0, frames="non-blank"), one), one)
    assert (slope[0].abs() > 0).all()
    assert slope[1].abs().max() == 0


@pytest.mark.parametrize(("around", "wanted"), [(1, "011100011"), (2, "111110011"), (9, "111111011")])
def test_blanks_around_spikes_stay_inside_of_their_utterance(around, wanted):
    classes = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 2])  # utterances of 6, 1 and 2 frames
    kept = Frames(0, "spikes", around)(ClassTarget(classes, 3), {"frames": torch.tensor([6, 1, 2])})
    assert "".join(map(str, kept.int().tolist())) == wanted


def test_guided_reads_a_book_of_classes_and_others_refuse_it(tmp_path):
    stored = StoredKnowledge(book(tmp_path, Argmax()))
    learned = learn_tones(CTCKD(form="guided"), stored)
    assert learned.teacher_forwards == 0
    with pytest.raises(
        FidelityError, match="to be a distribution for method ctc-kd, got the teacher's likeliest classes"
    ):
        check_needs(CTCKD().needs(TWO_FRAMES), stored, "ctc-kd")
    # The same as from the whole distribution.
    dense = learn_tones(CTCKD(form="guided"), LiveKnowledge(taught()[0], CTC.of(taught()[1])))
    for one, other in zip(learned.student.parameters(), dense.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("codec", "method", "refused"),
    [
        (TopK(3, (1.0,)), CTCKD(frames="spikes"), None),
        (TopK(3, (1.0,)), CTCKD(form="guided"), None),
        (TopK(3, (1.0,)), CTCKD(form="l2"), "to be dense for method ctc-kd"),
        (Sampled(40), CTCKD(), None),
        (Sampled(40), CTCKD(frames="spikes"), "whose losses are not linear in it, got draws"),
        (Sampled(40), CTCKD(form="guided"), "whose losses are not linear in it, got draws"),
        (Dense(), ConsKD(form="l2"), None),
    ],
)
def test_codecs_serve_what_they_can(tmp_path, codec, method, refused):
    stored = StoredKnowledge(book(tmp_path, codec))
    if refused:
        with pytest.raises(FidelityError, match=refused):
            learn_tones(method, stored)
    else:
        learn_tones(method, stored)


def gradients(step, learner, parts):
    totals, learner = step.totals(parts), learner.train()
    learner.zero_grad()
    for part in parts:
        step.loss(learner, part, Clock(), totals).loss.backward()
    return [parameter.grad.clone() for parameter in learner.parameters()]


@pytest.mark.parametrize("reduction", ["utterances", "frames"])
@pytest.mark.parametrize("method", [ConsKD(), CTCKD(frames="spikes"), CTCKD(form="guided", heads=1)])
def test_neither_splits_nor_padding_change_a_gradient(tmp_path, method, reduction):
    _, train, _ = taught()
    task = CTC(train.class_names, subsampling=2, reduction=reduction)
    step = Step(method.objective(task), task, StoredKnowledge(book(tmp_path)))
    # Without dropout, of which every run has its own.
    network = model(width=8, layers=2, heads=(0,) * method.heads, dropout=0.0, seed=4).double()
    learner = Learner(network, task, preprocess=torch.Tensor.double, passes=method.passes)
    replay = Replay(train, VIEWS)
    rows = sorted(range(12), key=lambda row: int(train.lengths[row]))
    whole = gradients(step, learner, [replay.batch([(row, 0) for row in rows])])
    # The shortest together are padded less than beside the longest; one stands alone.
    split = gradients(
        step, learner, [replay.batch([(row, 0) for row in part]) for part in (rows[:5], rows[5:6], rows[6:])]
    )
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_passes_differ_by_dropout_and_agree_without(tmp_path):
    stored = book(tmp_path)
    dropped = learn_tones(ConsKD(), stored)
    assert dropped.history[0]["train/consistency"] > 1e-4
    still = learn_tones(ConsKD(), stored, student=model(width=8, seed=3, dropout=0.0))
    assert still.history[0]["train/consistency"] < 1e-9
    plain = learn_tones(CTCKD(), stored, student=model(width=8, seed=3, dropout=0.0))
    for one, other in zip(still.student.parameters(), plain.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


def test_two_views_agree_in_one_batch(tmp_path):
    masked = Views(SpecAugment(time_width=4, band_width=3), n_views=2)
    method = ConsKD(between="views", consistency_weight=0.2)
    learned = learn_tones(method, book(tmp_path, views=masked), views=masked)
    assert learned.history[0]["train/consistency"] > 1e-3
    assert learned.history[0]["step"] == 2 * -(-len(taught()[1]) // 16)
    faster = Views(SpecAugment(speeds=(0.8, 1.0, 1.25)), n_views=2)
    with pytest.raises(DataError, match=r"`frames` to be the same in both views of a sample"):
        learn_tones(build_method("cons-kd", "cr-ctc"), None, views=faster)
    with pytest.raises(ConfigError, match="`n_views` to be at least 2 for method cons-kd, got 1"):
        learn_tones(method, None if method.kd_weight == 0 else book(tmp_path / "other"), views=VIEWS)


def test_a_student_learns_from_a_book(tmp_path):
    """The loss of transcripts alone has far to go in so few steps; frames of a teacher say where symbols stand."""
    _, train, test = taught()
    found, made = {}, book(tmp_path)

    class Late(StoredKnowledge):
        def targets(self, batch, fields=None):
            return {name: DenseTarget(each.logits.roll(1, 0)) for name, each in super().targets(batch, fields).items()}

    known = {"alone": None, "kd": StoredKnowledge(made), "late": Late(made)}
    for name, knowledge in known.items():
        method = Supervised() if knowledge is None else CTCKD(kd_weight=2.0)
        learned = learn(
            model(width=16, seed=1), train, VIEWS, task=CTC.of(train), method=method, knowledge=knowledge,
            training=training(epochs=2), validation=test,
        )  # fmt: skip
        beside = measure_sequences(learned.student, test, CTC.of(train), teacher=taught()[0], replicates=0)
        found[name] = {**learned.metrics, "teacher": beside.metrics["teacher_kl"].value}
    assert found["kd"]["wer"] < 0.6
    assert found["kd"]["nll"] < found["alone"]["nll"] + 0.5
    assert found["kd"]["teacher"] < 0.7 * found["late"]["teacher"]


def test_several_teachers_of_classes_alone_are_refused_before_the_start(tmp_path):
    _, train, _ = taught()
    second = Teacher(model(width=8, seed=9).eval(), name="second")
    other = make(tmp_path / "two", second, train, VIEWS, task=CTC.of(train), codec=Argmax())
    both = merge(tmp_path / "both", [book(tmp_path / "one", Argmax()), other])
    method = CTCKD(form="guided")
    with pytest.raises(FidelityError, match="to be every class of each of 2 teachers for method ctc-kd"):
        check_needs(method.needs(CTC.of(train)), StoredKnowledge(both), "ctc-kd")
    check_needs(method.needs(CTC.of(train)), StoredKnowledge(both, teachers=[0]), "ctc-kd")


def test_heads_that_are_not_there_or_not_used_are_refused_before_the_start(tmp_path):
    stored = book(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"`student` to be a network that says heads/0 beside its logits, got 'none' \(AcousticModel\)",
    ):
        learn_tones(CTCKD(heads=1), stored)
    task = CTC.of(taught()[1])
    learner = Learner(model(width=8, layers=2, heads=(0,)), task)
    replay = Replay(taught()[1], VIEWS)
    check_heads(CTCKD().objective(task), learner, replay, devices=1)
    check_heads(CTCKD(heads=1).objective(task), learner, replay, devices=2)
    with pytest.raises(ConfigError, match="without parameters that no term reads, on several devices, got 'heads/0'"):
        check_heads(CTCKD().objective(task), learner, replay, devices=2)
    with pytest.raises(ConfigError, match="`heads_share` to be above 0 with heads, got 0"):
        CTCKD(heads=1, heads_share=0.0)


def test_a_run_may_look_at_a_calibration_that_is_not_there_yet():
    """A student that says nothing but blanks has none."""
    _, train, test = taught()
    quiet = model(width=8)
    with torch.no_grad():
        quiet.say.bias[0] += 50
    learned = learn(
        quiet, train, VIEWS, task=CTC.of(train), method=Supervised(), training=training(epochs=2, lr=1e-5),
        validation=Validation(test, metric="ece"),
    )  # fmt: skip
    assert "val/ece" not in learned.history[0]
    score = Validation(test, metric="ece").score
    assert score({"wer": 1.0, "ece": float("nan")}, CTC.of(train)) < score({"wer": 1.0, "ece": 1.0}, CTC.of(train))


def test_peers_of_speech_teach_one_another():
    """The loss of each is that of its transcripts and the divergence of its frames from the other's: the card's numbers."""
    fields = {"peers/0/logits": ONE, "peers/1/logits": TWO}
    wanted = CTC_OF["one"] + CTC_OF["two"] + 0.043691 + 0.046999
    assert value(DML(), fields=fields) == pytest.approx(wanted, abs=2e-6)
    _, train, _ = taught()
    learned = learn(
        Cohort([model(width=8, seed=1), model(width=8, seed=2)]), train, VIEWS, task=CTC.of(train), method=DML(),
        training=training(epochs=1),
    )  # fmt: skip
    assert learned.history[0]["train/peer_1_to_0"] > 0
