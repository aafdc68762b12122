"""DistillKit, Megatron and JSON lines from vLLM: a record for each token position, from bytes built after the published layouts."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
import zstandard
from tests.interchange import builders

from bookkd.book import verify
from bookkd.core.errors import ConfigError, DataError
from bookkd.interchange import import_book, sequence_key

V = 100_000  # classes of 17 bits


def teacher(positions, seed=0, vocabulary=V):
    """Log-probabilities float64 [positions, vocabulary]."""
    return builders.log_softmax(np.random.default_rng(seed).normal(0, 4, (positions, vocabulary)))


def largest(log_p, k):
    order = np.argsort(-log_p, axis=-1, kind="stable")[..., :k]
    return order, np.take_along_axis(log_p, order, axis=-1)


def run(tmp_path, source, kind, out="book", **options):
    return import_book(tmp_path / out, source, source_format=kind, **options).book


def assert_same(book, samples, classes, log_p, *, rtol=2e-3):
    """Compare records with the classes [rows, k] and log-probabilities that went into the files."""
    found, kept, tail = builders.decoded(book, samples)
    order = np.lexsort((classes, -log_p), axis=1)
    np.testing.assert_array_equal(found, np.take_along_axis(classes, order, axis=1))
    wanted = np.exp(np.take_along_axis(log_p, order, axis=1))
    np.testing.assert_allclose(kept, wanted, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(tail, 1 - wanted.sum(axis=1), rtol=1e-3, atol=1e-6)


# --- vLLM ---------------------------------------------------------------------------------------------------------------------


def jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_vllm_prompts(tmp_path):
    log_p = teacher(9, vocabulary=300)
    prompts = [log_p[:4], log_p[4:]]
    lines = [
        {"prompt_logprobs": [None, *(builders.vllm_position(p, 6, also=299) for p in prompt)]} for prompt in prompts
    ]
    book = run(tmp_path, jsonl(tmp_path / "a.jsonl", lines), "vllm-jsonl", n_classes=300)
    assert (book.n_samples, book.n_views, verify(book.path)) == (9, 1, [])
    keys = [sequence_key(0, i) for i in range(4)] + [sequence_key(1, i) for i in range(5)]
    assert book.keys.tolist() == keys
    # As many classes as every position has: six or seven in the lines.
    classes, values = largest(log_p, 6)
    lacking = any(len(each) == 6 for line in lines for each in line["prompt_logprobs"][1:])
    assert lacking or book.fields["logits"].codec.k == 7
    if lacking:
        assert_same(book, np.arange(9), classes, values)


def test_vllm_more_classes_than_a_position_has(tmp_path):
    log_p = teacher(1, vocabulary=10)[0]
    lines = [{"prompt_logprobs": [None, builders.vllm_position(log_p, 2), builders.vllm_position(log_p, 4)]}]
    made = import_book(
        tmp_path / "book", jsonl(tmp_path / "a.jsonl", lines), source_format="vllm-jsonl", n_classes=10, k=4
    )
    classes, kept, tail = builders.decoded(made.book)
    order, values = largest(log_p[None], 4)
    assert classes[0, :2].tolist() == order[0, :2].tolist()
    np.testing.assert_allclose(kept[0, :2], np.exp(values[0, :2]), rtol=2e-3)
    rest = 1 - np.exp(values[0, :2]).sum()
    assert (kept[0, 2:] <= 2**-24).all()  # places that the position does not fill
    np.testing.assert_allclose(tail[0], rest, rtol=1e-3)
    assert made.book.fidelity["logits"]["temperatures"]["1"]["kept_mass"] == pytest.approx(
        kept.sum(axis=1).mean(), rel=1e-3
    )
    np.testing.assert_allclose(kept[1], np.exp(values[0]), rtol=2e-3)
    assert any(note.startswith("2 places of positions with fewer classes") for note in made.notes)


SHAPES = {
    "server": lambda prompt, done: {
        "choices": [{"prompt_logprobs": [None, *prompt], "logprobs": {"top_logprobs": done}}]
    },
    "python": lambda prompt, done: {"prompt_logprobs": [None, *prompt], "logprobs": done},
    "RequestOutput": lambda prompt, done: {
        "request_id": "0",
        "prompt_token_ids": [1, 2, 3],
        "prompt_logprobs": [None, *prompt],
        "outputs": [{"index": 0, "text": "x", "token_ids": [1, 2, 3], "logprobs": done, "finish_reason": "stop"}],
    },
    "numbers": lambda prompt, done: {
        "prompt_logprobs": [None, *({c: v["logprob"] for c, v in each.items()} for each in prompt)],
        "logprobs": [{c: v["logprob"] for c, v in each.items()} for each in done],
    },
    "completions": lambda prompt, done: {
        "prompt_logprobs": [None, *prompt],
        "choices": [
            {"logprobs": {"top_logprobs": [{f"token_id:{c}": v["logprob"] for c, v in each.items()} for each in done]}}
        ],
    },
    "chat": lambda prompt, done: {
        "prompt_logprobs": [None, *prompt],
        "choices": [
            {
                "logprobs": {
                    "content": [
                        {
                            "token": "x",
                            "top_logprobs": [
                                {"token": f"token_id:{c}", "logprob": v["logprob"]} for c, v in each.items()
                            ],
                        }
                        for each in done
                    ]
                }
            }
        ],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_vllm_prompt_and_completion(tmp_path, shape):
    log_p = teacher(5, vocabulary=200)
    positions = [builders.vllm_position(each, 5) for each in log_p]
    line = SHAPES[shape](positions[:2], positions[2:])
    book = run(tmp_path, jsonl(tmp_path / "a.jsonl", [line]), "vllm-jsonl", n_classes=200)
    assert book.keys.tolist() == [0, 1, 2, 3, 4]
    assert_same(book, np.arange(5), *largest(log_p, 5))


def test_vllm_completion_alone_begins_behind_its_prompt(tmp_path):
    positions = [builders.vllm_position(each, 3) for each in teacher(2, vocabulary=9)]
    lines = [{"prompt_token_ids": [4, 4, 4], "logprobs": positions}, {"logprobs": positions}]
    book = run(tmp_path, jsonl(tmp_path / "a.jsonl", lines), "vllm-jsonl", n_classes=9)
    assert book.keys.tolist() == [sequence_key(0, 2), sequence_key(0, 3), sequence_key(1, 0), sequence_key(1, 1)]


COMPLETIONS = {
    "RequestOutput": lambda prompt, several: {
        "prompt_logprobs": [None, *prompt],
        "outputs": [{"index": i, "text": "]}", "logprobs": each} for i, each in enumerate(several)],
    },
    "server": lambda prompt, several: {
        "choices": [{"prompt_logprobs": [None, *prompt] if i == 0 else None, "logprobs": {"top_logprobs": each}}
                    for i, each in enumerate(several)],
        "prompt_token_ids": [7] * (len(prompt) + 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", COMPLETIONS)
def test_vllm_each_completion_of_a_line_is_a_sequence(tmp_path, shape):
    """Two lines of a prompt and three completions: the second and third begin behind the prompt."""
    log_p = teacher(11, vocabulary=50)
    positions = [builders.vllm_position(each, 4) for each in log_p]
    several = [positions[2:5], positions[5:6], positions[6:8]]
    lines = [COMPLETIONS[shape](positions[:2], several), {"logprobs": positions[8:11]}]
    book = run(tmp_path, jsonl(tmp_path / "a.jsonl", lines), "vllm-jsonl", n_classes=50)
    places = [(0, i) for i in range(5)] + [(1, 2)] + [(2, 2), (2, 3)] + [(3, i) for i in range(3)]
    assert book.keys.tolist() == [sequence_key(*each) for each in places]
    assert_same(book, np.arange(11), *largest(log_p, 4))


def test_vllm_equal_completions_are_two_sequences(tmp_path):
    one = {"logprobs": [{"1": -0.5, "2": -1.0}]}
    book = run(tmp_path, jsonl(tmp_path / "a.jsonl", [{"choices": [one, one]}]), "vllm-jsonl", n_classes=9)
    assert book.keys.tolist() == [sequence_key(0, 0), sequence_key(1, 0)]
    classes, kept, _ = builders.decoded(book)
    assert classes[0].tolist() == classes[1].tolist() == [1, 2]
    np.testing.assert_array_equal(kept[0], kept[1])


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with prompt_logprobs"])
def test_vllm_echo_has_the_prompt_in_the_completion(tmp_path, beside):
    log_p = teacher(4, vocabulary=50)
    positions = [builders.vllm_position(each, 3) for each in log_p]
    line = {"choices": [{"logprobs": {"top_logprobs": [None, *positions]}}], "prompt_token_ids": [1, 2, 3]}
    line |= {"prompt_logprobs": [None, *positions[:2]]} if beside else {}
    book = run(tmp_path, jsonl(tmp_path / "a.jsonl", [line]), "vllm-jsonl", n_classes=50)
    assert book.keys.tolist() == [0, 1, 2, 3]
    assert_same(book, np.arange(4), *largest(log_p, 3))


def test_vllm_an_interrupted_import_goes_on_inside_of_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("bookkd.interchange.convert._UNIT_BYTES", 40)
    log_p = teacher(9, vocabulary=50)
    positions = [builders.vllm_position(each, 3) for each in log_p]
    line = {"choices": [{"logprobs": positions[i : i + 3]} for i in (0, 3, 6)]}
    path = jsonl(tmp_path / "a.jsonl", [line])

    def stop(done, total):
        if done >= 5:
            raise KeyboardInterrupt

    options = {"source_format": "vllm-jsonl", "n_classes": 50}
    with pytest.raises(KeyboardInterrupt):
        import_book(tmp_path / "book", path, progress=stop, **options)
    assert_same(import_book(tmp_path / "book", path, **options).book, np.arange(9), *largest(log_p, 3))


def test_vllm_no_probability_is_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"logprobs": [{"1": 0.0, "2": -Infinity, "3": -9999.0}]}\n\n')
    classes, kept, tail = builders.decoded(run(tmp_path, path, "vllm-jsonl", n_classes=9))
    assert (classes[0].tolist(), kept[0].tolist(), tail.tolist()) == ([1, 2, 3], [1, 0, 0], [0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1.*"),
        ("[1]", "one JSON object, got 'list'"),
        ("[" * 100000, "one JSON object"),
        ('{"text": "x"}', "prompt_logprobs or logprobs, got 'text'"),
        ('{"logprobs": 3}', "a list of positions, got 'int'"),
        ('{"logprobs": [3]}', "an object class -> log-probability, got 'int'"),
        ('{"logprobs": [{}]}', "`classes` to be at least one, got none of them .*sequence 0, position 0"),
        ('{"logprobs": [{"the": -1}]}', "got 'the' .*position 0.*return-tokens-as-token-ids"),
        ('{"logprobs": [{"1": "x"}]}', "`logprob` to be a number, got 'x'"),
        ('{"logprobs": [{"1": true}]}', "`logprob` to be a number, got True"),
        ('{"logprobs": [{"1": NaN}]}', "NaN is no log-probability"),
        ('{"logprobs": [{"1": 1e999}]}', "`logprob` to be a number, got inf"),
        ('{"logprobs": [{"1": 5}]}', "`log-probability` to be a number up to 0, got 5.0"),
        ('{"logprobs": [{"1": -0.1, "2": -0.2}]}', "at most 1 together"),
        ('{"logprobs": [{"99": -0.1}]}', "`class` to be from 0 to 8, got 99"),
        ('{"logprobs": [{"1": -1, "token_id:1": -2}]}', "class 1 twice"),
        ('{"prompt_logprobs": [null]}', "at least one position"),
        (
            '{"choices": [{"logprobs": [{"1": -1}]}, {"text": "x"}]}',
            "completion 1.* got 'text'|got choices, text .*completion 1",
        ),
        ('{"choices": [%s{}]}' % ("{}," * 4096), "more than 4096 completions"),
        ('{"logprobs": [{"1": -1}, null]}', "class -> log-probability, got 'NoneType' .*position 1"),
        ('{"logprobs": [{"1": -1}}', "','? expected|another bracket"),
        ('{"logprobs": [{"1": -1 "2": -2}]}', "one JSON object"),
        ('{"logprobs": [{"1": {"logprob": -1} "2": -2}]}', "one JSON object"),
        ('{"logprobs": [{"1": -1,}]}', "one JSON object"),
        ('{"logprobs": [{"1": [1]}]}', "`logprob` to be a number"),
        ('{"logprobs": [{"1": {"rank": 1}}]}', "`logprob` to be a number, got None"),
        ('{"logprobs": [{"1": -1}]} {}', "more than one value"),
        ('{"logprobs": [{"1": -1}], "text": "x', "a text without end"),
        ('{"logprobs": [{"top_logprobs": [3]}]}', "`token` to be a class number"),
        ('{"logprobs": [{' + ", ".join(f'"{i}": -9' for i in range(10)) + "}]}", "at most 9, got"),
        ("\xff", "one JSON object"),
    ],
)
def test_vllm_lines_that_say_something_else(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_bytes(line.encode("latin1") + b"\n")
    with pytest.raises(DataError, match=said) as caught:
        run(tmp_path, tmp_path / "a.jsonl", "vllm-jsonl", n_classes=9)
    assert "a.jsonl" in str(caught.value)


def test_vllm_one_long_position_does_not_widen_the_others(tmp_path):
    """4,000 positions of one class and one of 4,000: 128 MB, had all the length of the longest."""
    long = {str(each): -9.0 - each for each in range(4000)}
    path = jsonl(tmp_path / "a.jsonl", [{"logprobs": [*({"1": -0.5} for _ in range(4000)), long]}])
    tracemalloc.start()
    book = run(tmp_path, path, "vllm-jsonl", n_classes=4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert book.n_samples == 4001
    assert peak < 2 * path.stat().st_size + 64 * 2**20


def test_vllm_a_class_beyond_the_vocabulary_is_refused_where_it_would_be_cut(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"logprobs": [{"1": -0.5}, {"1": -0.5, "99": -9.0}]}])
    with pytest.raises(DataError, match="from 0 to 8, got 99"):
        run(tmp_path, path, "vllm-jsonl", n_classes=9)


def test_vllm_a_line_without_end_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("bookkd.interchange.vllm._MAX_LINE", 1000)
    (tmp_path / "a.jsonl").write_text('{"logprobs": [{"1": -1}' + " " * 2000 + "]}")
    with pytest.raises(DataError, match="at most 1000 bytes"):
        run(tmp_path, tmp_path / "a.jsonl", "vllm-jsonl", n_classes=9)


# --- DistillKit ---------------------------------------------------------------------------------------------------------------

PLAIN = {"d": V, "k": 6, "exact_k": 6, "exact_dtype": "float32", "polynomial_terms": None, "residual_bins": []}
CURVE = {
    "d": V,
    "k": 12,
    "exact_k": 3,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 3, "num_elements": 5},
        {"scale_dtype": "float32", "element_bits": 1, "num_elements": 2},
    ],
    "delta_encoding": False,
}


def parquet(folder, sequences, config, *, groups=2, files=2):
    """Write sequences of (input ids, log-prob bytes, index bytes) as files of small row groups, and the configuration."""
    folder.mkdir(exist_ok=True)
    kinds = {
        "input_ids": pa.list_(pa.uint64()),
        "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
        "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
    }
    for number in range(files):
        mine = sequences[number * len(sequences) // files : (number + 1) * len(sequences) // files]
        columns = list(zip(*mine, strict=True)) or [[], [], []]
        table = pa.table([pa.array(c, t) for c, t in zip(columns, kinds.values(), strict=True)], names=list(kinds))
        pq.write_table(table, folder / f"data_{number}.parquet", row_group_size=groups)
    if config is not None:
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))


def exact_sequences(log_p, lengths, config):
    """Sequences of exactly stored values, in their order; ids count up."""
    classes, values = largest(log_p, config["k"])
    sequences, start = [], 0
    for length in lengths:
        rows = [(classes[i], values[i], [], []) for i in range(start, start + length)]
        ids = list(range(start, start + length + 1))
        sequences.append((ids, *builders.distillkit_rows(rows, {"term_dtype": "float32", **config})))
        start += length
    return sequences, classes, values


def test_distillkit_exact_values(tmp_path):
    lengths = [3, 1, 4, 2, 5]
    log_p = teacher(15)
    sequences, classes, values = exact_sequences(log_p, lengths, {**PLAIN, "delta_encoding": False})
    parquet(tmp_path / "kit", sequences, {**PLAIN, "delta_encoding": False})
    book = run(tmp_path, tmp_path / "kit", "distillkit")
    assert (book.n_samples, book.fields["logits"].shape, verify(book.path)) == (15, (V,), [])
    assert_same(book, np.arange(15), classes, values)
    assert book.keys.tolist() == [sequence_key(s, p) for s, length in enumerate(lengths) for p in range(length)]
    ids = [start + p for start, length in zip([0, 3, 4, 8, 10], lengths, strict=True) for p in range(length)]
    assert book.read(np.arange(15), 0, ["position/token"])["position/token"].tolist() == ids


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_distillkit_units_of_any_size_and_an_interrupted_import(tmp_path, rows):
    from bookkd.book import BookWriter
    from bookkd.core.fields import LOGITS
    from bookkd.interchange._kept import Loss
    from bookkd.interchange._source import Options
    from bookkd.interchange.convert import _parts, _plan
    from bookkd.interchange.distillkit import DistillKit

    config = {**PLAIN, "delta_encoding": False}
    sequences, classes, values = exact_sequences(teacher(9), [4, 2, 3], config)
    parquet(tmp_path / "kit", sequences, config)
    found = DistillKit(tmp_path / "kit", Options())
    plan = replace(_plan(found, Options(), "distillkit", ""), unit_rows=rows, block_rows=1)
    with BookWriter(tmp_path / "book", plan, keys=found.keys) as writer:
        for unit in writer.pending()[::-1]:  # from the back: every unit begins anew
            writer.copy(unit, _parts(found, unit, plan.fields[LOGITS], Options(), Loss()))
        assert_same(writer.finish(), np.arange(9), classes, values)


def test_distillkit_differences(tmp_path):
    config = {**PLAIN, "delta_encoding": True}
    classes, values = largest(teacher(4), 6)
    deltas = np.concatenate([values[:, :1], np.diff(values, axis=1)], axis=1)
    rows = [(classes[i], deltas[i], [], []) for i in range(4)]
    parquet(
        tmp_path / "kit", [(range(5), *builders.distillkit_rows(rows, {"term_dtype": "float32", **config}))], config
    )
    assert_same(run(tmp_path, tmp_path / "kit", "distillkit"), np.arange(4), classes, values)


@pytest.mark.parametrize("normalised", [False, True])
def test_distillkit_curve_and_residuals(tmp_path, normalised):
    config = {**CURVE, "normalize_t": normalised}
    draws = np.random.default_rng(0)
    classes = np.stack([draws.choice(V, 12, replace=False) for _ in range(3)])
    coefficients = np.array([-4.0, -0.125, -0.5], dtype=np.float32)
    exact = [-1.0, -1.5, -2.0]  # which bfloat16 holds
    codes = [[0, 1, 7, 4, 3], [1, 0]]
    rows = [(classes[i], exact, coefficients, [(0.25, codes[0]), (0.5, codes[1])]) for i in range(3)]
    parquet(tmp_path / "kit", [(range(4), *builders.distillkit_rows(rows, config))], config)
    t = np.arange(9) / 8 if normalised else np.arange(9.0)
    curve = coefficients[0] + coefficients[1] * t + coefficients[2] * np.sqrt(t)
    curve[:5] += (np.array(codes[0]) - 4) * 0.25  # 3 bits: -4 to 3
    curve[5:7] += np.array([1, -1]) * 0.5  # 1 bit: down or up
    values = np.tile(np.concatenate([exact, curve]), (3, 1))
    assert_same(run(tmp_path, tmp_path / "kit", "distillkit"), np.arange(3), classes, values)


def test_distillkit_top_values_as_they_are(tmp_path):
    (tmp_path / "kit").mkdir()
    classes, values = largest(teacher(3), 4)
    table = pa.table({"input_ids": [[1, 2, 3, 4]], "token_ids": [classes.tolist()], "top_values": [values.tolist()]})
    pq.write_table(table, tmp_path / "kit" / "data_0.parquet")
    assert_same(run(tmp_path, tmp_path / "kit", "distillkit", n_classes=V), np.arange(3), classes, values)


def test_distillkit_places_that_the_server_left_empty(tmp_path):
    """Minus infinity stands beside whatever was in memory."""
    config = {**PLAIN, "k": 4, "exact_k": 4, "delta_encoding": False}
    log_p = np.log([0.6, 0.3])
    rows = [([50, 7, 7, V - 1], [*log_p, -np.inf, -np.inf], [], [])]
    parquet(
        tmp_path / "kit",
        [([1, 2], *builders.distillkit_rows(rows, {"term_dtype": "float32", **config}))],
        config,
        files=1,
    )
    classes, kept, tail = builders.decoded(run(tmp_path, tmp_path / "kit", "distillkit"))
    assert classes.tolist() == [[50, 7, 0, 1]]
    np.testing.assert_allclose(kept[0, :2], [0.6, 0.3], rtol=2e-3)
    assert (kept[0, 2:] <= 2**-24).all()
    np.testing.assert_allclose(tail, 0.1, rtol=1e-3)


def test_distillkit_lists_that_grow_out_of_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("bookkd.interchange.distillkit._LEAST_VALUES", 2**16)
    (tmp_path / "kit").mkdir()
    columns = {"input_ids": [[1]], "token_ids": [[[3] * 2**20]], "top_values": [[[-1.0] * 2**20]]}
    pq.write_table(pa.table(columns), tmp_path / "kit" / "data_0.parquet")
    assert (tmp_path / "kit" / "data_0.parquet").stat().st_size < 2**14
    with pytest.raises(DataError, match="numbers in a row group of a file of"):
        run(tmp_path, tmp_path / "kit", "distillkit", n_classes=10)


def test_options_that_contradict_the_files(tmp_path):
    sequences, _, _ = exact_sequences(teacher(2), [2], {**PLAIN, "delta_encoding": False})
    parquet(tmp_path / "kit", sequences, {**PLAIN, "delta_encoding": False}, files=1)
    with pytest.raises(DataError, match="as the configuration says, or left out, got 5"):
        run(tmp_path, tmp_path / "kit", "distillkit", n_classes=5)
    with pytest.raises(ConfigError, match="`compression` to be given for distillkit alone"):
        run(tmp_path, jsonl(tmp_path / "a.jsonl", []), "vllm-jsonl", n_classes=5, compression="x.yaml")


def test_distillkit_probabilities_above_one_are_scaled_and_said(tmp_path):
    config = {**PLAIN, "k": 2, "exact_k": 2, "delta_encoding": False}
    rows = [([5, 7], np.log([0.82, 0.2]), [], [])]
    parquet(
        tmp_path / "kit",
        [([1, 2], *builders.distillkit_rows(rows, {"term_dtype": "float32", **config}))],
        config,
        files=1,
    )
    made = import_book(tmp_path / "book", tmp_path / "kit", source_format="distillkit")
    _, kept, tail = builders.decoded(made.book)
    np.testing.assert_allclose(kept[0], np.array([0.82, 0.2]) / 1.02, rtol=2e-3)
    assert tail.tolist() == [0]
    assert any("exceeded 1 by up to 0.02" in note for note in made.notes)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "compression_config.yaml beside the files"),
        ({**PLAIN, "exact_k": 4, "k": 4}, "24 bytes|16 bytes a position.*another configuration"),
        ({**PLAIN, "exact_dtype": "float64"}, "48 bytes a position"),
        ({**PLAIN, "d": 2**20}, "15 bytes a position"),
        ({**PLAIN, "d": 0}, "`d` to be a whole number from 2"),
        ({**PLAIN, "k": 2**40}, "`k` to be a whole number"),
        ({**PLAIN, "exact_dtype": "int4"}, "`exact_dtype` to be one of float16"),
        ({**PLAIN, "exact_k": 7}, "`exact_k`"),
        ({**PLAIN, "polynomial_terms": ["os.system"]}, "`polynomial_terms`"),
        ({**PLAIN, "polynomial_terms": [1000]}, "`polynomial_terms`"),
        (
            {**PLAIN, "residual_bins": [{"scale_dtype": "float16", "element_bits": 2, "num_elements": 3}]},
            "residual_bins",
        ),
        ({**PLAIN, "residual_bins": [1]}, "TypeError"),
        ({"k": 3}, "KeyError 'd'"),
        ([1], "names and values"),
        ("!!python/object/apply:os.system ['true']", "a YAML file|names and values"),
    ],
)
def test_distillkit_configurations_that_do_not_fit(tmp_path, config, said):
    sequences, _, _ = exact_sequences(teacher(2), [2], {**PLAIN, "delta_encoding": False})
    parquet(tmp_path / "kit", sequences, config, files=1)
    if isinstance(config, str):
        (tmp_path / "kit" / "compression_config.yaml").write_text(config)
    with pytest.raises(DataError, match=said):
        run(tmp_path, tmp_path / "kit", "distillkit")


def test_distillkit_a_configuration_that_fits_in_length_alone_gives_no_probabilities(tmp_path):
    sequences, _, _ = exact_sequences(teacher(2), [2], {**PLAIN, "delta_encoding": False})
    parquet(tmp_path / "kit", sequences, {**PLAIN, "exact_k": 3, "exact_dtype": "float64"}, files=1)
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({**PLAIN, "exact_dtype": "float16", "polynomial_terms": [0, 1, 2]})
    )
    with pytest.raises(DataError, match=r"log-probability|probabilities|above 0"):
        run(tmp_path, tmp_path / "kit", "distillkit", compression=str(tmp_path / "other.yaml"))


def test_distillkit_files_that_are_damaged(tmp_path):
    sequences, _, _ = exact_sequences(teacher(4), [4], {**PLAIN, "delta_encoding": False})
    parquet(tmp_path / "kit", sequences, {**PLAIN, "delta_encoding": False}, files=1)
    path = tmp_path / "kit" / "data_0.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(DataError, match="a whole Parquet file"):
        run(tmp_path, tmp_path / "kit", "distillkit")
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(
        DataError, match="compressed_logprobs and bytepacked_indices, or token_ids and top_values, got 'text'"
    ):
        run(tmp_path, tmp_path / "kit", "distillkit")
    ids, values, _ = sequences[0]
    columns = {"input_ids": [ids], "compressed_logprobs": [values], "bytepacked_indices": [[[1] * 13] * 3]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match="`columns` to be equally long"):
        run(tmp_path, tmp_path / "kit", "distillkit")
    pq.write_table(pa.table({**columns, "bytepacked_indices": ["x"]}), path)
    with pytest.raises(DataError, match=r"`bytepacked_indices` to be numbers in lists of lists, got .?string"):
        run(tmp_path, tmp_path / "kit", "distillkit")
    pq.write_table(pa.table({**columns, "bytepacked_indices": [[[300] * 13] * 4]}), path)
    with pytest.raises(DataError, match="from 0 to 255"):
        run(tmp_path, tmp_path / "kit", "distillkit", "other")


# --- Megatron -----------------------------------------------------------------------------------------------------------------


def megatron_arrays(positions, samples, k, seed=0):
    classes, values = largest(teacher(positions * samples, seed), k)
    shape = (positions, samples, k)
    return torch.from_numpy(classes.reshape(shape)), torch.from_numpy(values.reshape(shape))


def of_sequence(book, sequence, positions):
    return book.rows_of(np.array([sequence_key(sequence, p) for p in range(positions)], dtype=np.uint64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_megatron_first_format(tmp_path, dtype):
    """Two ranks, micro-batches of two, two of them an iteration: eight samples an iteration."""
    (tmp_path / "cache").mkdir()
    given = {}
    for rank in range(2):
        members = {}
        for iteration in range(2):
            parts = [megatron_arrays(3, 2, 5, seed=100 * rank + 10 * iteration + m) for m in range(2)]
            for m, (classes, values) in enumerate(parts):
                for j in range(2):
                    sequence = iteration * 8 + (m * 2 + rank) * 2 + j
                    given[sequence] = (classes[:, j].numpy(), values[:, j].to(dtype).double().numpy())
            classes, values = ([part[i] for part in parts] for i in range(2))
            members[f"{iteration}.pt.zst"] = builders.megatron_payload([v.to(dtype) for v in values], classes)
        meta = {"hash": "ab", "identifiers": {"seed": 1}, "saver": {"k": 5, "save_dtype": "fp16"}}
        builders.megatron_tar(tmp_path / "cache" / f"cp0_dp{rank}__1.tar", members, meta)
    book = run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)
    assert (book.n_samples, book.plan.data["hash"], verify(book.path)) == (16 * 3, "ab", [])
    assert sorted(given) == list(range(16))
    for sequence, (classes, values) in given.items():
        assert_same(book, of_sequence(book, sequence, 3), classes, values, rtol=3e-3)


@pytest.mark.parametrize("ranged", [False, True], ids=["iterations", "ranges"])
def test_megatron_second_format(tmp_path, ranged):
    """Two ranks, micro-batches of two, eight samples an iteration: one tensor of four samples a rank."""
    (tmp_path / "cache").mkdir()
    given = {}
    for rank in range(2):
        members = {}
        for iteration in range(2):
            classes, values = megatron_arrays(2, 4, 6, seed=10 * rank + iteration)
            for row in range(4):
                sequence = iteration * 8 + ((row // 2) * 2 + rank) * 2 + row % 2
                given[sequence] = (classes[:, row].numpy(), values[:, row].numpy())
            name = f"{iteration * 8}-{iteration * 8 + 8}" if ranged else str(iteration)
            members[f"{name}.pt.zst"] = builders.megatron_payload(values.float(), classes, version=2)
        meta = {"hash": "ab", "saver": {"format_version": 2, "mbs_save": 2, "dp_size_save": 2, "gbs_save": 8}}
        builders.megatron_tar(tmp_path / "cache" / f"dp{rank}__{'0-16' if ranged else 1}.tar", members, meta)
    book = run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)
    assert sorted(given) == list(range(16))
    for sequence, (classes, values) in given.items():
        assert_same(book, of_sequence(book, sequence, 2), classes, values)


def test_megatron_places_after_the_nucleus_are_empty(tmp_path):
    (tmp_path / "cache").mkdir()
    values = torch.log(torch.tensor([[[0.6, 0.3, 0.05]], [[0.5, 0.4, 0.1]]]))
    values[0, 0, 2] = -1e4
    classes = torch.tensor([[[70000, 3, -1]], [[1, 2, 0]]])
    builders.megatron_tar(
        tmp_path / "cache" / "dp0__1.tar", {"1.pt.zst": builders.megatron_payload([values.half()], [classes])}
    )
    found, kept, tail = builders.decoded(run(tmp_path, tmp_path / "cache", "megatron", n_classes=V))
    assert found.tolist() == [[70000, 3, 0], [1, 2, 0]]
    np.testing.assert_allclose(kept[0, :2], [0.6, 0.3], rtol=5e-3)
    assert kept[0, 2] <= 2**-24
    np.testing.assert_allclose(tail, [0.1, 0], rtol=5e-3, atol=1e-3)


PAYLOAD = builders.megatron_payload(*[[each] for each in megatron_arrays(2, 1, 3)[::-1]])


def members(**changes):
    return {"1.pt.zst": PAYLOAD, **changes}


def raw_payload(found):
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


def bomb():
    """A frame of a few kilobytes that says nothing of the gigabytes that it holds."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    piece = bytes(2**22)
    return b"".join(compressor.compress(piece) for _ in range(40)) + compressor.flush()


