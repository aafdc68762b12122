"""`bookkd compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bookkd.cli._show import console, rows
from bookkd.cli._verb import Verb, note
from bookkd.core.errors import ConfigError, expected
from bookkd.evaluation.paired import EQUAL, INSIDE, UNKNOWN, UNPAIRED
from bookkd.pipelines.compare import read_document, run_sweep, spaces_of, sweep_of
from bookkd.report.columns import QUALITY

Part = str | dict[str, Any] | None
"""A name, or keys with values; `--part.key value` sets one of them."""
Listed = str | list[Any] | dict[str, Any] | None
"""Text with commas between, or a list."""


def compare(
    sweep: str | None = None,
    out: str = "compare",
    jobs: int = 1,
    preset: str = "",
    tune: str | list[str] = "",
    trials: int = 20,
    students: Listed = None,
    methods: Listed = None,
    books: Listed = None,
    teachers: Listed = None,
    seeds: int | str | list[int] | None = None,
    data: Part = None,
    training: Part = None,
    views: Part = None,
    overrides: list[Any] | None = None,
    baseline: str | None = None,
    label_fraction: float | None = None,
    test: str | None = None,
    validation: str | None = None,
    validation_fraction: float | None = None,
    replicates: int | None = None,
    latency: bool | None = None,
    task: Part = None,
    beam: int | None = None,
) -> tuple[dict[str, Any], int]:
    """Train methods x students x books x overrides x seeds and say what differs by more than noise; a stopped sweep goes on.

    Exit code 1 if a run failed; it is tried again the next time.

    Args:
        sweep: YAML file of the sweep, also as --config FILE; options beside it win.
        out: Folder of all runs and of summary.json.
        jobs: Runs at once, each in a process of its own with its share of the threads.
        preset: ablation (BookKD with each of its parts left out), or orthogonality (distillation x augmentation x
            architecture).
        tune: Choose values first, on samples held out from training, such as 'method.temperature=1:20',
            'training.lr=0.01:1:log', 'method.temperature=1,4,8'; several with blanks between.
        trials: Tries of the search, for each arm.
        students: Networks to train.
        methods: Names of methods; in YAML also mappings with name, preset, options and the labels of books.
        books: Folders, each by itself; in YAML also lists that are read together, or a mapping from label to folders.
        teachers: Networks with weights that are asked at every step.
        seeds: How many, or which.
        data: The training samples; also --data.root and so on, as in bookkd learn.
        training: Such as --training.epochs 30, as in bookkd learn.
        views: The augmentation; that of the books where none is given.
        overrides: Named settings with which every arm is trained once each.
        baseline: Name of the arm that others are held against; labels alone with the same student where none is given.
        label_fraction: Share of the labels that students see.
        test: Split that is reported.
        validation: Split for curves, early stopping, calibration and tuning; never the test split.
        validation_fraction: In its place, share of the training samples that no student learns from; 0.1 by default.
        replicates: Bootstrap replicates of each run's intervals.
        latency: Measure the time of a pass of each student.
        task: What the data are, as in bookkd learn, also --task.args; taken from the books, else classification.
        beam: Hypotheses that are followed where translations are written out for BLEU and chrF, 1 by default; 0 writes none.
    """
    given = {key: value for key, value in locals().items() if key not in _OF_THE_CALL and value is not None}
    document = {} if sweep is None else read_document(sweep)
    for key, value in given.items():
        document[key] = _over(document.get(key), value, key)
    if preset:
        document["preset"] = preset
    words = tune or document.pop("tune", "")
    document.pop("tune", None)
    text = words if isinstance(words, str) else " ".join(words)
    result = run_sweep(sweep_of(document), out, jobs=jobs, say=note, spaces=spaces_of(text), trials=trials)
    return result, int(bool(result["failed"]))


_OF_THE_CALL = ("sweep", "out", "jobs", "preset", "tune", "trials")


def _over(known: Any, value: Any, key: str) -> Any:
    """Return what an option makes of a key of the file: keys with values are added to those that it has."""
    if not isinstance(value, Mapping) or known is None or key in ("books", "teachers"):
        return value
    if isinstance(known, str):
        known = {{"data": "name", "views": "transform"}.get(key, "name"): known}
    if not isinstance(known, Mapping):
        raise ConfigError(expected(key, "keys with values", known, where="compare"))
    return {**known, **value}


def show(result: dict[str, Any]) -> None:
    """Print the rows, the preset's table, the cost and the failures."""
    out, metric = console(), result["metric"]
    values = [_line(row, metric, result["beside"]) for row in result["arms"]]
    titles = {column.key: column.title for column in QUALITY[result["task"]]}
    beside = [titles[key] for key in result["beside"]]
    columns = ("arm", "seeds", titles[metric], "to baseline", "95 % interval", "that is", *beside, "s/epoch", "passes")
    out.print(rows(f"Compared in {result['out']}", columns, values))
    for base in dict.fromkeys(row["baseline"] for row in result["arms"] if row["baseline"] is not None):
        held = [row["arm"] for row in result["arms"] if row["baseline"] == base]
        count = f"{len(held)} arms" if len(held) > 1 else held[0]
        out.print(
            f"Baseline of {count}: {base}. Passes are a teacher's while students learn.", soft_wrap=True, markup=False
        )
    if "ablation" in result:
        out.print(rows("What each part gives: full less without it", _GAIN, [_gain(row) for row in result["ablation"]]))
    if "orthogonality" in result:
        out.print(rows("Does distillation add up?", _CELLS, [_cells(row) for row in result["orthogonality"]]))
    ledger = result["ledger"]
    if ledger["books"]:
        passes, seconds = ledger["making_teacher_forwards"], ledger["making_seconds"]
        made = (
            f"{passes:,.0f} teacher passes in {seconds:.1f} s"
            if passes is not None and seconds is not None
            else "unknown"
        )
        out.print(
            f"Books made once: {made}. {ledger['students']} students learned in {ledger['learning_seconds']:.1f} s "
            f"with {ledger['learning_teacher_forwards']:,} further teacher passes.",
            soft_wrap=True,
        )
    for found in result["tuned"]:
        best = found["best"]
        told = "no try succeeded" if best is None else f"{best['values']}, {metric} {best['score']:.4f} on validation"
        out.print(f"Tuned {found['before']}: {told}", soft_wrap=True)
    for said in result["notes"]:
        out.print(f"Note: {said}", soft_wrap=True, markup=False)
    for failed in result["failed"]:
        out.print(f"Failed: {failed['arm']}, seed {failed['seed']}: {failed['error']}", soft_wrap=True, markup=False)
    out.print(f"Next: bookkd report {result['out']}", soft_wrap=True)


