"""What every reader and writer keeps to: one-line errors for bad input, files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# what numpy.load and zipfile raise for a file that is cut short, damaged or of another kind
BROKEN_ARRAY_FILE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, SyntaxError, OverflowError, MemoryError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: file, what came, what to do. Exit code 2."""


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
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
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
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except BROKEN_ARRAY_FILE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
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
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise InputError(f"{path}: not a whole .npy file of one plain array ({reason}).") from error
    return array
