"""`Views`: a transform, a number of views and a seed; and the recipe that a book keeps of them."""

from __future__ import annotations

import functools
import json
import platform
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.core.jsonio import canonical, digest
from bookkd.core.rng import draw64
from bookkd.views.mix import Mix
from bookkd.views.seeding import isolated, seed_all

__all__ = ["Views", "as_tensor", "differences", "version_differences", "versions"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Views:
    """Replayable data augmentation: `n_views` draws of `transform` for each sample.

    Every draw is a function of (seed, sample, view): the global generators of torch, numpy and random are seeded for
    each view and put back afterwards. A transform that owns a generator does not replay; `check_replay` finds it.

    Args:
        transform: Called with what the data set returns as image; returns a tensor (or a numpy array, whose axes stay
            as they are). None leaves the image alone; a data set that augments by itself is seeded all the same.
        n_views: At least 1.
        seed: 0 to 2**64 - 1.
        mix: `MixUp` or `CutMix` with a view of another sample; None for none.
        name: How the user named the transform, for the recipe; None for its module and name.
        args: The arguments that the user gave with the name; values that JSON can hold.

    >>> Views(lambda image: image + torch.rand(()), n_views=2).apply(torch.zeros(1), 0, 1).shape
    torch.Size([1])
    """

    transform: Callable[..., Any] | None
    n_views: int
    seed: int = 0
    mix: Mix | None = None
    name: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        at_least(self.n_views, 1, "n_views", where="Views")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ConfigError(expected("seed", "a whole number from 0 to 2**64 - 1", self.seed, where="Views"))
        if self.transform is not None and not callable(self.transform):
            raise ConfigError(expected("transform", "callable or None", self.transform, where="Views"))
        try:
            canonical(dict(self.args))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                expected("args", f"values that JSON can hold ({error})", dict(self.args), where="Views")
            ) from error

    def seeds(self, samples: Collection[int], views: Collection[int]) -> list[int]:
        """Return the 64-bit seed of each (sample, view) pair."""
        pairs = np.array(list(samples), dtype=np.int64), np.array(list(views), dtype=np.int64)
        return [int(number) for number in draw64(self.seed, "view", *pairs)[:, 0]]

    def apply(self, image: Any, sample: int, view: int) -> Tensor:
        """Return the view of one image, before any mixing.

        Args:
            image: What the transform takes.
            sample: Row of the book.
            view: 0 to n_views - 1.
        """
        if not 0 <= view < self.n_views:
            raise ConfigError(expected("view", f"between 0 and {self.n_views - 1}", view, where="Views"))
        with isolated():
            seed_all(self.seeds([sample], [view])[0])
            return as_tensor(image if self.transform is None else self.transform(image), sample, view)

    def recipe(self, n_samples: int) -> dict[str, Any]:
        """Return what a book keeps of these views: plain JSON values.

        Args:
            n_samples: Samples of the data set; the pool of partners of a mix that has none yet.

        >>> Views(None, n_views=1).recipe(10)["n_views"]
        1
        """
        text = _ADDRESS.sub("", repr(self.transform))
        found = {
            "transform": self.name or _path(self.transform),
            "args": dict(self.args),
            "text": text if len(text) <= 2000 else text[:1997] + "...",
            "text_digest": digest(text),
            "n_views": self.n_views,
            "seed": self.seed,
            "mix": self.mix and {"name": self.mix.name, "alpha": self.mix.alpha, "pool": self.mix.pool or n_samples},
            "versions": versions(),
        }
        return dict(json.loads(canonical(found)))

    def with_pool(self, pool: int) -> Views:
        """Return these views with the partner pool frozen at `pool` rows, as the recipe of a book says."""
        if self.mix is None:
            raise ConfigError(expected("mix", "MixUp or CutMix where a partner pool is given", None, where="Views"))
        return replace(self, mix=replace(self.mix, pool=pool))