_SHORT = {INSIDE: "noise", UNKNOWN: "one seed", EQUAL: "equal"}


def _line(row: Mapping[str, Any], metric: str, beside: Sequence[str]) -> tuple[str, ...]:
    difference, found = row["difference"], row[metric]
    return (
        row["arm"],
        f"{len(row['seeds'])}" + (f", {row['failed']} failed" if row["failed"] else ""),
        "" if found is None else f"{found['mean']:.4f}" + ("" if found["sd"] is None else f" ± {found['sd']:.4f}"),
        "" if difference is None else f"{difference['mean']:+.4f}",
        _interval(difference),
        "" if difference is None else _told(difference),
        *("" if row[key] is None else f"{row[key]['mean']:.4f}" for key in (*beside, "seconds_per_epoch")),
        f"{row['teacher_forwards']:,}",
    )


def _told(difference: Mapping[str, Any]) -> str:
    """Return the verdict in a word or two, and which way it is where it is more than noise."""
    apart = "" if difference["paired"] else UNPAIRED
    if difference["better"] is not None:
        return f"{'better' if difference['better'] else 'worse'}{apart}"
    verdict: str = difference["verdict"].removesuffix(UNPAIRED)
    return f"{_SHORT.get(verdict, verdict)}{apart}"


def _interval(found: Mapping[str, Any] | None) -> str:
    return "" if found is None or found["low"] is None else f"{found['low']:+.4f} to {found['high']:+.4f}"


_GAIN = ("part", "student", "gives", "95 % interval", "that is")


def _gain(row: Mapping[str, Any]) -> tuple[str, ...]:
    gain = row["full_less_without"]
    mean, verdict = ("", "not known") if gain is None else (f"{gain['mean']:+.4f}", _told(gain))
    return row["without"], row["student"], mean, _interval(gain), verdict


_CELLS = ("partner", "at", "distillation", "partner alone", "both", "interaction", "95 % interval", "kept", "verdict")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    found = row["interaction"]
    name = f"{row['partner']}: {row['from']} to {row['to']}"
    if found is None:
        return name, row["at"], "", "", "", "", "", "", "not known"
    gains = (f"{found[key]:+.4f}" for key in ("distillation", "partner", "joint", "interaction"))
    kept = "n/a" if found["retention"] is None else f"{found['retention']:.2f}"
    verdict = found["verdict"] + ("" if found["paired"] else UNPAIRED)
    return name, row["at"], *gains, _interval(found), kept, verdict


_NAMED = {"--data": "--data.name", "--task": "--task.name", "--views": "--views.transform"}


@dataclass(frozen=True)
class _Compare(Verb):
    """A verb whose YAML file is nested deeper than options are: it is read as a whole."""

    def _expand(self, argv: Sequence[str]) -> list[str]:
        words = list(argv)
        for place, word in enumerate(words):
            option, equals, value = word.partition("=")
            if option == "--config":
                file = value if equals else next(iter(words[place + 1 : place + 2]), "")
                words[place : place + (1 if equals else 2)] = [f"--sweep={file}"]
            # A name beside other keys of the same part is one of them: --data cifar10 --data.root data.
            if option in _NAMED and not (value if equals else next(iter(words[place + 1 : place + 2]), "")).startswith(
                "{"
            ):
                words[place] = f"{_NAMED[option]}{equals}{value}"
        return super()._expand(words)


VERB = _Compare(
    "compare",
    compare,
    show,
    "  bookkd compare sweep.yaml --out runs/first --jobs 2\n"
    "  bookkd compare --preset ablation --books books/a,books/b --students resnet8 --data cifar10 --data.root data \\\n"
    "    --seeds 5 --training.epochs 30 --out runs/ablation\n"
    "  bookkd compare sweep.yaml --tune 'method.temperature=1:20 training.lr=0.01:1:log' --trials 30",
    positional={"sweep": True},
)
