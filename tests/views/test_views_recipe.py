from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.views.cases import PIPELINES, OwnsGenerator, user_random
from torchvision.transforms import v2

from bookkd.core.errors import ConfigError
from bookkd.views import CutMix, MixUp, Views, differences, version_differences, versions


def test_recipe_holds_what_a_view_depends_on():
    transform = v2.Compose([v2.RandomCrop(8), v2.RandomHorizontalFlip(0.25)])
    recipe = Views(transform, n_views=20, seed=2**64 - 1, name="crop", args={"size": (8, 8)}).recipe(50)
    assert recipe == {
        "transform": "crop",
        "args": {"size": [8, 8]},
        "text": repr(transform),
        "text_digest": recipe["text_digest"],
        "n_views": 20,
        "seed": 2**64 - 1,
        "mix": None,
        "versions": versions(),
    }
    assert json.loads(json.dumps(recipe)) == recipe
    assert versions()["torch"] == torch.__version__.partition("+")[0]
    assert versions()["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("transform", "path"),
    [
        (None, None),
        (user_random, "tests.views.cases:user_random"),
        (functools.partial(functools.partial(user_random)), "tests.views.cases:user_random"),
        (OwnsGenerator(), "tests.views.cases:OwnsGenerator"),
        (OwnsGenerator().__call__, "tests.views.cases:OwnsGenerator.__call__"),
        (v2.RandomCrop(3), "torchvision.transforms.v2._geometry:RandomCrop"),
    ],
)
def test_a_transform_without_name_is_named_by_its_module(transform, path):
    recipe = Views(transform, n_views=1).recipe(1)
    assert recipe["transform"] == path
    assert "0x" not in recipe["text"]


def test_the_recipe_is_the_same_in_another_process():
    name = "pil"
    program = (
        "import json; from bookkd.views import Views; from tests.views.cases import PIPELINES; "
        f"print(json.dumps(Views(PIPELINES[{name!r}][1], n_views=1).recipe(1)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == Views(PIPELINES[name][1], n_views=1).recipe(1)


BASE = {"transform": v2.RandomCrop(8), "n_views": 4, "seed": 1, "mix": MixUp(1.0)}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"n_views": 6}, ["n_views: 4 and 6"]),
        ({"seed": 2}, ["seed: 1 and 2"]),
        ({"name": "crop"}, ['transform: "torchvision.transforms.v2._geometry:RandomCrop" and "crop"']),
        ({"args": {"size": 8}}, ['args: {} and {"size": 8}']),
        ({"mix": None}, ['mix: {"alpha": 1.0, "name": "mixup", "pool": 10} and null']),
        ({"mix": MixUp(0.5)}, ["mix alpha: 1.0 and 0.5"]),
        ({"mix": CutMix(1.0, pool=9)}, ['mix name: "mixup" and "cutmix"', "mix pool: 10 and 9"]),
    ],
)
def test_differences_are_named(changes, found):
    one, other = Views(**BASE).recipe(10), Views(**{**BASE, **changes}).recipe(10)
    assert differences(one, other) == found
    assert version_differences(one, other) == []
    keys = {line.split()[0].rstrip(":") for line in found}
    assert differences(one, other, ignore=keys) == []


def test_another_argument_of_the_transform_is_a_difference():
    one, other = (Views(v2.RandomCrop(size), n_views=1).recipe(1) for size in (8, 9))
    (line,) = differences(one, other)
    assert line.startswith('transform text: "RandomCrop(size=(8, 8)')
    long = "x" * 3000
    one, other = (Views(functools.partial(user_random, note=long + end), n_views=1).recipe(1) for end in "ab")
    assert len(one["text"]) == 2000
    assert differences(one, other) == ["transform text: differs after its 2000th character"]


def test_versions_are_told_apart_from_differences():
    one = Views(**BASE).recipe(10)
    other = {**one, "versions": {**one["versions"], "torchvision": "0.1", "jax": "1"}, "text": "?", "text_digest": "?"}
    # Another torchvision may print the same transform in another way.
    assert differences(one, other) == []
    there = one["versions"]["torchvision"]
    assert version_differences(one, other) == ['jax: null and "1"', f'torchvision: "{there}" and "0.1"']


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_views": 0}, "`n_views` to be a whole number of at least 1, got 0"),
        ({"seed": -1}, "`seed` to be a whole number from 0"),
        ({"seed": 2**64}, "`seed` to be a whole number from 0"),
        ({"seed": 0.5}, "`seed` to be a whole number from 0"),
        ({"transform": 3}, "`transform` to be callable or None, got 3"),
        ({"args": {"f": user_random}}, "`args` to be values that JSON can hold"),
        ({"args": {"f": float("nan")}}, "`args` to be values that JSON can hold"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Views(**{"transform": None, "n_views": 1, **changes})


def test_apply_refuses_a_view_that_is_not_there():
    with pytest.raises(ConfigError, match="`view` to be between 0 and 1, got 2"):
        Views(None, n_views=2).apply(torch.zeros(1), 0, 2)


def test_views_are_frozen_and_compare():
    views = Views(user_random, n_views=2, args={"a": 1})
    with pytest.raises(AttributeError, match="cannot assign"):
        views.seed = 3
    assert views == Views(user_random, n_views=2, args={"a": 1})
    assert len({views, Views(user_random, n_views=2, args={"a": 1})}) == 1
