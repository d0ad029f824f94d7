"""What every reader and writer keeps to: one-line errors for bad input, files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
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


# A small file can unpack to any size. Genuine ones of ours take a few times their size on disk.
MAX_UNPACKED_BYTES = 256 << 20
MAX_EXPANSION = 20
MAX_JSON_BYTES = 16 << 20
TRIAL_SECONDS = 60
TRIAL_BYTES = 2 << 30
_MAX_MESSAGE = 800  # characters


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: file, what came, what to do. Exit code 2.

    What a file holds may be quoted in it, so what would break the line or move a terminal's cursor is escaped.
    """

    def __init__(self, message: str) -> None:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        if len(text) > _MAX_MESSAGE:
            text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 4 :]}"
        super().__init__(text)


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


def read_json(path: str | os.PathLike) -> object:
    """Reads a JSON file. Raises: FileNotFoundError; ValueError where it is damaged or far too long; other OSErrors."""
    with open(path, "rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES >> 20} MB")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def free_memory() -> int:
    """Returns the bytes that this process can still take, as the system tells it; a lot where it does not."""
    free = sys.maxsize
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), free)
    with contextlib.suppress(OSError, ValueError):  # "max", or no such file: no limit of a container
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return free


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
