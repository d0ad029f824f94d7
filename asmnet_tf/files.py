"""What every reader and writer keeps to: one-line errors for bad input, files that appear whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import h5py
    import numpy as np

# what h5py raises for a file that is cut short, damaged or of another kind
BROKEN_HDF5 = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
BROKEN_HDF5 += (MemoryError, RuntimeError, SystemError)

# a small file can unpack to any size; genuine ones of ours take a few times their size on disk
MAX_UNPACKED_BYTES = 256 << 20
MAX_EXPANSION = 20
MAX_TEXT_BYTES = 16 << 20
_MAX_MESSAGE = 800  # characters
_TEMPORARY, _LOCK = ".writing-", ".lock"
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: file, what came, what to do. Exit code 2.

    What a file holds may be quoted in it, so what would break the line or move a terminal's cursor is escaped.
    disk_full: nothing more fits; other processes are told, too, which get no `__cause__`.
    """

    disk_full = False

    def __init__(self, message: str) -> None:
        text = printable(message)
        if len(text) > _MAX_MESSAGE:
            text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 4 :]}"
        super().__init__(text)


class OutputError(InputError):
    """A file or folder cannot be written."""


@contextlib.contextmanager
def refusing(
    what: str, errors: tuple = (Exception,), then: str = "", passing: type = InputError, length: int = 120
) -> Iterator[None]:
    """Turns one of `errors` that is not `passing` into the InputError `what (its first line). then`."""
    try:
        yield
    except passing:
        raise
    except errors as error:
        named = isinstance(error, OSError) and error.filename and str(error.filename) in what  # not to name it twice
        reason = error.strerror if named else first_line(error, length)
        raise InputError(f"{what} ({reason}). {then}".rstrip()) from error


@contextlib.contextmanager
def writing(path: str | os.PathLike, what: str = "cannot be written") -> Iterator[None]:
    """Turns an OSError into an OutputError that names `path` and the system's reason."""
    try:
        yield
    except OSError as error:
        told = OutputError(f"{path}: {what} ({error.strerror or error}). Choose another output.")
        told.disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise told from error


def printable(text: str) -> str:
    """Returns `text` with all that would break a line or move a terminal's cursor escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def utf8(text: object) -> str:
    """Returns a text or path as UTF-8 can hold it: bytes of a file's name that are no UTF-8 become `\\udcXX`."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def numbered(name: str) -> Iterator[str]:
    """Yields `name`, `name-2`, `name-3`, ...: the first that is free is taken."""
    return itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))


def first_line(error: BaseException, length: int = 80) -> str:
    """Returns the beginning of what an exception says, its type where it says nothing: the reason in an InputError."""
    return (str(error).splitlines() or [type(error).__name__])[0][:length]


def check_expansion(unpacked: int, packed: int) -> None:
    """Raises: ValueError if data of so many bytes are too many for a file of so many bytes."""
    if unpacked > max(MAX_UNPACKED_BYTES, MAX_EXPANSION * packed):
        raise ValueError(f"unpacks to {unpacked / 1e6:.0f} MB from {packed / 1e6:.1f}")


