"""Light dataclasses do as the standard library's do, which are made from the same classes."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from qcthreads import light


class Point:
    """Three fields, of which two may be left out."""

    x: int
    y: int = 2
    tags: list[str]

    @property
    def total(self) -> int:
        """Methods stay."""
        return self.x + self.y


Point.tags = light.field(default_factory=list)

OPTIONS = [{"frozen": True, "slots": True}, {"frozen": True}, {"slots": True}, {"frozen": True, "kw_only": True}]


def _theirs(options: dict[str, bool]) -> Any:
    namespace = {**vars(Point), "tags": dataclasses.field(default_factory=list)}
    namespace = {name: value for name, value in namespace.items() if name not in ("__dict__", "__weakref__")}
    return dataclasses.dataclass(**options)(type("Point", (), namespace))


def _ours(options: dict[str, bool]) -> Any:
    return light.dataclass(**options)(Point)


USES: dict[str, Callable[[Any], Any]] = {
    "made": lambda cls: repr(cls(x=1)),
    "in order": lambda cls: repr(cls(1, 3)),
    "too many": lambda cls: cls(1, 2, [], 4),
    "too few": lambda cls: cls(y=1),
    "unknown": lambda cls: cls(x=1, z=2),
    "twice": lambda cls: cls(1, x=2),
    "method": lambda cls: cls(x=1).total,
    "its own default": lambda cls: cls(x=1).tags is cls(x=1).tags,
    "equal": lambda cls: (cls(x=1) == cls(x=1), cls(x=1) == cls(x=2), cls(x=1) == (1, 2, [])),
    "hash": lambda cls: hash(cls(x=1, tags=())) == hash(cls(x=1, tags=())),
    "assigned": lambda cls: setattr(cls(x=1), "x", 5),
    "deleted": lambda cls: delattr(cls(x=1), "x"),
    "fields": lambda cls: [(one.name, one.type, one.default, one.default_factory) for one in dataclasses.fields(cls)],
    "asdict": lambda cls: dataclasses.asdict(cls(x=1)),
    "replace": lambda cls: repr(dataclasses.replace(cls(x=1), y=7)),
    "replace unknown": lambda cls: dataclasses.replace(cls(x=1), z=7),
    "signature": lambda cls: list(inspect.signature(cls).parameters),
    "copy": lambda cls: repr(copy.copy(cls(x=1))),
    "match": lambda cls: cls.__match_args__,
}


def _tried(use: Callable[[Any], Any], cls: Any) -> Any:
    try:
        return use(cls)
    except (TypeError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("use", USES)
def test_as_the_standard_librarys(use: str, options: dict[str, bool]) -> None:
    assert _tried(USES[use], _ours(options)) == _tried(USES[use], _theirs(options))


@light.dataclass(frozen=True, slots=True)
class Kept:
    """As the book keeps them."""

    name: str
    number: int = 0


def test_replaces_and_pickles() -> None:
    kept = light.replace(Kept("a"), number=3)
    assert kept == Kept("a", 3)
    assert pickle.loads(pickle.dumps(kept)) == kept


def test_imports_nothing() -> None:
    program = "import qcthreads.light, sys; print({'dataclasses', 'inspect', 'typing'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
