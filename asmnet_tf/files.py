"""What every reader and writer keeps to: one-line errors for bad input, files that appear whole or not at all."""

from __future__ import annotations

import codecs
import contextlib
import faulthandler
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# what numpy.load and zipfile raise for a file that is cut short, damaged or of another kind
BROKEN_ARRAY_FILE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, SyntaxError, OverflowError, MemoryError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
_TEMPORARY = ".writing-"
_LOCK = ".lock"


# A small file can unpack to any size. Genuine ones of ours take a few times their size on disk.
MAX_UNPACKED_BYTES = 256 << 20
MAX_EXPANSION = 20
MAX_TEXT_BYTES = 16 << 20
TRIAL_SECONDS = 60
TRIAL_BYTES = 2 << 30
_MAX_MESSAGE = 800  # characters
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: file, what came, what to do. Exit code 2.

    What a file holds may be quoted in it, so what would break the line or move a terminal's cursor is escaped.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        if len(text) > _MAX_MESSAGE:
            text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 4 :]}"
        super().__init__(text)


def printable(text: str) -> str:
    """Returns `text` with all that would break a line or move a terminal's cursor escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def utf8(text: object) -> str:
    """Returns a text or path as UTF-8 can hold it: bytes of a file's name that are no UTF-8 become `\\udcXX`."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


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

    Raises: InputError if the folder or file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a machine that loses power may keep the new name without the content
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner may read
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}). Choose another output.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


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
    temporary = None
    try:
        make_folder(path.parent)
        if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / known_by).is_file())):
            raise InputError(
                f"{path}: holds something else, no {known_by}, and is not replaced. Choose another output."
            )
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=path.parent))
        (temporary / "new").mkdir()
        yield temporary / "new"
        if path.exists():
            os.rename(path, temporary / "old")
        os.rename(temporary / "new", path)
        shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}). Choose another output.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.rename(temporary / "old", path)  # there is one, and its place is free, if the last rename failed
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder with its parents. Raises: InputError if it cannot be made or written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: this folder cannot be made ({error.strerror or error}). Choose another output."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: this folder cannot be written to. Choose another output.")
    return path


