"""Freed memory stays with the process, counted in page faults, not in seconds; the most of a while is measured."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bookkd.core.memory import available_memory, forget_peak_memory, keep_freed_memory, peak_memory

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


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    5000 kB\nHugePages_Total:   0\n"}
V2 = {**MEMINFO, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.current": "3000000\n"}
V2 |= {"sys/fs/cgroup/a/b/memory.stat": "anon 1000000\ninactive_file 1500000\nactive_file 500000\n"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (MEMINFO, 5000 * 1024),
        (
            {**V2, "sys/fs/cgroup/a/b/memory.max": "4000000\n"},
            3_000_000,
        ),  # 1 of 4 million is taken, but for cached files
        ({**V2, "sys/fs/cgroup/a/b/memory.max": "max\n"}, 5000 * 1024),
        ({**V2, "sys/fs/cgroup/a/b/memory.max": "500000\n"}, 0),
        (
            {**V2, "sys/fs/cgroup/a/memory.max": "100\n", "sys/fs/cgroup/a/memory.current": "40\n"},
            60,
        ),  # of the group above
    ],
    ids=["no group", "limit", "no limit", "over the limit", "limit above"],
)
def test_available_memory_is_the_least_of_machine_and_groups(tmp_path, files, wanted):
    assert available_memory(system(tmp_path, files)) == wanted


def test_groups_of_version_1_and_of_a_container_that_sees_its_own_only(tmp_path):
    files = {**MEMINFO, "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/123\n0::/\n"}
    inside = "sys/fs/cgroup/memory"
    files |= {f"{inside}/memory.limit_in_bytes": "1000000", f"{inside}/memory.usage_in_bytes": "400000"}
    files |= {f"{inside}/memory.stat": "total_active_file 50000\ntotal_inactive_file 50000\n"}
    assert available_memory(system(tmp_path, files)) == 700_000


def test_a_system_that_does_not_say_it_and_a_damaged_one(tmp_path):
    assert available_memory(tmp_path) is None
    files = {"proc/meminfo": "MemAvailable: lots\n", "proc/self/cgroup": "nonsense\n4:memory:/../../etc\n"}
    assert available_memory(system(tmp_path, files)) is None


def test_here_it_is_less_than_the_machine_has():
    found = available_memory()
    if found is None:
        pytest.skip("the system does not say it")
    assert 2**20 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
