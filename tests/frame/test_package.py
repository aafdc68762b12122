"""The package as a whole: its names, its version, and what must not be in it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import bookkd

ROOT = Path(__file__).parents[2]


def test_top_level_names_are_there():
    for name in bookkd.__all__:
        assert getattr(bookkd, name) is not None
    assert set(bookkd.__all__) <= set(dir(bookkd))


def test_top_level_names_are_those_of_their_rooms():
    from bookkd.book import Book
    from bookkd.making import make

    assert bookkd.Book is Book
    assert bookkd.make is make


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'bookkd' has no attribute 'Bok'"):
        _ = bookkd.Bok


def test_one_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)[0]
    assert newest == bookkd.__version__ == version("bookkd")


def test_pins_cover_what_the_package_asks_for():
    pins = (ROOT / "constraints" / "ci.txt").read_text(encoding="utf-8").splitlines()
    named = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in pins if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", each)[0]).lower() for each in asked} - {"bookkd"}
    assert names <= named
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.+!-]+", line) for line in pins)


MACHINE = re.compile(
    r"/(?:home|Users|root|opt|mnt|work)/[\w.-]+|/tmp/[\w.-]+|"  # paths of one machine
    r"https?://(?:[\w-]+\.)*(?:py(?:pi|thonhosted|torch)|anaconda|npmjs|artifactory|nexus)\b[\w.]*/(?:simple|whl|packages|pypi)",
)
THIS_FILE = Path(__file__).resolve()


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_path_of_a_machine_and_no_package_registry():
    found = []
    for path in tracked():
        if path == THIS_FILE or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE.finditer(text)]
    assert found == []


def test_scripts_of_continuous_integration_can_be_run():
    for name in ("run", "wheel"):
        path = ROOT / ".ci" / name
        assert path.stat().st_mode & 0o111
        assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
