"""Speech recognition from books: transcripts alone, frames of a teacher, its spikes, and two passes that agree.

    python benchmarks/speech.py --data fsdd.zip --out runs/speech            # teacher and 15 students, about half an hour on one core
    python benchmarks/speech.py --data fsdd.zip --out runs/speech --quick    # two minutes, nothing to be believed
    python benchmarks/speech.py --set espeak --out runs/espeak               # clips that espeak-ng says, where it is installed

DATA is the Free Spoken Digit Dataset (`recordings/{digit}_{speaker}_{k}.wav`), a folder or a zip; its clips are joined into strings of
two to six digits of one speaker, spelled letter by letter, and two speakers are held out. Every student sees the same views. `cons-kd`
and its baseline run each batch twice, so that they cost twice as much: compare them with one another. A run that is done is not done
again. `--keep` writes `benchmarks/results/sequences/speech-SET.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch
from kept_runs import Runs

from bookkd.book import Argmax, Book, Codec, Dense
from bookkd.core.rng import generator
from bookkd.evaluation import difference_of, interval_of_mean
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.making import make
from bookkd.methods import CTCKD, ConsKD, Method, Supervised
from bookkd.tasks import CTC
from bookkd.views import Views
from bookkd.zoo import (
    AcousticModel,
    SpecAugment,
    SpeechDataset,
    Utterance,
    load_weights,
    read_speech,
    save_weights,
    spoken_digits,
)
from bookkd.zoo.recordings import DIGITS, LETTERS

RESULTS = Path(__file__).parent / "results" / "sequences"
OPTIONS = ("set", "strings", "epochs", "teacher_epochs")
SUBSAMPLING, N_VIEWS = 3, 4
TEACHER = {"width": 96, "layers": 2, "dropout": 0.2}
STUDENT = {"width": 40, "layers": 2, "dropout": 0.2}
VIEWS = Views(SpecAugment(speeds=(0.85, 0.92, 1.0, 1.1, 1.2)), n_views=N_VIEWS)
ARMS: dict[str, tuple[Codec | None, Method]] = {
    "supervised": (None, Supervised()),
    "kd": (Dense(), CTCKD()),
    "guided": (Argmax(), CTCKD(form="guided")),
    "two-pass": (Dense(), ConsKD(consistency_weight=0.0)),
    "cons-kd": (Dense(), ConsKD()),
}
"""Name -> what the book keeps of a frame, and the method; "two-pass" is the fair baseline of "cons-kd"."""
AGAINST = {"kd": "supervised", "guided": "supervised", "two-pass": "supervised", "cons-kd": "two-pass"}
SHOWN = ("wer", "cer", "nll", "ece", "blank_share", "agreement", "teacher_kl")

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
VARIANTS = ("m1", "m3", "m5", "m7", "f1", "f2", "f3", "f4", "f5", "klatt", "croak")


def espeak(split: str, count: int) -> SpeechDataset:
    """Return strings of digits that espeak-ng says; a fifth of the voices are held out."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise SystemExit("Expected espeak-ng to be installed, got none. Install it, or use --set fsdd.")
    voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS]
    order = generator(0, "voices").permutation(len(voices))
    fifth = len(voices) // 5
    chosen = [voices[int(place)] for place in (order[:fifth] if split == "test" else order[fifth:])]
    draws, found, rates = generator(0, f"espeak {split}"), [], set()
    for _ in range(count):
        words = [DIGITS[int(digit)] for digit in draws.integers(10, size=int(draws.integers(2, 7)))]
        voice, speed, pitch = chosen[int(draws.integers(len(chosen)))], draws.integers(120, 221), draws.integers(20, 81)
        options = ["-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", " ".join(words)]
        said = subprocess.run([program, *options], capture_output=True, check=True).stdout
        wave, rate = soundfile.read(io.BytesIO(said), dtype="float32")
        if len(wave):
            found.append(Utterance(wave, " ".join(words), voice))
            rates.add(int(rate))
    (rate,) = rates
    return read_speech(f"espeak {split}", found, rate, LETTERS, subsampling=SUBSAMPLING, drop=True)


def sets(arguments: argparse.Namespace) -> tuple[SpeechDataset, SpeechDataset]:
    """Return training and held-out strings."""
    train, test = (80, 40) if arguments.quick else (arguments.strings, 400)
    if arguments.set == "espeak":
        return espeak("train", train), espeak("test", test)
    if arguments.data is None:
        raise SystemExit("Expected --data to be the Free Spoken Digit Dataset, got none.")
    how: dict[str, Any] = {"subsampling": SUBSAMPLING}
    return (
        spoken_digits(arguments.data, n_strings=train, **how),
        spoken_digits(arguments.data, split="test", n_strings=test, **how),
    )


