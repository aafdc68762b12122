"""The JAX example reads the arrays that numpy reads, and its gradient leads to the teacher's average; skipped without JAX.

JAX has threads that a later fork in this process would not survive, so that it runs in processes of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bookkd.book import Book, BookWriter, Dense, FieldPlan, Int8, Plan, TopK
from bookkd.knowledge import StoredKnowledge
from bookkd.losses import soft_target_kl

if importlib.util.find_spec("jax") is None:
    pytest.skip("JAX is not installed", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "examples" / "jax_reader.py"
LOGITS = np.random.default_rng(0).normal(0, 2, (2, 60, 7)).astype(np.float32)
STUDENT = np.random.default_rng(1).normal(0, 1, (60, 7)).astype(np.float32)
CODECS = {"dense": Dense("float32"), "int8": Int8(), "all": TopK(7), "three": TopK(3)}

ASK = """
import runpy, sys
import numpy as np
sys.modules["torch"] = None  # as where it is not installed
script = runpy.run_path(sys.argv[1], run_name="example")
from bookkd.book import Book
book, student = Book(sys.argv[2]), np.load(sys.argv[3])
pieces = list(script["batches"](book, 25))
found = {name: np.concatenate([np.asarray(piece[name]) for piece in pieces]) for name in pieces[0]}
whole = next(script["batches"](book, 60))
found |= {"places": np.stack([np.asarray(whole["sample"]), np.asarray(whole["view"])]), "kl": np.asarray(script["kl"](student, whole))}
found["bias"] = np.asarray(script["learn"](book, epochs=60, size=60)[0])
np.savez(sys.argv[4], **found)
"""


def run(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(path, codec):
    plan = Plan(n_samples=60, n_views=2, fields={"logits": FieldPlan((7,), codec)}, class_names=tuple("abcdefg"))
    with BookWriter(path, plan) as writer:
        for view in range(2):
            writer.write_rows(view, 0, {"logits": LOGITS[view]})
        return writer.finish().path


@pytest.fixture(scope="module", params=CODECS)
def asked(request, tmp_path_factory):
    """A book, and what the example makes of it."""
    root = tmp_path_factory.mktemp("jax")
    path = make(root / "book", CODECS[request.param])
    np.save(root / "student.npy", STUDENT)
    run("-c", ASK, SCRIPT, path, root / "student.npy", root / "found.npz")
    with np.load(root / "found.npz") as found:
        return request.param, Book(path), dict(found)


def test_arrays_are_those_of_numpy(asked):
    _, book, found = asked
    assert sorted(found["sample"].tolist()) == list(range(60))
    assert set(found["view"].tolist()) == {0, 1}
    read = book.read(found["sample"], found["view"])["logits"]
    if "logits" in found:
        np.testing.assert_array_equal(found["logits"], read)
    else:
        np.testing.assert_array_equal(found["classes"], read.indices)
        np.testing.assert_array_equal(found["kept"], read.values.astype(np.float32))
        np.testing.assert_allclose(found["tail"], np.exp(read.log_tail_mass[:, 0]), rtol=1e-5)


def test_the_loss_is_that_of_torch(asked):
    _, book, found = asked
    sample, view = torch.from_numpy(found["places"]).long()
    targets = StoredKnowledge(book).targets({"sample": sample, "view": view})
    options = {"temperature": 1.0, "t_squared": True, "class_reduction": "sum"}
    wanted = soft_target_kl(torch.from_numpy(STUDENT), targets["logits"], **options)
    np.testing.assert_allclose(found["kl"], wanted, rtol=1e-4, atol=1e-5)


def test_it_learns_the_average_of_the_teacher(asked):
    name, _, found = asked
    wanted = torch.softmax(torch.from_numpy(LOGITS), dim=-1).mean(dim=(0, 1)).numpy()
    if name != "three":  # which leaves open how the tail is spread
        np.testing.assert_allclose(torch.softmax(torch.from_numpy(found["bias"]), dim=0), wanted, atol=0.03)


def test_it_runs_as_a_program(tmp_path):
    assert "loss " in run(SCRIPT, make(tmp_path / "book", Dense("float32")))
