"""Files in the layouts that others publish, made with torch.save, struct, tarfile, pyarrow and zstandard.

No line of these uses our readers; what they say is compared with the arrays that they were made of.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import torch
import zstandard


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def top(p, k):
    """Classes and probabilities of the k likeliest, as torch's topk gives them."""
    values, classes = torch.topk(torch.from_numpy(p), k, dim=-1)
    return classes.numpy(), values.numpy()


# --- FKD: torch.save([coords float32 [crops, 4], flips bool [crops], labels]), one file an image -----------------------------


def fkd_labels(p, kind):
    """Quantised as FKD's script says: p float32 [crops, classes]."""
    if kind == "hard":
        return p.argmax(axis=1)
    if kind == "smoothing":
        return np.stack([p.argmax(axis=1).astype(np.float32), p.max(axis=1)], axis=1)
    classes, values = top(p, int(kind.removeprefix("marginal k")))
    return np.stack([classes.astype(np.float32), values], axis=1)


def fkd_file(path, box, flip, labels, *, new=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([box, flip, labels], path, _use_new_zipfile_serialization=new)


def fkd(root, *, images=5, crops=3, classes=20, kind="marginal k5", dtype=np.float32, new=True, seed=0):
    draws = np.random.default_rng(seed)
    p = softmax(draws.normal(0, 3, (images, crops, classes))).astype(np.float32)
    box = draws.uniform(0, 0.5, (images, crops, 4)).astype(np.float32)
    flip = draws.random((images, crops)) < 0.5
    for i in range(images):
        labels = fkd_labels(p[i], kind)
        labels = labels if labels.dtype.kind in "iu" else labels.astype(dtype)
        fkd_file(Path(root) / "train" / f"n{i % 2:08d}" / f"image_{i}.tar", box[i], flip[i], labels, new=new)
    order = sorted(range(images), key=lambda i: (f"n{i % 2:08d}", f"image_{i}"))
    return p[order], box[order], flip[order]


# --- TinyViT: seed int32, k classes int16, k probabilities float16; keys a line each ------------------------------------------


def tinyvit_record(seed, classes, p):
    k = len(classes)
    return struct.pack(f"<i{k}h{k}e", seed, *(int(each) for each in classes), *(float(each) for each in p))


def tinyvit(root, *, keys, epochs=2, ranks=2, classes=50, k=4, seed=0):
    """Write epochs in shuffled order over ranks; return p [epochs, keys, classes] and seeds [epochs, keys]."""
    draws = np.random.default_rng(seed)
    p = softmax(draws.normal(0, 3, (epochs, len(keys), classes))).astype(np.float32)
    seeds = draws.integers(0, 2**31, (epochs, len(keys)))
    for epoch in range(epochs):
        folder = Path(root) / f"logits_top{k}_epoch{epoch}"
        folder.mkdir(parents=True)
        order = draws.permutation(len(keys))
        for rank in range(ranks):
            mine = order[rank::ranks]
            (folder / f"rank{rank}-keys.txt").write_text("".join(f"{keys[i]}\n" for i in mine))
            records = [tinyvit_record(seeds[epoch, i], *top(p[epoch, i], k)) for i in mine]
            (folder / f"rank{rank}-values.bin").write_bytes(b"".join(records))
    return p, seeds


# --- DistillKit: bytes of exact values, coefficients, bins; classes packed bit by bit -----------------------------------------

FORMS = {"float16": "e", "float32": "f", "float64": "d"}


def floats(values, dtype):
    if dtype == "bfloat16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{FORMS[dtype]}", *values)


def bits(values, width):
    text = "".join(format(int(value), f"0{width}b") for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def index_bits(d):
    return (d - 1).bit_length()


def distillkit_rows(rows, config):
    """Encode [(classes, exact values, coefficients, [(scale, codes)])] as the bytes of each position."""
    logprobs, indices = [], []
    for classes, exact, coefficients, bins in rows:
        data = floats(exact, config["exact_dtype"]) + floats(coefficients, config["term_dtype"])
        for (scale, codes), entry in zip(bins, config["residual_bins"], strict=True):
            data += floats([scale], entry["scale_dtype"]) + bits(codes, entry["element_bits"])
        logprobs.append(list(data))
        indices.append(list(bits(classes, index_bits(config["d"]))))
    return logprobs, indices


# --- Megatron: tar of _meta.json and <iteration>.pt.zst -----------------------------------------------------------------------


def add(archive, name, data, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    archive.addfile(info, io.BytesIO(data))


def megatron_payload(values, classes, *, version=1):
    """Compress one iteration; values and classes are lists of tensors (version 1) or one tensor (version 2)."""

    def low(c):
        return (c & 0xFFFF).to(torch.uint16)

    def high(c):
        return (c >> 16).to(torch.bool)

    if version == 1:
        found = {"values": values, "indices_low": [low(c) for c in classes], "bit_17": [high(c) for c in classes]}
    else:
        found = {"values": values, "indices_low": low(classes), "bit_17": high(classes), "format_version": version}
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


def megatron_tar(path, members, meta=None):
    with tarfile.open(path, "w") as archive:
        if meta is not None:
            add(archive, "_meta.json", json.dumps(meta).encode())
        for name, data in members.items():
            add(archive, name, data)


# --- vLLM ---------------------------------------------------------------------------------------------------------------------


def vllm_position(log_p, k, also=None):
    """k likeliest classes of one position, and the token that stands there."""
    order = np.argsort(-log_p, kind="stable")[:k].tolist()
    if also is not None and also not in order:
        order.append(int(also))
    ranks = np.argsort(np.argsort(-log_p, kind="stable"))
    return {str(c): {"logprob": float(log_p[c]), "rank": int(ranks[c]) + 1, "decoded_token": f"<{c}>"} for c in order}


def log_softmax(logits):
    return (
        logits
        - logits.max(axis=-1, keepdims=True)
        - np.log(np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True))
    )


def decoded(book, samples=None, view=0):
    """Return kept classes and probabilities and the tail, float64, from codec top_k as docs/book-format.md says."""
    ids = np.arange(book.n_samples) if samples is None else samples
    sparse = book.read(ids, view, ["logits"])["logits"]
    tail = np.exp(sparse.log_tail_mass[:, 0].astype(np.float64))
    kept = np.exp(sparse.values.astype(np.float64))
    return sparse.indices.astype(np.int64), (1 - tail)[:, None] * kept / kept.sum(axis=1, keepdims=True), tail
