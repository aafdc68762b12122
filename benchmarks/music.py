"""Sequence labelling from books: the bass of a Bach chorale beat by beat from its soprano, with interactive learning and what it is held against.

    pip install music21
    python benchmarks/music.py --out runs/music            # everything, some minutes on one core
    python benchmarks/music.py --out runs/music --quick    # one seed, nothing to be believed

The chorales are those of music21's own corpus, which is no dependency of this package: 4 voices, one time signature. A step is a beat:
what the soprano sings there, half a beat later, and where the beat stands; its label is the pitch class of the bass, all transposed to no
sharps. Settings of one melody are kept on one side of the split. A run that is done is not done again.
`--keep` writes `benchmarks/results/sequences/music.json`, of which `docs/guides/interactive.md` shows the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from kept_runs import Runs
from safetensors.numpy import load_file, save_file
from torch import nn

from bookkd.core.rng import generator
from bookkd.evaluation import difference_of
from bookkd.learning import Cohort, Learner, Training, Validation, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.methods import DIL, DML, Method, Supervised
from bookkd.pipelines.rounds import Feedback, Rounds, RoundsResult, ensemble_of, run_rounds, said_on
from bookkd.tasks import Tagging
from bookkd.views import Views
from bookkd.zoo import GRUTagger, SequenceDataset, load_weights

KEPT = Path(__file__).parent / "results" / "sequences" / "music.json"
NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
TASK, VIEWS = Tagging(NAMES), Views(None, n_views=1)
SECONDS_OF_READING = 60
ROUNDS, STUDENT_EPOCHS, FEEDBACK_EPOCHS, WARM_UP = 3, 8, 4, 10
METHOD = DIL(assistants=3)


@dataclass(frozen=True)
class Note:
    """What one voice sings from `start` for `length` quarters."""

    start: float
    length: float
    pitch: int
    fermata: bool = False


@dataclass(frozen=True)
class Chorale:
    """Soprano and bass, the sharps of the key signature, and the measures: start in quarters, and quarters missing in front."""

    name: str
    soprano: tuple[Note, ...]
    bass: tuple[Note, ...]
    sharps: int
    measures: tuple[tuple[float, float], ...]


def read_chorales() -> Iterator[Chorale]:
    """Yield the chorales of music21's corpus that are for four voices in one time signature of quarters."""
    try:
        from music21 import corpus, expressions
    except ImportError:
        raise SystemExit("Expected music21 to be there, got no such module. Install it: pip install music21.") from None
    for name in corpus.chorales.Iterator(numberingSystem="bwv", returnType="filename"):
        score = corpus.parse(name)
        voices = {part.id: part for part in score.parts}
        if len(voices) != 4 or not {"Soprano", "Bass"} <= set(voices):
            continue
        first = voices["Soprano"]
        times = {str(each.ratioString) for each in first.flatten().getElementsByClass("TimeSignature")}
        keys = [int(each.sharps) for each in first.flatten().getElementsByClass("KeySignature")]
        if len(times) != 1 or not times <= {"4/4", "3/4"} or not keys:
            continue

        def sung(voice: Any) -> tuple[Note, ...]:
            notes = voice.flatten().stripTies().notes
            fermata = expressions.Fermata
            return tuple(
                Note(float(note.offset), float(note.quarterLength), int(note.pitches[-1].midi),
                     any(isinstance(each, fermata) for each in note.expressions))
                for note in notes
            )  # fmt: skip

        bars = tuple((float(bar.offset), float(bar.paddingLeft)) for bar in first.getElementsByClass("Measure"))
        yield Chorale(str(name), sung(first), sung(voices["Bass"]), keys[0], bars)


