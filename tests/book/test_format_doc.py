"""The format's page and schema against the code: the reader on the page is run, the schema is checked on real files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy.special import softmax
from tests.book.books import C, N, V, arrays, make, plan

from bookkd.book import CODECS, Argmax, Auto, Book, FieldPlan, GrowthWriter, Sampled, choose_codec, compact
from bookkd.book._container import HEADER_LIMIT
from bookkd.book._layout import (
    JSON_LIMIT,
    MAX_BLOCK_ROWS,
    MAX_CONSTANT_BYTES,
    MAX_CONSTANTS,
    MAX_FIELDS,
    MAX_HASHES,
    MAX_SAMPLES,
    MAX_SHARDS,
    MAX_VIEWS,
)
from bookkd.book.codecs.raw import RAW_DTYPES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "book-format.md").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "docs" / "book.schema.json").read_text(encoding="utf-8"))
GOLDEN = sorted((ROOT / "tests" / "book" / "golden").glob("v1-*"))
KINDS = {
    "plan.json": "plan",
    "edition-*.json": "edition",
    "view-*/view-*.json": "view",
    "view-*/rows-*.json": "sidecar",
}
OPTIONAL = {"plan": {"choice", "sources", "constants"}}
"""What a file has only where there is something to say."""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    path = tmp_path_factory.mktemp("doc") / "b"
    make(path, plan(masked_classes=(5,)), keys=np.arange(N))
    return path


def check(root, pattern, kind):
    schema = {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}
    files = sorted(root.glob(pattern))
    for file in files:
        jsonschema.validate(json.loads(file.read_bytes()), schema)
    return len(files)


@pytest.mark.parametrize(("pattern", "kind"), KINDS.items())
def test_schema_holds_for_fresh_and_golden_books(fresh, pattern, kind):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert all(check(root, pattern, kind) >= 1 for root in [fresh, *GOLDEN])


@pytest.mark.parametrize(("pattern", "kind"), KINDS.items())
def test_schema_names_every_key_and_refuses_a_wrong_value(fresh, pattern, kind):
    found = json.loads(next(iter(fresh.glob(pattern))).read_bytes())
    assert set(found) == set(SCHEMA["$defs"][kind]["required"])
    assert set(SCHEMA["$defs"][kind]["properties"]) - set(found) == OPTIONAL.get(kind, set())
    schema = {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}
    for key in found:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**found, key: -1}, schema)


def test_schema_holds_for_a_book_whose_codec_was_chosen_and_for_ragged_ones(tmp_path):
    rows = np.random.default_rng(0).normal(size=(N, C))
    choice = choose_codec(rows, Auto(0.5), temperatures=[1.0])
    fields = {"logits": FieldPlan((C,), choice.codec), "members/0/logits": FieldPlan((C,), Sampled(9))}
    make(tmp_path / "b", plan(fields=fields, choice=choice.to_json(), sources=("d0",)))
    for pattern, kind in KINDS.items():
        assert check(tmp_path / "b", pattern, kind) >= 1
    found = json.loads((tmp_path / "b" / "plan.json").read_bytes())
    schema = {"$ref": "#/$defs/plan", "$defs": SCHEMA["$defs"]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "choice": {"max_kl": 1}}, schema)


def test_schema_holds_for_constants_and_refuses_what_is_none():
    (path,) = (root for root in GOLDEN if root.name == "v1-constants")
    found = json.loads((path / "plan.json").read_bytes())
    schema = {"$ref": "#/$defs/plan", "$defs": SCHEMA["$defs"]}
    entry = found["constants"]["order"]
    entries = SCHEMA["$defs"]["plan"]["properties"]["constants"]
    assert set(entries["additionalProperties"]["properties"]["dtype"]["enum"]) == set(RAW_DTYPES)
    for wrong in (
        {},
        {"../x": entry},
        {"A": entry},
        *({"x": {**entry, key: -1}} for key in entry),
        {"x": {**entry, "shape": []}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**found, "constants": wrong}, schema)


def test_the_reader_on_the_page_needs_no_constants():
    (path,) = (root for root in GOLDEN if root.name == "v1-constants")
    found = page_reader()(path, "logits", [4, 1, 2], [1, 0, 1])
    np.testing.assert_array_equal(found, Book(path).read([4, 1, 2], [1, 0, 1])["logits"])


def page_reader():
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    space = {}
    exec(compile(source, "book-format.md", "exec"), space)
    return space["read"]


def test_the_reader_on_the_page_reads_what_book_reads(fresh):
    read = page_reader()
    book = Book(fresh)
    rng = np.random.default_rng(4)
    samples, views = rng.integers(0, N, 12), rng.integers(0, V, 12)
    found = book.read(samples, views)
    for field in ("logits", "probe/hash"):
        np.testing.assert_array_equal(read(fresh, field, samples, views), found[field])
    np.testing.assert_allclose(read(fresh, "features/layer1", samples, views), found["features/layer1"], rtol=1e-6)
    p = read(fresh, "members/0/logits", samples, views)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    said = [
        arrays(view, sample, sample + 1)["members/0/logits"][0] for sample, view in zip(samples, views, strict=True)
    ]
    true = softmax(np.array(said, dtype=np.float64), axis=1)
    top = true.argmax(axis=1)[:, None]
    np.testing.assert_allclose(np.take_along_axis(p, top, 1), np.take_along_axis(true, top, 1), rtol=1e-3)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A book of three editions: made, with more samples and views, compacted."""
    path = tmp_path_factory.mktemp("doc") / "grown"
    keys = np.arange(N)
    book = make(path, plan(n_samples=100, n_views=2), keys=keys[:100])
    larger = replace(book.plan, n_samples=N, n_views=V, unit_rows=None)
    with GrowthWriter(path, larger, keys=keys) as writer:
        for unit in writer.pending():
            writer.write_rows(unit.view, unit.start, arrays(*unit))
        writer.finish()
    compact(path)
    return path


