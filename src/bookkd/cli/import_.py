"""`bookkd import`; needs no torch."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import bytes_text, console, progress_bar
from bookkd.cli._verb import Verb
from bookkd.interchange import import_book


def import_(
    source: str,
    source_format: str,
    out: str = "imported",
    n_classes: int | None = None,
    k: int | None = None,
    renormalise: bool = False,
    compression: str | None = None,
    teacher: str = "",
) -> dict[str, Any]:
    """Make a book of what others stored, without running anything in it: FKD, TinyViT, DistillKit, Megatron-LM, JSON lines from vLLM.

    What the format loses or cannot say is printed and kept in the book. An interrupted import goes on where it ended.

    Args:
        source: Folder, or file, of the other format.
        source_format: fkd, tinyvit, distillkit, megatron or vllm-jsonl.
        out: Folder of the new book.
        n_classes: Classes of the teacher, or its vocabulary; all formats but distillkit need it.
        k: Classes kept of a record; what the format has where none is given.
        renormalise: Scale kept probabilities to 1 and keep no tail, as FKD's marginal_renorm does.
        compression: DistillKit's compression_config.yaml; the one beside its files where none is given.
        teacher: Name of the teacher.
    """
    with progress_bar("records") as progress:
        made = import_book(
            out,
            source,
            source_format=source_format,
            n_classes=n_classes,
            k=k,
            renormalise=renormalise,
            compression=compression,
            teacher=teacher,
            progress=progress,
        )
    book = made.book
    return {
        "path": str(book.path),
        "source_format": source_format,
        "samples": book.n_samples,
        "views": book.n_views,
        "records": book.n_samples * book.n_views,
        "bytes": book.nbytes,
        "bytes_per_record": book.bytes_per_record,
        "content_digest": book.content_digest,
        "fidelity": book.fidelity,
        "notes": list(made.notes),
    }


def show(result: dict[str, Any]) -> None:
    """Print what was made, and what it cannot say."""
    out = console()
    out.print(
        f"Book {result['path']}: {result['records']:,} records ({result['samples']:,} samples x {result['views']} views), "
        f"{bytes_text(result['bytes'])}, {result['bytes_per_record']:.0f} bytes a record.",
        soft_wrap=True,
        markup=False,
    )
    for measured in result["fidelity"].get("logits", {}).get("temperatures", {}).values():
        out.print(
            f"Kept mass {measured['kept_mass']:.4f}; KL to the source {measured['mean']:.2g} on average, "
            f"{measured['p99']:.2g} at the 99th percentile.",
            soft_wrap=True,
        )
    for line in result["notes"]:
        out.print(f"Note: {line}.", soft_wrap=True, markup=False)


VERB = Verb(
    "import",
    import_,
    show,
    "  bookkd import --from fkd FKD_effL2_475_soft_label --n_classes 1000 --out books/fkd\n"
    "  bookkd import --from vllm-jsonl answers.jsonl --n_classes 151936 --out books/qwen",
    positional={"source": False},
    short={"--from": "--source_format"},
)