@pytest.mark.parametrize(
    ("contents", "meta", "said"),
    [
        ({"../1.pt.zst": PAYLOAD}, None, r"alone, as regular files, got '\.\./1\.pt\.zst'"),
        ({"/1.pt.zst": PAYLOAD}, None, "alone, as regular files"),
        ({"notes.txt": b"x"}, None, "alone, as regular files"),
        ({"1.pt.zst": b"no zstd"}, None, "compressed by zstandard"),
        ({"1.pt.zst": PAYLOAD[:-20]}, None, "1.pt.zst"),
        ({"1.pt.zst": raw_payload([1])}, None, "arrays with 'values'"),
        ({"1.pt.zst": raw_payload({"values": [torch.zeros(2, 1, 3)]})}, None, "arrays with 'indices_low'"),
        (
            {
                "1.pt.zst": raw_payload(
                    {"values": torch.zeros(2, 3), "indices_low": torch.zeros(2, 3), "bit_17": torch.zeros(2, 3)}
                )
            },
            None,
            "indices_low uint16",
        ),
        (members(), {"saver": {"format_version": 3}}, "at most 2, got 3"),
        (members(), {"saver": {"gbs_save": 7}}, "of 7 together"),
        (members(), {"saver": {"dp_size_save": "two"}}, "dp_size_save is 'two'"),
        (members(), ["no object"], "an object with `saver`"),
        ({}, None, "at least one position"),
        ({"1.pt.zst": builders.megatron_payload([torch.zeros(1, 1, 1)], [torch.tensor([[[V]]])])}, None, f"got {V}"),
    ],
)
def test_megatron_archives_that_say_something_else(tmp_path, contents, meta, said):
    (tmp_path / "cache").mkdir()
    builders.megatron_tar(tmp_path / "cache" / "dp0__1.tar", contents, meta)
    with pytest.raises(DataError, match=said):
        run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)


