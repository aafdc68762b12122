"""Statistics of books and SQL over them: right, bound to the edition, bounded in memory, and without a way to any file."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.book import books

from bookkd.book import Argmax, Book, BookWriter, Dense, FieldPlan, Int8, Plan, Raw, Sampled, TeacherInfo, TopK, verify
from bookkd.core.errors import (
    BookFormatError,
    BookMismatchError,
    BookMissingError,
    ConfigError,
    DataError,
    FidelityError,
    StorageError,
)
from bookkd.query import open_statistics, query, write_statistics

N, V, C = books.N, books.V, books.C
LABELS = np.arange(N) % C


def fields(*codecs):
    return {f"members/{i}/logits": FieldPlan((C,), codec) for i, codec in enumerate(codecs)}


CODECS = (Dense("float32"), Int8(), TopK(3, (1.0,)))


def make(path, codecs=CODECS, **changes):
    """A book of three teachers; the i-th says the logits of the first, turned by i classes."""
    teachers = tuple(TeacherInfo(f"teacher {i}", f"d{i}", accuracy=0.5 + i / 10) for i in range(len(codecs)))
    plan = books.plan(**{"fields": fields(*codecs), "teachers": teachers, **changes})
    with BookWriter(path, plan, keys=np.arange(N, dtype=np.uint64) + 1000) as writer:
        for unit in writer.pending():
            logits = books.arrays(*unit)["logits"]
            writer.write(unit, {f"members/{i}/logits": np.roll(logits, i, axis=1) for i in range(len(codecs))})
        return writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    book = make(tmp_path_factory.mktemp("query") / "book")
    write_statistics(book, LABELS)
    return book


@pytest.fixture
def book(made, tmp_path):
    return Book(shutil.copytree(made.path, tmp_path / "book"))


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_every_record_of_every_teacher(made):
    found = query(made, "select * from records order by teacher, view, sample")
    assert found.columns[:7] == ("sample", "view", "teacher", "top1", "confidence", "margin", "entropy")
    assert len(found.rows) == 3 * V * N
    table = {name: np.array([row[i] for row in found.rows], dtype=float) for i, name in enumerate(found.columns)}
    for teacher in range(3):
        for view in range(V):
            rows = slice((teacher * V + view) * N, (teacher * V + view + 1) * N)
            p = softmax(np.roll(books.arrays(view, 0, N)["logits"].astype(np.float64), teacher, axis=1))
            assert (table["sample"][rows] == np.arange(N)).all()
            assert (table["teacher"][rows] == teacher).all()
            ordered = np.sort(p, axis=1)
            clear = ordered[:, -1] - ordered[:, -2] > 0.05  # int8 may turn others
            assert (table["top1"][rows] == p.argmax(axis=1))[clear].all()
            assert clear.mean() > 0.9
            np.testing.assert_allclose(table["confidence"][rows], ordered[:, -1], atol=0.02)
            np.testing.assert_array_equal(table["teacher_correct"][rows], table["top1"][rows] == LABELS)


def test_a_view_for_each_teacher_and_the_small_tables(made):
    joined = query(
        made,
        "select count(*) from teacher_0 a join teacher_1 b using (sample, view) where b.top1 <> (a.top1 + 1) % 6",
    )
    assert joined.rows[0][0] < 0.05 * N * V  # the second says the next class, apart from what int8 rounded
    assert query(made, "select teacher, name, field, accuracy from teachers").rows[1] == (
        1,
        "teacher 1",
        "members/1/logits",
        0.6,
    )
    assert query(made, "select name from classes where class = 2").rows == [("c",)]
    assert query(made, "select key from samples where sample = 7").rows == [(1007,)]


def test_the_book_is_whole_and_reads_as_before(made):
    assert verify(made.path) == []
    assert Book(made.path, verify="all").n_samples == N


def test_limit(made):
    found = query(made, "select sample from teacher_0 order by sample, view", limit=4)
    assert ([row[0] for row in found.rows], found.more) == ([0, 0, 0, 1], True)
    assert not query(made, "select 1", limit=1).more
    with pytest.raises(ConfigError, match="`limit` to be a whole number of at least 1"):
        query(made, "select 1", limit=0)


def test_values_are_plain(made):
    sql = "select 'NaN'::float, date '2026-01-02', [1, 2], {'a': 1.5}, null, true, 1.25::decimal(4, 2), 'x'::blob"
    assert query(made, sql).rows == [(None, "2026-01-02", [1, 2], {"a": 1.5}, None, True, 1.25, "78")]
    json.dumps(query(made, sql).rows)


def test_labels_are_optional_and_may_be_unknown(tmp_path):
    book = make(tmp_path / "book", (Dense(),))
    write_statistics(book)
    assert "label" not in query(book, "select * from records limit 1").columns
    labels = LABELS.copy()
    labels[3] = -1
    write_statistics(book, labels)
    sql = "select label, label_probability, teacher_correct from teacher_0 where sample = 3 and view = 0"
    assert query(book, sql).rows == [(None, None, None)]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(N - 1, int), f"one class for each of the {N} samples"),
        (np.zeros(N), "one class for each"),
        (np.where(np.arange(N) == 5, C, 0), f"below the {C} classes, got {C} \\(sample 5"),
    ],
)
def test_labels_that_do_not_fit(book, labels, said):
    with pytest.raises(DataError, match=said):
        write_statistics(book, labels)
    assert query(book, "select count(*) from records").rows == [(3 * V * N,)]  # the old ones stay


def test_one_teacher_and_a_baked_one(tmp_path):
    plan = books.plan(fields={"logits": FieldPlan((C,), Dense("float32"), {"temperature": 4.0})})
    with BookWriter(tmp_path / "book", plan) as writer:
        for unit in writer.pending():
            writer.write(unit, {"logits": books.arrays(*unit)["logits"]})
        book = writer.finish()
    write_statistics(book)
    assert query(book, "select name, temperature from teachers").rows == [("baked", 4.0)]
    found = query(book, "select confidence from records where view = 1 order by sample").rows
    wanted = softmax(books.arrays(1, 0, N)["logits"].astype(np.float64) / 4).max(axis=1)
    np.testing.assert_allclose([row[0] for row in found], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "multi-label"}, "`task` to be classification"),
        ({"fields": {"probe/hash": FieldPlan((), Raw("uint64"))}}, "`fields` to be logits of a teacher"),
        ({"fields": {"logits": FieldPlan((2, 3), Dense())}}, "one vector of classes a record"),
    ],
)
def test_books_without_classes(tmp_path, changes, said):
    plan = Plan(**{"n_samples": 2, "n_views": 1, "fields": {"logits": FieldPlan((3,), Dense())}, **changes})
    with BookWriter(tmp_path / "book", plan) as writer:
        arrays = {name: np.zeros((2, *entry.shape), np.uint64) for name, entry in plan.fields.items()}
        writer.write_rows(0, 0, arrays)
        book = writer.finish()
    with pytest.raises(ConfigError, match=said):
        write_statistics(book)


# --- bound to the edition -----------------------------------------------------------------------------------------------------


def test_without_statistics(tmp_path):
    book = make(tmp_path / "book")
    with pytest.raises(BookMissingError, match=r"got no stats\.json. Run: bookkd stats"):
        query(book, "select 1")


def test_statistics_of_another_content(book, tmp_path):
    other = make(tmp_path / "other", (Dense(),))
    with pytest.raises(BookMismatchError, match=r"got those of .* Run: bookkd stats"):
        query(other, "select 1", statistics=book.path / "stats")
    shutil.copytree(book.path / "stats", other.path / "stats")
    with pytest.raises(BookMismatchError, match="Run: bookkd stats"):
        query(other, "select 1")
    write_statistics(other)
    assert query(other, "select count(*) from records").rows == [(V * N,)]


def test_files_beside_the_book(book, tmp_path):
    shutil.rmtree(book.path / "stats")
    made = write_statistics(book, out=tmp_path / "elsewhere")
    assert not (book.path / "stats").exists()
    assert query(book, "select count(*) from records", statistics=tmp_path / "elsewhere").rows == [(3 * V * N,)]
    assert query(book, "select count(*) from records", statistics=made).rows == [(3 * V * N,)]


def test_an_interrupted_run_leaves_none_and_no_halves(book):
    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_statistics(book, progress=stop)
    assert not [path for path in (book.path / "stats").iterdir() if path.suffix == ".tmp"]
    with pytest.raises(BookMissingError, match="Run: bookkd stats"):
        query(book, "select 1")
    for path in (book.path / "stats").glob("*.parquet"):
        pq.read_table(path)  # each is an old one or a new one


def test_what_a_killed_run_left_is_removed(book):
    folder = write_statistics(book).folder
    names = sorted(path.name for path in folder.iterdir())
    for name in (".view-0000.parquet.123.tmp", ".stats.json.123.tmp"):
        (folder / name).write_bytes(b"half")
    (folder / ".mine.tmp").write_bytes(b"of somebody else")
    write_statistics(book)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, ".mine.tmp"])


def test_files_of_views_that_are_gone_are_removed(book):
    stray = book.path / "stats" / "view-0099.parquet"
    stray.write_bytes(b"old")
    write_statistics(book)
    assert not stray.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "view-0001.parquet").unlink(),
        lambda folder: (folder / "view-0001.parquet").write_bytes(b"x"),
        lambda folder: (folder / "view-0001.parquet").write_bytes((folder / "view-0002.parquet").read_bytes()[:-9]),
        lambda folder: (folder / "stats.json").write_text("{"),
        lambda folder: (folder / "stats.json").write_text("{}"),
        lambda folder: edit(folder, lambda found: found["views"].pop()),
        lambda folder: edit(folder, lambda found: found["views"][0].update(file="../../book/plan.json")),
        lambda folder: edit(folder, lambda found: found.update(labels=False)),
    ],
)
def test_statistics_that_are_damaged(book, damage):
    damage(book.path / "stats")
    with pytest.raises(BookFormatError, match="Run: bookkd stats"):
        query(book, "select 1")


def edit(folder, change):
    found = json.loads((folder / "stats.json").read_text())
    change(found)
    (folder / "stats.json").write_text(json.dumps(found))


def test_a_file_of_another_content_in_the_place_of_one(book, tmp_path):
    other = make(tmp_path / "other", (Int8(), Int8(), Int8()))
    write_statistics(other, LABELS)
    data = (other.path / "stats" / "view-0000.parquet").read_bytes()
    (book.path / "stats" / "view-0000.parquet").write_bytes(data)
    edit(book.path / "stats", lambda found: found["views"][0].update(bytes=len(data)))
    with pytest.raises(BookFormatError, match="to be of the book's content"):
        query(book, "select 1")


def test_a_folder_that_cannot_be_written(book, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        write_statistics(book, out=tmp_path / "file" / "stats")


def test_memory_does_not_grow_with_the_book(tmp_path, monkeypatch):
    classes, samples = 500, 8000
    plan = Plan(n_samples=samples, n_views=2, fields={"logits": FieldPlan((classes,), Dense())}, unit_rows=1024)
    with BookWriter(tmp_path / "book", plan) as writer:
        for unit in writer.pending():
            writer.write(unit, {"logits": np.zeros((unit.stop - unit.start, classes), np.float32)})
        book = writer.finish()
    write_statistics(book)  # whatever is imported and set up once
    monkeypatch.setattr("bookkd.query.statistics._BLOCK_VALUES", 2**15)
    tracemalloc.start()
    write_statistics(book)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20  # all logits at once would be 2 x 8000 x 500 x 8 bytes = 64 MB
    assert pq.read_metadata(book.path / "stats" / "view-0000.parquet").num_row_groups == 1


# --- SQL that is wrong, or that wants out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("selct 1", 'syntax error at or near "selct"'),
        ("select nothing from records", 'Referenced column "nothing" not found'),
        ("select * from teacher_7", "Table with name teacher_7 does not exist"),
        ("", "one SELECT, got 'nothing'"),
        ("select 1; select 2", "one SELECT, got SELECT, SELECT"),
        ("explain select 1", "one SELECT, got 'EXPLAIN'"),
        ("select 1 / 'a'", "Could not convert"),
    ],
)
def test_errors_of_sql_are_one_line_with_the_tables(made, sql, said):
    with pytest.raises(ConfigError, match=said) as caught:
        query(made, sql)
    assert "\n" not in str(caught.value)
    if "one SELECT" not in said:
        assert "records (sample, view, teacher, top1" in str(caught.value)
        assert "teacher_0, teacher_1, teacher_2." in str(caught.value)


HOSTILE = [
    "select * from '{secret}'",
    "select * from read_text('{secret}')",
    "select * from read_blob('{secret}')",
    "select * from read_csv('{secret}')",
    "select * from read_json('{secret}')",
    "select * from read_parquet('{stats}/view-0000.parquet')",
    "select * from parquet_metadata('{stats}/view-0000.parquet')",
    "select * from glob('{folder}/*')",
    "select * from sniff_csv('{secret}')",
    "select * from query('select * from read_text(''{secret}'')')",
    "select * from query_table('{secret}')",
    "copy (select 1) to '{folder}/out.csv'",
    "copy records to '{folder}/out.parquet'",
    "copy (select 1) to '{stats}/view-0000.parquet' (format parquet)",
    "export database '{folder}/out'",
    "attach '{folder}/out.db' as out",
    "create table t as select 1",
    "drop view records",
    "delete from records",
    "insert into classes values (9, 'x')",
    "install httpfs",
    "load '{secret}'",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma enable_profiling",
    "call enable_logging()",
    "select 1; copy (select 1) to '{folder}/out.csv'",
    "with x as (delete from records returning *) select * from x",
    "select * from read_text('http://127.0.0.1:9/x')",
    "select getenv('HOME')",
    "select * from secret_of_the_caller",
    "select * from arrow_scan(1::pointer, 1::pointer, 1::pointer)",
    "select * from pandas_scan(1::pointer)",
    "select * from register_external_resource('{secret}')",
    "select * from read_duckdb('{secret}')",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_sql_reaches_no_file_and_no_variable(book, sql, tmp_path):
    import pyarrow as pa

    secret_of_the_caller = pa.table({"a": [1]})
    secret = tmp_path / "secret.csv"
    secret.write_text("a\nhidden\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        query(book, sql.format(secret=secret, folder=tmp_path, stats=book.path / "stats"))
    assert "hidden" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert secret_of_the_caller.num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        "select value from duckdb_settings() where name = 'enable_external_access'",
        "select value from duckdb_settings() where name = 'lock_configuration'",
        "select value from duckdb_settings() where name = 'temp_directory'",
        "select value from duckdb_settings() where name = 'python_enable_replacements'",
    ],
)
def test_the_locks_hold(made, sql):
    wanted = {"lock_configuration": "true", "temp_directory": ""}
    name = sql.rpartition("= ")[2].strip("'")
    assert query(made, sql).rows == [(wanted.get(name, "false"),)]


def test_open_statistics_says_what_there_is(made):
    found = open_statistics(made)
    assert (len(found.files), found.labels, [each.name for each in found.teachers]) == (
        V,
        True,
        ["teacher 0", "teacher 1", "teacher 2"],
    )


def test_a_teacher_that_keeps_a_class_alone_stands_beside_others(tmp_path):
    book = make(tmp_path / "b", (Dense("float32"), Argmax()))
    write_statistics(book, LABELS)
    said = np.stack([books.arrays(view, 0, N)["logits"] for view in range(V)])
    turned = np.roll(said, 1, axis=2).argmax(axis=2)
    rows = query(
        book, "select count(*), count(confidence), sum(teacher_correct::int) from records where teacher = 1"
    ).rows
    assert list(rows[0]) == [N * V, 0, int((turned == LABELS).sum())]
    differ = query(
        book,
        "select count(*) from records a join records b using (sample, view) "
        "where a.teacher = 0 and b.teacher = 1 and a.top1 <> b.top1",
    ).rows
    assert differ[0][0] == int((said.argmax(axis=2) != turned).sum())


def test_draws_are_refused_before_anything_is_written(tmp_path):
    book = make(tmp_path / "b", (Dense(), Sampled(9)))
    with pytest.raises(FidelityError, match="`members/1/logits` to be records that say something one by one"):
        write_statistics(book)
    assert not (book.path / "stats").exists()
