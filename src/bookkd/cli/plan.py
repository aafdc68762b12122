"""`bookkd plan`."""

from __future__ import annotations

from typing import Any

from bookkd.cli._show import busy, bytes_text, console, rows
from bookkd.cli._verb import Choice, Verb
from bookkd.learning import Training
from bookkd.methods import Method, build_method, method_class
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.predict_cost import predict_cost
from bookkd.pipelines.rank_views import GROUP_ROWS, PASSES, rank_views, read_recipes


def plan(
    teacher: NetworkOptions,
    method: Method,
    student: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    data: DataOptions = DataOptions(),  # noqa: B008 - frozen
    views: ViewOptions = ViewOptions(),  # noqa: B008 - frozen
    training: Training = Training(),  # noqa: B008 - frozen
    students: int = 1,
    temperatures: tuple[float, ...] = (1.0, 4.0),
    sample: int = 512,
    recipes: list[str] = [],  # noqa: B006 - never changed
    passes: int = PASSES,
    group_rows: int = GROUP_ROWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Say what a book and its students will cost, from a sample of the real work, before anything is paid for; or which views to pay for.

    Args:
        teacher: The teacher and its weights.
        student: The student.
        method: What the student minimises.
        data: The samples.
        views: The augmentation; of several recipes, what they do not say themselves.
        training: How each student is to be trained.
        students: How many students, seeds and settings are planned.
        temperatures: Temperatures at which the loss of the codecs is measured.
        sample: Records that are measured.
        recipes: YAML files of options of views, or names of transforms, which are ranked by what the teacher says of them; also
            --views a.yaml b.yaml. Student, method and training are then not asked.
        passes: Passes of the teacher for each recipe.
        group_rows: Views of a group, between which the teacher's mean probability is to move little; compare scores of one size.
        seed: Of the samples that recipes are ranked on.
    """
    if recipes:
        with busy("asking the teacher about views"):
            return rank_views(
                read_recipes(recipes, views),
                data=data,
                teacher=teacher,
                passes=passes,
                group_rows=group_rows,
                temperatures=temperatures,
                accelerator=training.accelerator,
                seed=seed,
            ).to_json()
    with busy("measuring a sample"):
        return predict_cost(
            data=data,
            teacher=teacher,
            student=student,
            views=views,
            training=training,
            students=students,
            method=method,
            temperatures=temperatures,
            sample=sample,
        ).to_json()


def show(result: dict[str, Any]) -> None:
    """Print what it costs with and without a book, and the codecs; or recipes of views in their order."""
    out = console()
    if "recipes" in result:
        _show_recipes(result)
        return
    several = result["students"]
    values = [
        ("making the book, once", _time(result["making_seconds"]), "-"),
        ("one student", _time(result["student_seconds"]), _time(result["online_seconds"])),
        (
            f"{several:,} student{'s' if several > 1 else ''}, all in all",
            _time(result["book_total"]),
            _time(result["online_total"]),
        ),
    ]
    out.print(rows("Predicted time", ("", "from a book", "teacher online"), values))
    out.print(_paid(result), soft_wrap=True)
    codecs = [
        (
            name,
            f"{entry['bytes_per_record']:,}",
            bytes_text(entry["bytes"]),
            ", ".join(f"{lost['mean']:.1e} at T = {at}" for at, lost in entry["temperatures"].items()),
            f"{entry['top1_agreement']:.4f}",
        )
        for name, entry in result["codecs"].items()
    ]
    title = f"Codecs for {result['records']:,} records, loss measured on {result['measured_records']}"
    out.print(rows(title, ("codec", "bytes/record", "book", "mean T^2 KL", "agreement"), codecs))


def _show_recipes(result: dict[str, Any]) -> None:
    """Print recipes of views, the best first."""
    out, recipes = console(), result["recipes"]
    values = [
        (
            each["name"],
            _with_ends(each["stddev"], 4),
            "-" if each["to_best"] is None else _with_ends(each["to_best"], 4),
            f"{each['entropy']['value']:.3f}",
            f"{each['sharpness']['value']:.3f}",
            "-" if each["agreement"] is None else f"{each['agreement']['value']:.3f}",
            f"{each['teacher_forwards']:,}",
            bytes_text(each["bytes"]),
            _time(each["seconds"]),
        )
        for each in recipes
    ]
    title = (
        f"Views by T. stddev, lowest first: {recipes[0]['groups']} groups of {recipes[0]['group_rows']} rows, "
        f"{result['teacher_forwards']:,} passes in {_time(result['seconds'])}; intervals of 95 %"
    )
    columns = ("views", "T. stddev", "to the first", "entropy", "sharpness", "agreement", "passes", "book", "time")
    out.print(rows(title, columns, values))
    out.print("Passes, bytes (float16) and time are those of the whole book.")
    for line in result["notes"]:
        out.print(f"Note: {line}", soft_wrap=True, markup=False)


def _with_ends(found: dict[str, float], digits: int) -> str:
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _paid(result: dict[str, Any]) -> str:
    """Return after how many students the book has paid for itself, in words."""
    after, several = result["paid_after_students"], result["students"]
    saving, spread = result["online_seconds"] - result["student_seconds"], result["saving_spread_seconds"]
    if after is None and abs(saving) <= spread:
        return (
            f"No break-even can be told: what a student from the book saves is within {_time(spread)}, which the times of the "
            "measured steps leave open. Plan again on a machine that does nothing else."
        )
    if after is None:
        return "The book never pays for itself in time: this teacher costs nothing beside the student's step."
    saved = _time(saving)
    told = "the first student" if after == 1 else f"{after:,} students"
    text = (
        f"The book has paid for itself after {told}: making it takes {_time(result['making_seconds'])}, and each student from "
        f"it takes {saved} less than with the teacher online."
    )
    if after <= several:
        return text
    more = _time(result["book_total"] - result["online_total"])
    if several == 1:
        return f"{text} The one planned is not enough: with a book it takes {more} more."
    return f"{text} The {several:,} planned are not enough: with a book they take {more} more."


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


VERB = Verb(
    "plan",
    plan,
    show,
    "  bookkd plan --data cifar10 --data.root data --teacher resnet56 --teacher.weights resnet56.safetensors \\\n"
    "    --student resnet8 --views crop-flip --views.n_views 8 --training.epochs 30 --students 12\n"
    "  bookkd plan --data cifar10 --data.root data --teacher resnet56 --teacher.weights resnet56.safetensors \\\n"
    "    --views.n_views 8 --views crop-flip trivial-augment cutmix.yaml --passes 4096",
    short={
        "--data": "--data.name",
        "--download": "--data.download",
        "--student": "--student.name",
        "--teacher": "--teacher.name",
        "--views": "--views.transform",
    },
    several={"--views": "--recipes"},
    choices={"method": Choice("vanilla-kd", method_class, build_method, lambda found: found.presets)},
)
