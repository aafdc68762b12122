"""Freed memory stays with the process, counted in page faults, not in seconds; the most of a while is measured."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from bookkd.core.memory import forget_peak_memory, keep_freed_memory, peak_memory

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


_PEAKS = """
import numpy as np
from bookkd.core.memory import forget_peak_memory, peak_memory

print(peak_memory() is not None)
np.ones(2**24)  # 128 MiB
after = peak_memory()
print(forget_peak_memory())
low = peak_memory()
np.ones(2**23)
print(after, low, peak_memory())
"""


def test_the_peak_is_of_what_was_held_and_can_begin_anew():
    # In a process of its own, since one that keeps freed memory holds it already.
    done = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True)
    known, forgotten, *sizes = done.stdout.split()
    if (known, forgotten) != ("True", "True"):
        pytest.skip("the system does not say it, or cannot forget it")
    after, low, again = map(int, sizes)
    assert after - low == pytest.approx(128 * 2**20, rel=0.2)
    assert again - low == pytest.approx(64 * 2**20, rel=0.2)


def test_without_proc_it_is_what_getrusage_says(monkeypatch):
    resource = pytest.importorskip("resource")

    def missing(*_, **__):
        raise OSError

    monkeypatch.setattr("pathlib.Path.read_text", missing)
    monkeypatch.setattr("pathlib.Path.write_text", missing)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setattr("sys.platform", "linux")
    assert (peak_memory(), forget_peak_memory()) == (3 * 1024, False)
    monkeypatch.setattr("sys.platform", "darwin")
    assert peak_memory() == 3
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None
