"""`bookkd inspect`; of a book it needs no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bookkd.book import Book, editions, growth_begun, lineage_tree
from bookkd.cli._show import bytes_text, console, rows
from bookkd.cli._verb import Verb
from bookkd.core.errors import ConfigError, expected


def inspect(
    book: str | None = None,
    edition: int | None = None,
    model: str = "",
    model_args: dict[str, Any] = {},  # noqa: B006 - never changed
    n_classes: int = 10,
    input: tuple[int, ...] = (3, 32, 32),  # noqa: A002 - the word that a user expects
) -> dict[str, Any]:
    """Show what a book holds: samples, views, fields, codecs, constants, teachers, measured fidelity, and what it cost; or what a network is made of.

    Args:
        book: Folder of the book, or its address (s3://..., https://...).
        edition: Which edition; the newest where none is given.
        model: In place of a book the name of a network, as for --student: paths and output shapes of its modules are printed, for
            methods that look inside of it.
        model_args: Further arguments of the network.
        n_classes: Width of its output.
        input: Shape of one input of it: '[channels, height, width]', or '[tokens]'.
    """
    if bool(model) == (book is not None):
        do = "bookkd inspect BOOK, or bookkd inspect --model NAME."
        raise ConfigError(expected("book or --model", "one of them", [each for each in (book, model) if each], do=do))
    if book is None:
        from bookkd.pipelines.inspect_model import inspect_model

        return inspect_model(model, args=model_args, n_classes=n_classes, shape=input)
    opened = Book(book, edition)
    return {
        "path": str(opened.path),
        "edition": opened.edition,
        "editions": [asdict(each) for each in editions(book)],
        "growth_begun": growth_begun(book),
        "content_digest": opened.content_digest,
        "records": opened.n_samples * opened.n_views,
        "bytes": opened.nbytes,
        "bytes_per_record": opened.bytes_per_record,
        "keys": opened.keys is not None,
        "constants": {name: {**entry.to_json(), "file": entry.file} for name, entry in opened.plan.constants.items()},
        "plan": opened.plan.to_json(),
        "lineage": [
            {"depth": depth, "text": text}
            for teacher in opened.plan.teachers
            if teacher.lineage is not None
            for depth, text in lineage_tree(teacher)
        ],
        "fidelity": opened.fidelity,
        "cost": opened.cost,
    }


def show(result: dict[str, Any]) -> None:
    """Print it for reading."""
    if "modules" in result:
        _show_model(result)
        return
    plan, out = result["plan"], console()
    out.print(
        f"[bold]{result['path']}[/bold], edition {result['edition']}: {result['records']:,} records "
        f"({plan['n_samples']:,} samples x {plan['n_views']} views), {bytes_text(result['bytes'])}, "
        f"{result['bytes_per_record']:.1f} bytes a record"
    )
    _show_editions(result)
    fields = [
        (name, "x".join(map(str, entry["shape"])) or "1", entry["codec"]["name"], _settings(entry))
        for name, entry in sorted(plan["fields"].items())
    ]
    out.print(rows("Fields", ("field", "shape", "codec", "settings"), fields))
    if result["constants"]:
        constants = [
            (name, "x".join(map(str, entry["shape"])), entry["dtype"], bytes_text(entry["bytes"]), entry["file"])
            for name, entry in result["constants"].items()
        ]
        out.print(rows("Constants", ("constant", "shape", "dtype", "size", "file"), constants))
    teachers = [
        (
            entry["name"],
            f"{entry['parameters']:,}" if entry.get("parameters") else "-",
            f"{entry['accuracy']:.4f} on {entry['split']}" if entry.get("accuracy") is not None else "not measured",
            entry["digest"][:16],
        )
        for entry in plan["teachers"]
    ]
    out.print(rows("Teachers", ("name", "parameters", "accuracy", "weights digest"), teachers))
    if any("lineage" in entry for entry in plan["teachers"]):
        out.print("Lineage:")
    for line in result["lineage"]:
        out.print(f"  {'  ' * line['depth']}{line['text']}", soft_wrap=True, markup=False)
    views, data = plan["views"], plan["data"]
    mix = views.get("mix")
    out.print(
        f"Views: {views.get('transform')} {views.get('args') or ''} seed {views.get('seed')}"
        + (f", {mix['name']} {mix['alpha']} among {mix['pool']:,} samples" if mix else "")
    )
    out.print(f"Data: {data.get('name')}, {plan['n_samples']:,} samples, {len(plan['class_names'])} classes")
    if result["fidelity"]:
        out.print(
            rows("Loss of the codec, measured while writing", ("measure", "value"), list(_flat(result["fidelity"])))
        )
    if result["cost"]:
        plain = {name: value for name, value in sorted(result["cost"].items()) if not isinstance(value, list | dict)}
        out.print("Cost of making: " + ", ".join(f"{name} {value}" for name, value in plain.items()), soft_wrap=True)


def _show_model(result: dict[str, Any]) -> None:
    """Print the modules of a network, and the names that its layers have."""
    names: dict[str, list[str]] = {}
    for name, path in result["named"].items():
        names.setdefault(path.removesuffix(":input"), []).append(
            name + (" (its input)" if path.endswith(":input") else "")
        )
    lines = [
        (
            each["path"],
            each["kind"],
            "x".join(map(str, each["shape"]))
            if each["shape"] is not None
            else "does not run"
            if not each["runs"]
            else "-",
            f"{each['parameters']:,}",
            ", ".join(names.get(each["path"], [])),
        )
        for each in result["modules"]
    ]
    title = f"{result['model']}, {result['parameters']:,} parameters"
    console().print(rows(title, ("module", "kind", "output", "parameters", "named"), lines))


def _show_editions(result: dict[str, Any]) -> None:
    """Print a line an edition, where there are several."""
    if len(result["editions"]) > 1:
        lines = [
            (
                each["number"],
                f"{each['n_samples']:,}",
                each["n_views"],
                each["n_teachers"],
                each["shards"],
                bytes_text(each["bytes"]),
                each["fault"] or each["content_digest"][:16],
            )
            for each in result["editions"]
        ]
        columns = ("edition", "samples", "views", "teachers", "files", "bytes", "content digest")
        console().print(rows("Editions", columns, lines))
    if result["growth_begun"]:
        console().print(
            f"Edition {result['growth_begun']} was begun and is not finished: run the `make --grow` again that began it.",
            soft_wrap=True,
        )


def _settings(field: dict[str, Any]) -> str:
    found = [f"{name} {value}" for name, value in field["codec"]["configuration"].items()]
    if "baked" in field:
        found.append(f"baked at temperature {field['baked']['temperature']:g}")
    if "taken" in field:
        taken = field["taken"]
        found.append(f"taken of {taken['module']}" + (f", without {taken['loses']}" if "loses" in taken else ""))
    return ", ".join(found)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            lines += _flat(inner, f"{prefix}{name} ")
        elif not isinstance(inner, list):
            lines.append((f"{prefix}{name}", f"{inner:.3g}" if isinstance(inner, float) else str(inner)))
    return lines


VERB = Verb(
    "inspect",
    inspect,
    show,
    "  bookkd inspect books/resnet56\n  bookkd inspect --model torchvision:resnet18 --input '[3, 224, 224]'",
    positional={"book": True},
)
