"""The command line: parsing and rendering only, one file per command, imported when called; decides nothing.

Every command module has ``add_arguments(parser)``, which fills its parser, and ``execute(args)``, which returns the
exit code.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import os
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from .. import __version__
from ..errors import QCThreadsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

COMMANDS = {
    "run": "compute a many-body expansion: from a molecule to energies",
    "status": "how far a run is, from its store",
    "failures": "which calculations of a run failed, and why",
    "show": "everything a store holds about one calculation",
    "export": "write the results in a store as CSV, JSON or ZIP",
    "exec": "run any command under a lease: on cores of its own, told its width",
    "monitor": "watch any command or process: what its threads did, and what held them up",
    "plan": "a schedule for tasks with known times: widths, CPUs, start and end of each",
    "calibrate": "measure what planning has to know of this machine",
    "topo": "what this machine has: packages, cores, caches, memory nodes",
    "limits": "what may be used of it, and which rule is the tightest",
    "top": "what runs now: CPUs, leases and threads, and how well; live",
    "leases": "who holds what of this node, and who waits for it",
    "programs": "the quantum-chemistry programs known and found here",
    "verify": "run a program at every width, and see whether it obeys",
    "doctor": "what works here, what is missing, and what for",
}

if sys.platform == "win32":
    del COMMANDS["exec"]  # no process groups, no signals to pass on

argparse._ = str  # type: ignore[attr-defined]  # there is nothing but English; to look for it takes a millisecond

_RELAYS = {"exec": 125, "monitor": 125}
"""Commands that run what comes behind `--` and return its status, with the status of their own failures, as env(1)."""

_EPILOG = """exit codes:
  0  done                                   3  valid, but this machine cannot
  1  some calculation failed                4  stopped before the end; the store can be resumed
  2  malformed or contradictory usage or input

`qcthreads exec` and `monitor` return the status of the command they run; their own failures are 125.
`qcthreads COMMAND --help` explains a command, with examples."""


class _Formatter(RawDescriptionHelpFormatter):
    """argparse's, which imports shutil with every parser only to ask for the width of the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


class _Parser(ArgumentParser):
    """argparse with one line for an error, where its usage takes a dozen before it says what is wrong."""

    failure = 2

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the options are explained; exit code 2, or 125 where another's is passed on."""
        from difflib import get_close_matches

        unknown, colon, given = message.partition("unrecognized arguments: ")
        if colon and not unknown:
            option = next((word for word in given.split() if word.startswith("-")), given).partition("=")[0]
            near = get_close_matches(option, self._option_string_actions, n=1)
            message = f"no option {option}" if option.startswith("-") else f"nothing is expected here: {option}"
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(
            self.failure, f"{self.prog}: error: {message}\n`{self.prog} --help` lists the options, with examples\n"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; ``argv`` without the program's name, default ``sys.argv[1:]``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except QCThreadsError as error:
        print(f"qcthreads: error: {error}", file=sys.stderr)
        return max(error.exit_code, _RELAYS.get(arguments[0], 0))
    except KeyboardInterrupt:
        print("qcthreads: stopped", file=sys.stderr)
        return 4
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What is left in the buffer cannot be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("qcthreads: error: the output cannot be written: no space is left there; make some", file=sys.stderr)
        return 3
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else 2


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        pass
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        return _without_command(arguments)
    name, *rest = arguments
    if name in _RELAYS:
        gc.disable()  # the imports leave no garbage worth 6 ms of the 50 that a command may have to wait
    module = importlib.import_module(f"{__name__}.{name}")
    parser = _Parser(
        prog=f"qcthreads {name}",
        description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    command: list[str] | None = None
    if name in _RELAYS:
        parser.failure = _RELAYS[name]
        rest, command = _split_command(parser, rest)
    args = parser.parse_args(_with_negative_values(rest))
    args.command = command
    code: int = module.execute(args)
    return code


def _split_command(parser: ArgumentParser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is ours, before the first ``--``, and the command, which is nobody's business but its own."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    ours = arguments[:at]
    begins = _first_that_is_no_option(parser, ours)
    if begins is not None:
        import shlex

        meant = shlex.join([*parser.prog.split(), *ours[:begins], "--", *arguments[begins:]])
        parser.error(f"the command comes behind `--`; you may mean: {meant}")
    return ours, arguments[at + 1 :]


def _first_that_is_no_option(parser: ArgumentParser, arguments: list[str]) -> int | None:
    """Where the first word is that is neither an option nor the value of one."""
    takes_value = False
    for at, word in enumerate(arguments):
        if not takes_value and not word.startswith("-"):
            return at
        option = None if takes_value else parser._option_string_actions.get(word.partition("=")[0])
        if not takes_value and option is None:  # which argparse tells of
            return None
        takes_value = option is not None and option.nargs is None and "=" not in word
    return None


def _with_negative_values(arguments: list[str]) -> list[str]:
    """``--charges -1,0`` as ``--charges=-1,0``: argparse takes ``-1,0`` for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _without_command(arguments: list[str]) -> int:
    """``--help``, ``--version``, and everything that is not a command."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())
    parser = _Parser(
        prog="qcthreads",
        description="Quantum-chemistry calculations side by side on one node, each on its own cores.",
        epilog=f"commands:\n{commands}\n\n{_EPILOG}",
        usage="qcthreads [--help] [--version] COMMAND ...",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"qcthreads {__version__}")
    parser.parse_known_args([argument for argument in arguments if argument.startswith("-")])
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser.error(f"no command {named!r}; there are: {', '.join(COMMANDS)}" if named else "which command? See --help")