def steps_of(chorale: Chorale) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return what the network sees at each beat, [beats, 31], and the pitch class of the bass, -1 where it rests."""
    end = max(note.start + note.length for note in chorale.soprano)
    inputs, labels = [], []
    for beat in np.arange(0.0, end):
        now, soon, low = (_at(voice, at) for voice, at in ((chorale.soprano, beat), (chorale.soprano, beat + 0.5), (chorale.bass, beat)))  # fmt: skip
        row = np.zeros(31, np.float32)
        if now is not None:
            row[_class(now, chorale)] = 1
            row[24] = (now.pitch - 69) / 12
            row[25] = float(now.start == beat)
            row[26] = float(now.fermata)
        if soon is not None:
            row[12 + _class(soon, chorale)] = 1
        row[27 + _place(beat, chorale) % 4] = 1
        inputs.append(row)
        labels.append(-1 if low is None else _class(low, chorale))
    return np.stack(inputs), np.array(labels, np.int64)


def _at(voice: Sequence[Note], time: float) -> Note | None:
    return next((note for note in voice if note.start <= time < note.start + note.length), None)


def _class(note: Note, chorale: Chorale) -> int:
    """Return the pitch class, transposed as if the key had no sharps: the tonic goes up by 7 half-tones a sharp."""
    return (note.pitch - 7 * chorale.sharps) % 12


def _place(beat: float, chorale: Chorale) -> int:
    start, missing = max((bar for bar in chorale.measures if bar[0] <= beat), default=(0.0, 0.0))
    return int(beat - start + missing)


def split(chorales: Sequence[Chorale]) -> dict[str, SequenceDataset]:
    """Return `train`, `validation` and `test`: 60, 20 and 20 % of the melodies, by the pitch classes of their first 8 beats."""
    found = [(*steps_of(chorale),) for chorale in chorales]
    melodies = [tuple(inputs[:8, :12].argmax(1).tolist()) for inputs, _ in found]
    known = sorted(set(melodies))
    order = generator(0, "split").permutation(len(known))
    part = {
        known[place]: ("train", "train", "train", "validation", "test")[rank % 5] for rank, place in enumerate(order)
    }
    sets: dict[str, SequenceDataset] = {}
    for name in ("train", "validation", "test"):
        mine = [pair for pair, melody in zip(found, melodies, strict=True) if part[melody] == name]
        sets[name] = SequenceDataset.of(
            f"chorales {name}", [pair[0] for pair in mine], [pair[1] for pair in mine], class_names=NAMES
        )
    return sets


def data(out: Path) -> dict[str, SequenceDataset]:
    """Return the three sets, read from the corpus where `out` does not have them yet."""
    path, entries = out / "chorales.safetensors", ("inputs", "step_labels", "ends")
    if not path.exists():
        print(f"reading the chorales, about {SECONDS_OF_READING} s", file=sys.stderr)
        sets = split(list(read_chorales()))
        save_file({f"{name}-{key}": getattr(each, key) for name, each in sets.items() for key in entries}, path)
    found = load_file(path)
    return {
        name: SequenceDataset(f"chorales {name}", *(found[f"{name}-{key}"] for key in entries), NAMES)
        for name in ("train", "validation", "test")
    }


small = partial(GRUTagger, len(NAMES), features=31, width=12)
large = partial(GRUTagger, len(NAMES), features=31, width=32, dropout=0.2)


def training(seed: int, epochs: int) -> Training:
    """Return how every network is trained."""
    return Training(
        epochs=epochs, batch_size=32, optimizer="adamw", lr=1e-2, weight_decay=1e-3, clip_norm=1.0, seed=seed,
        accelerator="cpu", shuffle="rows",
    )  # fmt: skip


@dataclass(frozen=True)
class Arms:
    """The arms of one seed: all students begin with the same values and see the labels as often, `ROUNDS * STUDENT_EPOCHS` epochs."""

    out: Path
    sets: Mapping[str, SequenceDataset]
    seed: int
    quick: bool

    def settings(self, name: str, **options: Any) -> Rounds:
        """Return rounds as an arm runs them."""
        scale = 5 if self.quick else 1
        return Rounds(
            out=self.out / name, student=small, assistants=(large,) * METHOD.assistants, data=self.sets["train"],
            validation=self.sets["validation"], task=TASK, method=METHOD, rounds=ROUNDS,
            training=training(1000 * self.seed, max(1, STUDENT_EPOCHS // scale)),
            warm_up=training(1000 * self.seed, max(1, WARM_UP // scale)),
            feedback_training=training(1000 * self.seed, max(1, FEEDBACK_EPOCHS // scale)),
            say=lambda line: print(f"seed {self.seed}, {name}: {line}", file=sys.stderr), **options,
        )  # fmt: skip

    def by_stages(self, method: Method, network: nn.Module, name: str) -> tuple[nn.Module, int]:
        """Train as often and as long as the student of the rounds, and return the network of the stage that validation chooses."""
        best, found, chosen, settings = -1.0, network, 0, self.settings(name)
        for number in range(1, ROUNDS + 1):
            how = replace(settings.training, seed=settings.seed(number, 0))
            validation = Validation(self.sets["validation"])
            learned = learn(network, self.sets["train"], VIEWS, task=TASK, method=method, training=how, validation=validation)  # fmt: skip
            if learned.metrics["accuracy"] > best:
                best, chosen = learned.metrics["accuracy"], number
                found = small()
                found.load_state_dict(learned.student.state_dict())
        return found.eval(), chosen

    def labels(self) -> Iterator[tuple[nn.Module, int, dict[str, Any]]]:
        """The student on labels alone."""
        yield *self.by_stages(Supervised(), self.settings("labels").network(0), "labels"), {}

    def mutual(self) -> Iterator[tuple[nn.Module, int, dict[str, Any]]]:
        """Mutual learning of the student and one large network, both untrained."""
        settings = self.settings("dml")
        yield *self.by_stages(DML(), Cohort([settings.network(0), settings.network(1)]), "dml"), {}

    def one_way(self) -> Iterator[tuple[nn.Module, int, dict[str, Any]]]:
        """Distillation of the three assistants' book."""
        settings = self.settings("one-way", feedback=Feedback(on=False))
        yield self._of(settings, run_rounds(settings))

    def rounds(self) -> Iterator[tuple[nn.Module, int, dict[str, Any]]]:
        """Interactive learning by rounds of books."""
        settings, warm = self.settings("rounds"), self.settings("one-way").folder(0)
        if warm.exists() and not settings.folder(0).exists():
            shutil.copytree(warm, settings.folder(0))  # the same networks, seeds and labels: it would come to the same
        yield self._of(settings, run_rounds(settings))

    def live(self) -> Iterator[tuple[nn.Module, int, dict[str, Any]]]:
        """Interactive learning step by step, from the assistants of the rounds after their warm-up."""
        settings = self.settings("rounds")
        networks = [settings.network(place) for place in (0, *settings.places)]
        for place in settings.places:
            load_weights(networks[place], settings.folder(0) / f"assistant-{place}" / "student.safetensors")
        yield *self.by_stages(METHOD, Cohort(networks), "live"), {}

    def _of(self, settings: Rounds, result: RoundsResult) -> tuple[nn.Module, int, dict[str, Any]]:
        """Return the student of the rounds, and what the assistants came to, on the test split too."""
        kept = []
        for record in result.rounds:
            members = []
            for place, entry in zip(settings.places, record["assistants"], strict=True):
                network = settings.network(place)
                load_weights(network, result.folder / entry["weights"])
                members.append(said_on(Learner(network, TASK), Validation(self.sets["test"])))
            each = [member.measures()["accuracy"] for member in members]
            together = ensemble_of(members, METHOD).measures()["accuracy"]
            kept.append({
                "round": record["round"], "validation": record["ensemble"]["accuracy"], "diversity": record["diversity"],
                "gain": record["gain"], "test": together, "test_members": each,
                "student_validation": record.get("student", {}).get("accuracy"),
            })  # fmt: skip
        return result.student, result.chosen, {"rounds": kept, "ensemble_round": result.best["ensemble"]["round"]}


