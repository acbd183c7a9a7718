"""What stands before a command: a shell's setup, a container's or an environment's launcher; starts nothing.

The mask goes through all of them, for the kernel hands it on. Variables may not: launchers scrub the environment, and
login shells set it anew. So what the command is to be told is said once more right before it, by env(1).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence

from ..errors import InputError
from ..light import dataclass

# Of a setup that does not exit by itself.
_FAILED = '{ echo "qcthreads: the setup failed with status $?; nothing was started behind it" >&2; exit 125; }'
_SHELLS = ("sh", "bash", "dash", "ksh", "zsh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """``setup``: shell commands that a login shell runs first; ``wrap``: words that the command is put behind."""

    setup: str = ""
    wrap: tuple[str, ...] = ()

    @classmethod
    def of(cls, setup: str | None, wrap: str | None) -> Wrapping:
        """From what a user writes; InputError where that is nothing, or has quotes that do not end."""
        if setup is None and wrap is None:
            return cls()
        if sys.platform == "win32":
            raise InputError("a setup or wrapper needs bash and env, which Windows does not have; leave it out")
        import shlex  # which a command that starts in 50 ms can do without

        try:
            words = tuple(shlex.split(wrap or ""))
        except ValueError as error:
            raise InputError(f"the wrapper {wrap!r} is no list of words: {error}; quote it as in a shell") from None
        for what, said, found in (("setup", setup, setup and setup.strip()), ("wrapper", wrap, words)):
            if said is not None and not found:
                raise InputError(f"an empty {what} was given; leave it out, or write what is to come first")
        return cls(setup=setup or "", wrap=words)

    def __bool__(self) -> bool:
        return bool(self.setup or self.wrap)

    def around(self, command: Sequence[str], told: Mapping[str, str], removed: Iterable[str]) -> list[str]:
        """``command`` behind all of it, where it is told ``told``, and nothing of the names ``removed``."""
        if not self:
            return [*command]
        gone = [word for name in sorted(set(removed) - set(told)) for word in ("-u", name)]
        inner = ["env", *gone, *(f"{name}={value}" for name, value in told.items()), *command]
        if self.wrap:
            inner = [*self.wrap, *(_as_text(inner) if _takes_text(self.wrap) else inner)]
        if self.setup:
            # What it prints is not the command's output.
            inner = ["bash", "-l", "-c", f'{{ {self.setup}\n}} >&2 || {_FAILED}\nexec "$@"', "bash", *inner]
        return inner


def _as_text(command: Sequence[str]) -> list[str]:
    import shlex

    return [shlex.join(command)]


def _takes_text(wrap: Sequence[str]) -> bool:
    """Whether it ends with a shell's option for a command as one text: ``bash -lc``."""
    shell = any(os.path.basename(word) in _SHELLS for word in wrap[:-1])  # noqa: PTH119
    return shell and wrap[-1].startswith("-") and wrap[-1].endswith("c")