def test_schema_holds_for_a_book_of_several_editions(grown):
    assert [check(grown, pattern, kind) for pattern, kind in {**KINDS, "plan-*.json": "plan"}.items()] == [
        1,
        3,
        8,
        14,
        1,
    ]
    edition = json.loads((grown / "edition-000003.json").read_bytes())
    assert (edition["plan"]["file"], edition["plan"]["keys_file"]) == ("plan-000002.json", "keys-000002.safetensors")


def test_the_reader_on_the_page_reads_the_newest_edition(grown):
    read, book = page_reader(), Book(grown)
    samples, views = np.array([0, 99, 100, 149, 149]), np.array([0, 1, 1, 0, 2])
    np.testing.assert_array_equal(read(grown, "logits", samples, views), book.read(samples, views)["logits"])


def test_the_reader_on_the_page_reads_ragged_parts_and_classes(tmp_path):
    fields = {"logits": FieldPlan((C,), Sampled(9, 2.0)), "members/0/logits": FieldPlan((C,), Argmax())}
    book = make(tmp_path / "b", plan(fields=fields))
    read = page_reader()
    samples, views = np.arange(N), np.arange(N) % V
    found = book.read(samples, views)
    np.testing.assert_array_equal(read(book.path, "logits", samples, views), found["logits"].probabilities())
    np.testing.assert_array_equal(
        read(book.path, "members/0/logits", samples, views), found["members/0/logits"].classes
    )


def test_every_codec_has_its_section_and_no_section_is_left_over():
    chapter = PAGE.split("\n## Codecs\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", chapter, flags=re.M)) == set(CODECS)
    assert set(SCHEMA["$defs"]["codec"]["properties"]["name"]["enum"]) == set(CODECS)


def test_limits_on_the_page_are_those_of_the_code():
    assert "Limits: 2^40 samples, 2^16 views, 1024 fields" in PAGE
    assert (MAX_SAMPLES, MAX_VIEWS, MAX_FIELDS, MAX_BLOCK_ROWS, JSON_LIMIT) == (2**40, 2**16, 1024, 4096, 16 * 2**20)
    assert "2^16 shards a view, 2^19 block hashes" in PAGE
    assert (MAX_SHARDS, MAX_HASHES) == (2**16, 2**19)
    assert "1024 constants of at most 2^32 bytes" in PAGE
    assert (MAX_CONSTANTS, MAX_CONSTANT_BYTES) == (1024, 2**32)
    defined = SCHEMA["$defs"]["plan"]["properties"]
    assert defined["constants"]["maxProperties"] == MAX_CONSTANTS
    most = defined["constants"]["additionalProperties"]["properties"]["bytes"]["maximum"]
    assert most == MAX_CONSTANT_BYTES + HEADER_LIMIT + 8
    assert defined["n_samples"]["maximum"] == MAX_SAMPLES
    assert defined["n_views"]["maximum"] == MAX_VIEWS
    assert "at most 16 MiB long" in PAGE
