"""A student in JAX learns from a book: `python examples/jax_reader.py BOOK`.

Reading a book needs numpy alone, so that PyTorch need not be installed. The student here is a bias, the smallest model that shows
what is learnt: the teacher's average distribution.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bookkd.book import Book, SparseArray


def batches(book: Book, size: int, *, field: str = "logits", seed: int = 0) -> Iterator[dict[str, jax.Array]]:
    """Yield every record of a random view of each sample once, as JAX arrays."""
    draws = np.random.default_rng(seed)
    order = draws.permutation(book.n_samples)
    for start in range(0, len(order), size):
        samples = order[start : start + size]
        views = draws.integers(book.n_views, size=len(samples))
        yield {
            "sample": jnp.asarray(samples),
            "view": jnp.asarray(views),
            **target(book.read(samples, views, [field])[field]),
        }


def target(read: np.ndarray | SparseArray) -> dict[str, jax.Array]:
    """Return a record as JAX arrays: all logits, or the kept classes with the mass of the others at the first temperature."""
    if isinstance(read, SparseArray):
        return {
            "kept": jnp.asarray(read.values, jnp.float32) / read.temperatures[0],
            "classes": jnp.asarray(read.indices.astype(np.int32)),
            "tail": jnp.exp(jnp.asarray(read.log_tail_mass[:, 0])),
        }
    return {"logits": jnp.asarray(read, jnp.float32)}


def kl(student: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """KL(teacher || student) of each record at temperature 1; classes that were left out are one bucket on both sides."""
    log_q = jax.nn.log_softmax(student, axis=-1)
    if "logits" in batch:
        log_p = jax.nn.log_softmax(batch["logits"], axis=-1)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    tail = batch["tail"]
    log_p = jax.nn.log_softmax(batch["kept"], axis=-1) + jnp.log1p(-tail)[:, None]
    log_kept = jnp.take_along_axis(log_q, batch["classes"], axis=-1)
    rest = jnp.maximum(1 - jnp.exp(log_kept).sum(axis=-1), 1e-12)
    bucket = jnp.where(tail > 0, tail * (jnp.log(jnp.maximum(tail, 1e-30)) - jnp.log(rest)), 0.0)
    return (jnp.exp(log_p) * (log_p - log_kept)).sum(axis=-1) + bucket


@jax.jit
def step(bias: jax.Array, batch: dict[str, jax.Array], rate: float) -> tuple[jax.Array, jax.Array]:
    """Return the bias after one step, and the loss before it."""

    def loss(bias: jax.Array) -> jax.Array:
        return kl(jnp.broadcast_to(bias, (len(batch["sample"]), len(bias))), batch).mean()

    value, gradient = jax.value_and_grad(loss)(bias)
    return bias - rate * gradient, value


def learn(
    book: Book, *, epochs: int = 20, size: int = 100, rate: float = 2.0, field: str = "logits"
) -> tuple[jax.Array, float]:
    """Return the learnt bias and the loss of the last step."""
    bias, value = jnp.zeros(book.fields[field].shape[0]), jnp.zeros(())
    for epoch in range(epochs):
        for batch in batches(book, size, field=field, seed=epoch):
            bias, value = step(bias, batch, rate)
    return bias, float(value)


def main() -> None:
    """Learn from the book that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book")
    parser.add_argument("--field", default="logits")
    options = parser.parse_args()
    book = Book(options.book)
    bias, value = learn(book, field=options.field)
    shares = np.asarray(jax.nn.softmax(bias))
    names = book.plan.class_names or tuple(map(str, range(len(shares))))
    for place in np.argsort(-shares)[:10]:
        print(f"{names[place]:<20} {shares[place]:.4f}")
    print(f"loss {value:.4f}")


if __name__ == "__main__":
    main()
