"""Names of files, limits, and how many rows go into a unit and a block."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "CONSTANTS_FOLDER",
    "CONSTANT_FILE",
    "EDITION_NAME",
    "FORMAT_VERSION",
    "JSON_LIMIT",
    "KEYS_FILE",
    "KEYS_NAME",
    "LOCK_NAME",
    "MAX_BLOCK_ROWS",
    "MAX_CONSTANTS",
    "MAX_CONSTANT_BYTES",
    "MAX_FIELDS",
    "MAX_HASHES",
    "MAX_ITEMS",
    "MAX_SAMPLES",
    "MAX_SHARDS",
    "MAX_VIEWS",
    "PLAN_FILE",
    "PLAN_NAME",
    "SHARD_STEM",
    "VIEW_FILE",
    "VIEW_FOLDER",
    "block_rows_for",
    "edition_name",
    "keys_name",
    "plan_name",
    "shard_stem",
    "unit_rows_for",
    "view_folder",
]

FORMAT_VERSION = 1

PLAN_NAME = "plan.json"
KEYS_NAME = "keys.safetensors"
LOCK_NAME = ".lock"
EDITION_NAME = re.compile(r"edition-([0-9]{6})\.json")
PLAN_FILE = re.compile(r"plan(?:-([0-9]{6}))?\.json")
KEYS_FILE = re.compile(r"keys(?:-([0-9]{6}))?\.safetensors")
VIEW_FOLDER = re.compile(r"view-[0-9]{4,5}")
VIEW_FILE = re.compile(r"view-[0-9a-f]{8}\.json")
CONSTANTS_FOLDER = "constants"
CONSTANT_FILE = re.compile(r"[0-9a-f]{32}\.safetensors")
SHARD_STEM = re.compile(r"rows-[0-9]{9,13}-[0-9]{9,13}(-[0-9a-f]{8})?")

MAX_SAMPLES = 2**40
MAX_VIEWS = 2**16
MAX_FIELDS = 1024
MAX_CONSTANTS = 1024
MAX_CONSTANT_BYTES = 2**32
"""Data of one constant; a reader holds it in memory."""
MAX_BLOCK_ROWS = 4096
MAX_SHARDS = 2**16
"""Shards of a view, so that a view file stays within `JSON_LIMIT`."""
MAX_HASHES = 2**19
"""Block hashes of a shard, so that its sidecar does."""
MAX_ITEMS = 2**20 - 1
"""Items of a ragged record, so that the ends of a block of 4096 rows fit 32 bits."""
JSON_LIMIT = 16 * 2**20

_BLOCK_BYTES = 4 * 2**20
_UNIT_ROWS = 65536
_CHOSEN_SHARDS = 2**15
_UNIT_BYTES = 128 * 2**20
_UNIT_INPUT_BYTES = 256 * 2**20


def edition_name(number: int) -> str:
    """Return `edition-000001.json` for 1."""
    return f"edition-{number:06d}.json"


def plan_name(number: int) -> str:
    """Return the name of the plan of edition `number`, where it has one of its own: `plan-000002.json` for 2."""
    return PLAN_NAME if number == 1 else f"plan-{number:06d}.json"


def keys_name(number: int) -> str:
    """Return the name of the keys of edition `number`, where it has its own: `keys-000002.safetensors` for 2."""
    return KEYS_NAME if number == 1 else f"keys-{number:06d}.safetensors"


def view_folder(view: int) -> str:
    """Return `view-0003` for 3."""
    return f"view-{view:04d}"


def shard_stem(start: int, stop: int, edition: int = 1) -> str:
    """Return `rows-000000000-000065536` for 0 and 65536; with `-00000002` behind it where edition 2 wrote it.

    So no edition writes a file that another one has named, whatever it makes of the same rows.
    """
    return f"rows-{start:09d}-{stop:09d}" + (f"-{edition:08x}" if edition > 1 else "")


def _power_of_two(value: int) -> int:
    """Return the largest power of two that is at most `value` (at least 1)."""
    return 1 << (max(1, value).bit_length() - 1)


def block_rows_for(part_bytes: Sequence[int], unit_rows: int) -> int:
    """Return the rows of a hashing block: a power of two, at most 4096, 4 MiB a part and `unit_rows`; at least 1.

    >>> block_rows_for([20], 65536), block_rows_for([2**23], 65536)
    (4096, 1)
    """
    return _power_of_two(min(MAX_BLOCK_ROWS, unit_rows, _BLOCK_BYTES // max(1, *part_bytes, 1)))


def unit_rows_for(record_bytes: int, input_bytes: int, n_samples: int) -> int:
    """Return the rows of a unit: at most 65536, 128 MiB encoded, 256 MiB before encoding, and the data set.

    More only where a view would have more than 32768 shards otherwise. 65536 bounds what a killed run has to repeat; the bytes bound what a writer holds in memory.

    >>> unit_rows_for(20, 40, 50_000), unit_rows_for(2000, 4000, 1_281_167)
    (50000, 65536)
    """
    rows = min(_UNIT_ROWS, _UNIT_BYTES // max(1, record_bytes), _UNIT_INPUT_BYTES // max(1, input_bytes))
    return max(1, min(max(rows, -(-n_samples // _CHOSEN_SHARDS)), n_samples))
