"""What a pickle describes, without doing any of it.

A pickle is a program for a machine with a stack. `torch.save` writes one, and files that others stored come as such. This
machine has the few steps that arrays and plain containers need; a name is a name and a call is a note that somebody wanted
to call it. Nothing is imported, looked up or called, so that there is nothing to allow or to forbid.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any

__all__ = ["Call", "Name", "Reference", "read_pickle"]

MAX_STEPS = 2**18


@dataclass(frozen=True)
class Name:
    """`module.name` of something that the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that the pickle would make, and the state that it would give to what came back."""

    what: Any
    arguments: tuple[Any, ...]
    state: Any = field(default=None)


@dataclass(eq=False)
class Reference:
    """Something that lies outside of the pickle: a storage of torch."""

    key: Any

    def __str__(self) -> str:
        return f"a {self.key[0] if isinstance(self.key, tuple) and self.key else 'reference'}"


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(file: IO[bytes]) -> Any:
    """Read one pickle from where `file` stands, and leave it behind its end.

    Returns:
        Numbers, text, bytes, lists, tuples and dicts, and in the place of anything else a `Name`, `Call` or `Reference`.

    Raises:
        ValueError: for bytes that are no pickle, a step that arrays do not need, or more than `MAX_STEPS` steps.

    >>> import io, pickle
    >>> read_pickle(io.BytesIO(pickle.dumps({"a": [1, (2.5, b"x")]})))
    {'a': [1, (2.5, b'x')]}
    >>> print(read_pickle(io.BytesIO(pickle.dumps(print))))
    builtins.print
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS} steps")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise ValueError(f"a step that does not fit those before ({type(error).__name__})") from error
    raise ValueError("no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        found = self.stack.pop()
        if found is _MARK:
            raise IndexError("mark")
        return found

    def above_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("MARK", "POP", "POP_MARK"):
            self.mark(name)
        elif name in ("TUPLE", "LIST", "DICT") or name in _TUPLES:
            self.contain(name)
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self.fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"):
            self.note(name, argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        else:
            raise ValueError(f"step {name}, which arrays do not need")

    def mark(self, name: str) -> None:
        if name == "MARK":
            self.stack.append(_MARK)
        elif name == "POP":
            self.stack.pop()
        else:
            self.above_mark()

    def contain(self, name: str) -> None:
        found = [self.pop() for _ in range(_TUPLES[name])][::-1] if name in _TUPLES else self.above_mark()
        if name == "DICT":
            self.stack.append(_paired(found))
        else:
            self.stack.append(found if name == "LIST" else tuple(found))

    def fill(self, name: str) -> None:
        if name == "APPEND":
            found = [self.pop()]
        elif name == "SETITEM":
            found = [self.pop() for _ in range(2)][::-1]
        else:
            found = self.above_mark()
        into = self.stack[-1]
        if name.startswith("APPEND"):
            if not isinstance(into, list):
                raise TypeError("no list")
            into.extend(found)
        elif isinstance(into, dict):
            into.update(_paired(found))
        elif not isinstance(into, Call):  # an OrderedDict of state that nobody reads
            raise TypeError("no dict")

    def note(self, name: str, argument: Any) -> None:
        if name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
            self.stack.append(Name(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self.stack.append(Name(str(module), str(attribute)))
        elif name == "BINPERSID":
            self.stack.append(Reference(self.pop()))
        else:
            given, what = self.pop(), self.pop()
            if name == "BUILD":
                if not isinstance(what, Call):
                    raise TypeError("no object")
                what.state = given
                self.stack.append(what)
            else:
                if not isinstance(given, tuple):
                    raise TypeError("no arguments")
                self.stack.append(Call(what, given))


def _paired(found: list[Any]) -> dict[Any, Any]:
    if len(found) % 2 or not all(isinstance(key, str | int) for key in found[::2]):
        raise TypeError("no pairs")
    return dict(zip(found[::2], found[1::2], strict=True))
