"""`bookkd copy`; needs no teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bookkd.book import CODECS, Codec
from bookkd.cli._show import bytes_text, console, progress_bar
from bookkd.cli._verb import Choice, Verb
from bookkd.cli.make import choose_codec
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.pipelines.keep_book import copy_to

AS_IS = "same"
"""Name of no codec: records are copied as they are stored."""


@dataclass(frozen=True)
class AsIs:
    """Copy records as they are stored."""


def copy(codec: Codec | AsIs, book: str, out: str) -> dict[str, Any]:
    """Write a book's newest edition to another folder: as it is, or with another codec, whose loss is measured.

    What another codec loses is measured against the records of the book, not the teacher's words: what the book's own codec
    had lost comes on top.

    Args:
        book: Folder of the book, or its address (s3://..., https://...).
        out: Folder of the copy, or its address (s3://...).
        codec: How logits become bytes; `same` copies them as they are stored.
    """
    with progress_bar("records") as progress:
        return copy_to(book, out, codec=codec if isinstance(codec, Codec) else None, progress=progress)


def find(name: str) -> type[Any]:
    """Return a codec by name, or what stands for none."""
    if name == "auto":
        do = "Name the codec, or make the book with bookkd make ... --codec auto."
        raise ConfigError(expected("codec", "a codec", "auto, which measures on what the teacher says", do=do))
    return AsIs if name == AS_IS else choose_codec(choose(name, [AS_IS, *CODECS], "codec"))


def show(result: dict[str, Any]) -> None:
    """Print what was written."""
    out = console()
    same = "the same content" if result["same"] else f"{bytes_text(result['source_bytes'])} before"
    out.print(
        f"Book {result['path']}: {result['records']:,} records, {bytes_text(result['bytes'])} ({same}), "
        f"{result['bytes_per_record']:.0f} bytes a record.",
        soft_wrap=True,
    )
    if result["same"]:
        return
    if result["bytes"] > result["source_bytes"]:
        out.print("Note: the copy is larger than the book.")
    for name, found in result["fidelity"].items():
        for temperature, measured in found["temperatures"].items():
            every_class = "mean_of_every_class" in measured
            mean = measured["mean_of_every_class" if every_class else "mean"]
            spread = ", what was left out spread evenly" if every_class else ""
            out.print(
                f"{name} at temperature {float(temperature):g}: T^2 KL {mean:.2g} on average{spread}, "
                f"against the records of the book.",
                soft_wrap=True,
            )
        for temperature, measured in found.get("unpromised", {}).items():
            kept = measured["kept_mass"]
            out.print(
                f"{name} at temperature {float(temperature):g}: no longer served; {kept:.3g} of the mass is kept."
            )


VERB = Verb(
    "copy",
    copy,
    show,
    "  bookkd copy books/resnet56 books/small --codec int8\n  bookkd copy books/resnet56 s3://bucket/resnet56",
    positional={"book": False, "out": False},
    choices={"codec": Choice(AS_IS, find, lambda name, **values: find(name)(**values))},
)
