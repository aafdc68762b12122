"""`bookkd chain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bookkd.book import Codec
from bookkd.cli._show import console, rows
from bookkd.cli._verb import Choice, Verb, note
from bookkd.cli.make import choose_codec
from bookkd.core.files import check_here
from bookkd.learning import Training
from bookkd.methods import Method, build_method, method_class
from bookkd.pipelines.chain import Chain, chain_of
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions


def chain(
    path: str,
    method: Method,
    codec: Codec,
    out: str = "chain",
    teacher: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    views: ViewOptions = ViewOptions(),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008 - frozen
    all_paths: bool = False,
    candidates: str = "",
    generations: int = 1,
    test: str = "test",
    validation: str = "",
    validation_fraction: float | None = None,
) -> dict[str, Any]:
    """Train a chain of networks, each from the book of the one before; an interrupted chain is gone on with.

    Args:
        path: Networks from the teacher to the student, with commas between; numbers are CIFAR ResNets, such as 56,20,8.
        method: How each learns from the one before.
        codec: How logits become bytes.
        out: Folder of the networks, their books and chain.json.
        teacher: Of the first network: its weights and preprocessing; trained on labels where it has no weights.
        data: The samples.
        views: The augmentation, the same for every link.
        training: How each network is trained.
        all_paths: Train every path from the first to the last network and compare them in one table.
        candidates: Choose one assistant out of these, with commas between: the one whose accuracy on labels alone is nearest
            to the mean of the teacher's and the student's, on samples that no network learns from.
        generations: How often the last network of the path follows on itself: 3 gives two more generations.
        test: Split on which every network is measured.
        validation: Split on which an assistant is chosen; never the test split.
        validation_fraction: In its place, share of the training samples that no network learns from; 0.1 by default, where an
            assistant is chosen.
    """
    shared = Chain(
        out=check_here(Path(out)),
        data=data,
        views=views,
        method=method,
        training=training,
        first=teacher,
        codec=codec,
        test=test,
        say=note,
    )
    return chain_of(
        shared,
        path,
        every=all_paths,
        candidates=candidates,
        generations=generations,
        validation=validation,
        validation_fraction=validation_fraction,
    )


def show(result: dict[str, Any]) -> None:
    """Print how an assistant was chosen, the networks, and the paths where there are several."""
    out = console()
    if "chosen" in result:
        _show_choice(result)
    networks = [
        (
            " > ".join(entry["path"]),
            f"{entry['parameters']:,}",
            f"{entry['accuracy']:.4f}",
            f"{entry['nll']:.4f}",
            f"{entry['ece']:.4f}",
            f"{entry['uncertainty']:.3f}",
            "-inf" if entry["confidence_diversity"] is None else f"{entry['confidence_diversity']:.3f}",
            f"{entry['seconds'] + entry['book_seconds']:.1f}",
            f"{entry['teacher_forwards']:,}",
        )
        for entry in result["networks"]
    ]
    columns = (
        "network",
        "parameters",
        "accuracy",
        "NLL",
        "ECE",
        "uncertainty",
        "diversity",
        "seconds",
        "teacher passes",
    )
    out.print(rows(f"Networks, each by {result['method']} from the one before", columns, networks))
    if len(result["paths"]) > 1:
        paths = [
            (" > ".join(entry["path"]), f"{entry['accuracy']:.4f}", str(entry["trainings"]), f"{entry['seconds']:.1f}")
            for entry in result["paths"]
        ]
        out.print(rows("Paths", ("path", "accuracy", "trainings", "seconds in all"), paths))
    for line in result["notes"]:
        out.print(f"Note: {line}", soft_wrap=True)


def _show_choice(result: dict[str, Any]) -> None:
    out, on = console(), result["chosen_on"]
    alone = [
        (name, f"{entry['parameters']:,}", f"{entry['accuracy']:.4f}", f"{entry['seconds']:.1f}")
        for name, entry in result["alone"].items()
    ]
    columns = ("network", "parameters", f"accuracy on {on}", "seconds")
    out.print(rows("Candidates and student on labels alone", columns, alone))
    out.print(
        f"Assistant: {result['chosen']}, the nearest to the mean of student and teacher "
        f"({result['teacher_accuracy']:.4f} there).",
        soft_wrap=True,
    )


VERB = Verb(
    "chain",
    chain,
    show,
    "  bookkd chain --path 56,20,8 --teacher.weights resnet56.safetensors --method takd --data cifar10 --data.root data \\\n"
    "    --views crop-flip --views.n_views 8 --out chains/56-20-8\n"
    "  bookkd chain --path digits-small --generations 3 --method self-distillation --views digits --out chains/generations",
    short={
        "--data": "--data.name",
        "--download": "--data.download",
        "--views": "--views.transform",
    },
    choices={
        "method": Choice("takd", method_class, build_method, lambda found: found.presets),
        "codec": Choice("dense", choose_codec, lambda name, **values: choose_codec(name)(**values)),
    },
)
