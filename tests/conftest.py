"""One thread a process: tiny networks, and test processes that share cores, must not wait for each other's threads."""

from __future__ import annotations

import os

# Before torch is first imported, which reads them once; whatever the shell says, so that results do not depend on it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
