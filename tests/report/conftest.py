"""Numbers that the tests of the formats and of the page share."""

from __future__ import annotations

import pytest
from tests.report import records

from bookkd.report import Numbers, numbers_of


@pytest.fixture(scope="session")
def hostile() -> Numbers:
    return numbers_of(records.as_found(records.hostile()), title=records.HOSTILE)
