"""Translation from books: label smoothing, adaptive label smoothing, word-level and sequence-level distillation, by BLEU and calibration.

    python benchmarks/translation.py --data multi30k-en-de.zip --out runs/translation           # one seed: at most 25 minutes on one core
    python benchmarks/translation.py --data multi30k-en-de.zip --out runs/translation --quick   # a minute, nothing to be believed

`--data` is the zip of Multi30k (or the folder that it unpacks to) with train, val and test_2016_flickr as `.en.gz` and `.de.gz`. A
vocabulary of byte pairs, shared by both languages, is learnt on the training text; a transformer teacher and students of less than a
third of its size translate from English to German. Every student has the same start, order and number of steps. A run that is done is not done again.
Writes `results.json` into `--out`, and prints a table. `--keep` writes `benchmarks/results/sequences/translation.json` too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_runs import Runs

from bookkd.book import Book, TopK
from bookkd.evaluation import measure_translations
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, Validation, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.making import decode_dataset, make
from bookkd.methods import LLMKD, AdaptiveLabelSmoothing, Method, Supervised
from bookkd.tasks import Seq2Seq
from bookkd.views import Views
from bookkd.zoo import PairDataset, TranslationTransformer, load_weights, read_pairs, save_weights

OPTIONS = ("sentences", "vocabulary", "epochs", "teacher_epochs")
KEPT = Path(__file__).parent / "results" / "sequences" / "translation.json"
VIEWS, MOST, BEAM = Views(None, n_views=1), 60, 4
TEACHER = {"width": 128, "heads": 4, "layers": 2, "hidden": 384, "tied": "all", "dropout": 0.1}
STUDENT = {"width": 64, "heads": 4, "layers": (2, 1), "hidden": 192, "tied": "all", "dropout": 0.1}
KEPT_TOKENS = 32
ARMS: dict[str, Method] = {
    "label smoothing 0.1": Supervised(label_smoothing=0.1),
    "adaptive label smoothing": AdaptiveLabelSmoothing(),
    "word-level KD": LLMKD(kd_weight=0.5, ce_weight=0.5),
    "sequence-level KD": Supervised(label_smoothing=0.1),
    "interpolated KD": Supervised(label_smoothing=0.1),
}
"""Name -> method; the last two learn from what the teacher wrote, the very last with --interpolate alone."""
TAKES = {"sequence-level KD": "best", "interpolated KD": "bleu"}
METRICS = ("bleu", "chrf", "length_ratio", "perplexity", "nll", "ece", "agreement")


def unpacked(data: Path, out: Path) -> Path:
    """Return the folder of the text files."""
    if data.is_dir():
        return data
    folder = out / "text"
    if not (folder / "val.de.gz").exists():
        with zipfile.ZipFile(data) as archive:
            for name in archive.namelist():  # flat names alone: an archive decides on no other place
                if name.endswith(".gz"):
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def vocabulary(folder: Path, out: Path, size: int) -> Any:
    """Return the tokenizer of both languages, trained if it is not there."""
    import gzip

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = out / f"tokenizer-{size}.json"
    if not path.exists():
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        special = ["<pad>", "<s>", "</s>", "<unk>"]
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        lines = [
            gzip.decompress((folder / f"train.{side}.gz").read_bytes()).decode().split("\n") for side in ("en", "de")
        ]
        made.train_from_iterator([line for side in lines for line in side], trainer)
        made.save(str(path))
    return Tokenizer.from_file(str(path))


def pairs(folder: Path, split: str, tokenizer: Any, limit: int | None, *, drop: bool) -> PairDataset:
    """Return the sentences of a split."""
    files = (folder / f"{split}.{side}.gz" for side in ("en", "de"))
    return read_pairs(f"multi30k {split}", *files, tokenizer, limit=limit, most=MOST if drop else None, drop=drop)


def network(shape: dict[str, Any], tokens: int, seed: int) -> TranslationTransformer:
    """Return a network with initial values of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TranslationTransformer(tokens, **shape)


def training(epochs: int, seed: int, lr: float) -> Training:
    """Return how every network is trained."""
    return Training(
        epochs=epochs, batch_size=32, optimizer="adamw", lr=lr, weight_decay=0.01, warmup_epochs=0.5, clip_norm=1.0, seed=seed,
        patience=epochs, accelerator="cpu", shuffle="rows",
    )  # fmt: skip


