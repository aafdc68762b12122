"""All formats write the same numbers, and nothing that a name says is more than text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.report.records import as_found, example, failed, record, sweep

from bookkd.core.errors import MissingExtraError, UnknownNameError
from bookkd.report import FORMATS, build, numbers_of, page, render
from bookkd.report.more_tables import runs_table


class Page(HTMLParser):
    """Tables by caption, texts of lists, and everything that could load or run."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.links, self.scripts, self.handlers, self.tags = {}, [], [], [], set()
        self._text = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.links += [values[name] for name in ("src", "href", "data", "action") if values.get(name)]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption", "script"):
            self._text, self._value = "", values.get("data-value")

    def handle_data(self, data):
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag):
        if tag == "caption":
            self._caption = self._text
        elif tag in ("td", "th"):
            self._rows[-1].append((self._text, self._value))
        elif tag == "script":
            self.scripts.append(self._text)
        elif tag == "table":
            self.tables.setdefault(self._caption, self._rows)
        if tag in ("td", "th", "caption", "script"):
            self._text = None


@pytest.fixture(scope="module")
def numbers():
    return numbers_of(as_found(example()))


@pytest.fixture(scope="module")
def written(numbers):
    return {form: render(numbers, form) for form in FORMATS}


@pytest.fixture(scope="module")
def read(written):
    return Page(written["html"])


ARMS = "All armsMean ± standard deviation between seeds."
# Column of the table -> entry of a line of CSV.
SAME = {
    "accuracy, %": "accuracy",
    "Δ points": "accuracy_difference_mean",
    "NLL": "nll",
    "ECE": "ece",
    "agreement, %": "agreement",
    "parameters": "parameters",
    "bytes": "bytes",
    "MACs": "macs",
    "latency, batch 1, ms": "latency_ms",
    "DS α=0.3": "ds_0.3",
    "DS α=0.5": "ds_0.5",
    "DS α=0.7": "ds_0.7",
    "learning, s": "seconds",
    "with making, s": "cost_seconds",
    "α of crossing": "crossing_alpha",
}


def test_page_and_csv_hold_the_same_numbers_to_the_last_digit(written, read):
    lines = list(csv.DictReader(io.StringIO(written["csv"])))
    heads, *rows = read.tables[ARMS]
    assert [row[0][0] for row in rows] == [line["arm"] for line in lines]
    for title, entry in SAME.items():
        place = [text for text, _ in heads].index(title)
        assert [row[place][1] for row in rows] == [line[entry] for line in lines], title


def test_json_and_csv_hold_the_same_numbers_to_the_last_digit(written):
    found = json.loads(written["json"])
    lines = list(csv.DictReader(io.StringIO(written["csv"])))
    for row, line in zip(found["rows"], lines, strict=True):
        assert row["arm"] == line["arm"]
        for entry, spread in row["figures"].items():
            told = ("", "") if spread is None else (spread["mean"], spread["sd"])
            assert tuple(float(line[name]) if line[name] else "" for name in (entry, f"{entry}_sd")) == told
        difference = row["differences"].get("accuracy", {})
        for name in ("low", "high", "sd"):
            assert line[f"accuracy_difference_{name}"] == str(difference.get(name, ""))


def test_page_and_markdown_hold_the_same_tables(written, read):
    text = re.sub(r"\\(.)", r"\1", written["md"])
    for rows in read.tables.values():
        for row in rows:
            assert f"| {' | '.join(cell for cell, _ in row)} |" in text


def test_page_json_and_markdown_say_the_same(written):
    for sentence in [*json.loads(written["json"])["summary"], *json.loads(written["json"])["cautions"]]:
        assert f"<li>{sentence}</li>" in written["html"]
        assert f"- {sentence}" in re.sub(r"\\(.)", r"\1", written["md"])


def test_the_page_loads_nothing(read):
    assert {link for link in read.links if not link.startswith("#")} == {"data:,"}
    assert not read.tags & {"img", "iframe", "object", "embed", "base"}
    assert len(read.scripts) == 3


def test_names_are_text_on_the_page(hostile, read):
    found = Page(render(hostile, "html"))
    assert found.tags == read.tags
    assert found.links == read.links
    assert found.handlers == []
    assert found.scripts[1:] == read.scripts[1:]
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", render(hostile, "html"), re.DOTALL)[0]
    charts = {chart["key"] for chart in json.loads(found.scripts[0])}
    assert charts == {chart["key"] for chart in json.loads(read.scripts[0])}


def test_names_are_text_in_markdown(hostile):
    lines = [line for line in render(hostile, "md").splitlines() if not line.startswith("    ")]  # code is never HTML
    assert not re.search(r"(?<!\\)[<>]", "\n".join(lines))
    bars = [len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0 for line in lines]
    for before, now in itertools.pairwise(bars):
        assert before == now or 0 in (before, now)


def test_a_name_is_no_formula_of_a_spreadsheet():
    text = render(numbers_of(as_found([record("=HYPERLINK(1)", student="resnet8")])), "csv")
    assert next(csv.DictReader(io.StringIO(text)))["arm"] == "'=HYPERLINK(1)"


def test_the_policy_names_the_scripts_of_the_page(written, read):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', written["html"])[1].replace("&#39;", "'")
    for script in read.scripts[1:]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


def test_a_hundred_runs_stay_below_eight_megabytes():
    assert len(render(numbers_of(as_found(sweep(100))), "html").encode()) <= 8_000_000


MANY = tuple(f"class {place}" for place in range(100))


@pytest.mark.parametrize(
    "records",
    [
        [failed()],
        [record()],
        [replace(failed(), status="done", error="")],
        [record(classes=MANY), record("kd", method="dkd", classes=MANY)],
        [replace(record(), class_names=(), data={})],
        example(seeds=(3,)),
    ],
    ids=["failed", "one", "empty", "many classes", "nameless", "one seed"],
)
@pytest.mark.parametrize("form", FORMATS)
def test_records_of_every_shape(records, form):
    assert records[0].arm in render(numbers_of(as_found(records)), form).replace("\\", "")


def test_without_the_extra_only_the_page_is_refused(monkeypatch, numbers):
    def absent(module, extra):
        raise MissingExtraError(f"{module} {extra}")

    monkeypatch.setattr(page, "require", absent)
    with pytest.raises(MissingExtraError, match="jinja2 report"):
        render(numbers)
    assert render(numbers, "md")


def test_an_unknown_format_is_named():
    with pytest.raises(UnknownNameError, match=r"Unknown format 'htm'. Nearest: html"):
        build.render(None, "htm")


def test_the_table_of_runs_says_their_peak_memory_where_it_is_known():
    found = numbers_of(as_found([record(seed=seed) for seed in (0, 1)]))
    assert "memory" not in " ".join(head.title for head in runs_table(found).heads)
    told = [
        replace(each, learning={**each.learning, "peak_bytes": (each.seed + 1) * 2**30})
        for each in (record(seed=seed) for seed in (0, 1))
    ]
    table = runs_table(numbers_of(as_found(told)))
    place = [head.title for head in table.heads].index("peak memory")
    assert [(row[place].text, row[place].value) for row in table.rows] == [("1.00 GiB", 2**30), ("2.00 GiB", 2**31)]
    assert "peak GPU memory" not in [head.title for head in table.heads]
    assert {len(row) for row in table.rows} == {len(table.heads)}
