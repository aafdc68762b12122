"""Write `docs/cli.md` from the parsers of the program, so that the page cannot say anything else than `--help`.

python docs/make_cli.py            write the page
python docs/make_cli.py --check    exit with 1 if the page is not current
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bookkd.book import CODECS
from bookkd.cli import VERBS
from bookkd.core.names import import_reference
from bookkd.methods import METHODS

PAGE = Path(__file__).with_name("cli.md")

# Names behind an option that brings options of its own; codecs of arrays that are no logits are none to choose.
CHOICES = {"method": list(METHODS), "codec": [name for name, kind in CODECS.items() if kind.of_logits]}

HEAD = """\
# Command line

<!-- Written by docs/make_cli.py; do not edit. -->

The program is `bookkd VERB [options]`. Every verb takes:

- `--help`: all options with an example.
- `--config FILE.yaml`: any options from a file, nested as the dots say; options behind it win.
- `--json`: one JSON object as the last line of standard output; everything for people goes to standard error.
- `--print_config`: the configuration after all options, as YAML for `--config`.

Exit codes: 0 done, 1 a fault or a missed goal was found, 2 an error that one line explains, 130 interrupted (the same
command goes on). Networks, data sets and transforms of your own are named `package.module:callable`; nothing is ever
imported because a book says so.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *(line for name in VERBS for line in verb_section(name))]).rstrip() + "\n"


def verb_section(name: str) -> Iterator[str]:
    """Yield the lines of one verb."""
    verb = import_reference(VERBS[name], "verb")
    parser = verb.parser([])
    yield from (f"## {name}", "", parser.description, "", "```text", textwrap.dedent(verb.example), "```", "")
    spelled = {f"--{option}.name": f"--{option}" for option in verb.choices}
    spelled |= {long: short for short, long in verb.short.items()}
    yield from tables(parser, spelled)
    for option, choice in verb.choices.items():
        # Only `make` has a teacher to measure before it writes.
        for chosen in [*CHOICES[option], *(["auto"] if (name, option) == ("make", "codec") else [])]:
            if chosen != choice.usual([]):
                more = verb.parser([f"--{option}.name", chosen])
                yield from tables(more, spelled, only=f"Options of {option} {chosen}")


def tables(parser: Any, spelled: dict[str, str], only: str = "") -> Iterator[str]:
    """Yield one table for each group of options that has any."""
    defaults = parser.get_defaults()
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if shown(action)]
        if not actions or (only and group.title != only):
            continue
        title = {"positional arguments": "Arguments", parser.description.rstrip("."): "Options"}.get(
            group.title, group.title
        )
        yield from (f"**{title}**", "", "| option | default | meaning |", "| --- | --- | --- |")
        for action in actions:
            yield row(action, defaults, spelled)
        yield ""


def shown(action: argparse.Action) -> bool:
    """Leave out what every verb has, and the options that load one group of options from a file."""
    common = {"--help", "--config", "--json", "--print_config"} & set(action.option_strings)
    return not common and type(action).__name__ != "_ActionConfigLoad"


def row(action: argparse.Action, defaults: Any, spelled: dict[str, str]) -> str:
    """Return the line of one option."""
    names = [f"`{name}`" for option in action.option_strings for name in (spelled.get(option, ""), option) if name]
    default = defaults.get(action.dest)
    plain = default.as_dict() if hasattr(default, "as_dict") else default
    value = "required" if action.required else "" if plain is None or plain in ("", argparse.SUPPRESS) else f"`{plain}`"
    text = " ".join((action.help or "").split()).replace("|", "\\|")
    return f"| {', '.join(names) or f'`{action.dest}`'} | {value} | {text} |"


def main() -> int:
    """Write, or compare."""
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("Expected docs/cli.md to be current. Run: python docs/make_cli.py", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