class Bench:
    """The data, the teacher and what it has written; everything is kept in the folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        quick, options = arguments.quick, {key: getattr(arguments, key) for key in OPTIONS}
        self.runs = Runs(Path(arguments.out), options, quick=quick)
        self.out = self.runs.folder
        folder = unpacked(Path(arguments.data), self.out)
        self.tokenizer = vocabulary(folder, self.out, 1000 if quick else arguments.vocabulary)
        self.train = pairs(folder, "train", self.tokenizer, 400 if quick else arguments.sentences, drop=True)
        self.val = pairs(folder, "val", self.tokenizer, 60 if quick else None, drop=True)
        self.test = pairs(folder, "test_2016_flickr", self.tokenizer, 40 if quick else None, drop=False)
        self.task = Seq2Seq.of(self.train)
        self.epochs = 1 if quick else arguments.epochs
        self.teacher = self._taught(1 if quick else arguments.teacher_epochs)

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))

    def _taught(self, epochs: int) -> Teacher:
        path, made = self.out / "teacher.safetensors", network(TEACHER, self.train.vocabulary, 0)
        if path.exists():
            load_weights(made, path)
        else:
            learn(
                made, self.train, VIEWS, task=self.task, method=Supervised(label_smoothing=0.1),
                training=training(epochs, 0, 2e-3), validation=Validation(self.val, batch_size=64), out=self.out / "teacher",
            )  # fmt: skip
            save_weights(made, path)
        return Teacher(made, name="transformer, 2 layers of 128")

    def book(self) -> Book:
        return make(
            self.out / "book", self.teacher, self.train, VIEWS, task=self.task, codec=TopK(KEPT_TOKENS, (1.0,)), batch_size=64
        )  # fmt: skip

    def written(self, take: Any) -> PairDataset:
        path = self.out / f"written-{take}.safetensors"
        return decode_dataset(
            self.teacher, self.train, path=path, beam=BEAM, most=MOST, take=take, text=self.text, batch_size=128
        )  # fmt: skip

    def measured(self, student: Any, teacher: Teacher | None) -> dict[str, Any]:
        """Return metrics with intervals over the sentences of the test set, and the signatures of sacreBLEU."""
        said = measure_translations(student, self.test, text=self.text, beam=BEAM, most=MOST, batch_size=128)
        tokens = measure_sequences(student, self.test, self.task, teacher=teacher, batch_size=64)
        found = {**said.measures.metrics, **tokens.metrics}
        return {
            "metrics": {name: found[name].to_json() for name in METRICS if name in found},
            "signatures": said.signatures,
            "examples": list(said.texts[:3]),
        }

    def run(self, arm: str, seed: int) -> dict[str, Any]:
        """Return what one student came to."""
        started = time.perf_counter()
        data = self.written(TAKES[arm]) if arm in TAKES else self.train
        knowledge = StoredKnowledge(self.book()) if arm == "word-level KD" else None
        prepared = time.perf_counter()
        learned = learn(
            network(STUDENT, self.train.vocabulary, seed), data, VIEWS, task=self.task, method=ARMS[arm], knowledge=knowledge,
            training=training(self.epochs, seed, 4e-3), validation=Validation(self.val, batch_size=64),
        )  # fmt: skip
        trained = time.perf_counter()
        return {
            "epoch": learned.epoch, "teacher_forwards": learned.teacher_forwards,
            "prepare_seconds": round(prepared - started, 1), "learn_seconds": round(trained - prepared, 1),
            "parameters": sum(each.numel() for each in learned.student.parameters()),
            **self.measured(learned.student, self.teacher),
            "measure_seconds": round(time.perf_counter() - trained, 1),
            "alpha": [record["train/alpha"] for record in learned.history if "train/alpha" in record],
        }  # fmt: skip


def all_runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what the teacher and every student came to, the seeds in turn."""
    started = time.perf_counter()
    bench = Bench(arguments)
    parameters = sum(each.numel() for each in bench.teacher.network.parameters())
    told = f"{len(bench.train)} pairs, {bench.train.vocabulary} tokens, left out {dict(bench.train.dropped)}"
    print(f"{told}; teacher of {parameters:,} parameters, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    yield {"arm": "teacher", "seed": 0, "parameters": parameters, **bench.measured(bench.teacher.network, None)}
    for seed in range(arguments.seeds):
        for arm in ARMS:
            if arm == "interpolated KD" and not arguments.interpolate:
                continue
            found = bench.runs.done(arm, seed, partial(bench.run, arm, seed))
            shown = {name: round(found["metrics"][name]["value"], 3) for name in ("bleu", "ece", "perplexity")}
            seconds = [found[f"{part}_seconds"] for part in ("prepare", "learn", "measure")]
            print(arm, seed, shown, "prepared, learnt, measured in", seconds, "s", file=sys.stderr)
            yield found


def table(runs: list[dict[str, Any]]) -> str:
    """Return the runs as a table of Markdown, one line each."""
    lines = [
        "| arm | seed | parameters | BLEU (95 %) | chrF | perplexity | ECE (95 %) | agreement | learning, s |",
        "|---|--:|--:|---|--:|--:|---|--:|--:|",
    ]
    for run in runs:
        metrics = run["metrics"]

        def number(name: str, digits: int, *, span: bool = False, metrics: dict[str, Any] = metrics) -> str:
            if name not in metrics:
                return ""
            value, low, high = (f"{metrics[name][key]:.{digits}f}" for key in ("value", "low", "high"))
            return f"{value} ({low} to {high})" if span else value

        cells = [
            run["arm"], str(run["seed"]), f"{run['parameters']:,}", number("bleu", 1, span=True), number("chrf", 1),
            number("perplexity", 2), number("ece", 4, span=True), number("agreement", 3), f"{run.get('learn_seconds', '')}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="multi30k-en-de.zip, or the folder of its files")
    parser.add_argument("--out", default="runs/translation")
    parser.add_argument("--sentences", type=int, default=8_000, help="training pairs, of 29,000")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--teacher_epochs", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--interpolate", action="store_true", help="one arm more, for which the teacher decodes again")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    arguments = parser.parse_args()
    runs = list(all_runs(arguments))
    options = {key: getattr(arguments, key) for key in (*OPTIONS, "seeds")}
    document = json.dumps({"options": options, "runs": runs}, indent=1, sort_keys=True) + "\n"
    (Path(arguments.out) / "results.json").write_text(document, encoding="utf-8")
    if arguments.keep and not arguments.quick:
        KEPT.write_text(document, encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