@contextlib.contextmanager
def owned(
    folder: str | os.PathLike, hint: str = "Wait until it has ended, or choose another output."
) -> Iterator[Path]:
    """Makes a folder and keeps it for this process alone; yields its path. One that stays empty is removed again.

    The system frees the lock of a process that is killed; where it has no such locks (Windows, some network folders),
    the lock file tells which process, begun when, has to be running for it to count.

    Raises: InputError that names the process whose the folder is, with `hint`; if the folder cannot be written.
    """
    folder = Path(folder)
    made = not folder.exists()
    make_folder(folder)
    path = folder / _LOCK
    try:
        handle = _lock(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}). Choose another output.") from error
    if handle is None:
        owner = _lock_owner(path)
        told = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
        raise InputError(f"{folder}: in use by {told if owner else 'another process'} ({_LOCK} in it). {hint}")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before it is freed: who opened it meanwhile sees that its name is gone
        os.close(handle)
        if os.name == "nt":  # there an open file keeps its name
            path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(path: Path) -> int | None:
    """Returns the open lock file of this process, None where another one holds it. Raises: OSError."""
    pid = os.getpid()
    owner = {"pid": pid, "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    text = json.dumps(owner | {"started": _started(pid)}).encode()
    try:
        import fcntl
    except ImportError:
        return _lock_by_name(path, text)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                os.ftruncate(handle, 0)
                os.write(handle, text)
                return handle
            os.close(handle)
        except FileNotFoundError:  # its owner has just ended, and the next one must not lock what has no name
            os.close(handle)
        except OSError as error:
            os.close(handle)
            return None if isinstance(error, BlockingIOError) else _lock_by_name(path, text)


def _lock_by_name(path: Path, text: bytes) -> int | None:
    """Does what `_lock` does where only the existence of the file can say it. Raises: OSError."""
    for _ in range(2):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(handle, text)
            return handle
        except FileExistsError:
            owner = _lock_owner(path)
            elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
            if elsewhere or (owner and _started(owner.get("pid")) == owner.get("started") is not None):
                return None
            path.unlink(missing_ok=True)
    return None


def _lock_owner(path: Path) -> dict:
    """Returns pid, host, since and started of the process that wrote a lock file; {} where it says nothing."""
    for _ in range(5):  # it may be about to write them
        with contextlib.suppress(OSError, ValueError, TypeError):
            return dict(read_json(path))
        time.sleep(0.02)
    return {}


def _started(pid: object) -> str | None:
    """Returns when a process started, in the system's own words; None where none of this number runs."""
    with contextlib.suppress(OSError, IndexError, ValueError, TypeError):
        if sys.platform.startswith("linux"):
            return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        ask = ("ps", "-o", "lstart=", "-p", str(pid))
        if sys.platform == "win32":
            ask = ("powershell", "-NoProfile", "-Command", f"(Get-Process -Id {int(pid)}).StartTime.Ticks")
        return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz`, never unpickling; a `.npy` is not accepted.

    Raises: FileNotFoundError; InputError for a file that is no whole `.npz` of plain arrays.
    """
    import numpy as np  # here, so that `--help` does not wait for it

    try:
        with np.load(path, allow_pickle=False) as file:
            check_archive(path)
            arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # numpy gives other members of the archive as bytes
                raise ValueError(f"its member {name} is no array")
        return arrays
    except FileNotFoundError:
        raise
    except BROKEN_ARRAY_FILE as error:
        reason = first_line(error)
        raise InputError(f"{path}: not a whole .npz file of plain arrays ({reason}).") from error


def read_array(path: str | os.PathLike, mapped: bool = False) -> np.ndarray:
    """Reads the one array of a `.npy`, whatever the file is called, never unpickling.

    Args:   mapped: leave it on disk: a read-only memory map, whose parts are read as they are used.
    Raises: FileNotFoundError; InputError for a file that is no whole `.npy` of a plain array.
    """
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive of arrays")
    except FileNotFoundError:
        raise
    except BROKEN_ARRAY_FILE as error:
        reason = first_line(error)
        raise InputError(f"{path}: not a whole .npy file of one plain array ({reason}).") from error
    return array


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Reads a text file as people's programs write it: UTF-8 or UTF-16, any line ends, which come back as `\\n`.

    Bytes that are no UTF-8 are taken as Windows-1252, which spreadsheets write, and that is said on stderr.

    Raises: OSError where it cannot be read; InputError where it is longer or is no text.
    """
    with open(path, "rb") as file:
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
    text, others = re.subn(
        r"[\udc80-\udcff]", lambda byte: bytes([ord(byte[0]) & 255]).decode("cp1252", "replace"), text
    )
    if others:
        print(f"{path}: {others} bytes are not UTF-8 and are read as Windows-1252", file=sys.stderr)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_numbers(fields: Sequence[str]) -> list[float]:
    """Returns numbers that are written with a decimal point or, all of them, with a decimal comma.

    Raises: ValueError with the reason.
    """
    try:
        return [float(field) for field in fields]
    except ValueError:
        text = " ".join(fields)
        if "," in text and "." in text:
            raise ValueError("a comma as decimal point in one number, a point in another") from None
        try:
            return [float(field.replace(",", ".")) for field in fields]
        except ValueError:
            raise ValueError(f"{text[:40]!r} are not all numbers") from None


def read_json(path: str | os.PathLike) -> object:
    """Reads a JSON file. Raises: FileNotFoundError; ValueError where it is damaged or far too long; other OSErrors."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Lets this process take at most so many bytes more (Linux; elsewhere: any). Beyond, allocating them fails."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    limits = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([taken + more, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def crashes(trial: Callable[[], object]) -> bool:
    """Says whether `trial` ends the process, hangs or takes far too much memory: it is run in a copy of the process.

    For native libraries that trust what they read. An exception is no crash: it will come again outside the copy. Where
    processes cannot be copied safely (Windows, macOS) the answer is always no.
    """
    if not sys.platform.startswith("linux"):
        return False
    import resource

    process = os.fork()
    if not process:
        try:
            faulthandler.disable()
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            for hang in (signal.SIGPROF, signal.SIGALRM):
                signal.signal(hang, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, TRIAL_SECONDS)  # of the processors: a busy machine is no hang
            signal.alarm(1 + int(10 * TRIAL_SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with limited_memory(TRIAL_BYTES):
                trial()
        finally:
            os._exit(0)  # whatever came: no exception handlers, no clean-up of what belongs to the original
    return os.waitpid(process, 0)[1] != 0
