"""Errors that a user can mend, and files that are never half-written. Imports no sibling module."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError as error:  # Windows has no such module
    raise ImportError("this code locks its files with fcntl: it runs on Linux and macOS only") from error


class InputError(Exception):
    """Something the user gave is wrong: told in one message, without a traceback, exit code 2."""


class EnvironmentFault(Exception):
    """An environment gave what histories cannot hold: told in one message, without a traceback, exit code 1."""


class WriteError(Exception):
    """A file could not be written: told in one message, exit code 1; what was there before is intact."""


def one_line(error: BaseException, most: int = 300) -> str:
    """An exception's message, or its type, without line breaks and cut to `most` characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:most]


def describe_foreign_error(error: BaseException, folder: Path | None = None) -> str:
    """One line about an exception that code of the user's raised, with the path of a file that holds its traceback.

    Args:
        folder: where that file goes; None for the system's folder of temporary files.
    """
    if isinstance(error, WriteError):  # it says all there is
        return str(error)
    said = ", ".join([f"{type(error).__name__}: {one_line(error)}", *getattr(error, "__notes__", [])])
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix="traceback-", suffix=".txt", dir=folder)
        with open(number, "w") as file:
            traceback.print_exception(error, file=file)
    except OSError:  # no place for it: then the line has to do
        return said
    return f"{said} (traceback in {name})"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then give it its name in one step.

    Raises:
        WriteError: it could not be written, as on a full disk; a file that was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # h5py and torch report a full disk as either
        kept = "the file that was there is intact" if path.exists() else "nothing half-written is left"
        raise WriteError(f"{path}: could not be written ({one_line(error)}); {kept}") from error
    finally:
        with suppress(OSError):  # it is not there, or its folder is not
            temporary.unlink()


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what `write_atomically` left behind when it was killed; only while holding the `lock`."""
    for path in folder.glob(f".{name}.tmp*"):
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and check that files can be written there.

    Raises:
        WriteError: they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise WriteError(f"{path}: nothing can be written there ({one_line(error)}); choose another folder") from error


def lock(path: Path) -> TextIO:
    """Keep a second process from writing `path` too, until the returned file is closed.

    Raises:
        InputError: another process holds the lock.
        WriteError: the folder cannot be written to.
    """
    try:
        file = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115, the caller keeps it open
    except OSError as error:
        raise WriteError(f"{path.parent}: nothing can be written there ({one_line(error)})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"{path}: another process is at work on it; wait for it, or stop it first") from None
    return file
