"""Small files that claim much, and honest ones that are large: an import takes at most twice their bytes and 64 MiB."""

from __future__ import annotations

import io
import json
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
import zstandard
from tests.interchange import builders

from bookkd.core.errors import DataError
from bookkd.interchange import import_book

MIB = 2**20
POOLS: list[pa.MemoryPool] = []
"""Pools that buffers still belong to when a test is over; freed too early, Arrow writes to memory that is gone."""


@contextmanager
def bounded(path):
    """Fail if Python, numpy and Arrow together hold more than an import may."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    size, before = sum(each.stat().st_size for each in files), pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield size
    finally:
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert peak <= 2 * size + 64 * MIB, f"{peak / MIB:.0f} MiB for a source of {size / MIB:.2f} MiB"


def nested(flat, width):
    """Return [len(flat) / width, width] as a list of lists for one row."""
    rows = len(flat) // width
    inner = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), pa.array(flat))
    return pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), inner)


def test_vllm_one_long_position_among_many(tmp_path):
    """With --k the short ones are padded to it: 4,000 x 4,000 places of a file of 100 kB."""
    path = tmp_path / "a.jsonl"
    long = ", ".join(f'"{each}": {-9 - each / 1000}' for each in range(4000))
    path.write_text('{"logprobs": [' + '{"1": -0.5}, ' * 4000 + "{" + long + "}]}\n")
    with (
        bounded(path),
        pytest.raises(DataError, match=r"at most 4194304 places .* got 4001 records x 4000.*smaller --k"),
    ):
        import_book(tmp_path / "no", path, source_format="vllm-jsonl", n_classes=5000, k=4000)
    with bounded(path):
        book = import_book(tmp_path / "book", path, source_format="vllm-jsonl", n_classes=5000, k=1000).book
    assert book.fields["logits"].codec.k == 1000
    classes, kept, tail = builders.decoded(book, [0])
    assert classes[0, 0] == 1
    np.testing.assert_allclose(tail, 1 - np.exp(-0.5), rtol=1e-3)
    assert kept[0, 1:].max() <= 2**-24


@pytest.mark.parametrize(
    "line",
    [
        '{"logprobs": [' + ", ".join(['{"1": -1}'] * 100_000) + "]}",
        '{"logprobs": [{' + ", ".join(f'"{i}": -30' for i in range(200_000)) + "}]}",
        '{"x": [' + "[]," * 2**21 + '[]], "logprobs": [{"1": -1}]}',
        '{"x": "' + "\\n" * 2**21 + '", "logprobs": [{"1": {"x": [' + "{}," * 2**20 + '1], "logprob": -1}}]}',
        '{"logprobs": [{"1": -1}], "prompt_token_ids": [' + "1," * 2**20 + "1]}",
        '{"choices": [' + ", ".join(['{"logprobs": [{"1": -1}]}'] * 4096) + "]}",
    ],
    ids=["positions", "classes", "lists", "text", "ids", "completions"],
)
def test_vllm_lines_that_would_be_many_objects(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with bounded(path):
        import_book(tmp_path / "book", path, source_format="vllm-jsonl", n_classes=500_000)


PLAIN = {
    "d": 131072, "k": 128, "exact_k": 128, "exact_dtype": "float16", "polynomial_terms": None, "residual_bins": [],
    "delta_encoding": False,
}  # fmt: skip


def kit(folder, tables, config=PLAIN, **options):
    folder.mkdir()
    pq.write_table(pa.concat_tables(tables), folder / "data_0.parquet", **options)
    if config is not None:
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def distillkit_table(positions, seed):
    """One sequence of top 128 of 131,072 classes, 528 bytes a position, as no compression makes smaller."""
    draws = np.random.default_rng(seed)
    ranks = np.sort(draws.normal(-9, 1, (positions, 128)).astype(np.float16))[:, ::-1]
    classes = np.sort(draws.integers(0, 1024, (positions, 128)) + np.arange(128) * 1024)
    packed = np.unpackbits(classes.astype(">u4").view(np.uint8).reshape(positions, 128, 4), axis=2)[:, :, -17:]
    return pa.table(
        {
            "input_ids": pa.array([draws.integers(0, 131072, positions + 1, dtype=np.uint64)]),
            "compressed_logprobs": nested(np.ascontiguousarray(ranks).view(np.uint8).ravel(), 256),
            "bytepacked_indices": nested(np.packbits(packed.reshape(positions, -1), axis=1).ravel(), 272),
        }
    ), classes


def test_distillkit_a_row_group_of_long_sequences_is_read(tmp_path):
    """What is published looks like this: 128 classes, thousands of positions, all sequences in one row group."""
    made = [distillkit_table(2048, seed) for seed in range(20)]
    folder = kit(tmp_path / "kit", [table for table, _ in made], compression="zstd")
    classes = [each for _, each in made]
    del made
    with bounded(folder) as size:
        book = import_book(tmp_path / "book", folder, source_format="distillkit").book
    assert size > 16 * MIB
    assert book.n_samples == 20 * 2048
    last = builders.decoded(book, [book.n_samples - 1])[0]
    assert sorted(last[0].tolist()) == classes[-1][-1].tolist()


@pytest.mark.parametrize("rows", [1, 64], ids=["one row", "64 rows"])
def test_distillkit_lists_that_compress_to_nothing(tmp_path, rows):
    flat = np.zeros(2**22 // rows, np.float32)
    table = pa.table(
        {"input_ids": [[1]], "token_ids": nested(flat.astype(np.int32), 2**10), "top_values": nested(flat, 2**10)}
    )
    folder = kit(tmp_path / "kit", [table] * rows, None, compression="zstd")
    with bounded(folder) as size, pytest.raises(DataError, match="numbers in a row group of a file of"):
        import_book(tmp_path / "book", folder, source_format="distillkit", n_classes=2**20)
    assert size < 2**16


def test_distillkit_one_wide_position_among_many(tmp_path):
    """Each list has its own length: 65,536 places for every one of 20,000 positions would be 21 GB."""
    wide = list(range(2**16))
    columns = {
        "input_ids": [[1]],
        "token_ids": [[[3]] * 20_000 + [wide]],
        "top_values": [[[-0.5]] * 20_000 + [[-12.0 - each / 1000 for each in wide]]],
    }
    folder = kit(tmp_path / "kit", [pa.table(columns)], None)
    with bounded(folder), pytest.raises(DataError, match=r"places .* got 20001 records x 65536.*smaller --k"):
        import_book(tmp_path / "no", folder, source_format="distillkit", n_classes=2**17)
    with bounded(folder):
        book = import_book(tmp_path / "book", folder, source_format="distillkit", n_classes=2**17, k=8).book
    assert book.n_samples == 20_001


def megatron(folder, values, low, high):
    buffer = io.BytesIO()
    torch.save({"values": values, "indices_low": low, "bit_17": high}, buffer)
    folder.mkdir()
    payload = zstandard.ZstdCompressor(level=1).compress(buffer.getvalue())
    builders.megatron_tar(folder / "dp0__1.tar", {"1.pt.zst": payload})
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_megatron_a_small_nucleus_of_many_classes(tmp_path, dtype):
    """Two of 512 places: 170 MB of arrays in a file of one."""
    draws = np.random.default_rng(0)
    values = torch.full((8192, 8, 512), -10000.0, dtype=dtype)
    values[..., :2] = torch.log(torch.tensor([0.7, 0.2])).to(dtype)
    low = torch.full((8192, 8, 512), 65535, dtype=torch.int32).to(torch.uint16)
    given = np.stack([draws.integers(0, 2**15, (8192, 8)), draws.integers(2**15, 2**16 - 1, (8192, 8))], axis=2)
    low.numpy()[..., :2] = given
    high = torch.ones((8192, 8, 512), dtype=torch.bool)
    high[..., :2] = False
    folder = megatron(tmp_path / "cache", values, low, high)
    del values, low, high
    with bounded(folder) as size:
        book = import_book(tmp_path / "book", folder, source_format="megatron", n_classes=2**17, k=64).book
    assert size < 2 * MIB
    assert book.fields["logits"].codec.k == 2  # no more than any position has
    classes, kept, tail = builders.decoded(book, np.arange(8192))
    np.testing.assert_array_equal(classes, given[:, 0])
    np.testing.assert_allclose(kept, [[0.7, 0.2]] * 8192, rtol=1e-2)
    np.testing.assert_allclose(tail, 0.1, rtol=3e-2)


def test_megatron_arrays_out_of_nothing(tmp_path):
    shape = (4096, 4096, 1)
    flags = torch.zeros(shape, dtype=torch.bool)
    folder = megatron(
        tmp_path / "cache", torch.zeros(shape, dtype=torch.float16), flags.to(torch.int32).to(torch.uint16), flags
    )
    with bounded(folder), pytest.raises(DataError, match=r"at most 16777216 bytes|positions, having"):
        import_book(tmp_path / "book", folder, source_format="megatron", n_classes=100)


def test_fkd_crops_of_many_classes(tmp_path):
    draws = np.random.default_rng(0)
    (tmp_path / "fkd").mkdir()
    for image in range(3):
        crops, k = 100, 20_000
        labels = np.stack([np.tile(np.arange(k), (crops, 1)), draws.random((crops, k)) / k], axis=1).astype(np.float32)
        box = np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (crops, 1))
        torch.save([box, np.zeros(crops, bool), labels], tmp_path / "fkd" / f"{image}.tar")
    del labels
    with bounded(tmp_path / "fkd"):
        book = import_book(tmp_path / "book", tmp_path / "fkd", source_format="fkd", n_classes=20_001, k=100).book
    assert (book.n_samples, book.n_views) == (3, 100)


def test_tinyvit_many_keys_of_few_classes(tmp_path):
    folder = tmp_path / "logits" / "logits_top1_epoch0"
    folder.mkdir(parents=True)
    count = 400_000
    records = np.zeros(count, dtype=[("seed", "<i4"), ("classes", "<i2"), ("p", "<f2")])
    records["p"] = 0.5
    (folder / "rank0-values.bin").write_bytes(records.tobytes())
    (folder / "rank0-keys.txt").write_text("".join(f"{each}\n" for each in range(count)))
    with bounded(tmp_path / "logits"):
        found = import_book(tmp_path / "book", tmp_path / "logits", source_format="tinyvit", n_classes=100)
    assert found.book.n_samples == count


@pytest.mark.parametrize("source_format", ["fkd", "tinyvit", "distillkit", "megatron", "vllm-jsonl"])
def test_no_format_keeps_more_classes_than_its_records_have(tmp_path, source_format):
    options = {"n_classes": 1000}
    if source_format == "fkd":
        builders.fkd(tmp_path / "source")
    elif source_format == "tinyvit":
        builders.tinyvit(tmp_path / "source", keys=["0", "1"], k=5)
    elif source_format == "distillkit":
        table = pa.table({"input_ids": [[1]], "token_ids": [[[1, 2, 3, 4, 5]]], "top_values": [[[-2.0] * 5]]})
        kit(tmp_path / "source", [table], None)
    elif source_format == "megatron":
        classes = torch.arange(5).view(1, 1, 5)
        payload = builders.megatron_payload([torch.full((1, 1, 5), -2.0)], [classes])
        (tmp_path / "source").mkdir()
        builders.megatron_tar(tmp_path / "source" / "dp0__1.tar", {"1.pt.zst": payload})
    else:
        line = {"logprobs": [{str(each): -2.0 for each in range(5)}]}
        (tmp_path / "source").write_text(json.dumps(line) + "\n")
    book = import_book(tmp_path / "book", tmp_path / "source", source_format=source_format, k=600, **options).book
    assert book.fields["logits"].codec.k == 5
