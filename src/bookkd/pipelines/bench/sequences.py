"""`bookkd bench sequences`: what a book of a language model costs while it is written and learnt from, in bytes and in memory."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bookkd.book import Book, Codec, Dense, RowIds, Sampled, TopK
from bookkd.core.fields import INPUT, LENGTH, LOGITS, WEIGHT
from bookkd.core.memory import forget_peak_memory, keep_freed_memory, peak_memory
from bookkd.core.rng import generator
from bookkd.core.schedules import Clock
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher
from bookkd.losses import SampledTarget, SparseTarget, Target
from bookkd.making import make
from bookkd.methods import LLMKD, Method, Supervised
from bookkd.pipelines.bench.arm import Arm
from bookkd.pipelines.bench.measure import Goal, paired, timed
from bookkd.tasks import CausalLM
from bookkd.views import Replay, Views
from bookkd.zoo import TokenDataset

__all__ = ["Decoder", "bench_sequences"]

_LENGTH, _BATCH = 128, 16
_POSITIONS, _VOCABULARY, _KEPT, _TOP = 2048, 32_000, 12, 50


class Decoder(nn.Module):
    """A small causal transformer over tokens [batch, length], of torch's own layers; logits [batch, length, vocabulary].

    Args:
        vocabulary: Tokens.
        width: Of the embedding.
        layers: Blocks.
    """

    def __init__(self, vocabulary: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(_LENGTH, width)
        block = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 4 * width, 0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits at every token."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        seen = self.embed(tokens) + self.place(torch.arange(length, device=tokens.device))
        logits: Tensor = self.head(self.blocks(seen, mask=mask, is_causal=True))
        return logits


def bench_sequences(*, pairs: int, quick: bool) -> list[Goal]:
    """Measure learning of a small language model from books of random text; speed does not depend on what it says.

    Args:
        pairs: Interleaved pairs of each ratio.
        quick: Smaller sets.
    """
    task = CausalLM(512 if quick else 8192)
    teacher = Teacher(_model(task.vocabulary, 256, 6, sharp=True), name="teacher")
    with tempfile.TemporaryDirectory(prefix="bookkd-bench-") as folder:
        replay = _random_text(task, 16 if quick else 256, shortest=_LENGTH)
        plain, books = _Script(replay, task), _books(Path(folder) / "full", replay, task, teacher)
        goals = _from_books(replay, task, plain, books, pairs, "")
        live = _arm(replay, LLMKD(), LiveKnowledge(teacher, task), task)
        shown = Goal.of(
            "tokens a second with the teacher in memory / cross-entropy alone",
            paired(plain.epoch, live.epoch, min(pairs, 5)),
            None,
            ">=",
        )
        labels = Goal.of(
            "tokens a second of method supervised / cross-entropy alone",
            paired(plain.epoch, _arm(replay, Supervised(), None, task).epoch, min(pairs, 5)),
            None,
            ">=",
        )
        beside = [
            Goal(
                f"tokens a second from a book ({name}) / with the teacher in memory",
                goal.value / shown.value,
                None,
                ">=",
            )
            for name, goal in zip(books, goals, strict=True)
        ]
        ragged = _random_text(task, 16 if quick else 256, shortest=_LENGTH // 4)
        cut = _books(Path(folder) / "ragged", ragged, task, teacher)
        words = f", sequences of {_LENGTH // 4} to {_LENGTH}"
        goals += _from_books(ragged, task, _Script(ragged, task), cut, min(pairs, 5), words)
        return [*goals, labels, shown, *beside, *_encoding(pairs, quick), _bytes(books["sampled"]), *_memory(quick)]


def _random_text(task: CausalLM, sequences: int, *, shortest: int) -> Replay:
    """Return sequences of `shortest` to `_LENGTH` tokens, evenly."""
    draws = generator(0, "bench tokens")
    lengths = draws.integers(shortest, _LENGTH + 1, size=sequences)
    tokens = draws.integers(0, task.vocabulary, size=int(lengths.sum()))
    data = TokenDataset("random", tokens, lengths.cumsum(), task.vocabulary)
    return Replay(data, Views(None, n_views=1), probe_share=0.02)


def _books(folder: Path, replay: Replay, task: CausalLM, teacher: Teacher) -> dict[str, Book]:
    return {
        name: make(folder / name, teacher, replay.dataset, replay.views, task=task, codec=codec, batch_size=_BATCH)
        for name, codec in _codecs().items()
    }


def _from_books(
    replay: Replay, task: CausalLM, plain: _Script, books: Mapping[str, Book], pairs: int, words: str
) -> list[Goal]:
    """Return the tokens a second from each book over those of a plain loop."""
    return [
        Goal.of(
            f"tokens a second from a book ({name}) / cross-entropy alone{words}",
            paired(plain.epoch, _arm(replay, LLMKD(), StoredKnowledge(book), task).epoch, pairs),
            0.9,
            ">=",
        )
        for name, book in books.items()
    ]


def _model(vocabulary: int, width: int, layers: int, *, sharp: bool = False) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        made = Decoder(vocabulary, width=width, layers=layers)
        if sharp:  # a teacher without training says nearly the same of every token; draws of it would all differ
            nn.init.normal_(made.head.weight, std=0.25)
    return made


class _Script:
    """Training as a script of PyTorch has it, without anything of ours but the batches: the network's logits, and torch's cross-entropy.

    Args:
        replay: Of the sequences.
        task: Theirs.
    """

    def __init__(self, replay: Replay, task: CausalLM) -> None:
        arm = _arm(replay, Supervised(), None, task)
        self.groups, self.network, self.optimizer = arm.groups, arm.run.learner.student, arm.run.optimizer

    def epoch(self) -> None:
        """Train one epoch."""
        self.network.train()
        for group in self.groups:
            for batch in group:
                tokens, last = batch[INPUT], batch[LENGTH][:, None] - 1
                labels = tokens[:, 1:].masked_fill(torch.arange(tokens.shape[1] - 1) >= last, -100)
                logits = self.network(tokens[:, :-1]).flatten(0, 1)
                loss = nn.functional.cross_entropy(logits, labels.flatten())
                self.optimizer.zero_grad()
                torch.autograd.backward(loss)
                self.optimizer.step()


def _arm(replay: Replay, method: Method, knowledge: Any, task: CausalLM) -> Arm:
    return Arm(replay, method, knowledge, task, network=_model(task.vocabulary, 128, 2), batch_size=_BATCH)


def _encoding(pairs: int, quick: bool) -> list[Goal]:
    """Return the milliseconds that a processor takes to encode a position, the least of some turns, and those of its copy as float16."""
    rows, vocabulary = (16, 4096) if quick else (128, _VOCABULARY)
    logits = generator(0, "bench logits").normal(size=(rows, vocabulary)).astype(np.float32) * 3
    ids = RowIds(np.arange(rows), 0, LOGITS)
    codecs: dict[str, Codec] = {"dense": Dense(), **_codecs()}
    seconds: dict[str, list[float]] = {name: [] for name in codecs}
    for _ in range(max(2, pairs)):
        for name, codec in codecs.items():
            seconds[name].append(timed(partial(codec.encode, logits, ids)))
    least = {name: 1e3 * min(each) / rows for name, each in seconds.items()}
    note = f"{rows} positions of {vocabulary:,} tokens in numpy; as float16, codec dense, {least.pop('dense'):.3g} ms"
    return [Goal(f"milliseconds to encode a position ({name})", each, None, note=note) for name, each in least.items()]


def _codecs() -> dict[str, Codec]:
    return {"sampled": Sampled(50), "top_k": TopK(_TOP, (1.0,))}


def _bytes(book: Book) -> Goal:
    said: Any = book.read(range(book.n_samples), 0, [LOGITS])[LOGITS]
    kept = float(said.values.classes.counts.mean())
    positions = int(said.counts.sum())
    size = sum(file.stat().st_size for file in Path(str(book.path)).rglob("*.safetensors")) / positions
    _, (width,) = book.fields[LOGITS].parts["entries"]
    note = f"measured: {size:.1f} with {kept:.1f} different tokens a position of {width} bytes each, probe and headers included"
    return Goal(
        f"bytes a token of draws, {_KEPT} of them different", size - (kept - _KEPT) * width, 40, "<=", note=note
    )


def _memory(quick: bool) -> list[Goal]:
    """Return the peak memory of the loss over that of torch's cross-entropy, each in a process of its own."""
    positions, vocabulary = (256, 4096) if quick else (_POSITIONS, _VOCABULARY)
    context = multiprocessing.get_context("spawn")
    note = f"{positions:,} positions of {vocabulary:,} tokens, {positions * vocabulary * 4 / 2**20:.0f} MiB of logits"
    goals = []
    for ragged in (False, True):
        found = {}
        for kind in ("cross-entropy", "draws", "draws and labels", "top-k"):
            with context.Pool(1) as pool:
                found[kind] = pool.apply(loss_memory, (kind, positions, vocabulary, ragged))
        base = found.pop("cross-entropy")
        if not base or base < 0:  # nothing was measured to compare with
            return []
        words = ", every other sequence half as long" if ragged else ""
        goals += [
            Goal(
                f"peak memory of llm-kd from {kind} / cross-entropy of torch{words}", each / base, 1.2, "<=", note=note
            )
            for kind, each in found.items()
            if each is not None
        ]
    return goals