def check_archive(path: str | os.PathLike) -> None:
    """Raises: ValueError if the members of a zip archive unpack to too much; what `zipfile` does if it is none."""
    with zipfile.ZipFile(path) as archive:
        check_expansion(sum(member.file_size for member in archive.infolist()), os.path.getsize(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name in the folder of `path`, with its ending; on success renames it to `path`.

    Whatever stood at `path` stays untouched until the new file is complete, and if writing fails.

    Raises: OutputError if the folder or file cannot be written.
    """
    path = Path(path)
    temporary = _beside(path, path.suffix)
    try:
        with writing(path):
            make_folder(path.parent)
            temporary.touch()
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # else a machine that loses power may keep the new name without the content
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _beside(path: Path, ending: str = "") -> Path:
    return path.parent / f"{_TEMPORARY}{uuid.uuid4().hex[:12]}{ending}"


def sweep(folder: str | os.PathLike) -> None:
    """Removes the temporary files of `replacing` that a killed process left; nobody else may be writing there."""
    for left in Path(folder).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            left.unlink()


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike, known_by: str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success renames it to `path`, as `replacing` does with a file.

    A folder that stands there is replaced only if it is empty or holds `known_by`, a file of what is being written.

    Raises: InputError if the folder cannot be written, or something else stands there.
    """
    path = Path(path)
    new, old = _beside(path), _beside(path)
    try:
        with writing(path):
            make_folder(path.parent)
            if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / known_by).is_file())):
                told = f"holds something else, no {known_by}, is not replaced. Choose another output."
                raise InputError(f"{path}: {told}")
            new.mkdir()
            yield new
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
    finally:
        with contextlib.suppress(OSError):  # else it would hide what went wrong before
            if old.exists() and not path.exists():  # the last rename failed
                os.rename(old, path)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, as `utf8` does; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def relative_path(text: str) -> str:
    """Returns an absolute path relative to the current folder; outside it is cut: /data/300w becomes 300w."""
    path, here = Path(os.path.normpath(text)), Path.cwd()
    if not path.is_absolute():
        return text
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder with its parents. Raises: OutputError if it cannot be made or written to."""
    path = Path(path)
    with writing(path, "this folder cannot be made"):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: this folder cannot be written to. Choose another output.")
    return path


@contextlib.contextmanager
def owned(folder: str | Path, hint: str = "another output", waiting: str = "", part: str = "") -> Iterator[Path]:
    """Makes a folder and keeps it for this process alone; yields its path. One that stays empty is removed again.

    Args:   hint: what else to choose. waiting: wait for the other process, and after two seconds say this on stderr.
            part: only what this names is kept, so that several processes fill a folder.
    Raises: InputError that names the process whose the folder is; OutputError if it cannot be written.
    """
    folder = Path(folder)
    path, made, tries = folder / f"{_LOCK}{part}", not folder.exists(), 0
    with writing(path):
        while not (file := _lock(path)):
            tries += 1
            if tries == 3 and not waiting:  # it may just have ended, or be about to write who it is
                owner = ""
                with contextlib.suppress(OSError):  # removed at this moment
                    owner = path.read_text("utf-8", "replace")
                told = f"in use by {owner or 'another process'} ({path.name} in it)"
                raise InputError(f"{folder}: {told}. Wait until it has ended, or choose {hint}.")
            if tries == 20:
                print(f"{waiting}; waiting", file=sys.stderr)
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            if os.name == "nt":
                file.close()  # there an open file keeps its name
            path.unlink()  # elsewhere before it is freed: who opened it meanwhile sees that its name is gone
        file.close()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(path: Path) -> TextIO | None:
    """Returns the lock file, open and locked; None where another process has it or has just removed it."""
    make_folder(path.parent)
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a+", encoding="utf-8"))
        try:
            if os.name == "nt":
                import msvcrt

                os.lseek(file.fileno(), 1 << 20, os.SEEK_SET)  # others could not read the byte that is locked
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees that of a process that is killed
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            print(f"{path.parent}: has no locks ({error.strerror}); let no other process write there", file=sys.stderr)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            stack.pop_all()
            return file
    return None


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz`, never unpickling; a `.npy` is not accepted.

    Raises: FileNotFoundError; InputError for a file that is no whole `.npz` of plain arrays.
    """
    import numpy as np  # here, so that `--help` does not wait for it

    told, missing = f"{path}: not a whole .npz file of plain arrays", FileNotFoundError
    with refusing(told, passing=missing, length=80), np.load(path, allow_pickle=False) as file:
        check_archive(path)
        arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # numpy gives other members of the archive as bytes
                raise ValueError(f"its member {name} is no array")
    return arrays


