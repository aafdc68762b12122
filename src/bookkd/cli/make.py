"""`bookkd make`."""

from __future__ import annotations

import shlex
from typing import Any, Literal

from bookkd.book import CODECS, Codec
from bookkd.cli._show import bytes_text, console, progress_bar
from bookkd.cli._verb import Choice, Verb
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.pipelines.make_book import make_book
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.zoo import FILELESS


def make(
    codec: Codec,
    teacher: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    teachers: list[NetworkOptions] = [],  # noqa: B006 - never changed
    out: str = "book",
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    views: ViewOptions = ViewOptions(),  # noqa: B008 - frozen
    batch_size: int | None = None,
    unit_rows: int | None = None,
    workers: int = 0,
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto",
    temperatures: tuple[float, ...] = (1.0, 4.0),
    held_out: str = "",
    task: str = "classification",
    grow: bool = False,
) -> dict[str, Any]:
    """Write down what one teacher or several say about every view of a data set; an interrupted book is gone on with.

    Args:
        teacher: The teacher.
        teachers: Several, run one after another: '[{"name": "resnet56", "weights": "a.safetensors"}, ...]', best in YAML.
        codec: How logits become bytes.
        out: Folder of the book.
        data: The samples.
        views: The augmentation.
        batch_size: Samples a pass; found by trying where none is given.
        unit_rows: Samples of a unit, the grain of resuming; chosen by record size where none is given.
        workers: Loader processes.
        accelerator: Where the teacher runs.
        temperatures: Temperatures at which the loss of the codec is measured while writing.
        held_out: Split on which the teacher's accuracy is measured first and noted in the book, such as "test".
        task: What the labels are: classification (one class a sample), multi-label or regression.
        grow: Add to a finished book what is missing: more views, samples behind those it has, or a further teacher.
    """
    if teacher.name and teachers:
        raise ConfigError(
            expected("teacher", "absent where teachers are listed", teacher.name, do="List it with them.")
        )
    with progress_bar("records") as progress:
        return make_book(
            out,
            data=data,
            teacher=teachers or teacher,
            views=views,
            codec=codec,
            batch_size=batch_size,
            unit_rows=unit_rows,
            workers=workers,
            accelerator=accelerator,
            temperatures=temperatures,
            held_out=held_out,
            task=task,
            grow=grow,
            progress=progress,
        )


def choose_codec(name: str) -> type[Any]:
    """Return a codec that holds logits, by name."""
    # "raw" keeps arrays that are no logits; it promises nothing that a loss could use.
    return CODECS[choose(name, [known for known in CODECS if known != "raw"], "codec")]


def show(result: dict[str, Any]) -> None:
    """Print what was made and what to do with it."""
    # A book names no files: whoever learns from it says where they are.
    more = "" if result["data"] in FILELESS else f" --data {result['data']} --data.root FOLDER"
    console().print(
        f"Book {result['path']}: {result['records']:,} records ({result['samples']:,} samples x {result['views']} views), "
        f"{bytes_text(result['bytes'])}, {result['bytes_per_record']:.0f} bytes a record, "
        f"{result['cost'].get('seconds', 0):.1f} s of making.\n"
        f"Next: bookkd learn {shlex.quote(result['path'])} --student NAME{more}",
        soft_wrap=True,
    )
    for line in result["notes"]:
        console().print(f"Note: {line}")


VERB = Verb(
    "make",
    make,
    show,
    "  bookkd make --data cifar10 --data.root data --teacher resnet56 --teacher.weights resnet56.safetensors \\\n"
    "    --views crop-flip --views.n_views 8 --out books/resnet56\n"
    "  bookkd make --data cifar10 --data.root data --teacher resnet56 --teacher.weights resnet56.safetensors \\\n"
    "    --views crop-flip --views.n_views 16 --out books/resnet56 --grow",
    short={
        "--data": "--data.name",
        "--download": "--data.download",
        "--teacher": "--teacher.name",
        "--views": "--views.transform",
    },
    choices={"codec": Choice("dense", choose_codec, lambda name, **values: choose_codec(name)(**values))},
)
