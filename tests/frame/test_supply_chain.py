"""Nothing in the repository runs, imports or unpickles what it reads: every call and import that could is searched for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(
    path
    for folder in ("src", "benchmarks", "examples", "docs", ".ci")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

RUNS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "builtins.eval", "builtins.exec"}
"""Calls that run text."""
LOADS = {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "runpy.run_path"}
"""Calls that build whatever the bytes say."""
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
"""Modules whose reading builds whatever the bytes say."""
SAFE = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Loaders of arrays -> the setting with which they build nothing else; it has to be given."""


READER_OF_OLD_FILES = ROOT / "src" / "bookkd" / "zoo" / "torchvision_files.py"
"""CIFAR's own files are pickles: the one place with an unpickler, which says itself which few names it knows."""


def dotted(node, names):
    """The name that a call is of, with what it was imported as undone."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def imported(tree):
    """Name in the file -> what it stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname: each.name for each in node.names if each.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return names


def dangers(source):
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if name in RUNS | LOADS or (name.endswith("import_module") and text_of(node) in MODULES):
                yield name
            elif name in SAFE:
                keyword, safe = SAFE[name]
                given = {each.arg: each.value for each in node.keywords}.get(keyword)
                if not (isinstance(given, ast.Constant) and given.value is safe):
                    yield name


def text_of(call):
    return call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""


def test_there_is_something_to_search():
    assert {path.relative_to(ROOT).parts[0] for path in CODE} >= {"src", "benchmarks", "examples", "docs"}
    assert len(CODE) > 200


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_or_unpickles_what_it_reads(path):
    allowed = ["pickle"] if path == READER_OF_OLD_FILES else []
    assert list(dangers(path.read_text(encoding="utf-8"))) == allowed


def test_the_one_unpickler_knows_its_few_names():
    tree = ast.parse(READER_OF_OLD_FILES.read_text(encoding="utf-8"))
    used = {name for node in ast.walk(tree) if (name := dotted(node, {})).startswith("pickle.")}
    assert used <= {"pickle.Unpickler", "pickle.UnpicklingError"}
    readers = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in bases(node)]
    assert readers
    assert all(
        "find_class" in {each.name for each in node.body if isinstance(each, ast.FunctionDef)} for node in readers
    )
    direct = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func, {}).startswith("pickle.Unpickler")
    ]
    assert direct == []


def bases(node):
    return [dotted(base, {}) for base in node.bases]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_teaches_it(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert list(dangers(block.replace(">>> ", "").replace("... ", ""))) == []


PLANTED = [
    "import pickle",
    "import pickle as p",
    "from pickle import loads",
    "import _pickle",
    "from joblib import load",
    "import shelve",
    "import marshal",
    "import dill",
    "from cloudpickle import loads",
    "importlib.import_module('pickle')",
    "eval('1')",
    "exec('1')",
    "compile('1', 'a', 'exec')",
    "__import__('os')",
    "from builtins import eval as judge\njudge('1')",
    "import os\nos.system('ls')",
    "torch.load(p)",
    "torch.load(p, weights_only=False)",
    "torch.load(p, weights_only=flag)",
    "from torch import load\nload(p)",
    "import torch as t\nt.load(p)",
    "yaml.load(f)",
    "from yaml import load as read\nread(f)",
    "yaml.unsafe_load(f)",
    "np.load(p)",
    "np.load(p, allow_pickle=True)",
    "from numpy import load\nload(p, allow_pickle=True)",
    "import pandas as pd\npd.read_pickle(p)",
]


@pytest.mark.parametrize("source", PLANTED)
def test_what_is_planted_is_found(source):
    assert list(dangers(source))


@pytest.mark.parametrize("source", PLANTED)
def test_it_is_found_inside_of_a_whole_file(source, tmp_path):
    whole = (ROOT / "src" / "bookkd" / "core" / "jsonio.py").read_text(encoding="utf-8")
    assert list(dangers(f"{whole}\n\ndef planted(p, f, flag):\n    " + source.replace("\n", "\n    ")))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p, weights_only=True)",
        "np.load(p, allow_pickle=False)",
        "yaml.safe_load(f)",
        "model.eval()",
        "re.compile('a')",
        "torch.compile(model)",
        "import pickletools",
        "json.load(f)",
    ],
)
def test_what_is_safe_passes(source):
    assert not list(dangers(source))
