"""Features by commands: what an error tells to run works as it is told, and nothing asked for is dropped in silence."""

from __future__ import annotations

import re

import pytest
from tests.cli.conftest import learn, make

from bookkd.book import Book


def test_the_command_that_an_error_tells_adds_the_fields(weights, made, tmp_path, refused):
    line = refused(learn(made, tmp_path / "run", "--method", "at"))
    (told,) = re.findall(r"--serve (\S+)", line)
    assert make(weights, tmp_path / "book", "--serve", told) == 0
    assert learn(tmp_path / "book", tmp_path / "run", "--method", "at") == 0


@pytest.mark.parametrize(
    "given", ["features/stage1/mean,features/stage2/mean", "[features/stage1/mean, features/stage2/mean]"]
)
def test_names_are_a_list_or_have_commas_between(weights, tmp_path, given):
    assert make(weights, tmp_path / "book", "--features", given) == 0
    inside = {name for name in Book(tmp_path / "book").fields if name.startswith("features/")}
    assert inside == {"features/stage1/mean", "features/stage2/mean"}


def test_a_finished_book_does_not_grow_by_features(weights, book, refused):
    line = refused(make(weights, book, "--features", "features/stage2/mean", "--grow"))
    assert "`features` to be among those of the finished book, got 'features/stage2/mean'" in line
    assert "make another one" in line


def test_a_name_without_its_prefix_is_refused(weights, tmp_path, refused):
    line = refused(make(weights, tmp_path / "book", "--features", "stage2/mean"))
    assert "`field` to be features/LAYER or features/LAYER/REDUCTION" in line
    assert not (tmp_path / "book").exists()


def test_a_served_book_grows_with_the_command_that_made_it(weights, tmp_path):
    assert make(weights, tmp_path / "book", "--serve", "at") == 0
    assert make(weights, tmp_path / "book", "--serve", "at", "--grow", "--views.n_views", "3") == 0
    assert Book(tmp_path / "book").n_views == 3
