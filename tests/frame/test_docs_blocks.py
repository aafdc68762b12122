"""Python blocks of README and docs run, page by page; command lines in them parse."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from bookkd.cli import VERBS
from bookkd.core.names import import_reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if page.name != "cli.md"
)
FENCE = re.compile(r"(?P<before>[^\n]*\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SKIPPED = re.compile(r"<!-- not run: (?P<reason>.{10,}) -->")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page, kind):
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found["kind"] == kind and not SKIPPED.match((found["before"] or "").strip()):
            yield text[: found.start("text")].count("\n"), found["text"]


def with_python(pages):
    return [page for page in pages if any(blocks(page, "python"))]


@pytest.mark.parametrize("page", with_python(PAGES), ids=name_of)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    space = {"__name__": "docs"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for line, text in blocks(page, "python"):
            # Blank lines in front, so that a traceback shows the line of the page.
            exec(compile("\n" * line + text, str(page), "exec"), space)


def test_pages_with_python_are_found():
    found = {name_of(page) for page in with_python(PAGES)}
    assert found >= {"README.md", "docs/quickstart.md", "docs/guides/any-producer.md", "docs/guides/own-loop.md"}


def test_a_block_is_left_out_only_with_a_reason(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n```python\n1\n```\n\n<!-- not run: needs a large machine -->\n```python\n2\n```\n\n<!-- not run: -->\n```python\n3\n```\n"
    )
    assert [text for _, text in blocks(page, "python")] == ["1\n", "3\n"]


def commands(page):
    for kind in ("console", "text"):
        for _, text in blocks(page, kind):
            for line in text.replace("\\\n", " ").splitlines():
                for part in line.removeprefix("$ ").split("&&"):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["bookkd"] and words[1:2] and words[1].islower():
                        yield words[1:]


COMMANDS = [(name_of(page), words) for page in [*PAGES, ROOT / "docs" / "cli.md"] for words in commands(page)]


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}-{' '.join(words)[:60]}" for page, words in COMMANDS]
)
def test_commands_parse(page, words, monkeypatch):
    # The task of a book says which method is usual; there is no server to ask here.
    monkeypatch.setattr(importlib.import_module("bookkd.cli.learn"), "newest_plan", lambda path: None)
    verb = import_reference(VERBS[words[0]], "verb")
    parsed = verb.parse(words[1:])
    assert parsed is not None


def test_every_verb_is_shown():
    assert {words[0] for _, words in COMMANDS} >= set(VERBS)
