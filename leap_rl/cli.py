"""Reads the command line, ``leap-rl train | evaluate | …``, and runs the command. Bad input gives one line and exit
code 2."""

import argparse
import contextlib
import io
import os
import signal
import sys
from typing import NoReturn

from leap_rl.arguments import complain, make_parser
from leap_rl.extras import explain
from leap_rl.types import LeapRLError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 failed, 2 bad input, 130 interrupted."""
    _prepare_streams()
    # torch's optimizers import its compiler, which makes a folder for what it compiles, in /tmp and under a name that
    # others can foresee. Nothing is compiled here: a folder that exists, and is no other user's, will do.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.dirname(os.path.abspath(__file__)))
    with contextlib.suppress(ValueError):  # in a thread, which takes no signals
        signal.signal(signal.SIGTERM, lambda *_: _raise_interrupt())  # what a scheduler or container sends
    try:
        os.getcwd()
    except OSError as error:  # nor could torch's libraries be loaded, which say something else then
        return complain(f"the current directory cannot be used: {error.strerror}; change to another one", 2)
    try:
        options = _parse(arguments)
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except LeapRLError as error:
        return complain(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if not (reason := explain(error)):
            raise
        return complain(reason, 2)
    except KeyboardInterrupt:
        return complain("interrupted; the same command continues where it stopped", 130)
    except BrokenPipeError:  # e.g. `leap-rl games | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        return complain(f"{error.filename or 'writing'}: {error.strerror}", 1)


def _prepare_streams() -> None:
    """Makes the standard streams fit to write to. One that is closed becomes /dev/null: otherwise the next file that is
    opened would take its number, and with it what libraries print. Characters that a stream cannot encode are written
    as Python's escapes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115, as Python opens them
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python's stderr has it


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Takes the arguments key=value out first, since they may stand anywhere, even after an option with several
    values."""
    arguments, parser = sys.argv[1:] if arguments is None else arguments, make_parser()
    overrides = [text for text in arguments if _is_override(text)]
    options = parser.parse_args([text for text in arguments if not _is_override(text)])
    if overrides and "overrides" not in options:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if overrides:
        options.overrides = [*overrides, *options.overrides]
    return options


def _is_override(text: str) -> bool:
    """Returns whether an argument replaces a key: "meta.steps=20", but not "breakout:mode=4" or "--seeds=5"."""
    key, equals, _ = text.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))


def _raise_interrupt() -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
