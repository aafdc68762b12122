"""Learning on the student's own text without a teacher in memory: what it wrote in a round is scored once, into a book of the round."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bookkd.book import Book, Codec, TopK, codec_to_config
from bookkd.core.check import at_least, between
from bookkd.core.errors import BookMismatchError, BookMissingError, BookUnfinishedError, ConfigError, expected
from bookkd.core.files import make_folder, write_atomic
from bookkd.core.jsonio import canonical, parse, pretty, read
from bookkd.core.rng import draw64
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.learning.folder import plain
from bookkd.learning.on_policy import chosen_rows
from bookkd.making import make, write_texts
from bookkd.methods import LLMKD, Method
from bookkd.tasks import CausalLM
from bookkd.views import Views
from bookkd.zoo import Decoding, TokenDataset, fingerprint, load_weights, weights_digest

__all__ = ["RolledOut", "Rollouts", "learn_by_rollouts", "mixed_texts"]

_VIEWS = Views(None, n_views=1)
_NOTE = "rollouts.json"


def _gkd() -> LLMKD:
    return LLMKD(divergence="jsd", beta=0.5)


@dataclass(frozen=True)
class Rollouts:
    """How a student learns on what it writes, in rounds.

    Args:
        rounds: How often it writes, is scored and learns.
        decoding: How it writes; "sample" is what the source does.
        share: Probability of each sample of a round to be the student's text and not the given one, 0 to 1: GKD's lambda.
        codec: How much of the teacher's word a book keeps.
        method: What is learnt; GKD's divergence where none is given.
        training: Of one round: its epochs, and a learning-rate schedule that begins anew in each.
        seed: Of what is drawn; each round has draws of its own.
        batch_size: Prompts that are written behind at once.
    """

    rounds: int
    decoding: Decoding
    share: float = 0.5
    codec: Codec = field(default_factory=lambda: TopK(50, (1.0,)))
    method: Method = field(default_factory=_gkd)
    training: Training = field(default_factory=Training)
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        where = "rollouts"
        at_least(self.rounds, 1, "rounds", where=where)
        between(self.share, 0, 1, "share", where=where)
        at_least(self.batch_size, 1, "batch_size", where=where)
        if at_least(self.seed, 0, "seed", where=where) >= 2**63:
            raise ConfigError(expected("seed", "below 2**63", self.seed, where=where))


@dataclass(frozen=True, eq=False)
class RolledOut:
    """What rounds give.

    Args:
        student: The trained network, in evaluation mode, on the CPU.
        rounds: One record for each round: `round`, `parent` and `student` (digests of the weights before and after), `written` (samples
            that the student wrote), `teacher_forwards`, and the validation's metrics.
        folder: Where everything is.
    """

    student: nn.Module
    rounds: list[dict[str, Any]]
    folder: Path


def learn_by_rollouts(
    out: str | Path,
    student: nn.Module,
    teacher: Callable[[], Teacher],
    texts: TokenDataset,
    rollouts: Rollouts,
    *,
    validation: Any | None = None,
    masked: tuple[int, ...] = (),
) -> RolledOut:
    """Let a student write, a teacher score what it wrote, and the student learn it, round by round.

    A round is a folder, `round-000` and so on: `texts` (what the student wrote), `book` (what the teacher says of them, and of the
    given texts that they are mixed with), `run` (the student that learnt it) and `round.json`, written when the round is done, with
    the digests of the weights before and after. A call that was interrupted goes on inside of the round, to the same student; on a CPU
    with the same number of threads to the bit. The teacher is loaded where a book has to be made, and let go before learning.

    Args:
        out: Folder of the rounds.
        student: A `LanguageModel`, trained in place; when a call is gone on with, the one that it began with.
        teacher: Loads the teacher, of the same tokens.
        texts: Given texts, and the prompts: what stands before the first learnt token.
        rollouts: How.
        validation: Measured after each epoch.
        masked: Tokens that nobody says, see `CausalLM`.

    Raises:
        BookMismatchError: if the folder holds rounds of another student, other texts, masked tokens or options, or of another teacher
            than the one that is loaded.
        ConfigError: for a student that cannot write, or a method that the books cannot serve.

    Source: Agarwal et al. 2024, GKD (arXiv 2306.13649), algorithm 1; its batches are written by the student of that step, those of a
    round here by the student of its beginning.
    """
    loads: object = teacher  # a teacher itself may be called too
    if isinstance(loads, Teacher) or not callable(loads):
        do = "Pass lambda: Teacher(...): it is loaded for a book, and let go before learning."
        got = f"a {type(loads).__name__}"
        raise ConfigError(expected("teacher", "a callable that loads one", got, where="learn_by_rollouts", do=do))
    folder, task = Path(out), CausalLM(texts.vocabulary, masked=masked)
    make_folder(folder)
    _begin(folder, student, texts, rollouts, task)
    done: list[dict[str, Any]] = []
    for turn in range(rollouts.rounds):
        place = folder / f"round-{turn:03d}"
        record = _finished(place, student)
        if record is None:
            record = _round(place, turn, student, lambda: _same(folder, teacher()), texts, rollouts, task, validation)
        done.append(record)
    return RolledOut(student.cpu().eval(), done, folder)


def mixed_texts(given: TokenDataset, written: TokenDataset, share: float, *, seed: int, turn: int = 0) -> TokenDataset:
    """Return each sample of `written` with probability `share`, else that of `given`.

    >>> data = TokenDataset.of("given", [[1, 2], [3, 4]], vocabulary=5)
    >>> other = TokenDataset.of("written", [[1, 0], [3, 0]], vocabulary=5)
    >>> [mixed_texts(data, other, share, seed=0)[1][0].tolist() for share in (0.0, 1.0)]
    [[3, 4], [3, 0]]
    """
    chosen = chosen_rows(np.arange(len(given)), share, seed, turn)
    sides = [written if own else given for own in chosen.tolist()]
    tokens = [side[row][0].numpy() for row, side in enumerate(sides)]
    learnt = [_learnt(side, row) for row, side in enumerate(sides)]
    return TokenDataset.of(
        f"{given.name}, round {turn}",
        tokens,
        vocabulary=given.vocabulary,
        tokenizer=given.tokenizer,
        learnt=np.concatenate(learnt),
        pad_value=given.pad_value,
        control=given.control,
    )


def _learnt(side: TokenDataset, row: int) -> np.ndarray[Any, Any]:
    tokens, labels = side[row]
    return np.ones(len(tokens), bool) if labels is None else (labels >= 0).numpy()


def _begin(folder: Path, student: nn.Module, texts: TokenDataset, rollouts: Rollouts, task: CausalLM) -> None:
    """Note what the rounds are of, or refuse a folder of others; more rounds of the same are gone on with."""
    options = {**asdict(replace(rollouts, codec=TopK(1), method=_gkd())), "rounds": None}
    options |= {
        "codec": codec_to_config(rollouts.codec),
        "method": {"name": rollouts.method.name, **plain(rollouts.method)},
        "training": plain(rollouts.training),
    }
    given = {**fingerprint(texts), "content": texts.content}
    start = {"start": weights_digest(student), "texts": given, "masked": list(task.masked)}
    mine = parse(canonical({**start, **options}), "rollouts")
    path = folder / _NOTE
    if not path.is_file():
        write_atomic(path, pretty(mine))
        return
    known = read(path)
    other = [key for key in mine if known.get(key) != mine[key]]
    if other:
        do = "Choose another folder, or delete this one."
        wish = "rounds of the same start, texts and options"
        raise BookMismatchError(expected("folder", wish, f"other {', '.join(other)}", where=str(folder), do=do))


def _same(folder: Path, teacher: Teacher) -> Teacher:
    """Return the teacher of all rounds, which the first to be loaded is; refuse another."""
    known, mine = read(folder / _NOTE), {"digest": teacher.digest, "mode": teacher.mode}
    theirs = known.get("teacher")
    if theirs is None:
        write_atomic(folder / _NOTE, pretty({**known, "teacher": mine}))
    elif theirs != mine:
        do = "Choose another folder, or delete this one."
        wish, got = (f"{each['digest'][:16]} ({each['mode']})" for each in (theirs, mine))
        raise BookMismatchError(
            expected("teacher", f"that of the rounds before, {wish}", got, where=str(folder), do=do)
        )
    return teacher


def _finished(place: Path, student: nn.Module) -> dict[str, Any] | None:
    """Load the student that a finished round left, and return its record; None where the round is not finished."""
    if not (place / "round.json").is_file():
        return None
    record = read(place / "round.json")
    before = weights_digest(student)
    if record.get("parent") != before:
        do = "Delete this round and those after it."
        raise BookMismatchError(
            expected("parent", before[:16], str(record.get("parent"))[:16], where=str(place), do=do)
        )
    load_weights(student, place / "run" / "student.safetensors")
    after = weights_digest(student)
    if record.get("student") != after:
        do = "Delete this round and those after it."
        raise BookMismatchError(
            expected("student", str(record.get("student"))[:16], after[:16], where=str(place), do=do)
        )
    return record


def _round(
    place: Path,
    turn: int,
    student: nn.Module,
    teacher: Callable[[], Teacher],
    texts: TokenDataset,
    rollouts: Rollouts,
    task: CausalLM,
    validation: Any | None,
) -> dict[str, Any]:
    make_folder(place)
    parent, seed = weights_digest(student), _seed(rollouts.seed, turn)
    decoding = rollouts.decoding.without(task.masked)
    with _speaking(student, f"student of round {turn}") as writer:
        written = write_texts(place / "texts", writer, texts, decoding, seed=seed, batch_size=rollouts.batch_size)
    data = mixed_texts(texts, written, rollouts.share, seed=rollouts.seed, turn=turn)
    book = _book(place / "book", teacher, data, task, rollouts.codec)
    learned = learn(
        student,
        data,
        _VIEWS,
        task=task,
        knowledge=StoredKnowledge(book),
        method=rollouts.method,
        training=replace(rollouts.training, seed=seed),
        validation=validation,
        out=place / "run",
        start=parent,
    )
    own = chosen_rows(np.arange(len(texts)), rollouts.share, rollouts.seed, turn)
    record = {
        "round": turn,
        "parent": parent,
        "student": weights_digest(student),
        "prompts": fingerprint(texts)["samples"],
        "written": int(own.sum()),
        "teacher": book.plan.teachers[0].digest,
        "book": book.content_digest,
        "teacher_forwards": int(book.plan.n_samples),
        "metrics": _numbers(learned.metrics),
    }
    write_atomic(place / "round.json", pretty(record))
    return record


def _book(path: Path, teacher: Callable[[], Teacher], data: TokenDataset, task: CausalLM, codec: Codec) -> Book:
    """Return the book of a round, made if it is not there; the teacher is gone when this returns."""
    try:
        return Book(path)
    except (BookMissingError, BookUnfinishedError):
        book = make(path, teacher(), data, _VIEWS, task=task, codec=codec)
        gc.collect()
        return book


def _seed(seed: int, turn: int) -> int:
    return int(draw64(seed, "round", [turn], [0])[0, 0] >> np.uint64(2))


def _numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


@contextmanager
def _speaking(student: nn.Module, name: str) -> Iterator[Teacher]:
    """Lend a network out as a teacher, which freezes it, and take it back as it was."""
    wanted, training = [parameter.requires_grad for parameter in student.parameters()], student.training
    try:
        yield Teacher(student, name=name, device=next(student.parameters()).device)
    finally:
        for parameter, before in zip(student.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)
        student.train(training)