def loss_memory(kind: str, positions: int, vocabulary: int, ragged: bool) -> int | None:
    """Return by how many bytes what follows a network's logits, to their gradient, raises the memory of this process.

    The logits are [sequences, length, vocabulary] as a network gives them: taking the positions that count is part of it, where every
    other sequence is half as long (`ragged`). None where nobody says how much memory a process holds.
    """
    keep_freed_memory()
    length = min(512, positions // 4)
    logits = torch.ones(positions // length, length, vocabulary, requires_grad=True)
    tokens = torch.arange(logits.shape[0] * (length + 1)).reshape(-1, length + 1) % vocabulary
    lengths = torch.full((len(tokens),), length + 1)
    if ragged:
        lengths[1::2] = length // 2 + 1
    kept, count = _TOP if kind == "top-k" else _KEPT, int(lengths.sum()) - len(tokens)
    classes = ((torch.arange(kept) * 7)[None].expand(count, -1) % vocabulary).contiguous()
    target: Target = SampledTarget(classes, torch.full((count, kept), 1 / kept), 1.0, vocabulary)
    if kind == "top-k":
        tail = torch.full((count, 1), -1.0)
        target = SparseTarget(torch.zeros(count, kept), classes, tail, (1.0,), vocabulary)
    if not forget_peak_memory():
        return None
    before = peak_memory()
    if kind == "cross-entropy":
        labels = tokens[:, 1:].masked_fill(torch.arange(length) >= lengths[:, None] - 1, -100)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    else:
        task = CausalLM(vocabulary)
        batch = {INPUT: tokens, LENGTH: lengths, WEIGHT: torch.ones(len(tokens))}
        objective = LLMKD(ce_weight=1.0 if kind == "draws and labels" else 0.0).objective(task)
        said, seen = task.fields(logits, batch), task.batch(batch)
        sums = objective.sums(said, {LOGITS: target}, seen, seen[WEIGHT], Clock())
        loss = objective.loss(sums, objective.totals(seen, seen[WEIGHT]), Clock())
    loss.backward()  # type: ignore[no-untyped-call]
    after = peak_memory()
    return None if before is None or after is None else after - before
