"""`bookkd evaluate`."""

from __future__ import annotations

from typing import Any, Literal

from bookkd.cli._show import busy, bytes_text, console, rows
from bookkd.cli._verb import Verb
from bookkd.pipelines.evaluate_student import evaluate_student
from bookkd.pipelines.options import DataOptions, NetworkOptions, TaskOptions


def evaluate(
    student: NetworkOptions,
    data: DataOptions = DataOptions(split="test"),  # noqa: B008 - frozen
    teacher: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    book: str | None = None,
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto",
    replicates: int = 1000,
    latency: bool = True,
    task: TaskOptions = TaskOptions(),  # noqa: B008 - frozen
    beam: int = 1,
) -> dict[str, Any]:
    """Measure a network: quality with bootstrap intervals, agreement with a teacher, size and speed.

    Args:
        student: The network and its weights.
        data: The data set and split.
        teacher: A live teacher to compare with.
        book: A book of this split without augmentation, to compare with instead of a live teacher.
        accelerator: Where to run.
        replicates: Bootstrap replicates; 0 gives no intervals.
        latency: Measure the time of a pass at batch 1 and 64.
        task: What the data are.
        beam: Hypotheses that are followed where translations are written out for BLEU and chrF; 0 writes none.
    """
    with busy("measuring"):
        return evaluate_student(
            student=student,
            data=data,
            teacher=teacher,
            book=book,
            accelerator=accelerator,
            replicates=replicates,
            latency=latency,
            task=task.name,
            task_args=task.args,
            beam=beam,
        )


def show(result: dict[str, Any]) -> None:
    """Print the table of measures."""
    values = [
        (name, f"{entry['value']:.4f}", f"{entry['low']:.4f}", f"{entry['high']:.4f}")
        for name, entry in result["metrics"].items()
    ]
    out = console()
    out.print(
        rows(f"{result['samples']:,} samples of split {result['split']}", ("measure", "value", "low", "high"), values)
    )
    each = {"recall": result["per_class_recall"]} if "per_class_recall" in result else result.get("per_class", {})
    for measure, found in each.items():
        shown = [
            f"{name} {'none seen' if one is None else format(one['value'], '.3f')}"
            for name, one in zip(result["class_names"], found, strict=True)
        ]
        out.print(f"{measure.replace('_', ' ').capitalize()} by class: {', '.join(shown)}")
    for measure, signature in result.get("signatures", {}).items():
        out.print(f"Signature of {measure}: {signature}", soft_wrap=True, markup=False, highlight=False)
    for note in result.get("notes", []):
        out.print(f"Note: {note}", soft_wrap=True, markup=False)
    if "cost" in result:
        cost = result["cost"]
        out.print(
            f"{cost['parameters']:,} parameters, {bytes_text(cost['bytes'])}, {cost['macs']:,} multiply-adds a sample"
        )
        for size, latency in cost["latency_ms"].items():
            out.print(
                f"Latency at batch {size}: p50 {latency['p50']['value']:.2f} ms, p95 {latency['p95']['value']:.2f} ms"
            )


VERB = Verb(
    "evaluate",
    evaluate,
    show,
    "  bookkd evaluate --student digits-small --student.weights runs/latest/student.safetensors --data digits",
    short={
        "--classes": "--data.classes",
        "--data": "--data.name",
        "--download": "--data.download",
        "--student": "--student.name",
        "--task": "--task.name",
        "--teacher": "--teacher.name",
    },
)
