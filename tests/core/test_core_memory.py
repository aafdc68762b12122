"""Freed memory stays with the process: counted in page faults, not in seconds."""

import subprocess
import sys

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


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