ARMS: dict[str, Callable[[Arms], Iterator[tuple[nn.Module, int, dict[str, Any]]]]] = {
    "labels": Arms.labels,
    "one-way": Arms.one_way,
    "rounds": Arms.rounds,
    "live": Arms.live,
    "dml": Arms.mutual,
}
TITLES = {
    "labels": "student on labels alone",
    "one-way": "distillation of three assistants",
    "rounds": "interactive, by rounds of books",
    "live": "interactive, step by step",
    "dml": "mutual learning with one large network",
}


def run(out: Path, arm: str, seed: int, sets: Mapping[str, SequenceDataset], quick: bool) -> dict[str, Any]:
    """Return what one student came to on the test split."""
    started = time.perf_counter()
    ((student, chosen, more),) = ARMS[arm](Arms(out / f"seed-{seed}", sets, seed, quick))
    seconds = time.perf_counter() - started
    measured = measure_sequences(student, sets["test"], TASK, batch_size=64)
    metrics = {name: measured.metrics[name].to_json() for name in ("accuracy", "balanced_accuracy", "nll", "ece")}
    return {"seconds": round(seconds, 1), "chosen": chosen, "metrics": metrics, **more}


def table(found: Mapping[str, Any]) -> str:
    """Return the table of the guide: accuracy over seeds, and the paired difference to labels alone with its interval."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for each in found["runs"]:
        by_arm.setdefault(each["arm"], {})[each["seed"]] = each

    def figures(arm: str, name: str) -> dict[int, float]:
        return {seed: one["metrics"][name]["value"] for seed, one in by_arm[arm].items()}

    lines = [
        "| student | accuracy % | to labels alone (95 %) | NLL | ECE | round chosen |",
        "|---|---|---|---|---|---|",
    ]
    for arm in by_arm:
        accuracy = figures(arm, "accuracy")
        gain = None if arm == "labels" else difference_of(accuracy, figures("labels", "accuracy"), "labels")
        told = "-"
        if gain is not None:
            ends = (
                "" if gain.low is None or gain.high is None else f" ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"
            )
            told = f"{100 * gain.mean:+.2f}{ends}"
        sd = f" ± {100 * statistics.stdev(accuracy.values()):.2f}" if len(accuracy) > 1 else ""
        nll, ece = (statistics.fmean(figures(arm, name).values()) for name in ("nll", "ece"))
        chosen = ", ".join(str(one["chosen"]) for one in by_arm[arm].values())
        mean = 100 * statistics.fmean(accuracy.values())
        lines.append(f"| {TITLES[arm]} | {mean:.2f}{sd} | {told} | {nll:.3f} | {ece:.3f} | {chosen} |")
    return "\n".join(lines)


def ensembles(found: Mapping[str, Any]) -> str:
    """Return the table of the assistants of the rounds: together, over the best of them, and how far apart, mean over seeds."""
    runs = [each for each in found["runs"] if each["arm"] == "rounds"]
    lines = [
        "| after round | assistants, test % | together, test % | together less the best, validation | apart, nats |",
        "|---|---|---|---|---|",
    ]
    for number in range(len(runs[0]["rounds"])):
        each = [one["rounds"][number] for one in runs]
        alone = statistics.fmean(value for one in each for value in one["test_members"])
        test, gain, apart = (statistics.fmean(one[name] for one in each) for name in ("test", "gain", "diversity"))
        name = "0 (warm-up)" if number == 0 else str(number)
        lines.append(f"| {name} | {100 * alone:.2f} | {100 * test:.2f} | {100 * gain:+.2f} | {apart:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/music")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--live", action="store_true", help="interactive learning step by step too, half of the time of all others"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the figures that the guide shows")
    arguments = parser.parse_args()
    kept = Runs(Path(arguments.out), {}, quick=arguments.quick)
    out = kept.folder
    torch.set_num_threads(1)
    sets = data(out)
    sizes = {name: {"chorales": len(each), "beats": len(each.inputs)} for name, each in sets.items()}
    networks = {name: sum(p.numel() for p in make().parameters()) for name, make in (("student", small), ("assistant", large))}  # fmt: skip
    print(sizes, networks, file=sys.stderr)
    runs = []
    for seed in range(1 if arguments.quick else arguments.seeds):
        for arm in (arm for arm in ARMS if arguments.live or arm != "live"):
            runs.append(kept.done(arm, seed, partial(run, out, arm, seed, sets, arguments.quick)))
            shown = {name: round(each["value"], 4) for name, each in runs[-1]["metrics"].items()}
            print(arm, seed, shown, f"round {runs[-1]['chosen']}, {runs[-1]['seconds']} s", file=sys.stderr)
    found = {"sizes": sizes, "parameters": networks, "runs": runs}
    print(table(found), ensembles(found), sep="\n\n")
    if arguments.keep and not arguments.quick:
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
