"""The plan of a book: what is written first, and what a resumed run is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from bookkd.book import _checked, _layout
from bookkd.book._json_values import json_values, parsed
from bookkd.book.codecs import codec_from_config
from bookkd.book.constant import Constant, constant_from_json
from bookkd.book.field_plan import FieldPlan
from bookkd.book.ragged import Flat
from bookkd.book.teacher_info import TeacherInfo, teacher_from_json
from bookkd.core import jsonio
from bookkd.core.check import at_least, positive, unique
from bookkd.core.errors import BookFormatError, ConfigError, expected
from bookkd.core.fields import LOGITS, check_field_name

__all__ = ["FieldPlan", "Plan", "Unit"]


class Unit(NamedTuple):
    """Rows `start` to `stop` (exclusive) of one view: the grain of writing, retry and resume."""

    view: int
    start: int
    stop: int


TOLD = ("name", "extracted", "grid")
"""Entries of `data` that are no part of what the data are: their name, of a part of a book what it was taken from, and of what a teacher
says of pixels on which grid."""
VERSIONS = "versions"
"""Entry of a recipe of views that says which libraries drew it."""


@dataclass(frozen=True)
class Plan:
    """Everything that a book is about, fixed before the first record.

    Args:
        n_samples: Samples of the data set; records are addressed by sample 0 to n_samples - 1.
        n_views: Views of each sample.
        fields: Field name -> `FieldPlan`.
        task: Name of the task.
        teachers: Who spoke, in the order of `members/<i>`.
        data: Fingerprint of the data set, JSON values.
        views: Recipe of the views, JSON values.
        class_names: In the order of the logits; may be empty.
        masked_classes: Classes whose logit may be -inf.
        temperatures: Where the fidelity of logits is measured while writing.
        unit_rows: Rows of a unit; None chooses from the size of a record.
        block_rows: Rows of a hashing block, a power of two up to 4096; None chooses.
        batch_size: Samples of a teacher pass; a unit always uses the same batches, so that a resumed book is equal.
        threads: Threads of the teacher pass, recorded.
        device: Device of the teacher pass, recorded.
        versions: Library versions of the writer, recorded.
        keys_digest: xxh3_128 of `keys.safetensors`; set by the writer.
        choice: Where the codec was chosen by measuring: what was asked, tried and taken, see `choose_codec`; recorded.
        sources: Content digests of the books whose records are written again here, in order; recorded, and held against those
            of a run that goes on with the book. Empty for what a teacher says.
        constants: What the teachers have once, by names like those of fields, such as `classifier/weight`; set by the writer.

    >>> from bookkd.book import Dense
    >>> plan = Plan(n_samples=100, n_views=2, fields={"logits": FieldPlan((10,), Dense())})
    >>> [unit.view for unit in plan.resolved().units()]
    [0, 1]
    """

    n_samples: int
    n_views: int
    fields: Mapping[str, FieldPlan]
    task: str = "classification"
    teachers: tuple[TeacherInfo, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    masked_classes: tuple[int, ...] = ()
    temperatures: tuple[float, ...] = (1.0, 4.0)
    unit_rows: int | None = None
    block_rows: int | None = None
    batch_size: int = 256
    threads: int = 1
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    keys_digest: str | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    constants: Mapping[str, Constant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry, high in (("n_samples", _layout.MAX_SAMPLES), ("n_views", _layout.MAX_VIEWS)):
            if at_least(getattr(self, entry), 1, entry, where="plan") > high:
                raise ConfigError(expected(entry, f"at most {high}", getattr(self, entry), where="plan"))
        at_least(self.batch_size, 1, "batch_size", where="plan")
        at_least(self.threads, 1, "threads", where="plan")
        self._check_fields()
        self._check_constants()
        for entry in ("teachers", "class_names", "masked_classes", "temperatures", "sources"):
            object.__setattr__(self, entry, tuple(getattr(self, entry)))
        self._check_classes()
        for temperature in self.temperatures:
            positive(temperature, "temperatures", where="plan")
        unique(self.temperatures, "temperatures", where="plan")
        object.__setattr__(self, "temperatures", tuple(float(value) for value in self.temperatures))
        for entry in ("data", "views", "versions", "choice"):
            object.__setattr__(self, entry, json_values(getattr(self, entry), entry))
        self._check_rows()

    def _check_fields(self) -> None:
        if not 1 <= len(self.fields) <= _layout.MAX_FIELDS:
            raise ConfigError(expected("fields", f"1 to {_layout.MAX_FIELDS} fields", len(self.fields), where="plan"))
        for name, entry in self.fields.items():
            check_field_name(name)
            if not isinstance(entry, FieldPlan):
                raise ConfigError(expected(f"fields[{name}]", "a FieldPlan", entry, where="plan"))
        object.__setattr__(self, "fields", dict(sorted(self.fields.items())))
        tensors = [tensor for name, entry in self.fields.items() for tensor in entry.stored(name)]
        unique(tensors, "fields", where="plan", do="Rename a field that ends like a part of another.")

    def _check_constants(self) -> None:
        if len(self.constants) > _layout.MAX_CONSTANTS:
            wish = f"at most {_layout.MAX_CONSTANTS}"
            raise ConfigError(expected("constants", wish, len(self.constants), where="plan"))
        for name, entry in self.constants.items():
            check_field_name(name)
            if not isinstance(entry, Constant):
                raise ConfigError(
                    expected(f"constants[{name}]", "a Constant", entry, where="plan", do="Give arrays to the writer.")
                )
        object.__setattr__(self, "constants", dict(sorted(self.constants.items())))

    def _check_classes(self) -> None:
        unique(self.masked_classes, "masked_classes", where="plan")
        for name in self.class_names:
            if not isinstance(name, str):
                raise ConfigError(expected("class_names", "texts", name, where="plan"))
        for source in self.sources:
            if not isinstance(source, str):
                raise ConfigError(expected("sources", "texts", source, where="plan"))
        for teacher in self.teachers:
            if not isinstance(teacher, TeacherInfo):
                raise ConfigError(expected("teachers", "TeacherInfo entries", teacher, where="plan"))
        widths = [entry.shape[0] for name, entry in self.fields.items() if is_logits(name) and entry.shape]
        for index in self.masked_classes:
            at_least(index, 0, "masked_classes", where="plan")
            if any(index >= width for width in widths):
                raise ConfigError(expected("masked_classes", f"below the {min(widths)} classes", index, where="plan"))

    def _check_rows(self) -> None:
        if self.unit_rows is not None:
            at_least(self.unit_rows, 1, "unit_rows", where="plan")
        if self.block_rows is not None:
            block = at_least(self.block_rows, 1, "block_rows", where="plan")
            if block & (block - 1) or block > _layout.MAX_BLOCK_ROWS:
                raise ConfigError(expected("block_rows", "a power of two up to 4096", block, where="plan"))
            if self.unit_rows is not None and self.unit_rows < self.n_samples and self.unit_rows % block:
                raise ConfigError(
                    expected(
                        "unit_rows", f"a multiple of block_rows ({block}) or all samples", self.unit_rows, where="plan"
                    )
                )

    @property
    def stored(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Tensors of a shard: `<field>/<part>` -> (dtype, shape of one row), ordered by name."""
        found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for name, entry in self.fields.items():
            found.update(entry.stored(name))
        return dict(sorted(found.items()))

    @property
    def flat(self) -> dict[str, Flat]:
        """Those of `stored` whose first axis is items, not rows."""
        return {tensor: flat for name, entry in self.fields.items() for tensor, flat in entry.flat(name).items()}

    @property
    def record_bytes(self) -> int:
        """Bytes of one record in a shard, without the header; the most where parts are ragged."""
        return sum(entry.bytes_per_record for entry in self.fields.values())

    def resolved(self) -> Plan:
        """Return the plan with `unit_rows` and `block_rows` chosen where they were left open."""
        inputs = sum(entry.input_bytes for entry in self.fields.values())
        unit = self.unit_rows or _layout.unit_rows_for(self.record_bytes, inputs, self.n_samples)
        unit = min(unit, self.n_samples)
        parts = [size for entry in self.fields.values() for size in entry.part_bytes.values()]
        block = self.block_rows or _layout.block_rows_for(parts, unit)
        if unit < self.n_samples and unit % block:
            if self.unit_rows is None:
                unit = min(self.n_samples, max(block, unit - unit % block))
            else:
                block = unit & -unit
        return replace(self, unit_rows=unit, block_rows=block)

    def check_limits(self) -> None:
        """Refuse a resolved plan whose manifests would be longer than a reader accepts.

        Raises:
            ConfigError: naming the entry to change.
        """
        unit, block = self.unit_rows or self.n_samples, self.block_rows or 1
        shards, hashes = -(-self.n_samples // unit), -(-unit // block) * len(self.stored)
        if shards > _layout.MAX_SHARDS:
            raise ConfigError(
                expected("unit_rows", f"such that a view has at most {_layout.MAX_SHARDS} units", f"{shards} units")
            )
        if hashes > _layout.MAX_HASHES:
            raise ConfigError(
                expected("block_rows", f"such that a unit has at most {_layout.MAX_HASHES} hashes", f"{hashes} hashes")
            )
        _readable(jsonio.pretty(self.to_json()), _layout.PLAN_NAME)

    def units(self) -> Iterator[Unit]:
        """Yield the units of a resolved plan in (view, start) order."""
        rows = self.unit_rows or self.n_samples
        for view in range(self.n_views):
            for start in range(0, self.n_samples, rows):
                yield Unit(view, start, min(start + rows, self.n_samples))

    def to_json(self) -> dict[str, Any]:
        """Return the content of `plan.json`, JSON values only."""
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        found["fields"] = {name: entry.to_json() for name, entry in self.fields.items()}
        found["teachers"] = [teacher.to_json() for teacher in self.teachers]
        for entry in ("class_names", "masked_classes", "temperatures", "sources"):
            found[entry] = list(found[entry])
        found["constants"] = {name: entry.to_json() for name, entry in self.constants.items()}
        for entry in ("choice", "sources", "constants"):
            if not found[entry]:
                del found[entry]
        return {"format_version": _layout.FORMAT_VERSION, **found}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str = _layout.PLAN_NAME) -> Plan:
        """Return the plan that `to_json` wrote, trusting nothing.

        Raises:
            BookVersionError: for a newer format version.
            BookFormatError: for anything that is not a plan.
            UnknownNameError: for a codec that this version does not know.
        """
        _checked.version(found, where)
        known = {entry.name for entry in fields(cls)}
        values = {key: parsed(value) for key, value in found.items() if key in known}
        try:
            values["fields"] = {
                name: _field_from_json(entry, where) for name, entry in _checked.mapped(found, "fields", where).items()
            }
            values["teachers"] = tuple(
                teacher_from_json(teacher) for teacher in _checked.listed({"teachers": [], **found}, "teachers", where)
            )
            constants = _checked.mapped({"constants": {}, **found}, "constants", where)
            values["constants"] = {
                name: constant_from_json(_checked.mapped(constants, name, where), where) for name in constants
            }
            for entry in ("class_names", "masked_classes", "temperatures", "sources"):
                if entry in values:
                    values[entry] = tuple(_checked.listed(found, entry, where))
            for entry in ("task", "device"):
                if entry in values:
                    _checked.text(found, entry, where)
            if values.get("keys_digest") is not None:
                _checked.hex_digest(found, "keys_digest", where)
            return cls(**values)
        except (ConfigError, TypeError, AttributeError, ArithmeticError) as error:
            raise BookFormatError(
                f"Expected {where} to be the plan of a book, got: {error} Run `bookkd verify`."
            ) from error

    def identity(self) -> dict[str, Any]:
        """Return what makes a book another book, by name: what the content digest covers.

        Left out: what the run was like (`threads`, `device`, `versions`, how the codec was chosen, which books were the sources,
        and in `views` the `versions` of libraries), and what is only told about the data (its name) and a teacher (its name, size and accuracy). One book made on two
        machines has one identity: what a view is, its probe proves.
        """
        found = self.to_json()
        for entry in ("threads", "device", "versions", "choice", "sources", "format_version"):
            found.pop(entry, None)
        found["data"] = {key: value for key, value in self.data.items() if key not in TOLD}
        found["views"] = {key: value for key, value in self.views.items() if key != VERSIONS}
        found["teachers"] = [{"digest": teacher.digest, "mode": teacher.mode} for teacher in self.teachers]
        return found


def is_logits(name: str) -> bool:
    """Say whether a field holds logits of a teacher or of a member: masked classes and fidelity concern these."""
    return name == LOGITS or name.endswith("/" + LOGITS)


def _readable(data: bytes, where: str) -> None:
    try:
        jsonio.parse(data, where, limit=_layout.JSON_LIMIT)
    except BookFormatError as error:
        raise ConfigError(
            expected(where, "readable again", f"{error}", do="Make `data`, `views` or names shorter.")
        ) from error


def _field_from_json(found: Any, where: str) -> FieldPlan:
    if not isinstance(found, dict):
        raise BookFormatError(expected("fields", "objects", found, where=where))
    shape = tuple(_checked.integers(found, "shape", where))
    baked = parsed(_checked.mapped(found, "baked", where)) if "baked" in found else None
    positions = _checked.integer(found, "positions", where, 1, _layout.MAX_ITEMS) if "positions" in found else None
    taken = parsed(_checked.mapped(found, "taken", where)) if "taken" in found else None
    return FieldPlan(shape, codec_from_config(_checked.mapped(found, "codec", where)), baked, positions, taken)
