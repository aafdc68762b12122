"""The page `docs/results-sequences.md` from what `language.py`, `texts.py`, `translation.py`, `speech.py` and `music.py` kept.

python benchmarks/sequence_results.py            # writes the page
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkd.evaluation import Difference, difference_of, lower_is_better

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results-sequences.md"
KEPT = HERE / "results" / "sequences"


@dataclass(frozen=True)
class Column:
    """A metric of a table.

    Args:
        name: In the runs.
        title: In the table.
        digits: Behind the point.
        factor: 100 for shares in per cent.
    """

    name: str
    title: str
    digits: int
    factor: float = 1.0


@dataclass(frozen=True)
class Section:
    """One set of runs.

    Args:
        text: What was done and what is seen, with `{table}` in it.
        base: Arm that the others are held against.
        columns: The first one's difference to the base is shown.
        pairs: Of arms, whose difference is shown beside.
        told: What was kept -> other figures that the text names, so that no rerun makes it untrue.
    """

    text: str
    base: str
    columns: Sequence[Column]
    pairs: Sequence[tuple[str, str]] = ()
    told: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda found: {}


def arms_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Return arm -> seed -> run, in the order of the runs."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["arm"], {})[run["seed"]] = run
    return found


def figures(runs: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    """Return seed -> a metric."""
    return {seed: run["metrics"][name]["value"] for seed, run in runs.items() if name in run["metrics"]}


def difference(arms: Mapping[str, Mapping[int, Any]], arm: str, base: str, name: str) -> Difference | None:
    """Return the difference of an arm to the base, paired by seed."""
    return difference_of(
        figures(arms[arm], name), figures(arms[base], name), base, lower_is_better=lower_is_better(name)
    )


def table(found: Mapping[str, Any], section: Section) -> str:
    """Return a line for each arm: metrics, mean and deviation over seeds, and the first one's difference to the base."""
    arms, first = arms_of(found["runs"]), section.columns[0]
    head = ["arm", "seeds", *(column.title for column in section.columns), f"{first.title} to {section.base} (95 %)"]
    if any("bytes_per_token" in run for run in found["runs"]):
        head.append("bytes a token")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for arm, runs in arms.items():
        cells = [arm, str(len(runs)), *(number(runs, column) for column in section.columns)]
        gain = None if arm in ("teacher", section.base) else difference(arms, arm, section.base, first.name)
        cells.append(apart(gain, first))
        if "bytes a token" in head:
            size = next(iter(runs.values())).get("bytes_per_token")
            cells.append("-" if size is None else f"{size:,.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pairs(found: Mapping[str, Any], section: Section) -> str:
    """Return the first metric's differences within some pairs of arms, in a sentence."""
    arms, column = arms_of(found["runs"]), section.columns[0]
    told = [
        f"{mine} to {other} {apart(difference(arms, mine, other, column.name), column)}"
        for mine, other in section.pairs
    ]
    return f"{column.title}: {'; '.join(told)}."


def number(runs: Mapping[int, Mapping[str, Any]], column: Column) -> str:
    """Return mean and deviation over seeds; of one seed, the interval over what was measured."""
    found, digits = (
        [run["metrics"][column.name] for run in runs.values() if column.name in run["metrics"]],
        column.digits,
    )
    if not found:
        return "-"
    values = [column.factor * each["value"] for each in found]
    if len(values) > 1:
        return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
    low, high = (column.factor * found[0][end] for end in ("low", "high"))
    return f"{values[0]:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low < high else "")


def apart(found: Difference | None, column: Column) -> str:
    """Return a difference with its interval, in bold where it is more than the noise between seeds."""
    if found is None:
        return "-"
    digits, factor = column.digits, column.factor
    if found.low is None or found.high is None:
        return f"{factor * found.mean:+.{digits}f}"
    told = f"{factor * found.mean:+.{digits}f} ({factor * found.low:+.{digits}f} to {factor * found.high:+.{digits}f})"
    return told if found.better is None else f"**{told}**"


def page() -> str:
    """Return the page: one section for each set of runs that was kept."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        path = KEPT / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            parts.append(written(found, section))
    return "\n".join(parts)


def written(found: Mapping[str, Any], section: Section) -> str:
    """Return the section of what was kept of a set of runs."""
    options = {**found.get("options", {}), **section.told(found)}
    return section.text.format(table=table(found, section), pairs=pairs(found, section), **options)


def of_language(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures that the text on the language model names: how near arms come, in how many bytes, of which size."""
    arms, sizes = arms_of(found["runs"]), found["parameters"]
    values = {arm: figures(runs, "perplexity") for arm, runs in arms.items()}
    means = {arm: statistics.fmean(each.values()) for arm, each in values.items()}
    size = {arm: next(iter(runs.values())).get("bytes_per_token") for arm, runs in arms.items()}
    full, behind = values["full"], sorted(values["labels"][seed] - each for seed, each in values["full"].items())
    gain = difference(arms, "full", "labels", "perplexity")
    return {
        "size": f"{sizes['student'] / sizes['teacher']:.2f}",
        "unique": f"{next(iter(arms['sampled 13'].values()))['unique']:.0f}",
        "near13": f"{100 * (means['sampled 13'] / means['full'] - 1):.1f} %",
        "near50": f"{100 * (means['sampled 50'] / means['full'] - 1):.1f} %",
        "times": f"{size['full'] / size['sampled 13']:.0f}",
        "teacher": f"{means['teacher']:.0f}",
        "full": f"{min(full.values()):.0f} to {max(full.values()):.0f}",
        "behind": ", ".join(f"{each:+.0f}" for each in behind),
        "holds": "does not hold" if gain is not None and gain.better is not None else "holds",
    }


HEAD = """# Results on sequences

Text, translation, speech and music: what the scripts `benchmarks/language.py`, `texts.py`, `translation.py`, `speech.py` and `music.py`
measured, written by `benchmarks/sequence_results.py`. No number here is a paper's, and none of a paper's claims is repeated as ours:
these are small networks trained for minutes on two cores, with few seeds, and say what shows *here*.

Figures are of held-out data: mean ± standard deviation over seeds. Differences are paired over seeds, with Student's 95 % interval,
not corrected for the number of arms; in bold where they are more than the noise between seeds. With one seed there is no such interval:
what stands behind a figure then is the 95 % interval over sentences, utterances or sequences of the test data, and how far another seed
would be nobody knows.
Nothing was tuned.
"""

SECTIONS: dict[str, Section] = {
    "language": Section(
        """## A language model on the Brown corpus

`benchmarks/language.py`: {sequences} sequences of 64 tokens, a byte-pair vocabulary of 8,192 learnt on them, documents divided into
training and held-out ones. The teacher is a GPT-2 of 4 layers of 192, trained for {teacher_epochs} epochs; students have 2 layers of 64 and
see {epochs} epochs. Every student but the first learns from a book alone, by forward KL, at temperature 1. "sampled N" keeps N draws of a
position, with about {unique} different tokens at N = 13; "top-k" keeps the likeliest and the mass of the rest as one bucket.

{table}

{pairs}

Nearly what the literature expects shows here: the perplexity of 13 draws a position is {near13} above that of the whole distribution, in
1/{times} of its bytes, and that of 50 draws {near50}; the gaps are in bold where they are more than the noise. The likeliest tokens alone
do not: a bucket for the rest says how much they have together and not which, and over text that the teacher is unsure of (its perplexity is
{teacher}) most of what is learnt is in the rest, so that a student of 12 or 50 of them is worse than one of labels. That it agrees with the
teacher more often than one of labels is no contradiction: it learns the teacher's first choice, and little else. A student of {size} of
the teacher's parameters comes to about its perplexity from the whole distribution ({full} over seeds); labels alone end elsewhere from seed
to seed ({behind} to the same seed's), and the interval of what is gained over them {holds} 0.
""",
        "labels",
        (
            Column("perplexity", "perplexity", 1),
            Column("ece", "ECE", 4),
            Column("agreement", "agreement %", 2, 100),
            Column("acceptance", "acceptance %", 2, 100),
        ),
        tuple((arm, "full") for arm in ("sampled 13", "sampled 50", "top-k 12", "top-k 50")),
        of_language,
    ),
    "texts": Section(
        """## Genres of the Brown corpus

`benchmarks/texts.py`: texts of 96 tokens, one of fifteen genres, documents divided into training and held-out ones. The teacher is the
sentence encoder MiniLM-L6, tuned for {teacher_epochs} epochs on {texts} texts; students are encoders of one layer of 64 with initial values of
their own, and learn from the same texts.

{table}

Few texts and {seeds} seed: what the book adds is inside the intervals.
""",
        "labels",
        (Column("accuracy", "accuracy %", 2, 100), Column("nll", "NLL", 3), Column("ece", "ECE", 3)),
    ),
    "translation": Section(
        """## Translation, English to German

`benchmarks/translation.py`: {sentences} pairs of Multi30k, a shared byte-pair vocabulary of {vocabulary}, tested on test_2016_flickr with a
beam of 4. The teacher is a transformer of 2 layers of 128, trained for {teacher_epochs} epochs; students have 0.30 of its parameters and see
{epochs} epochs, of which the one with the least perplexity on the validation split is kept. BLEU and chrF are sacreBLEU's; perplexity and
calibration are of the reference, behind its own prefix. Adaptive label smoothing keeps its past self in memory (`live`), and its rule for
the strength is a reconstruction.

{table}

One seed. Text that the teacher wrote gives the best translations, and a student that is sure of it and not of the reference, so that its
perplexity and calibration of the latter are worst by far; word by word from a top-k book is between. Adaptive smoothing is best calibrated
and translates worst of all here; probably since its past self is a weak teacher in so short a training (not tested).
""",
        "label smoothing 0.1",
        (
            Column("bleu", "BLEU", 2),
            Column("chrf", "chrF", 2),
            Column("perplexity", "perplexity", 2),
            Column("ece", "ECE", 4),
        ),
    ),
    "speech-fsdd": Section(
        """## Spoken digit strings

`benchmarks/speech.py`: recordings of the Free Spoken Digit Dataset joined into {strings} strings of two to six digits, spelled in letters;
tested on two speakers who are not among the training ones. The teacher is a bidirectional GRU of 293,681 parameters, trained for
{teacher_epochs} epochs, students one of 55,177 (0.19 of it) for {epochs} epochs, on four stored views of masks and speeds. `two-pass` is
`cons-kd` with a consistency weight of 0: its fair baseline, since both see two passes a step. `cons-kd` and the mix of its terms are
reconstructions.

{table}

{pairs}

Frame posteriors of the teacher help by more than the noise; its likeliest symbols alone do not, in so few epochs. What a second pass adds
is inside the noise of three seeds, and the term that makes both passes agree costs more than it gives, at its default weight. That small
networks gain little from consistency is what others saw too.
""",
        "supervised",
        (
            Column("wer", "WER %", 2, 100),
            Column("cer", "CER %", 2, 100),
            Column("nll", "NLL", 2),
            Column("agreement", "agreement %", 1, 100),
        ),
        (("two-pass", "kd"), ("cons-kd", "two-pass")),
    ),
    "speech-espeak": Section(
        """## Synthetic speech, as a second set

The same on {strings} strings of digits spoken by espeak-ng; a fifth of the pairs of English accent and voice are held out.

{table}

{pairs}
""",
        "supervised",
        (
            Column("wer", "WER %", 2, 100),
            Column("cer", "CER %", 2, 100),
            Column("nll", "NLL", 2),
            Column("agreement", "agreement %", 1, 100),
        ),
        (("two-pass", "kd"), ("cons-kd", "two-pass")),
    ),
    "music": Section(
        """## Bass of a chorale from its soprano

`benchmarks/music.py`: chorales of Bach from music21's corpus, divided by melody; the pitch class of the bass at each beat. The round is
chosen on the validation split. `dil-seq2seq` is a reconstruction. More is in [interactive learning](guides/interactive.md).

{table}
""",
        "labels",
        (Column("accuracy", "accuracy %", 2, 100), Column("nll", "NLL", 3), Column("ece", "ECE", 3)),
    ),
}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
