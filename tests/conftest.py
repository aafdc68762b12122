"""One thread a process: tiny networks, and test processes that share cores, must not wait for each other's threads."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Before torch is first imported, which reads them once; whatever the shell says, so that results do not depend on it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """A book of the digits by one teacher: its path."""
    from tests.learning.digits import book

    return book(tmp_path_factory.mktemp("stored") / "book").path
