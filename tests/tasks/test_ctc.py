"""Speech recognition by frames: which count, how a teacher's are laid on the student's, books of each codec, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from tests.methods.speech import VIEWS, book, learn_tones, taught, training
from tests.zoo.tones import HOW, RATE, SYMBOLS, model, tones, utterances

from bookkd.book import Argmax, Dense, TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, FidelityError, TeacherOutputError
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.learning import Step, learn, measuring, to_device
from bookkd.learning.measuring import measure_sequences, samples_of_pass
from bookkd.learning.step import asked_of_book
from bookkd.losses import ClassTarget, DenseTarget, SparseTarget
from bookkd.making import make
from bookkd.methods import CTCKD, Supervised
from bookkd.objectives import Objective
from bookkd.tasks import CTC, Classification, Convolutions
from bookkd.views import Replay, Views
from bookkd.zoo import SpecAugment, SpeechDataset, SubsetDataset, read_speech

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
    with pytest.raises(TeacherOutputError, match=r"`frames of logits` to be 6 in this batch, by subsampling 2, got 12"):
        task.targets({"logits": DenseTarget(torch.zeros(12, 3))}, given)
    with pytest.raises(
        TeacherOutputError, match=r"\[2, 4, 3\], by subsampling 2, got shape \(2, 8, 3\).*`subsampling`"
    ):
        task.fields(torch.zeros(2, 8, 3), given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (batch([1, 4]), r"`frames` to be at least 2, for 2 symbols and 0 repeats, got 1 \(sample 100\)"),
        (batch([4, 1], ((1, 2), (2, 2)), (2, 2)), r"at least 3, for 2 symbols and 1 repeats, got 1 \(sample 101\)"),
        (batch([4, 4], ((1, 2), (0, -1))), r"`symbol` to be from 0 to 2, and not the blank 0, got 0 \(sample 101\)"),
        (batch([4, 0]), r"`frames` to be at least 1, by subsampling 1, got 0 \(sample 101\)"),
        (
            {**batch([4, 4]), "label": torch.tensor([-1, 2]), "label_length": None},
            r"`label` to be a transcript, got 2 \(sample 101\)\. Give a tensor of symbols, or IGNORE_LABEL",
        ),
        (
            batch([4, 4], ((1, 2), (-1, -1)), (2, 0)),
            r"`transcript` to be at least one symbol, got 'none' \(sample 101\)",
        ),
    ],
)
def test_transcripts_that_no_path_spells_are_refused(given, message):
    task = CTC(NAMES)
    objective = Objective((task.label_term(weight=1.0, label_smoothing=0.0),))

    def loss():
        seen, said = task.batch(given), torch.zeros(int(given["length"].sum()), 3)
        return objective.sums({"logits": said}, {}, seen, task.weights(seen), Clock())

    with pytest.raises(DataError, match=message):
        loss()


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
    learned = learn_tones(CTCKD(ctc_weight=0.0), made, task=task, student=model(width=8, subsampling=4))
    assert learned.history[0]["train/kl"] > 0
    for place, (codec, message) in enumerate(((TopK(3, (1.0,)), "dense"), (Argmax(), "a distribution"))):
        with pytest.raises(FidelityError, match=f"to be {message} for method ctc-kd, got"):
            learn_tones(
                CTCKD(form="guided"),
                book(tmp_path / str(place), codec),
                task=task,
                student=model(width=8, subsampling=4),
            )
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
    with pytest.raises(BookMismatchError, match="data samples is"):
        run(test, CTC.of(test))
    with pytest.raises(ConfigError, match="task"):
        run(train, Classification(SYMBOLS))


def test_an_utterance_too_fast_for_the_network_is_named():
    fast = SpeechDataset(
        "fast", np.zeros((6, 12), np.float32), np.array([6]), np.array([2, 2, 3, 4]), np.array([4]), SYMBOLS, subsampling=2
    )  # fmt: skip
    with pytest.raises(
        DataError,
        match=r"at least 5 for its transcript in every view, by subsampling 2, got 3 \(fast, sample 0; 1 of 1\)",
    ):
        learn(model(), fast, VIEWS, task=CTC.of(fast), method=Supervised(), training=training(batch_size=1))


def test_views_too_fast_for_the_network_are_refused_before_the_start_where_transcripts_are_read(tmp_path):
    teacher, train, _ = taught()
    fast = Views(SpecAugment(speeds=(1.0, 2.5)), n_views=2)
    with pytest.raises(DataError, match=r"in every view, by subsampling 2, got \d+ \(tones, sample \d+; \d+ of 160\)"):
        learn(model(width=8), train, fast, task=CTC.of(train), method=Supervised(), training=training(epochs=1))
    made = make(tmp_path / "b", teacher, train, fast, task=CTC.of(train), codec=Dense())
    learn_tones(CTCKD(ctc_weight=0.0), made, views=fast)  # nobody reads them
    short = CTC(SYMBOLS, subsampling=Convolutions(((60, 2, 0),)))
    with pytest.raises(DataError, match=r"`frames` to be at least 1 in every view, by subsampling Convolutions"):
        make(tmp_path / "c", teacher, train, fast, task=short, codec=Dense())


class Front(torch.nn.Module):
    """Convolutions without padding, as the front ends of wav2vec 2.0 and of Conformers have them."""

    def __init__(self):
        super().__init__()
        self.hear = torch.nn.Conv1d(12, 16, 3, 2)
        self.say = torch.nn.Linear(16, len(SYMBOLS))

    def forward(self, features, lengths):
        return self.say(self.hear(features.transpose(1, 2)).transpose(1, 2).relu())


def test_frames_of_convolutions_are_torchs(tmp_path):
    rule = Convolutions(((3, 2, 1), (5, 3, 0)))
    layers = torch.nn.Sequential(torch.nn.Conv1d(1, 1, 3, 2, 1), torch.nn.Conv1d(1, 1, 5, 3, 0))
    heard = torch.arange(9, 40)
    wanted = [layers(torch.zeros(1, 1, int(each))).shape[-1] for each in heard]
    assert rule(heard).tolist() == rule(heard.numpy()).tolist() == [rule(int(each)) for each in heard] == wanted
    assert [rule(each) for each in (0, 1, 8)] == [0, 0, 0]
    task = CTC(SYMBOLS, subsampling=[[3, 2, 0]])
    assert task.subsampling == Convolutions(((3, 2, 0),))
    _, train, _ = taught()
    kept = SubsetDataset(train, np.flatnonzero(task.counts({"length": train.lengths}) >= train.needed))
    assert len(kept) > 100
    assert task.most_positions(train) == (train.most_positions - 3) // 2 + 1
    made = make(tmp_path / "b", Teacher(Front().eval(), name="front"), kept, VIEWS, task=task, codec=Dense())
    learned = learn(
        Front(),
        kept,
        VIEWS,
        task=task,
        method=CTCKD(),
        knowledge=StoredKnowledge(made),
        training=training(epochs=1),
        validation=kept,
    )
    assert 0 < learned.metrics["nll"] < 1000
    other = CTC(SYMBOLS, subsampling=2)
    with pytest.raises(TeacherOutputError, match=r"5\], by subsampling 2, got shape"):
        learn(Front(), train, VIEWS, task=other, method=Supervised(), training=training(epochs=1))


def test_books_of_another_blank_or_teachers_frames_are_refused(tmp_path):
    _, train, _ = taught()
    made = book(tmp_path)
    with pytest.raises(BookMismatchError, match="the blank is class 4, the book's is 0"):
        learn_tones(CTCKD(ctc_weight=0.0), made, task=CTC(SYMBOLS, blank=4, subsampling=2))
    with pytest.raises(
        BookMismatchError, match=r"a teacher of subsampling 4 has \d+ frames .*give the task the `teacher_subsampling`"
    ):
        learn_tones(CTCKD(ctc_weight=0.0), made, task=CTC(SYMBOLS, subsampling=4))
    # Of a part of the data the counts of each utterance say it, on any device.
    moved = to_device(Replay(train, VIEWS, probe_share=0).batch([(3, 0)]), torch.device("meta"))
    step = Step(CTCKD(ctc_weight=0.0).objective(CTC.of(train)), CTC(SYMBOLS, subsampling=4), StoredKnowledge(made))
    with pytest.raises(BookMismatchError, match="give the task the `teacher_subsampling`"):
        step.knowledge.targets(asked_of_book(step.task, moved), step.fields)


def test_labels_that_are_no_transcripts_are_refused():
    _, train, _ = taught()

    def run(labels):
        return learn(
            model(width=8), train, VIEWS, task=CTC.of(train), method=CTCKD(ctc_weight=1.0), labels=labels,
            knowledge=LiveKnowledge(taught()[0], CTC.of(train)), training=training(epochs=1, batch_size=32),
        )  # fmt: skip

    with pytest.raises(DataError, match=r"`labels` to be symbols, got shape \[160\] \(labels of learn\)"):
        run(np.zeros(160, int))
    assert run(np.full(160, -1)).history[0]["train/ctc"] == 0


def test_sounds_without_transcript_stand_beside_others():
    said = utterances(6)
    mixed = read_speech(
        "mixed", [replace(each, text=None) if row % 2 else each for row, each in enumerate(said)], RATE, SYMBOLS, **HOW
    )
    assert mixed.known.tolist() == [True, False] * 3
    assert (mixed.texts[1], mixed.texts[2]) == ("", said[2].text)
    assert mixed.needed.tolist()[1::2] == [0, 0, 0]
    assert (
        CTC.of(mixed).batch(Replay(mixed, VIEWS).batch([(row, 0) for row in range(6)]))["label_length"].tolist()[1::2]
        == [0] * 3
    )

    class Some:
        pad_value = 0.0

        def __len__(self):
            return 2

        def __getitem__(self, row):
            return mixed[0][0], mixed[0][1] if row else None

    silent = read_speech("silent", [replace(each, text=None) for each in said], RATE, SYMBOLS, **HOW)
    with pytest.raises(
        DataError, match=r"`transcripts` to be known of one utterance at least, got none of them \(silent\)"
    ):
        learn(model(), silent, VIEWS, task=CTC.of(silent), method=Supervised(), training=training(epochs=1))
    found = Replay(Some(), VIEWS).batch([(0, 0), (1, 0)])
    assert CTC.of(mixed).batch(found)["label_length"].tolist() == [0, len(mixed[0][1])]


def test_measures_compare_with_a_teacher_of_other_frames():
    teacher, _, test = taught()
    task = CTC(SYMBOLS, subsampling=4, teacher_subsampling=2)
    student = model(width=8, subsampling=4).eval()
    found = measure_sequences(student, _short(test), task, teacher=teacher, replicates=20)
    assert 0 <= found.metrics["agreement"].value <= 1
    assert found.metrics["teacher_kl"].value > 0
    own = measure_sequences(teacher, test, CTC.of(test), teacher=teacher, replicates=0)
    assert (own.metrics["agreement"].value, own.metrics["teacher_kl"].value) == (1.0, pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize("alignment", ["nearest", "average"])
def test_measures_compare_with_a_book_of_other_frames(tmp_path, alignment):
    teacher, _, test = taught()
    short = _short(test)
    made = make(tmp_path / "b", teacher, short, VIEWS, task=CTC.of(test), codec=Dense("float32"))
    for task in (
        CTC(SYMBOLS, subsampling=3, teacher_subsampling=2, alignment=alignment),
        CTC(SYMBOLS, subsampling=4, teacher_subsampling=2, alignment=alignment),
    ):
        student = model(width=8, subsampling=task.subsampling).eval()
        live, stored = (
            measure_sequences(student, short, task, replicates=0, batch_size=7, **beside).metrics
            for beside in ({"teacher": teacher}, {"book": StoredKnowledge(made)})
        )
        assert {"agreement", "teacher_kl"} <= stored.keys() == live.keys()
        for name, value in live.items():
            assert stored[name].value == pytest.approx(value.value, rel=1e-4, abs=1e-6)
    with pytest.raises(BookMismatchError, match="give the task the `teacher_subsampling`"):
        measure_sequences(student, short, CTC(SYMBOLS, subsampling=4), book=StoredKnowledge(made))


def test_a_pass_has_room_for_what_the_teacher_says_too(monkeypatch):
    _, _, test = taught()
    task = CTC(SYMBOLS, subsampling=4, teacher_subsampling=2)
    mine, theirs = (each.most_positions(test) * len(SYMBOLS) for each in (task, task.of_teacher()))
    monkeypatch.setattr(measuring, "_MOST", 2 * (mine + theirs))
    assert samples_of_pass(task, test, 100, teacher=True) == 2
    assert samples_of_pass(task, test, 100) == 2 * (mine + theirs) // mine > 4
    passes = []

    def network(views, lengths):
        passes.append(len(views))
        return torch.zeros(len(views), -(-views.shape[1] // 4), len(SYMBOLS))

    measure_sequences(network, _short(test), task, teacher=taught()[0], replicates=0)
    assert set(passes[:-1]) == {2}


def _short(data):
    """The utterances that a quarter of the frames can spell."""
    kept = [row for row in range(len(data)) if -(-len(data[row][0]) // 4) >= 2 * len(data[row][1])]
    return SubsetDataset(data, np.array(kept))
