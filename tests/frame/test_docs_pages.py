"""Pages that are made from the code are current; public names are documented."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bookkd

ROOT = Path(__file__).parents[2]
ROOMS = [room.name for room in pkgutil.iter_modules(bookkd.__path__) if room.ispkg]
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def test_cli_page_is_current():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_cli.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def public_names():
    for room in ROOMS:
        module = importlib.import_module(f"bookkd.{room}")
        for name in getattr(module, "__all__", ()):
            yield module, name


def constants_with_docstring(source):
    """Names that are assigned and then described by a string, as documentation tools read it."""
    body = ast.parse(source).body
    for node, after in itertools.pairwise(body):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        described = (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
        if described:
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_have_docstrings(room):
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "bookkd" / room).rglob("*.py")]
    described = {name for source in sources for name in constants_with_docstring(source)}
    bare = []
    for module, name in public_names():
        if module.__name__ != f"bookkd.{room}":
            continue
        found = getattr(module, name)
        is_code = inspect.isclass(found) or inspect.isfunction(found)
        if not (inspect.getdoc(found) if is_code else name in described):
            bare.append(name)
    assert bare == []


def test_every_room_has_an_api_page():
    directives = {name for page in (ROOT / "docs" / "api").glob("*.md") for name in DIRECTIVE.findall(page.read_text())}
    rooms = {name.split(".")[1] for name in directives}
    assert rooms == set(ROOMS) - {"cli"}


def test_every_module_of_core_has_a_place():
    directives = set(DIRECTIVE.findall((ROOT / "docs" / "api" / "core.md").read_text()))
    assert directives == {
        f"bookkd.core.{each.name}" for each in pkgutil.iter_modules(importlib.import_module("bookkd.core").__path__)
    }


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_doctests_are_fenced():
    text = "A line.\n\nArgs:\n    a: One.\n\n>>> 1 + 1\n2\n\n>>> f(\n...     2)\n\nSource: x"
    expected = (
        "A line.\n\nArgs:\n    a: One.\n\n```pycon\n>>> 1 + 1\n2\n```\n\n```pycon\n>>> f(\n...     2)\n```\n\nSource: x"
    )
    assert load("doctests").fenced(text) == expected


def test_the_build_fails_for_a_name_without_an_anchor(tmp_path):
    check_api = load("check_api")
    (tmp_path / "api").mkdir()
    names = sorted(check_api.public_names())
    assert "bookkd.book.Book" in names
    (tmp_path / "api" / "page.html").write_text(
        "".join(f'<h2 id="{name}">' for name in names if name != "bookkd.book.Book")
    )
    assert check_api.missing(tmp_path) == ["bookkd.book.Book"]