def read_array(path: str | os.PathLike, mapped: bool = False) -> np.ndarray:
    """Reads the one array of a `.npy`, whatever the file is called, never unpickling.

    Args:   mapped: leave it on disk: a read-only memory map, whose parts are read as they are used.
    Raises: FileNotFoundError; InputError for a file that is no whole `.npy` of a plain array.
    """
    import numpy as np

    told, missing = f"{path}: not a whole .npy file of one plain array", FileNotFoundError
    with refusing(told, passing=missing, length=80), np.errstate(over="raise"):  # of a shape that no file can have
        array = np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive of arrays")
        return array


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Reads a text file as people's programs write it: UTF-8 or UTF-16, any line ends, which come back as `\\n`.

    Bytes that are no UTF-8 are taken as Windows-1252, which spreadsheets write, and that is said on stderr.

    Raises: InputError where it cannot be read, is longer or is no text.
    """
    with refusing(f"{path}: cannot be read", (OSError,), "Is it there, whole?"), open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InputError(f"{path}: more than {max_bytes >> 20} MB of text. Is it the right file?")
    coding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    zeros = [data[place:1000:2].count(0) for place in (0, 1)]
    if coding == "utf-8" and max(zeros) > min(len(data), 1000) // 4 > min(zeros):  # UTF-16 without a mark
        coding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    text = data.decode(coding, "surrogateescape" if coding.startswith("utf-8") else "replace")
    if re.search(r"[\x00-\x08\x0e-\x19]", text):
        raise InputError(f"{path}: not a text file. Is it the right file?")
    text, others = re.subn("[\udc80-\udcff]", lambda c: bytes([ord(c[0]) & 255]).decode("cp1252", "replace"), text)
    if others:
        print(f"{path}: {others} bytes are not UTF-8 and are read as Windows-1252", file=sys.stderr)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_numbers(fields: Sequence[str], marks: set[str] | None = None) -> list[float]:
    """Returns numbers that are written with a decimal point or, all of them, with a decimal comma.

    Args:   marks: those of the numbers before, to which the marks of these are added.
    Raises: ValueError with the reason.
    """
    text, marks = " ".join(fields), set() if marks is None else marks
    marks.update(mark for mark in ",." if mark in text)
    if len(marks) == 2:
        raise ValueError("a comma as decimal point in one number, a point in another")
    with contextlib.suppress(ValueError):
        return [float(field.replace(",", ".")) for field in fields]
    raise ValueError(f"{text[:40]!r} are not all numbers")


def read_json(path: str | os.PathLike) -> object:
    """Reads a JSON file. Raises: FileNotFoundError; ValueError where it cannot be read, is damaged or far too long."""
    os.stat(path)
    with refusing(f"{path}: cannot be read", (RecursionError,)):
        return json.loads(read_text(path))


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Returns the bytes that this process can still take, as the system tells it; a lot where it does not."""
    free = sys.maxsize
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), free)
    with contextlib.suppress(OSError, ValueError):  # "max", or no such file: no limit of a container
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return free


# --- HDF5: arrays of one file alone, of bounded size ---
def read_dataset(group: h5py.Group, name: str | h5py.Reference) -> np.ndarray:
    """Reads one array.

    Raises: ValueError for a group, for data that lie in another file, and for an array that is far larger than the
        file; else one of BROKEN_HDF5.
    """
    import h5py
    import numpy as np

    dataset = group[name]
    said = name[:60] if isinstance(name, str) else "what a reference names"
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{said} is a {type(dataset).__name__.lower()} instead of an array")
    if dataset.file.filename != group.file.filename:
        raise ValueError(f"the data of {said} lie in another file")
    check_dataset(said, dataset)
    return np.asarray(dataset)


