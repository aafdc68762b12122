"""Sequence-level distillation: a teacher writes the targets, and students learn from them as from labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from bookkd.core.errors import BookMismatchError, DataError, expected
from bookkd.core.jsonio import digest
from bookkd.core.names import choose
from bookkd.evaluation import decode_all, likeness
from bookkd.knowledge import Teacher
from bookkd.zoo import Hypothesis, PairDataset, fingerprint

__all__ = ["decode_dataset"]


def decode_dataset(
    teacher: Teacher,
    dataset: PairDataset,
    *,
    path: str | Path | None = None,
    beam: int = 4,
    length_penalty: float = 1.0,
    most: int | None = None,
    take: Literal["best", "bleu", "chrf"] = "best",
    text: Callable[[list[int]], str] | None = None,
    batch_size: int = 64,
) -> PairDataset:
    r"""Let a teacher translate every source: the data set of its translations, from which students learn by labels alone.

    Sequence-level distillation learns from y* = argmax p(y | x) as the beam finds it, in place of the sum over all targets;
    interpolation takes of the beam the hypothesis that is most like the reference. Nothing is drawn, so that no seed plays a part.

    Args:
        teacher: With a network that `bookkd.zoo.decode` understands.
        dataset: The sources, and the references that interpolation compares with.
        path: File that the result is kept in: one that is there, of the same teacher, data and options, is read in place of decoding
            again. None keeps nothing.
        beam: See `decode`; 1 is greedy, and leaves interpolation no choice.
        length_penalty: See `decode`.
        most: Most tokens of a translation with its end; half again as many as the longest target, and ten, where None.
        take: "best" by the teacher's score; or the likest to the reference, by "bleu" of the sentence or "chrf".
        text: From tokens to text, for the likeness and for `texts`; None compares numbers, and gives no texts.
        batch_size: Sources a pass, of similar lengths.

    Returns:
        The pairs of each source and what was written for it, in the order of `dataset`; `lineage` says by whom and how. Sources for which
        nothing was written at all are left out, and counted in `dropped`.

    Raises:
        BookMismatchError: if the file at `path` is of another teacher, data set or way of decoding, or was chosen by other references.
        MissingExtraError: if likeness is asked for and sacreBLEU is not installed.
        DataError: if the teacher wrote nothing for any source.

    Source: Kim and Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016 (arXiv 1606.07947), sections 3.2 and 3.3.
    """
    choose(take, ("best", "bleu", "chrf"), "take", where="decode_dataset")
    like = None if take == "best" else likeness(take, words=text is not None)
    lineage: dict[str, Any] = {
        "teacher": {"name": teacher.name, "digest": teacher.digest, "mode": teacher.mode},
        "targets": digest(_told(dataset)),
        "beam": beam,
        "length_penalty": length_penalty,
        "most": most,
        "take": take,
    }
    if like is not None:
        # What was compared: other references, or other text of the same tokens, may choose otherwise.
        compared = [
            (_reference(dataset, row, text), _as_text(_target(dataset, row), text)) for row in range(len(dataset))
        ]
        lineage["compared"] = digest({"words": text is not None, "texts": [list(each) for each in compared]})
    file = None if path is None else Path(path)
    if file is not None and file.exists():
        kept = _kept(file, lineage)
        return replace(kept, texts=_texts([_target(kept, row) for row in range(len(kept))], text))
    found = decode_all(
        teacher.network, dataset, beam=beam, length_penalty=length_penalty, most=most, batch_size=batch_size, device=teacher.device
    )  # fmt: skip
    written = [_chosen(each, dataset, row, like, text) for row, each in enumerate(found)]
    made = _paired(dataset, written, text, lineage)
    if file is not None:
        made.save(file)
    return made


def _told(dataset: PairDataset) -> Mapping[str, Any]:
    """Return what tells the data set from others, without what people call it."""
    return {key: value for key, value in fingerprint(dataset).items() if key != "name"}


def _kept(path: Path, lineage: Mapping[str, Any]) -> PairDataset:
    found = PairDataset.load(path)
    theirs = found.lineage or {}
    differing = [key for key, value in lineage.items() if theirs.get(key) != value]
    if differing:
        got = ", ".join(f"{key} {theirs.get(key)!r}" for key in differing)
        raise BookMismatchError(
            f"Expected {path} to be of this teacher, data and decoding, got another: {got}. Choose another path, or delete the file."
        )
    return found


def _chosen(
    hypotheses: Sequence[Hypothesis],
    dataset: PairDataset,
    row: int,
    like: Callable[[str, str], float] | None,
    text: Callable[[list[int]], str] | None,
) -> tuple[int, ...]:
    """Return the tokens that are learnt from; of an untrained teacher, without the special ones that it may write."""
    special = (dataset.begin, dataset.end)
    tokens = [tuple(token for token in each.tokens if token not in special) for each in hypotheses]
    some = [each for each in tokens if each]
    if like is None or len(some) < 2:
        return some[0] if some else ()
    reference = _reference(dataset, row, text)
    return max(some, key=lambda each: like(_as_text(list(each), text), reference))


def _paired(
    dataset: PairDataset,
    written: Sequence[tuple[int, ...]],
    text: Callable[[list[int]], str] | None,
    lineage: Mapping[str, Any],
) -> PairDataset:
    rows = [row for row, tokens in enumerate(written) if tokens]
    if not rows:
        do = "Train the teacher first."
        raise DataError(expected("translations", "at least one with a token", "none", where="decode_dataset", do=do))
    kept = [written[row] for row in rows]
    dropped = Counter(dataset.dropped)
    if len(rows) < len(written):
        dropped["empty translation"] += len(written) - len(rows)
    return PairDataset.of(
        f"{dataset.name}, written by {lineage['teacher']['name']}",
        [dataset[row][0].numpy() for row in rows],
        kept,
        texts=_texts([list(each) for each in kept], text),
        vocabulary=dataset.vocabulary,
        source_vocabulary=dataset.source_vocabulary,
        begin=dataset.begin,
        end=dataset.end,
        pad_value=dataset.pad_value,
        tokenizer=dataset.tokenizer,
        dropped=dict(dropped),
        lineage=lineage,
    )


def _target(dataset: PairDataset, row: int) -> list[int]:
    tokens: list[int] = dataset[row][1].tolist()[:-1]
    return tokens


def _reference(dataset: PairDataset, row: int, text: Callable[[list[int]], str] | None) -> str:
    return dataset.text(row, text) if text is not None else _as_text(_target(dataset, row), None)


def _texts(written: Sequence[list[int]], text: Callable[[list[int]], str] | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(map(text, written))


def _as_text(tokens: list[int], text: Callable[[list[int]], str] | None) -> str:
    return " ".join(map(str, tokens)) if text is None else text(tokens)
