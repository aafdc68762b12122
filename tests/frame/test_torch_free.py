"""What must work where torch is not installed, each in a process that cannot import it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "pytorch_lightning", "timm", "sklearn", "blake3", "PIL"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""

WRITE = """
import numpy as np
from bookkd.book import BookWriter, Dense, FieldPlan, Plan

plan = Plan(n_samples=4, n_views=2, fields={"logits": FieldPlan((3,), Dense())})
with BookWriter(sys.argv[1], plan) as writer:
    for unit in writer.pending():
        rows = np.arange(unit.start, unit.stop, dtype=np.float32)
        writer.write(unit, {"logits": np.stack([rows, rows + 1, rows * 2], axis=1)})
    writer.finish()
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", BLOCKED + code, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torch-free") / "book"
    done = run(WRITE, path)
    assert done.returncode == 0, done.stderr
    return path


def test_the_block_blocks():
    done = run("import torch")
    assert done.returncode == 1
    assert "No module named 'torch'" in done.stderr


def test_reads_with_numpy_alone(book):
    code = "import bookkd; print(bookkd.Book(sys.argv[1]).read(samples=[2, 3], views=[1, 0])['logits'].tolist())"
    done = run(code, book)
    assert (done.stdout, done.stderr) == ("[[2.0, 3.0, 4.0], [3.0, 4.0, 6.0]]\n", "")


@pytest.mark.parametrize(
    "module",
    [
        "bookkd",
        "bookkd.core.errors",
        "bookkd.core.rng",
        "bookkd.book",
        "bookkd.cli",
        "bookkd.query",
        "bookkd.interchange",
    ],
)
def test_imports(module):
    done = run(f"import {module}")
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_bookkd_loads_nothing_heavy():
    code = "import sys, bookkd; print(sorted({'numpy', 'torch', 'sklearn', 'jsonargparse'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(("verb", "key", "value"), [("verify", "whole", True), ("inspect", "records", 8)])
def test_verbs_that_need_no_torch(book, verb, key, value):
    done = run("from bookkd.cli import main; sys.exit(main(sys.argv[1:]))", verb, book, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[key] == value


def test_import_and_query_need_no_torch(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"logprobs": [{"1": -0.1, "2": -3.0}, {"3": -0.2}]}')
    code = """
from bookkd.cli import main
from bookkd.book import Book
from bookkd.query import write_statistics

source, out = sys.argv[1:]
assert main(["import", "--from", "vllm-jsonl", source, "--n_classes", "5", "--out", out]) == 0
write_statistics(Book(out))
sys.exit(main(["query", out, "select top1 from records order by sample", "--csv"]))
"""
    done = run(code, tmp_path / "a.jsonl", tmp_path / "book")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("top1\n1\n3\n")


def test_help_needs_no_torch():
    done = run("from bookkd.cli import main; sys.exit(main(['--help']))")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: bookkd VERB" in done.stdout