def check_dataset(name: str, dataset: h5py.Dataset) -> None:
    """Raises: ValueError for an array whose data lie in another file or that is far larger than its file."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the data of {name} lie in another file")
    check_expansion(dataset.size * dataset.dtype.itemsize, dataset.file.id.get_filesize())


# --- csv and JSON ---
def plain(value, decimals: int | None = None):
    """Returns a value as JSON has it: NumPy numbers and arrays, paths and tuples converted, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): plain(item, decimals) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item, decimals) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if decimals is None else round(value, decimals)
    return str(value) if isinstance(value, Path) else value


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a csv file; see `replacing`."""
    with replacing(path) as temporary, open(temporary, "w", -1, "utf-8", "backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(
    path: str | Path,
    name: str,
    numbers: Sequence[str],
    each: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
    optional: str | None = None,
    without: str | None = None,
) -> Iterator[tuple[int, str, list[float]]]:
    """Yields line number, the text of column `name` and the finite numbers of columns `numbers` of every row of a csv.

    Commas, semicolons or tabs part the columns, whose names may be in any case; further columns are let be. A decimal
    comma is read where it cannot be anything else.

    Args:   each: a context for every row, by its name, which may take the InputError of that row. optional: one more
            column of numbers, the last of a row, NaN where it or the field is left out. without: a column that tells
            another kind of file.
    Raises: InputError naming the line that cannot be used.
    """
    lines = [f"{line}\n" for line in read_text(path).split("\n")]
    separator = max(",;\t", key=next(filter(str.strip, lines), "").count)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")
    rows = (row for row in reader if any(map(str.strip, row)))
    wanted = [name, *numbers]
    expected = ", ".join(wanted if len(wanted) < 7 else [*wanted[:5], "...", wanted[-1]])
    marks: set[str] = set()

    def wrong(what: object) -> InputError:
        return InputError(f"{path}, line {reader.line_num}: {what}; expected {expected}.")

    try:
        header = next(rows, [])
        columns = [field.strip().casefold() for field in header]
        if not set(wanted) <= set(columns):
            raise InputError(f"{path}: columns {', '.join(header)[:80] or 'none'}, expected {expected}.")
        if without in columns:
            raise InputError(f"{path}: there is a column {without}, expected {expected} as the last of these.")
        places = [columns.index(column) for column in [*wanted, optional] if column in columns]
        for row in rows:
            with each(f"{Path(path).name}, line {reader.line_num}"):
                if len(row) < len(header) or any(map(str.strip, row[len(header) :])):
                    hint = " (a comma as decimal point? Then part the columns by semicolons)" * (separator == ",")
                    raise wrong(f"{len(row)} fields for {len(header)} columns{hint}")
                text, *fields = (row[place].strip() for place in places)
                left_out = optional is not None and (len(fields) == len(numbers) or not fields[-1])
                fields = fields[: len(numbers)] if left_out else fields
                try:
                    values = parse_numbers(fields, marks)
                except ValueError as error:
                    raise wrong(error) from error
                if not all(map(math.isfinite, values)):
                    raise wrong(f"{', '.join(fields)[:40]!r} has a number that is not finite")
                yield reader.line_num, text, [*values, math.nan] if left_out else values
    except csv.Error as error:
        raise wrong(error) from error


# --- how a program ends ---

EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the input
EXIT_INTERRUPTED = 130


class Stopped(Exception):
    """A signal ended a run whose state is saved. The message is one line; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


ENDINGS = (InputError, Stopped, KeyboardInterrupt)


def last_words(error: BaseException) -> tuple[str, int]:
    """Returns the line and the exit code with which one of ENDINGS ends a program."""
    if isinstance(error, Stopped):
        return str(error), error.code
    bad = isinstance(error, InputError)
    return (f"error: {error}", EXIT_BAD_INPUT) if bad else ("interrupted", EXIT_INTERRUPTED)


class StopSignals:
    """A context that notes SIGTERM and Ctrl-C in `received`, for a run to end at its next step; a second one kills."""

    received: int | None = None

    def __enter__(self) -> StopSignals:
        main = threading.current_thread() is threading.main_thread()  # no other may set handlers
        numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if main and signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in numbers}  # SIG_IGN: nohup and the like
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
