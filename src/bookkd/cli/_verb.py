"""What all verbs share: flags, YAML keys and help built from a function's signature, and the form of the output.

A verb is a function; its keyword arguments are the options, its docstring the help. Two kinds of option need more than
a signature: a *choice* (`--method NAME` with the options of that method's own dataclass) and a short spelling
(`--data digits` for `--data.name digits`).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from bookkd.cli._config import read_config
from bookkd.core.errors import BookKDError, ConfigError
from bookkd.core.names import nearest
from bookkd.core.schedules import Schedule, parse_schedule

__all__ = ["Choice", "Verb", "asked"]

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Choice:
    """An option that names a class whose fields become options below it.

    Args:
        default: Name taken where none is given; or what tells it of the words of the command line.
        find: Name -> dataclass.
        build: Name and values -> object.
        presets: Dataclass -> named sets of values; None where there are none.
    """

    default: str | Callable[[Sequence[str]], str]
    find: Callable[[str], type[Any]]
    build: Callable[..., Any]
    presets: Callable[[type[Any]], Mapping[str, Mapping[str, Any]]] | None = None

    def usual(self, arguments: Sequence[str]) -> str:
        """Return the name taken where none is given."""
        return self.default if isinstance(self.default, str) else self.default(arguments)


@dataclass(frozen=True)
class Verb:
    """One verb of the program.

    Args:
        name: As typed.
        function: Does the work; called with the options, returns what `--json` prints, or (that, exit code).
        show: Prints the result for a person.
        example: Command lines for `--help`.
        positional: Arguments given by place, in order, with whether each may be left out.
        many: The one of them that takes several words; empty where each takes one.
        short: `--option` -> the dotted option that it stands for.
        choices: Option -> `Choice`.
        several: `--option` -> the option that takes its words as a list, where it has several, or one that is a YAML file.
    """

    name: str
    function: Callable[..., Any]
    show: Callable[[Any], None]
    example: str
    positional: Mapping[str, bool] = field(default_factory=dict)
    many: str = ""
    short: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)
    several: Mapping[str, str] = field(default_factory=dict)

    def run(self, argv: Sequence[str]) -> int:
        """Parse, call, print; return the exit code."""
        options = self.parse(argv)
        as_json = options.pop("json")
        options.pop("config", None)
        for name, choice in self.choices.items():
            values = dict(options.pop(name))
            chosen = values.pop("name")
            values.pop("preset", None)
            options[name] = choice.build(chosen, **values)
        found = self.function(**options)
        result: Any = found[0] if isinstance(found, tuple) else found
        code: int = found[1] if isinstance(found, tuple) else 0
        # Lightning runs this program once for each device; the first process speaks for all.
        if any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK")):
            return code
        if as_json:
            print(json.dumps(result), flush=True)  # noqa: T201
        else:
            self.show(result)
        return code

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the options that `argv`, and the YAML files on it, ask for; choices as nested dicts.

        Raises:
            ConfigError: for an option or value that the verb does not take, in one line.
        """
        arguments = self._expand(argv)
        places = {name: asked(f"--{name}", arguments, "") for name in self.positional}
        arguments = [word for word in arguments if word.partition("=")[0] not in {f"--{name}" for name in places}]
        parser = self.parser(arguments, {name: given for name, given in places.items() if given not in ("", "null")})
        switches = {option for action in parser._actions for option in action.option_strings if _is_switch(action)}
        try:
            parsed = parser.parse_args(_with_values(switches, arguments))
            return dict(parser.instantiate(parsed).as_dict())
        except BookKDError:
            raise
        except (argparse.ArgumentError, argparse.ArgumentTypeError, TypeError, ValueError, OSError) as error:
            raise ConfigError(self._explain(error, parser, arguments)) from error

    def _explain(self, error: BaseException, parser: ArgumentParser, arguments: Sequence[str]) -> str:
        """Return one line for an error of the parser, with the nearest option for an unknown one."""
        text = " ".join(str(error).split())
        known = [option for action in parser._actions for option in action.option_strings]
        for word in text.split():
            if word.startswith("--") and "nrecognized" in text:
                option = word.partition("=")[0]
                typed = next((short for short, dotted in self.short.items() if dotted == option), option)
                name = option[2:].partition(".")[0]
                given = ""
                if name in self.choices:
                    given = f" with --{name} {asked(f'--{name}.name', arguments, self.choices[name].usual(arguments))}"
                near = ", ".join(nearest(option, known)[:4])
                return f"Unknown option {typed} of bookkd {self.name}{given}. Nearest: {near}."
        return f"{text} See: bookkd {self.name} --help"

    def _expand(self, argv: Sequence[str]) -> list[str]:
        """Write short spellings out, and YAML files as the options that they stand for, in their place."""
        short = {**{f"--{name}": f"--{name}.name" for name in self.choices}, **self.short}
        out: list[str] = []
        words = iter(self._gather(argv))
        for word in words:
            option, equals, value = word.partition("=")
            if option == "--config":
                out += [_spelled(line, short) for line in read_config(value if equals else next(words, ""))]
            else:
                out.append(_spelled(word, short))
        return out

    def _gather(self, argv: Sequence[str]) -> list[str]:
        """Write an option of several words, or of a YAML file, as the one that takes them as a list."""
        out, words = [], list(argv)
        while words:
            option, equals, value = words.pop(0).partition("=")
            given = [value] if equals else []
            while option in self.several and words and not words[0].startswith("--"):
                given.append(words.pop(0))
            if option in self.several and (len(given) > 1 or any(word.endswith(_YAML) for word in given)):
                out.append(f"{self.several[option]}={json.dumps(given)}")
            elif option in self.several:
                out += [option, *given]
            else:
                out.append(f"{option}{equals}{value}")
        return out

    def parser(self, arguments: Sequence[str] = (), places: Mapping[str, str] | None = None) -> ArgumentParser:
        """Return the parser of the verb, with the options of the choices that `arguments` name.

        Args:
            arguments: Words of the command line, written out.
            places: Arguments given by place that a YAML file gives by name.
        """
        places = places or {}
        described = parse_docstring(inspect.getdoc(self.function) or "")
        parser = ArgumentParser(
            prog=f"bookkd {self.name}",
            description=described.short_description,
            epilog=f"example:\n{self.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
        )
        helps = {param.arg_name: param.description for param in described.params}
        # `_expand` reads the files, so that short names and arguments by place work in them; this gives --print_config.
        parser.add_argument("--config", action="config", help="YAML file with any of these options; later ones win")
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
        signature = inspect.signature(self.function)
        for name, optional in self.positional.items():
            free = optional or name in places
            more: dict[str, Any] = {"nargs": "?", "default": places.get(name)} if free else {}
            if name == self.many:
                more = {"nargs": "*", "default": _listed(places.get(name))} if free else {"nargs": "+"}
            parser.add_argument(name, type=str, help=helps.get(name), **more)
        skip = {*self.positional, *self.choices}
        if set(signature.parameters) - skip:
            parser.add_function_arguments(self.function, as_positional=False, skip=set(skip))
        for name, choice in self.choices.items():
            _add_choice(parser, name, choice, [*arguments, *places.values()])
        return parser


