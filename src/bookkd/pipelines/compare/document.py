"""A sweep as YAML or flags say it, read into a `Sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.learning import Training
from bookkd.pipelines.compare.parts import method_choice, network, options, override, seeds_of, sources_of, teachers_of
from bookkd.pipelines.compare.presets import with_preset
from bookkd.pipelines.compare.sweep import Sweep
from bookkd.pipelines.compare.values import listed, mapped, only, typed
from bookkd.pipelines.options import DataOptions, TaskOptions, ViewOptions

__all__ = ["method_choice", "read_document", "read_sweep", "sweep_of"]


def read_document(path: str | Path, what: str = "sweep") -> dict[str, Any]:
    """Read a YAML file of keys with values.

    Args:
        path: The file.
        what: What it is to be, for errors.

    Raises:
        ConfigError: if it cannot be read, is empty or is something else, in one line.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"Expected the {what} to be a readable YAML file, got {str(path)!r}: {said}.") from error
    if found is None:
        do = "Write keys such as students, methods and books." if what == "sweep" else ""
        raise ConfigError(expected(what, "keys with values", "an empty file", where=str(path), do=do))
    return mapped(found, what, str(path))


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep from a YAML file.

    Raises:
        ConfigError: if the file cannot be read or says something that is no sweep, in one line.
    """
    return sweep_of(read_document(path))


def sweep_of(document: Mapping[str, Any]) -> Sweep:
    """Return the sweep of a nested document.

    Args:
        document: Keys as the arguments of `Sweep`. Networks, methods and data sets are names, or mappings with `name` and options;
            books are paths, lists of paths (read together), mappings with `name`, `paths`, `test` and `teachers` (those to read of
            a book of several), or all of them one mapping from label to paths; a method may have `books`, the labels that it
            learns from; `seeds` is a list or a number of seeds; `task` is a name, or a mapping with `name` and `args`; lists may be
            text with commas. `preset` names what `with_preset` adds.

    Raises:
        ConfigError: for an unknown key or a value of another type; the nearest keys are listed.

    >>> sweep = sweep_of({"students": "resnet8", "methods": ["supervised"], "seeds": 2})
    >>> sweep.seeds, sweep.students[0].name
    ((0, 1), 'resnet8')
    """
    if document.get("preset"):
        rest = {key: value for key, value in document.items() if key != "preset"}
        return sweep_of(with_preset(str(document["preset"]), rest))
    only(document, ["preset", *(entry.name for entry in fields(Sweep))], "the sweep")
    values = {key: value for key, value in document.items() if value is not None}
    built: dict[str, Any] = {
        "students": tuple(network(each, "students") for each in listed(values.get("students"))),
        "methods": tuple(method_choice(each) for each in listed(values.get("methods"))),
        "books": tuple(sources_of(values)),
        "teachers": tuple(teachers_of(values)),
        "overrides": tuple(override(each, n) for n, each in enumerate(listed(values.get("overrides")))),
    }
    if "seeds" in values:
        built["seeds"] = seeds_of(values["seeds"])
    for key, kind in (("data", DataOptions), ("training", Training), ("views", ViewOptions)):
        if key in values:
            built[key] = options(kind, values[key], key)
    if not isinstance(values.get("task", ""), str):
        chosen = options(TaskOptions, values["task"], "task")
        built |= {"task": chosen.name, **({"task_args": chosen.args} if chosen.args else {})}
    plain = {key: value for key, value in values.items() if key not in built and key != "preset"}
    return Sweep(**built, **typed(Sweep, plain, "sweep"))
