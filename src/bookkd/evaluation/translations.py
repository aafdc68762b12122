"""Translations: BLEU and chrF of what a network writes, by sacreBLEU, with intervals over sentences and the signature of each score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose, require
from bookkd.evaluation.intervals import Floats
from bookkd.evaluation.measures import Measures, measured
from bookkd.zoo.decoding import Hypothesis, decode

__all__ = ["Translations", "decode_all", "likeness", "measure_translations", "score_translations"]

_EXTRA = "translation"


@dataclass(frozen=True)
class Translations:
    """What a network wrote, and how good it is.

    Args:
        measures: `bleu` and `chrf`, 0 to 100, with sacreBLEU's signatures, and `length_ratio`, words written for each of the references.
        texts: What was written, one for each sentence.
    """

    measures: Measures
    texts: tuple[str, ...]

    @property
    def signatures(self) -> Mapping[str, str]:
        """Of each score, as sacreBLEU gives it: two scores compare only where these are equal."""
        return self.measures.signatures

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a result file, without the texts."""
        return self.measures.to_json()


def measure_translations(
    network: Callable[..., Any],
    dataset: Any,
    *,
    text: Callable[[list[int]], str] | None = None,
    references: Sequence[str] | None = None,
    beam: int = 1,
    length_penalty: float = 1.0,
    most: int | None = None,
    tokenize: str | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Translations:
    """Let a network translate a data set, and measure what it writes.

    Args:
        network: See `bookkd.zoo.decode`; in evaluation mode, on `device`.
        dataset: Of pairs, such as `bookkd.zoo.PairDataset`.
        text: From tokens to text, such as `decode` of the targets' tokenizer; the data set's own where None, or their numbers are taken
            for words, of the references too, where it has none.
        references: Text of each target; that of the data set where None.
        beam: See `decode`.
        length_penalty: See `decode`.
        most: Most tokens of a translation; half again as many as the longest target, and ten, where None, or as many as the network has
            positions.
        tokenize: How sacreBLEU cuts words: "13a" where None, and "none" of numbers.
        batch_size: Sources a pass, of similar lengths.
        device: Where the network is.
        replicates: Bootstrap replicates over sentences; 0 for values alone.
        seed: Of the bootstrap.
        level: Share of the replicates inside an interval.

    Raises:
        MissingExtraError: if sacreBLEU is not installed.
        ConfigError: for a data set that is not of pairs.
    """
    require("sacrebleu", _EXTRA)  # before the long part
    found = decode_all(
        network, dataset, beam=beam, length_penalty=length_penalty, most=most, batch_size=batch_size, device=device
    )
    text = text or getattr(dataset, "decode", None)
    written = [_text(list(each[0].tokens), text) for each in found]
    if references is None:
        rows = range(len(dataset))
        references = (
            [_text(dataset[row][1][:-1].tolist(), None) for row in rows]
            if text is None
            else [dataset.text(row, text) for row in rows]
        )
    how = tokenize or ("13a" if text else "none")
    return score_translations(written, references, tokenize=how, replicates=replicates, seed=seed, level=level)


def decode_all(
    network: Callable[..., Any],
    dataset: Any,
    *,
    beam: int = 1,
    length_penalty: float = 1.0,
    most: int | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> list[list[Hypothesis]]:
    """Return what a network writes for each source of a data set, in its order; arguments as `measure_translations`."""
    at_least(batch_size, 1, "batch_size", where="decode_all")
    if not getattr(dataset, "label_is_input", False):
        do = "Use a data set such as bookkd.zoo.PairDataset."
        raise ConfigError(expected("dataset", "pairs of sequences", type(dataset).__name__, where="decode_all", do=do))
    if len(dataset) == 0:
        raise DataError(expected("dataset", "at least one pair", 0, where="decode_all"))
    sources = [dataset[row][0] for row in range(len(dataset))]
    order = sorted(range(len(sources)), key=lambda row: -len(sources[row]))
    limit = most or dataset.most_positions + dataset.most_positions // 2 + 10
    room = getattr(network, "most_positions", None)  # of one with learnt positions
    if most is None and isinstance(room, int):
        limit = min(limit, room)
    found: list[list[Hypothesis]] = [[] for _ in sources]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        lengths = torch.tensor([len(sources[row]) for row in rows], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(
            [sources[row] for row in rows], batch_first=True, padding_value=dataset.pad_value
        ).to(device)
        made = decode(
            network, padded, lengths, begin=dataset.begin, end=dataset.end, most=limit, beam=beam,
            length_penalty=length_penalty, vocabulary=dataset.vocabulary,
        )  # fmt: skip
        for row, hypotheses in zip(rows, made, strict=True):
            found[row] = hypotheses
    return found


def score_translations(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    tokenize: str = "13a",
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Translations:
    """Measure translations against one reference each.

    The values are sacreBLEU's `corpus_score`; replicates are made of the counts that it gathers of each sentence.

    Args:
        texts: What was written.
        references: What was to be written.
        tokenize: How sacreBLEU cuts words.
        replicates: Bootstrap replicates over sentences; 0 for values alone.
        seed: Of the bootstrap.
        level: Share of the replicates inside an interval.

    Raises:
        MissingExtraError: if sacreBLEU is not installed.
        DataError: for another number of texts than of references, or none.

    >>> found = score_translations(["the cat sat on the mat"], ["the cat sat on a mat"], replicates=0)
    >>> round(found.measures.metrics["bleu"].value, 2), found.signatures["bleu"].split("|")[3]
    (53.73, 'tok:13a')

    Source: Post 2018 (arXiv 1804.08771); Popovic 2015 (chrF); Koehn 2004 for the bootstrap over sentences.
    """
    if len(texts) != len(references) or not texts:
        raise DataError(
            expected("texts", f"one for each of {len(references)} references", len(texts), where="score_translations")
        )
    metrics = require("sacrebleu.metrics", _EXTRA)
    scorers = {"bleu": metrics.BLEU(tokenize=tokenize), "chrf": metrics.CHRF()}
    counts = {
        name: np.asarray(scorer._extract_corpus_statistics(list(texts), [list(references)]), dtype=np.float64)
        for name, scorer in scorers.items()
    }

    def statistic(times: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        sums = {name: times @ each for name, each in counts.items()}
        found = {
            name: np.array([scorers[name]._compute_score_from_stats(row.tolist()).score for row in each])
            for name, each in sums.items()
        }
        return {**found, "length_ratio": sums["bleu"][:, 0] / np.maximum(sums["bleu"][:, 1], 1)}, {}

    measures = measured(
        statistic, len(texts), class_names=(), replicates=replicates, seed=seed, level=level
    )  # fmt: skip
    signatures = {name: str(scorer.get_signature()) for name, scorer in scorers.items()}
    return Translations(replace(measures, signatures=signatures), tuple(texts))


def likeness(metric: str, *, words: bool) -> Callable[[str, str], float]:
    """Return how like a reference a text is, 0 to 100: `bleu` of the sentence, with the smoothing that it needs there, or `chrf`.

    Args:
        metric: "bleu" or "chrf".
        words: False where texts are cut into words already.

    >>> likeness("chrf", words=True)("a cat", "a cat")
    100.0
    """
    choose(metric, ("bleu", "chrf"), "metric", where="likeness")
    metrics = require("sacrebleu.metrics", _EXTRA)
    scorer = (
        metrics.CHRF() if metric == "chrf" else metrics.BLEU(tokenize="13a" if words else "none", effective_order=True)
    )

    def like(text: str, reference: str) -> float:
        return float(scorer.sentence_score(text, [reference]).score)

    return like


def _text(tokens: list[int], decode: Callable[[list[int]], str] | None) -> str:
    return " ".join(map(str, tokens)) if decode is None else decode(tokens)