def _listed(text: str | None) -> list[str]:
    """Return the words that a YAML file gives as one or as a list, which `read_config` writes as JSON."""
    if text is None or not text.startswith("["):
        return [] if text is None else [text]
    return [str(word) for word in json.loads(text)]


def _spelled(word: str, short: Mapping[str, str]) -> str:
    """Write an option as the parser knows it: `--max-kl` as `--max_kl`, and a short spelling as what it stands for."""
    option, equals, value = word.partition("=")
    if re.fullmatch(r"--[A-Za-z][\w.+-]*", option):  # SQL may begin with a comment
        option = "--" + option[2:].replace("-", "_")
        word = f"{option}{equals}{value}"
    return f"{short[option]}{equals}{value}" if option in short else word


def _with_values(switches: set[str], arguments: Sequence[str]) -> list[str]:
    """Write `--quick` as `--quick=true`, the form that jsonargparse takes for switches that YAML can set too."""
    out = []
    for place, word in enumerate(arguments):
        bare = word in switches and (place + 1 == len(arguments) or arguments[place + 1] not in ("true", "false"))
        out.append(f"{word}=true" if bare else word)
    return out


def _is_switch(action: argparse.Action) -> bool:
    return getattr(action, "_typehint", None) is bool


def asked(option: str, arguments: Sequence[str], default: str) -> str:
    """Return what the expanded command line says last for a dotted option."""
    found = default
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == option:
            found = value if equals else (arguments[place + 1] if place + 1 < len(arguments) else "")
    return found


def _add_choice(parser: ArgumentParser, name: str, choice: Choice, arguments: Sequence[str]) -> None:
    usual = choice.usual(arguments)
    chosen = asked(f"--{name}.name", arguments, usual)
    found = choice.find(chosen)
    described = parse_docstring(inspect.getdoc(found) or "")
    helps = {param.arg_name: param.description or "" for param in described.params}
    group = parser.add_argument_group(f"Options of {name} {chosen}")
    group.add_argument(f"--{name}.name", default=usual, type=str, help=f"which {name}; also --{name} NAME")
    presets = {} if choice.presets is None else choice.presets(found)
    defaults: Mapping[str, Any] = {}
    if presets:
        wanted = asked(f"--{name}.preset", arguments, "")
        if wanted and wanted not in presets:
            raise ConfigError(
                f"Unknown preset {wanted!r} of {name} {chosen}. Nearest: {', '.join(nearest(wanted, presets))}."
            )
        defaults = presets.get(wanted, {})
        group.add_argument(f"--{name}.preset", default=None, type=str | None, help=f"one of {', '.join(presets)}")
    hints = typing.get_type_hints(found)
    for entry in fields(found):
        kind = hints[entry.name]
        moves = Schedule in typing.get_args(kind)
        default = defaults.get(entry.name, entry.default if entry.default is not MISSING else None)
        required = entry.default is MISSING and entry.default_factory is MISSING
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        text = helps.get(entry.name, "") + (" Number or schedule." if moves else "")
        settings: dict[str, Any] = {"required": True} if required else {"default": default}
        group.add_argument(f"--{name}.{entry.name}", type=parse_schedule if moves else kind, help=text, **settings)


def note(text: str) -> None:
    """Print a line for a person on stderr, so that stdout carries results alone."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