def as_tensor(view: Any, sample: int, view_number: int) -> Tensor:
    """Return what a transform made as a plain CPU tensor; a numpy array keeps its axes and dtype.

    Raises:
        ConfigError: if it is a PIL image or anything else.

    >>> as_tensor(np.zeros((2, 3), np.uint8), 0, 0).dtype
    torch.uint8
    """
    if isinstance(view, np.ndarray):
        try:
            # Strides may be negative and the memory read-only; torch takes neither.
            return torch.from_numpy(np.require(view, requirements=("C", "W")))
        except (TypeError, ValueError):
            view = f"a numpy array of {view.dtype}"
    elif isinstance(view, Tensor):
        if view.device.type == "cpu" and view.layout == torch.strided:
            return view.detach().as_subclass(Tensor)
        view = f"a {view.layout} tensor on {view.device}"
    shown = view if isinstance(view, str) else f"a {type(view).__module__}.{type(view).__qualname__} object"
    raise ConfigError(
        expected(
            "transform",
            "a callable that returns a dense CPU tensor or a numpy array",
            shown,
            where=f"sample {sample}, view {view_number}",
            do="End the transform with torchvision.transforms.v2.ToImage() or PILToTensor().",
        )
    )


def _path(transform: object) -> str | None:
    if transform is None:
        return None
    while isinstance(transform, functools.partial):
        transform = transform.func
    named = transform if hasattr(transform, "__qualname__") else type(transform)
    return f"{named.__module__}:{named.__qualname__}"


def versions() -> dict[str, str]:
    """Return the versions and the processor on which the bytes of a view may depend.

    >>> sorted(versions())
    ['numpy', 'pillow', 'processor', 'torch', 'torchvision']
    """
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}
    for package in ("torch", "torchvision", "numpy", "pillow"):
        try:
            # Without the local part: +cpu and +cu130 are the same source.
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _compare(one: Mapping[str, Any], other: Mapping[str, Any], keys: list[str], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{key}: {json.dumps(one.get(key))} and {json.dumps(other.get(key))}"
        for key in keys
        if canonical(one.get(key)) != canonical(other.get(key))
    ]


def version_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List library versions and processors in which two recipes differ; they do not forbid replay, the probe decides.

    >>> version_differences({"versions": {"torch": "2.4"}}, {"versions": {"torch": "2.5"}})
    ['torch: "2.4" and "2.5"']
    """
    mine, theirs = one.get("versions") or {}, other.get("versions") or {}
    return _compare(mine, theirs, sorted({*mine, *theirs}))


def differences(one: Mapping[str, Any], other: Mapping[str, Any], *, ignore: Collection[str] = ()) -> list[str]:
    """List by name what two recipes say differently, library versions apart (see `version_differences`).

    Where the versions differ, the printed form of the transform is not compared: a library may print the same
    transform in another way.

    Args:
        one: A recipe, such as the book's.
        other: Another, such as `Views.recipe` here.
        ignore: Keys not compared, such as `n_views` for a book that grows by views.

    Returns:
        One line a difference, empty where the recipes make the same views.

    >>> differences({"seed": 0, "n_views": 2}, {"seed": 1, "n_views": 4}, ignore=["n_views"])
    ['seed: 0 and 1']
    """
    same_versions = not version_differences(one, other)
    skipped = {"versions", "text", "text_digest", "mix", *ignore}
    found = _compare(one, other, sorted({*one, *other} - skipped))
    if same_versions and one.get("text_digest") != other.get("text_digest"):
        found += _compare(one, other, ["text"], "transform ") or ["transform text: differs after its 2000th character"]
    mine, theirs = one.get("mix"), other.get("mix")
    if "mix" not in ignore and canonical(mine) != canonical(theirs):
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += _compare(mine, theirs, sorted({*mine, *theirs}), "mix ")
        else:
            found += _compare(one, other, ["mix"])
    return found