def network(shape: dict[str, Any], data: SpeechDataset, seed: int) -> AcousticModel:
    """Return a network with initial values of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AcousticModel(data.n_features, len(data.class_names), subsampling=SUBSAMPLING, **shape)


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def training(epochs: int, seed: int) -> Training:
    """Return how every network is trained."""
    return Training(
        epochs=epochs, batch_size=16, optimizer="adamw", lr=5e-3, weight_decay=0.01, warmup_epochs=1.0, clip_norm=1.0, seed=seed,
        accelerator="cpu",
    )  # fmt: skip


def taught(out: Path, data: SpeechDataset, epochs: int) -> tuple[Teacher, float]:
    """Return the teacher, trained if it is not there, and the seconds of the processor that it took."""
    path, module, started = out / "teacher.safetensors", network(TEACHER, data, 0), time.process_time()
    if path.exists():
        load_weights(module, path)
    else:
        learn(module, data, VIEWS, task=CTC.of(data), method=Supervised(), training=training(epochs, 0))
        save_weights(module, path)
    return Teacher(module, name="BiGRU, 2 layers of 96"), time.process_time() - started


def book_of(out: Path, teacher: Teacher, data: SpeechDataset, codec: Codec) -> Book:
    """Return the book of a codec; made once."""
    return make(out / f"book-{codec.name}", teacher, data, VIEWS, task=CTC.of(data), codec=codec)


def run(
    out: Path, arm: str, seed: int, train: SpeechDataset, test: SpeechDataset, teacher: Teacher, epochs: int
) -> dict[str, Any]:
    """Return what one student came to."""
    codec, method = ARMS[arm]
    book = None if codec is None else book_of(out, teacher, train, codec)
    task, student, started = CTC.of(train), network(STUDENT, train, seed), time.process_time()
    learned = learn(
        student, train, VIEWS, task=task, method=method, knowledge=None if book is None else StoredKnowledge(book),
        training=training(epochs, seed),
    )  # fmt: skip
    seconds = time.process_time() - started
    measured = measure_sequences(learned.student.eval(), test, task, teacher=teacher)
    return {
        "seconds": round(seconds, 1), "teacher_forwards": learned.teacher_forwards,
        "metrics": {name: each.to_json() for name, each in measured.metrics.items()},
        "book_bytes": None if book is None else book.nbytes,
    }  # fmt: skip


def all_runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what the teacher and every student came to, the seeds in turn."""
    options = {key: getattr(arguments, key) for key in OPTIONS}
    runs = Runs(Path(arguments.out), options, quick=arguments.quick)
    out = runs.folder
    train, test = sets(arguments)
    teacher, seconds = taught(out, train, 2 if arguments.quick else arguments.teacher_epochs)
    measured = measure_sequences(teacher, test, CTC.of(test)).metrics
    teacher.accuracy, teacher.split = measured["accuracy"].value, "held out"
    sizes = {"teacher": size(teacher.network), "student": size(network(STUDENT, train, 0))}
    say(
        f"{len(train)} and {len(test)} strings; parameters {sizes}; teacher: WER {measured['wer'].value:.3f}, {seconds:.0f} s"
    )
    yield {
        "arm": "teacher", "seed": 0, "seconds": round(seconds, 1), "parameters": sizes,
        "metrics": {name: each.to_json() for name, each in measured.items()},
        "frames": int(CTC.of(train).counts({"length": torch.from_numpy(train.lengths)}).sum()),
    }  # fmt: skip
    for seed in range(1 if arguments.quick else arguments.seeds):
        for arm in ARMS:
            epochs = 1 if arguments.quick else arguments.epochs
            found = runs.done(arm, seed, partial(run, out, arm, seed, train, test, teacher, epochs))
            shown = {name: round(found["metrics"][name]["value"], 4) for name in SHOWN if name in found["metrics"]}
            say(f"{arm} {seed}: {shown}, {found['seconds']} s")
            yield found


def table(runs: list[dict[str, Any]]) -> str:
    """Return the figures as markdown: means over seeds, 95 % intervals of the WER over utterances and of its difference over seeds."""
    head = ["arm", *SHOWN, "WER by seed [95 % over utterances]", "WER difference [95 % over seeds]", "CPU s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    wer = {
        arm: {each["seed"]: each["metrics"]["wer"]["value"] for each in runs if each["arm"] == arm}
        for arm in ("teacher", *ARMS)
    }
    for arm in ("teacher", *ARMS):
        mine = [each for each in runs if each["arm"] == arm]
        if not mine:
            continue
        means = [
            f"{statistics.fmean(values):.3f}" if (values := [each["metrics"][name]["value"] for each in mine if name in each["metrics"]]) else ""
            for name in SHOWN
        ]  # fmt: skip
        if len(mine) > 1:
            low, high = interval_of_mean(list(wer[arm].values()))
            means[0] += f" [{low:.3f}, {high:.3f}]"
        each_seed = ", ".join("{value:.3f} [{low:.3f}, {high:.3f}]".format(**each["metrics"]["wer"]) for each in mine)
        found = (
            difference_of(wer[arm], wer[AGAINST[arm]], AGAINST[arm], lower_is_better=True) if arm in AGAINST else None
        )
        gap = "" if found is None else f"{found.mean:+.3f} to {found.against}"
        if found is not None and found.low is not None and found.high is not None:
            gap = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] to {found.against}"
        seconds = statistics.fmean(each["seconds"] for each in mine)
        lines.append(f"| {' | '.join([arm, *means, each_seed, gap, f'{seconds:.0f}'])} |")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="fsdd.zip, or the folder")
    parser.add_argument("--set", choices=("fsdd", "espeak"), default="fsdd")
    parser.add_argument("--out", default="runs/speech")
    parser.add_argument("--strings", type=int, default=480, help="training strings")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--teacher_epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    arguments = parser.parse_args()
    runs = list(all_runs(arguments))
    kept = {key: getattr(arguments, key) for key in (*OPTIONS, "seeds", "quick")}
    document = json.dumps({"options": kept, "runs": runs}, indent=1, sort_keys=True) + "\n"
    (Path(arguments.out) / "speech.json").write_text(document, encoding="utf-8")
    if arguments.keep and not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"speech-{arguments.set}.json").write_text(document, encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
