"""Pickles of strangers, read as data: nothing that they name is imported, built or called.

Comes in: a pickle of protocol 2 to 4, and the names that it may hold. Goes out: what it holds as numbers, texts, bytes,
lists, tuples and dictionaries; where it wanted to call something, a `Record` says what, with which arguments, and which
state the result was to have. What a record means is for the caller to say.

A pickle is a program for a small machine with a stack (Python's `pickletools` lists its operations). The machine here
knows those that plain data and objects need, and stops at any other: persistent ids, the extension registry, buffers
out of band. Long bytes stay in the file (`BytesInFile`), so that a pickle of 10 GB is read in the memory of its labels.
"""

import io
import pickletools
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGE_BYTES = 2**20
NEWEST_PROTOCOL = 4


class RefusedPickle(ValueError):
    """A pickle that names or does what is not allowed here; one line with the file and the name."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle refers to: only its name, `module.name`."""

    name: str


@dataclass(eq=False)
class Record:
    """An object as the pickle would have had it built: `name` called with `args`, then given `state`."""

    name: str
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class BytesInFile:
    """`size` bytes that lie in the file `path` from `start` on."""

    path: Path
    start: int
    size: int

    def __len__(self) -> int:
        return self.size


def read_pickle(path: str | Path, allowed: Container[str]) -> Any:
    """What the pickle holds, as described above. `allowed`: the names (`module.name`) that it may refer to.

    Raises FileNotFoundError; RefusedPickle naming what is not allowed; ValueError where the file is damaged or no
    pickle. All say it in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    machine = _Machine(path, allowed)
    try:
        with _Reader(path) as file:
            for opcode, argument, _ in pickletools.genops(file):
                machine.step(opcode.name, argument)
        return machine.stack.pop()
    except RefusedPickle:
        raise
    except (ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, AttributeError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: is damaged or no pickle of protocol 2 to {NEWEST_PROTOCOL} ({line})") from None


class _Reader(io.BufferedReader):
    """A file of which long stretches are passed over instead of read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.path = path
        self.length = path.stat().st_size

    def read(self, size: int = -1) -> Any:
        if size < LARGE_BYTES:
            return super().read(size)
        start = self.tell()
        if start + size > self.length:
            raise ValueError(f"ends within {size} bytes that begin at {start}")
        self.seek(start + size)
        return BytesInFile(self.path, start, size)


class _Machine:
    """The stack, the memo, and one method for each group of operations."""

    def __init__(self, path: Path, allowed: Container[str]) -> None:
        self.path = path
        self.allowed = allowed
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSHES_ARGUMENT:
            self.stack.append(argument)
        elif opcode in _PUSHES:
            self.stack.append(_PUSHES[opcode]())
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in _PASSED_OVER:
            named = "" if argument is None else f" {argument!r}"
            raise RefusedPickle(f"{self.path}: found the operation {opcode}{named[:80]}, which is not read here")

    def protocol(self, version: int) -> None:
        if version > NEWEST_PROTOCOL:
            raise RefusedPickle(f"{self.path}: found protocol {version}, expected at most {NEWEST_PROTOCOL}")

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def make_tuple(self, size: int) -> None:
        start = len(self.stack) - size
        if start < 0:
            raise IndexError("the stack is too short")
        self.stack[start:] = [tuple(self.stack[start:])]

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError(f"items for {type(self.stack[-1]).__name__}, expected list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise TypeError(f"keys for {type(self.stack[-1]).__name__}, expected dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples would be hashed, which a stranger can make as slow as they like.
            if not isinstance(key, str | int | float | bytes | None):
                raise TypeError(f"a key is {type(key).__name__}, expected text or a number")
            self.stack[-1][key] = value

    def refer(self, name: str) -> None:
        if name not in self.allowed:
            # A damaged name may hold anything, line ends too.
            shown = "".join(letter if letter.isprintable() else "?" for letter in name[:100])
            raise RefusedPickle(f"{self.path}: names {shown}, which is not among the names allowed here")
        self.stack.append(Name(name))

    def stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name is no text")
        self.refer(f"{module}.{name}")

    def call(self, _: None) -> None:
        args, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise TypeError(f"{type(called).__name__} is called with {type(args).__name__}")
        empty = called.name == "collections.OrderedDict" and not args
        self.stack.append({} if empty else Record(called.name, args))

    def build(self, _: None) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
            raise TypeError(f"state for {type(self.stack[-1]).__name__}, expected an object")
        self.stack[-1].state = state

    def last_two(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]


_PASSED_OVER = {"FRAME", "STOP"}
_PUSHES_ARGUMENT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_PUSHES = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_ACTIONS = {
    "PROTO": _Machine.protocol,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last_two()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "GLOBAL": lambda machine, name: machine.refer(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
