"""Speech recognition by frames: which count, how a teacher's are laid on the student's, books of each codec, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.methods.speech import VIEWS, book, learn_tones, taught, training
from tests.zoo.tones import SYMBOLS, model, tones

from bookkd.book import Argmax, Dense, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, FidelityError, TeacherOutputError
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge
from bookkd.learning import learn
from bookkd.learning.validation import measure_sequences
from bookkd.losses import ClassTarget, DenseTarget, SparseTarget
from bookkd.making import make
from bookkd.methods import CTCKD, Supervised
from bookkd.objectives import Objective
from bookkd.tasks import CTC, Classification
from bookkd.views import Replay, Views
from bookkd.zoo import SpecAugment, SpeechDataset, SubsetDataset

NAMES = ("-", "a", "b")


def batch(lengths, labels=((1, 2), (2, -1)), label_lengths=(2, 1)):
    count = len(lengths)
    return {
        "input": torch.zeros(count, max(lengths), 4),
        "length": torch.tensor(lengths),
        "label": torch.tensor(labels[:count]),
        "label_length": torch.tensor(label_lengths[:count]),
        "sample": torch.arange(100, 100 + count),
        "weight": torch.ones(count),
    }


def test_frames_are_those_that_are_heard():
    task, given = CTC(NAMES, subsampling=3), batch([7, 4])
    logits = torch.arange(2 * 3 * 3).reshape(2, 3, 3).float()
    assert task.counts(given).tolist() == [3, 2]
    assert torch.equal(task.fields(logits, given)["logits"], torch.cat([logits[0], logits[1, :2]]))
    assert task.most_positions(tones(6)) == -(-tones(6).most_positions // 3)
    with_heads = task.fields({"logits": logits, "heads/0": 2 * logits, "other": None}, given)
    assert torch.equal(with_heads["heads/0"], 2 * with_heads["logits"])


def test_denominators_are_utterances_or_frames():
    given = batch([6, 2])
    for reduction, wanted in (("utterances", 2.0), ("frames", 8.0)):
        task = CTC(NAMES, reduction=reduction)
        seen, objective = task.batch(given), Objective((task.label_term(weight=1.0, label_smoothing=0.0),))
        assert float(objective.totals(seen, task.divisors(seen))) == pytest.approx(wanted)
        assert task.weights(seen).tolist() == [1.0] * 8
    # An utterance whose transcript is hidden counts for no label term.
    hidden = CTC(NAMES).batch(batch([6, 2], ((-1, -1), (2, -1)), (1, 1)))
    assert float(objective.totals(hidden, CTC(NAMES).divisors(hidden))) == pytest.approx(1.0)
    none = CTC(NAMES).batch({**given, "label": torch.tensor([-1, -1])})
    assert none["label_length"].tolist() == [0, 0]


def test_a_loss_over_utterances_is_torchs():
    """Sum over frames of each utterance, mean over utterances: `reduction="sum"` of torch, divided by their number."""
    task, given = CTC(NAMES), batch([6, 3])
    logits = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen, objective = task.batch(given), Objective((task.label_term(weight=1.0, label_smoothing=0.0),))
    sums = objective.sums(task.fields(logits, given), {}, seen, task.weights(seen), Clock())
    found = objective.loss(sums, objective.totals(seen, task.divisors(seen)), Clock())
    wanted = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.tensor([1, 2, 2]), torch.tensor([6, 3]), torch.tensor([2, 1]),
        reduction="sum",
    )  # fmt: skip
    assert float(found) == pytest.approx(float(wanted) / 2, rel=1e-6)


@pytest.mark.parametrize(("student", "teacher"), [(2, 1), (4, 2), (3, 2), (1, 3), (2, 3)])
def test_teacher_frames_are_laid_on_the_students(student, teacher):
    """By the equation in exact fractions, utterance by utterance."""
    task, given = CTC(NAMES, subsampling=student, teacher_subsampling=teacher), batch([13, 5])
    mine, theirs = task.counts(given).tolist(), task.of_teacher().counts(given).tolist()
    said = torch.randn(sum(theirs), 3, generator=torch.Generator().manual_seed(0))
    nearest, means, start = [], [], 0
    for s_all, t_all in zip(mine, theirs, strict=True):
        for s in range(s_all):
            middle = Fraction(2 * s + 1, 2) * t_all / s_all
            nearest.append(said[start + middle.__floor__()])
            low = max((middle - Fraction(1, 2)).__floor__(), 0)
            high = min((middle - Fraction(1, 2)).__floor__() + 1, t_all - 1)
            means.append((said[start + low].softmax(-1) + said[start + high].softmax(-1)) / 2)
        start += t_all
    found = task.targets({"logits": DenseTarget(said)}, given)["logits"]
    assert torch.equal(found.logits, torch.stack(nearest))
    average = CTC(NAMES, subsampling=student, teacher_subsampling=teacher, alignment="average")
    found = average.targets({"logits": DenseTarget(said)}, given)["logits"]
    torch.testing.assert_close(found.log_probabilities(1.0).exp(), torch.stack(means))
    with pytest.raises(FidelityError, match="to be dense, to be averaged over frames, got 'SparseTarget'"):
        average.targets({"logits": SparseTarget.from_logits(said, 2, (1.0,))}, given)
    classes = task.targets({"logits": ClassTarget(said.argmax(-1), 3)}, given)["logits"].classes
    assert torch.equal(classes, torch.stack(nearest).argmax(-1))


def test_teacher_frames_that_do_not_fit_are_refused():
    task, given = CTC(NAMES, subsampling=2), batch([8, 4])
    with pytest.raises(
        TeacherOutputError, match=r"`frames of logits` to be 6 in this batch, one for 2 of the input's, got 12"
    ):
        task.targets({"logits": DenseTarget(torch.zeros(12, 3))}, given)
    with pytest.raises(TeacherOutputError, match=r"\[2, 4, at least 3\], got shape \(2, 8, 3\).*`subsampling`"):
        task.fields(torch.zeros(2, 8, 3), given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (batch([1, 4]), r"`frames` to be at least 2, for 2 symbols and 0 repeats, got 1 \(utterance 100\)"),
        (batch([4, 1], ((1, 2), (2, 2)), (2, 2)), r"at least 3, for 2 symbols and 1 repeats, got 1 \(utterance 101\)"),
        (batch([4, 4], ((1, 2), (0, -1))), r"`symbol` to be from 0 to 2, and not the blank 0, got 0 \(utterance 101\)"),
        (
            batch([4, 4], ((1, 2), (-1, -1)), (2, 0)),
            r"`transcript` to be at least one symbol, got 'none' \(sample 101\)",
        ),
    ],
)
def test_transcripts_that_no_path_spells_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        CTC(NAMES).batch(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blank": 3}, r"`blank` to be between 0 and 2, got 3 \(ctc\)"),
        ({"blank": -1}, r"`blank` to be between 0 and 2"),
        ({"class_names": ("-",)}, "at least two names that differ"),
        ({"class_names": ("-", "a", "a")}, "at least two names that differ"),
        ({"subsampling": 0}, "`subsampling` to be a whole number of at least 1"),
        ({"teacher_subsampling": 0}, "`teacher_subsampling` to be a whole number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CTC(**{"class_names": NAMES, **options})


def test_the_task_of_a_data_set():
    assert CTC.of(tones(4)) == CTC(SYMBOLS, subsampling=2)
    with pytest.raises(ConfigError, match="speech with transcripts"):
        CTC.of([1, 2])
    with pytest.raises(ConfigError, match=r"`label_smoothing` to be 0, got 0\.1 \(task ctc"):
        CTC(NAMES).label_term(weight=1.0, label_smoothing=0.1)
    with pytest.raises(DataError, match="Give the transcripts with the data set"):
        CTC(NAMES).check_labels(np.zeros(3), "mine")


@pytest.mark.parametrize("codec", [Dense("float32"), TopK(2, (1.0,)), Argmax()])
def test_a_book_says_what_the_teacher_says(tmp_path, codec):
    teacher, train, _ = taught()
    made = book(tmp_path, codec)
    assert made.plan.class_names == SYMBOLS
    found = Replay(train, VIEWS).batch([(row, 0) for row in (5, 2, 11)])
    mine = StoredKnowledge(made).targets(found)["logits"]
    theirs = LiveKnowledge(teacher, CTC.of(train)).targets(found)["logits"]
    assert tuple(mine.positions) == tuple(theirs.positions) == (int(CTC.of(train).counts(found).sum()),)
    if codec.name == "argmax":
        assert torch.equal(mine.classes, theirs.logits.argmax(-1))
    elif codec.name == "dense":
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(mine.indices[:, 0], theirs.logits.argmax(-1))


def test_a_student_of_fewer_frames_learns_from_a_teacher_of_more(tmp_path):
    teacher, train, _ = taught()
    made = book(tmp_path)
    task = CTC(SYMBOLS, subsampling=4, teacher_subsampling=2, alignment="average")
    short = tones(160, subsampling=4)
    if len(short) == len(train):  # no utterance too fast for so few frames
        learned = learn_tones(CTCKD(ctc_weight=0.0), made, task=task, student=model(width=8, subsampling=4))
        assert learned.history[0]["train/kl"] > 0
    # The plan has room for the teacher's frames, whoever's task is given.
    other = make(tmp_path / "other", teacher, train, VIEWS, task=task, codec=Dense())
    assert other.fields["logits"].positions == made.fields["logits"].positions


def test_views_that_change_the_speed_have_frames_of_their_own(tmp_path):
    teacher, train, _ = taught()
    views = Views(SpecAugment(speeds=(0.7, 1.0, 1.3), time_width=4), n_views=3)
    made = make(tmp_path / "b", teacher, train, views, task=CTC.of(train), codec=Dense("float32"))
    replay = Replay(train, views)
    frames = np.array([[int(replay.batch([(row, view)])["length"]) for view in range(3)] for row in range(20)])
    assert len({tuple(row) for row in np.sign(np.diff(frames)).tolist()}) > 2
    mixed = replay.batch([(row, row % 3) for row in range(9)])
    mine = StoredKnowledge(made).targets(mixed)["logits"].logits
    theirs = LiveKnowledge(teacher, CTC.of(train)).targets(mixed)["logits"].logits
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    learn_tones(CTCKD(), made, views=views)


def test_books_of_other_symbols_or_sounds_are_refused(tmp_path):
    _, train, test = taught()
    made = book(tmp_path)

    def run(data, task):
        learn(
            model(width=8), data, VIEWS, task=task, method=CTCKD(), knowledge=StoredKnowledge(made), training=training()
        )  # fmt: skip

    turned = ("<blank>", " ", "b", "a", "c")
    with pytest.raises(BookMismatchError, match=r"class 2 is 'b', the book's is 'a'"):
        run(train, CTC(turned, subsampling=2))
    with pytest.raises(BookMismatchError, match="data length is"):
        run(test, CTC.of(test))
    with pytest.raises(ConfigError, match="task"):
        run(train, Classification(SYMBOLS))


def test_an_utterance_too_fast_for_the_network_is_named():
    fast = SpeechDataset(
        "fast", np.zeros((6, 12), np.float32), np.array([6]), np.array([2, 2, 3, 4]), np.array([4]), SYMBOLS, subsampling=2
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"`frames` to be at least 5, for 4 symbols and 1 repeats, got 3 \(utterance 0\)"
    ):
        learn(model(), fast, VIEWS, task=CTC.of(fast), method=Supervised(), training=training(batch_size=1))


def test_measures_compare_with_a_teacher_of_other_frames():
    teacher, _, test = taught()
    task = CTC(SYMBOLS, subsampling=4, teacher_subsampling=2)
    student = model(width=8, subsampling=4).eval()
    found = measure_sequences(student, _short(test), task, teacher=teacher, replicates=20)
    assert 0 <= found.metrics["agreement"].value <= 1
    assert found.metrics["teacher_kl"].value > 0
    own = measure_sequences(teacher, test, CTC.of(test), teacher=teacher, replicates=0)
    assert (own.metrics["agreement"].value, own.metrics["teacher_kl"].value) == (1.0, pytest.approx(0.0, abs=1e-9))


def _short(data):
    """The utterances that a quarter of the frames can spell."""
    kept = [row for row in range(len(data)) if -(-len(data[row][0]) // 4) >= 2 * len(data[row][1])]
    return SubsetDataset(data, np.array(kept))