def test_megatron_a_frame_that_grows_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("bookkd.interchange.megatron.MAX_FILE", 2**24)
    (tmp_path / "cache").mkdir()
    data = bomb()
    assert len(data) < 2**16
    builders.megatron_tar(tmp_path / "cache" / "dp0__1.tar", {"1.pt.zst": data})
    with pytest.raises(DataError, match="as long as it says"):
        run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)
    builders.megatron_tar(
        tmp_path / "cache" / "dp0__1.tar", {"1.pt.zst": zstandard.ZstdCompressor().compress(bytes(2**25))}
    )
    with pytest.raises(DataError, match="at most 16777216 bytes, got 33554432"):
        run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)


def test_megatron_links_cut_archives_and_other_names(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    with tarfile.open(folder / "dp0__1.tar", "w") as archive:
        info = tarfile.TarInfo("1.pt.zst")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="regular files"):
        run(tmp_path, folder, "megatron", n_classes=V)
    builders.megatron_tar(folder / "dp0__1.tar", members())
    whole = (folder / "dp0__1.tar").read_bytes()
    (folder / "dp0__1.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"dp0__1\.tar"):
        run(tmp_path, folder, "megatron", n_classes=V)
    (folder / "dp0__1.tar").write_bytes(whole)
    (folder / "cp1_dp0__1.tar").write_bytes(whole)
    with pytest.raises(DataError, match="of context-parallel rank 0"):
        run(tmp_path, folder, "megatron", n_classes=V)
    (folder / "cp1_dp0__1.tar").rename(folder / "backup.tar")
    with pytest.raises(DataError, match=r"named like dp0__20\.tar, got 'backup.tar'"):
        run(tmp_path, folder, "megatron", n_classes=V)
    (folder / "backup.tar").rename(folder / "dp0__2.tar")
    with pytest.raises(DataError, match="one twice"):
        run(tmp_path, folder, "megatron", n_classes=V)
    with pytest.raises(DataError, match="17 bits"):
        run(tmp_path, folder, "megatron", n_classes=151_936)


def test_megatron_a_member_of_negative_size(tmp_path):
    """Older versions of Python go round in circles there."""
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / "dp0__1.tar"
    builders.megatron_tar(path, members())
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    data[148:156] = b"        "
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"dp0__1\.tar"):
        run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)


def test_megatron_shards_of_two_streams(tmp_path):
    (tmp_path / "cache").mkdir()
    for number in (1, 2):
        contents = {f"{number}.pt.zst": PAYLOAD}
        builders.megatron_tar(tmp_path / "cache" / f"dp0__{number}.tar", contents, {"hash": f"h{number}", "saver": {}})
    with pytest.raises(DataError, match="one, of one stream of data, got h1, h2"):
        run(tmp_path, tmp_path / "cache", "megatron", n_classes=V)
