"""The parts of a sweep as YAML or flags say them: methods, networks, books, teachers, overrides, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose
from bookkd.learning import Training
from bookkd.methods import method_class
from bookkd.pipelines.compare.sweep import MethodChoice, Override, Source
from bookkd.pipelines.compare.values import listed, mapped, only, typed
from bookkd.pipelines.options import DataOptions, NetworkOptions, ViewOptions

__all__ = ["method_choice", "network", "options", "override", "seeds_of", "sources_of", "teachers_of"]


def sources_of(document: Mapping[str, Any]) -> list[Source]:
    """Return the books of a document, each by itself or several read together."""
    return [_books(each) for each in _labelled(document.get("books"), "paths")]


def teachers_of(document: Mapping[str, Any]) -> list[Source]:
    """Return the live teachers of a document, each by itself or several asked together."""
    return [_teachers(each) for each in _labelled(document.get("teachers"), "networks")]


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


def options(kind: type[Any], given: Any, where: str) -> Any:
    """Return options of a kind: as they are, from a name, or from a mapping."""
    if isinstance(given, kind):
        return given
    first = {DataOptions: "name", ViewOptions: "transform"}.get(kind)
    values = {first: given} if isinstance(given, str) and first else mapped(given, where)
    return kind(**typed(kind, values, where))


def network(given: Any, where: str) -> NetworkOptions:
    """Return a network by its name, or by a mapping of name and options."""
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
    only(values, ("name", "paths", "test", "teachers"), "books")
    paths, test = (tuple(str(path) for path in listed(values.get(key))) for key in ("paths", "test"))
    members = tuple(_member(each) for each in listed(values.get("teachers")))
    label = " ".join(["+".join(Path(path).name for path in paths), *map(str, members)])
    return Source(str(values.get("name") or label), paths, test_books=test, members=members)


def _member(given: Any) -> str | int:
    """Return the name of a teacher of a book, or its place."""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise ConfigError(expected("teachers", "names or places in the book", given, where="books of the sweep"))
    return int(given) if str(given).isdecimal() else given


def _teachers(given: Any) -> Source:
    if isinstance(given, Source):
        return given
    entry = dict(given) if _is_entry(given, "networks") else {"networks": given}
    only(entry, ("name", "networks"), "teachers")
    networks = tuple(network(each, "teachers") for each in listed(entry["networks"]))
    return Source(str(entry.get("name") or "live " + "+".join(network.name for network in networks)), teachers=networks)


def override(given: Any, number: int) -> Override:
    """Return the override of a mapping, the `number`-th of its list."""
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


def seeds_of(given: Any) -> tuple[int, ...]:
    """Return seeds as they are listed, or as many as a number says, from 0."""
    if isinstance(given, int) and not isinstance(given, bool):
        return tuple(range(given))
    found = []
    for each in listed(given):
        if isinstance(each, bool) or not str(each).isdecimal():
            raise ConfigError(expected("seeds", "whole numbers, or how many", given, where="sweep"))
        found.append(int(each))
    return tuple(found)
