"""A sweep as YAML or flags say it, read into a `Sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.learning import Training
from bookkd.methods import method_class
from bookkd.pipelines.compare.sweep import MethodChoice, Override, Source, Sweep
from bookkd.pipelines.compare.values import listed, mapped, only, typed
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions

__all__ = ["method_choice", "read_document", "read_sweep", "sources_of", "sweep_of"]


def read_document(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of keys with values.

    Raises:
        ConfigError: if it cannot be read or is something else, in one line.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"Expected the sweep to be a readable YAML file, got {str(path)!r}: {said}.") from error
    return mapped(found, "sweep")


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
            books are paths, lists of paths (read together), mappings with `name`, `paths` and `test`, or all of them one
            mapping from label to paths; a method may have `books`, the labels that it learns from; `seeds` is a list or a
            number of seeds; lists may be text with commas.

    Raises:
        ConfigError: for an unknown key or a value of another type; the nearest keys are listed.

    >>> sweep = sweep_of({"students": "resnet8", "methods": ["supervised"], "seeds": 2})
    >>> sweep.seeds, sweep.students[0].name
    ((0, 1), 'resnet8')
    """
    only(document, [entry.name for entry in fields(Sweep)], "the sweep")
    values = {key: value for key, value in document.items() if value is not None}
    built: dict[str, Any] = {
        "students": tuple(_network(each, "students") for each in listed(values.pop("students", None))),
        "methods": tuple(method_choice(each) for each in listed(values.pop("methods", None))),
        "books": tuple(sources_of(values)),
        "teachers": tuple(_teachers(each) for each in _labelled(values.pop("teachers", None), "networks")),
        "overrides": tuple(_override(each, n) for n, each in enumerate(listed(values.pop("overrides", None)))),
    }
    values.pop("books", None)
    if "seeds" in values:
        built["seeds"] = _seeds(values.pop("seeds"))
    for key, kind in (("data", DataOptions), ("training", Training), ("views", ViewOptions)):
        if key in values:
            built[key] = _part(kind, values.pop(key), key)
    plain = (
        "baseline",
        "label_fraction",
        "test",
        "validation",
        "validation_fraction",
        "replicates",
        "latency",
        "preset",
    )
    return Sweep(**built, **typed(Sweep, {key: values[key] for key in plain if key in values}, "sweep"))


def sources_of(document: Mapping[str, Any]) -> list[Source]:
    """Return the books of a document, each by itself or several read together."""
    return [_books(each) for each in _labelled(document.get("books"), "paths")]


def method_choice(given: Any) -> MethodChoice:
    """Return a method by its name, or by a mapping of name, preset and options.

    Raises:
        UnknownNameError: for an unknown method or preset.
        ConfigError: for an option that the method has not.
    """
    if isinstance(given, MethodChoice):
        return given
    values = {"name": given} if isinstance(given, str) else mapped(given, "methods")
    name, preset = values.pop("name", None), values.pop("preset", None)
    sources = tuple(str(label) for label in listed(values.pop("books", None)))
    if not isinstance(name, str):
        raise ConfigError(expected("methods", "names, or mappings with a name", given, where="sweep"))
    values |= mapped(values.pop("options", {}), f"options of method {name}")
    chosen = method_class(name)
    if preset is not None:
        choose(preset, chosen.presets, "preset", where=f"method {name}")
    found = MethodChoice(name, preset, typed(chosen, values, f"method {name}"), sources)
    found.build()  # its own checks, before anything starts
    return found


def _part(kind: type[Any], given: Any, where: str) -> Any:
    if isinstance(given, kind):
        return given
    first = {DataOptions: "name", ViewOptions: "transform"}.get(kind)
    values = {first: given} if isinstance(given, str) and first else mapped(given, where)
    return kind(**typed(kind, values, where))


def _network(given: Any, where: str) -> NetworkOptions:
    if isinstance(given, NetworkOptions):
        return given
    values = {"name": given} if isinstance(given, str) else mapped(given, where)
    found = NetworkOptions(**typed(NetworkOptions, values, where))
    if not found.name:
        raise ConfigError(expected(where, "names of networks, or mappings with a name", given, where="sweep"))
    return found


def _labelled(given: Any, key: str) -> list[Any]:
    """Return entries of a mapping from label to what it stands for as mappings with a name; a list as it is."""
    if not isinstance(given, Mapping) or "name" in given or key in given:
        return listed(given)
    return [{"name": name, **(value if _is_entry(value, key) else {key: value})} for name, value in given.items()]


def _is_entry(value: Any, key: str) -> bool:
    return isinstance(value, Mapping) and key in value


def _books(given: Any) -> Source:
    if isinstance(given, Source):
        return given
    values = dict(given) if isinstance(given, Mapping) else {"paths": given}
    only(values, ("name", "paths", "test"), "books")
    paths, test = (tuple(str(path) for path in listed(values.get(key))) for key in ("paths", "test"))
    return Source(str(values.get("name") or "+".join(Path(path).name for path in paths)), paths, test_books=test)


def _teachers(given: Any) -> Source:
    if isinstance(given, Source):
        return given
    entry = dict(given) if _is_entry(given, "networks") else {"networks": given}
    only(entry, ("name", "networks"), "teachers")
    networks = tuple(_network(each, "teachers") for each in listed(entry["networks"]))
    return Source(str(entry.get("name") or "live " + "+".join(network.name for network in networks)), teachers=networks)


def _override(given: Any, number: int) -> Override:
    if isinstance(given, Override):
        return given
    where = f"overrides[{number}]"
    values = mapped(given, where)
    only(values, [entry.name for entry in fields(Override)], where)
    if not isinstance(values.get("name"), str):
        raise ConfigError(expected(f"{where}.name", "text that tells it from the others", values.get("name")))
    for key, kind in (("training", Training), ("views", ViewOptions), ("student", NetworkOptions)):
        if key in values:
            values[key] = typed(kind, mapped(values[key], f"{where}.{key}"), f"{where}.{key}")
    if "books" in values:
        values["books"] = _books(values["books"])
    if "method" in values:
        values["method"] = _method_part(values["method"], f"{where}.method")
    if "label_fraction" in values:
        values |= typed(Override, {"label_fraction": values["label_fraction"]}, where)
    return Override(**values)


def _method_part(given: Any, where: str) -> dict[str, Any]:
    values = {"name": given} if isinstance(given, str) else mapped(given, where)
    if "name" not in values:
        return values  # typed when it is known which method it changes
    choice = method_choice(values)
    return {"name": choice.name, "preset": choice.preset, **choice.options}


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        return tuple(range(given))
    found = []
    for each in listed(given):
        if isinstance(each, bool) or not str(each).isdecimal():
            raise ConfigError(expected("seeds", "whole numbers, or how many", given, where="sweep"))
        found.append(int(each))
    return tuple(found)
