"""Run by `.ci/wheel` in an environment that holds the wheel and its base dependencies, nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from importlib.metadata import files, version
from pathlib import Path

import numpy as np


def program(*arguments: str, code: int = 0) -> str:
    """Run the installed program; another exit code than `code` is an error that shows what it said.

    Returns:
        Standard output, or standard error where `code` is not 0.
    """
    done = subprocess.run([Path(sys.executable).with_name("bookkd"), *arguments], capture_output=True, text=True)
    if done.returncode != code:
        raise SystemExit(f"bookkd {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stderr if code else done.stdout


def check(holds: bool, what: str) -> None:
    """Stop with `what` unless it holds."""
    if not holds:
        raise SystemExit(f"Expected {what}.")


def main() -> None:
    """Import, write, read, verify, inspect."""
    import bookkd
    from bookkd.book import Dense, FieldPlan

    check(importlib.util.find_spec("torch") is None, "an environment without torch")
    check("site-packages" in bookkd.__file__, f"the installed package, got {bookkd.__file__}")
    check(bookkd.__version__ == version("bookkd"), "one version in the package and in its metadata")
    shipped = {str(path) for path in files("bookkd") or ()}
    check("bookkd/py.typed" in shipped, "py.typed in the wheel")
    check(
        {f"bookkd/report/page.{kind}" for kind in ("css", "html.jinja", "js")} <= shipped,
        "the parts of the report's page",
    )
    check(any(path.endswith("licenses/LICENSE") for path in shipped), "the licence in the wheel")
    check(not any(path.startswith("tests/") for path in shipped), "no tests in the wheel")
    with tempfile.TemporaryDirectory() as folder:
        logits = np.arange(12, dtype=np.float32).reshape(4, 3)
        plan = bookkd.Plan(n_samples=4, n_views=1, fields={"logits": FieldPlan((3,), Dense())})
        with bookkd.BookWriter(folder, plan) as writer:
            writer.write_rows(0, 0, {"logits": logits})
            writer.finish()
        read = bookkd.Book(folder).read(np.arange(4), np.zeros(4, np.int64), ["logits"])["logits"]
        check(np.array_equal(np.asarray(read, np.float32), logits), "the logits back from the book")
        check(json.loads(program("verify", folder, "--json"))["whole"], "a whole book")
        check(json.loads(program("inspect", folder, "--json"))["records"] == 4, "four records")
    check("bookkd VERB" in program("--help"), "an overview of the verbs")
    for verb in ("demo", "make", "learn", "evaluate", "report", "bench"):
        said = program(verb, code=2)
        check(
            "pip install 'bookkd[train]'" in said and said.count("\n") == 1,
            f"bookkd {verb} to name the extra, got: {said}",
        )
    print(f"bookkd {bookkd.__version__} works alone")


main()
