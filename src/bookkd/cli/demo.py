"""`bookkd demo`."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import bytes_text, console, rows
from bookkd.cli._verb import Verb, note


def demo(out: str = "bookkd-demo", seeds: int = 3) -> dict[str, Any]:
    """Train a teacher of digits, make a book of 16 views, and train students three ways: labels only, online, from the book.

    Args:
        out: Folder for teacher and book; a second run goes on with what is there.
        seeds: Students of each kind.
    """
    from bookkd.pipelines.demo import run_demo

    return run_demo(out, seeds=seeds, say=note)


def show(result: dict[str, Any]) -> None:
    """Print the table, what it means, and what to try next."""
    from bookkd.pipelines.demo import summarise, verdict

    teacher, book = result["teacher"], result["book"]
    out = console()
    values = [
        (
            f"{row['label_fraction']:.0%}",
            row["method"],
            f"{row['accuracy']:.3f} ± {row['spread']:.3f}",
            f"{row['nll']:.3f}",
            f"{row['ece']:.3f}",
            f"{row['seconds_per_epoch']:.3f}",
            f"{row['teacher_forwards']:,}",
            f"{book['bytes'] / book['records']:.0f}" if row["method"] == "book" else "-",
        )
        for row in summarise(result)
    ]
    columns = ("labels", "student", "accuracy", "NLL", "ECE", "s/epoch", "teacher passes", "bytes/record")
    size = result["runs"][0]["student_parameters"]
    title = f"Students of {size:,} parameters; teacher of {teacher['parameters']:,} at {teacher['accuracy']:.3f}"
    out.print(rows(title, columns, values))
    for fraction in sorted({run["label_fraction"] for run in result["runs"]}):
        out.print(verdict(result, fraction))
    out.print(
        f"\nThe book: {book['records']:,} records, {bytes_text(book['bytes'])}, made in {book['seconds']:.1f} s, "
        f"at {book['path']}. Try next:\n"
        f"  bookkd inspect {book['path']}\n"
        f"  bookkd verify {book['path']}\n"
        f"  bookkd learn {book['path']} --student digits-small --training.epochs 24 --out runs/first\n"
        "  bookkd methods"
    )


VERB = Verb("demo", demo, show, "  bookkd demo --out my-demo --seeds 3")
