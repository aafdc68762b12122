"""`bookkd make`."""

from __future__ import annotations

import json
import shlex
from typing import Any, Literal

from bookkd.book import CODECS, Auto, Choice, Codec, codec_from_config, codec_text, codec_to_config
from bookkd.cli import _verb
from bookkd.cli._show import bytes_text, console, progress_bar, rows
from bookkd.cli._verb import Verb
from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.pipelines.make_book import make_book
from bookkd.pipelines.options import DataOptions, NetworkOptions, TaskOptions, ViewOptions
from bookkd.pipelines.task import usual_method
from bookkd.zoo import FILELESS


def make(
    codec: Codec | Auto,
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
    task: TaskOptions = TaskOptions("classification"),  # noqa: B008 - frozen
    grow: bool = False,
    features: str | tuple[str, ...] = (),
    serve: str | tuple[str, ...] = (),
    feature_codec: Literal["float16", "float32", "int8"] = "float16",
) -> dict[str, Any]:
    """Write down what one teacher or several say about every view of a data set; an interrupted book is gone on with.

    Args:
        teacher: The teacher.
        teachers: Several, run one after another: '[{"name": "resnet56", "weights": "a.safetensors"}, ...]', best in YAML.
        codec: How logits become bytes; auto measures candidates on a sample of records and takes the smallest that meets
            --max_kl and --max_bytes at all --temperatures.
        out: Folder of the book, or its address (s3://...): each unit is put there when it is whole.
        data: The samples.
        views: The augmentation.
        batch_size: Samples a pass; 256, or fewer where memory does not hold them, if none is given.
        unit_rows: Samples of a unit, the grain of resuming; chosen by record size where none is given.
        workers: Loader processes.
        accelerator: Where the teacher runs.
        temperatures: Temperatures at which the loss of the codec is measured while writing.
        held_out: Split on which the teacher's accuracy is measured first and noted in the book, such as "test".
        task: What the data are.
        grow: Add to a finished book what is missing: more views, samples behind those it has, or a further teacher.
        features: What to keep of the inside of the teacher, such as features/stage3/mean: a layer, and what of its output (mean,
            attention, gram, spatial, pool<k>, max<k>, pca<d>, paraphrase; all of it where none is said). `bookkd inspect --model` lists layers.
        serve: Methods whose features are kept, as they read them by default, such as at,ofd, with what they must know of the teacher
            once and for all.
        feature_codec: How features become bytes.
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
            task=task.name,
            task_args=task.args,
            grow=grow,
            features=_listed(features),
            serve=_listed(serve),
            feature_codec=feature_codec,
            progress=progress,
            told=show_choice,
            hint=lambda text: console(stderr=True).print(f"Note: {text}", soft_wrap=True),
        )


LOGITS_CODECS = [name for name, kind in CODECS.items() if kind.of_logits]
"""Codecs that hold logits; "raw" and "pooled" keep arrays that are none."""


def choose_codec(name: str) -> type[Any]:
    """Return a codec that holds logits, by name."""
    return CODECS[choose(name, LOGITS_CODECS, "codec")]


def choose_codec_or_auto(name: str) -> type[Any]:
    """Return a codec that holds logits, or the wish for the smallest that loses little enough."""
    return Auto if name == "auto" else CODECS[choose(name, [*LOGITS_CODECS, "auto"], "codec")]


def show_choice(choice: Choice) -> None:
    """Print what every candidate loses on the records that were measured, on stderr: the making comes after it."""
    values = [
        (
            ("* " if each.codec == choice.codec else "  ") + _codec_text(each.codec),
            f"{each.bytes_per_record:.0f}",
            *(figure for at in choice.temperatures for figure in _figures(each.temperatures.get(at))),
            f"{each.top1_agreement:.4f}",
            "yes" if each.meets else "no",
        )
        for each in choice.candidates
    ]
    room = f", {choice.auto.max_bytes} bytes" if choice.auto.max_bytes else ""
    title = f"Codecs on {choice.records:,} records, asked a mean T^2 KL <= {choice.auto.max_kl:g}{room}; * is taken"
    lost = [name for at in choice.temperatures for name in (f"T = {at:g}: KL", "p99", "kept", "error")]
    out = console(stderr=True)
    out.print(rows(title, ("codec", "bytes", *lost, "agreement", "meets"), values))
    for each in choice.candidates:
        if each.why:
            out.print(f"{_codec_text(each.codec)}: {each.why}.", soft_wrap=True)


def _codec_text(codec: Codec) -> str:
    config = codec_to_config(codec)
    told = (str(value) for key, value in config["configuration"].items() if key in ("k", "draws", "dtype"))
    return " ".join([config["name"], *told])


def _figures(lost: Any) -> tuple[str, str, str, str]:
    if lost is None:
        return ("-",) * 4
    return f"{lost['mean']:.1e}", f"{lost['p99']:.1e}", f"{lost['kept_mass']:.3f}", f"{lost['gradient_error']:.2g}"


def show(result: dict[str, Any]) -> None:
    """Print what was made and what to do with it."""
    # A book names no files: whoever learns from it says where they are.
    more = "" if result["data"] in FILELESS else f" --data {result['data']} --data.root FOLDER"
    if result["data_args"]:
        more += f" --data.args {shlex.quote(json.dumps(result['data_args']))}"
    if (method := usual_method(result["task"])) != usual_method(""):
        more += f" --method {method}"
    console().print(
        f"Book {result['path']}: {result['records']:,} records ({result['samples']:,} samples x {result['views']} views), "
        f"{bytes_text(result['bytes'])}, {result['bytes_per_record']:.0f} bytes a record, "
        f"{result['cost'].get('seconds', 0):.1f} s of making.\n"
        f"Next: bookkd learn {shlex.quote(result['path'])} --student NAME{more}",
        soft_wrap=True,
    )
    for name, choice in result.get("chosen", {}).items():
        chosen = codec_text(codec_from_config(choice["chosen"]))
        console().print(f"Codec of {name}: {chosen}, chosen of {len(choice['candidates'])}.")
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
        "--max_bytes": "--codec.max_bytes",
        "--max_kl": "--codec.max_kl",
        "--task": "--task.name",
        "--teacher": "--teacher.name",
        "--views": "--views.transform",
    },
    choices={
        "codec": _verb.Choice(
            "dense", choose_codec_or_auto, lambda name, **values: choose_codec_or_auto(name)(**values)
        )
    },
)


def _listed(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return names that were given as a list, or as one text with commas."""
    return tuple(name.strip() for name in names.split(",") if name.strip()) if isinstance(names, str) else names
