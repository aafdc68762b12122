"""Freed memory stays with the process: counted in page faults, not in seconds."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bookkd.core.memory import keep_freed_memory

_FAULTS = """
import resource, sys
import numpy as np
from bookkd.core.memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
np.ones(2**23)  # 64 MiB: glibc gives every such block back
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how):
    found = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=False)
    if found.returncode == 3:
        pytest.skip("the C library has no mallopt")
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


def test_blocks_are_used_again_without_a_page_fault():
    kept, returned = _faults("keep"), _faults("leave")
    assert kept < 100
    assert kept < returned / 5


@pytest.mark.parametrize(
    ("most", "threshold", "trimmed"),
    [(2**31, 2**30, 2**30), (32 * 2**20, 32 * 2**20, 2**30), (512 * 2**10, None, None)],
    ids=["no limit", "limit of 64 bit", "limit of 32 bit"],
)
def test_a_library_that_limits_the_threshold_gets_what_it_takes_or_is_left_alone(monkeypatch, most, threshold, trimmed):
    settings = {}

    def mallopt(parameter, value):
        if parameter == -3 and value > most:  # M_MMAP_THRESHOLD
            return 0
        settings[parameter] = value
        return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() is (threshold is not None)
    assert (settings.get(-3), settings.get(-1)) == (threshold, trimmed)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
