"""Reads HDF5 files of unknown origin: arrays of this file alone, of bounded size (h5py)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np

from asmnet_tf.files import check_expansion, crashes

T = TypeVar("T")

# what h5py raises for a file that is cut short, damaged or of another kind
BROKEN_HDF5 = (
    *(OSError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError),
    *(RuntimeError, NotImplementedError, SystemError),
)


def is_hdf5(path: str | Path) -> bool:
    """Says whether a file begins as HDF5; False where it cannot be read."""
    return os.path.isfile(path) and h5py.is_hdf5(path)


def read_safely(read: Callable[[], T]) -> T:
    """Returns what `read` returns, which opens an HDF5 file and reads arrays of it.

    It is run in a copy of the process first: some damaged groups make the library crash when it lists their members.

    Raises: OSError where it crashes; else what `read` raises.
    """
    if crashes(read):
        raise OSError("it makes the HDF5 library crash")
    return read()


def read_dataset(group: h5py.Group, name: str | h5py.Reference) -> np.ndarray:
    """Reads one array.

    Raises: ValueError for a group, for data that lie in another file, and for an array that is far larger than the
        file; else one of BROKEN_HDF5.
    """
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{_short(name)} is a {type(dataset).__name__.lower()} instead of an array")
    if dataset.file.filename != group.file.filename or dataset.external or dataset.is_virtual:
        raise ValueError(f"the data of {_short(name)} lie in another file")
    check_expansion(dataset.size * dataset.dtype.itemsize, os.path.getsize(group.file.filename))
    return np.asarray(dataset)


def _short(name: str | h5py.Reference) -> str:
    return name[:60] if isinstance(name, str) else "what a reference names"
