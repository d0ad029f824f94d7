"""Face patches on disk: sharded TFRecord files and an index, written once, read one record at a time (TensorFlow).

A cache folder holds patches-*.tfrecord, index.npy and, written last, manifest.json. It appears whole or not at all, and
is written anew where the images, their boxes or the settings are no longer those of its manifest. The manifest has a
checksum of the index of each shard, the index one of each record, so that nothing damaged is ever used.

A record is height and width (uint32), `image_to_patch` (6 float64) and the RGB pixels as they are. They are not
compressed, for that would take longer than reading the photograph again. Measured on 202 faces of 300W at 224 px, one
core, a face: raw 433 kB, 0.2 ms to read and check; PNG level 1 195 kB, 4.0 ms; lossless WebP 117 kB, 2.5 ms (104 ms to
write); the photograph itself 1.9 ms.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf.datasets import Sample
from asmnet_tf.files import InputError, read_array, read_json
from asmnet_tf.geometry import PATCH_DETAIL, Patch

try:
    import fcntl
except ImportError:  # no such locks on this system: two runs that start at once both write, and the later one stays
    fcntl = None

FORMAT = 2  # 1: images as stored, whatever their EXIF orientation
SHARD_BYTES = 256 << 20
MAX_SHARDS = 128  # all are open while a run reads
_HEADER = struct.Struct("<2I6d")
_FRAMING = 12  # bytes of a TFRecord before its data (length and checksum of it); 4 more follow
_MANIFEST, _INDEX = "manifest.json", "index.npy"


class CacheError(InputError):
    """The cache folder cannot be written: `--cache auto` goes on without it."""


@dataclass(frozen=True)
class Settings:
    """All that decides what the patches of a list of samples look like; see `input_pipeline.FacePatches`."""

    crop: str
    crop_scale: float
    size: int
    margin: float
    detail: float = PATCH_DETAIL
    opencv: str = cv2.__version__  # another decoder may give other pixels
    format: int = FORMAT


class DiskPatches:
    """The patches of a cache folder, read one by one; may be used by many threads.

    Made by `open_cache`. A record that does not pass its checksum is said once and the manifest removed, so that the
    next run writes the cache anew.
    """

    def __init__(self, folder: Path, manifest: dict) -> None:
        """Raises: OSError, ValueError, KeyError or TypeError if the folder is not what its manifest says."""
        self.folder = folder
        try:
            self._index = read_array(folder / _INDEX)
        except InputError as error:
            raise ValueError(f"{_INDEX} is no whole array") from error
        shards = manifest["shards"]
        if self._index.dtype != np.uint64 or self._index.shape != (sum(s["faces"] for s in shards), 3):
            raise ValueError(f"{_INDEX} is {self._index.dtype} {self._index.shape}")
        self._first = np.cumsum([0, *(shard["faces"] for shard in shards)])
        self._files: list[int] = []
        self._finalizer = weakref.finalize(self, _close, self._files)
        self._said = False
        try:
            for first, shard in zip(self._first, shards):
                if _checksum(self._index[first : first + shard["faces"]]) != shard["checksum"]:
                    raise ValueError(f"{_INDEX} has another checksum")
                name = Path(shard["file"]).name  # whatever the manifest says, nothing outside the folder is opened
                self._files.append(os.open(folder / name, os.O_RDONLY))
                size = os.fstat(self._files[-1]).st_size
                if size != shard["bytes"]:
                    raise ValueError(f"{name} has {size} bytes instead of {shard['bytes']}")
        except BaseException:
            self._finalizer()
            raise

    def __len__(self) -> int:
        return len(self._index)

    def read(self, i: int) -> Patch | None:
        """Returns patch i, its pixels read-only; None if the record is damaged."""
        offset, length, checksum = (int(v) for v in self._index[i])
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        try:
            data = os.pread(self._files[shard], length, offset)
            if len(data) != length or zlib.crc32(data) != checksum:
                raise ValueError("its record has another checksum")
        except (OSError, ValueError) as error:
            if not self._said:
                self._said = True
                reason = error.strerror if isinstance(error, OSError) else error
                print(
                    f"{self.folder}: damaged at face {i} ({reason}); such faces are read from their images, and the "
                    "next run writes the cache anew",
                    file=sys.stderr,
                )
                with contextlib.suppress(OSError):
                    (self.folder / _MANIFEST).unlink()
            return None
        height, width, *affine = _HEADER.unpack_from(data)
        pixels = np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(height, width, 3)
        return Patch(pixels, np.array(affine).reshape(2, 3))

    def close(self) -> None:
        """Closes the files; nothing can be read afterwards."""
        self._finalizer()


def open_cache(
    root: Path,
    samples: Sequence[Sample],
    frames: np.ndarray,
    settings: Settings,
    cut: Callable[[int], Patch],
    size: int,
) -> DiskPatches:
    """Opens the cache of these samples below `root`; writes it first where it is absent, outdated or damaged.

    A run that finds another one writing the same cache waits for it.

    Args:   frames: (N, 4) crop frames. cut: number of a sample -> its patch; called by several threads.
            size: upper bound of the bytes of all patches.
    Raises: CacheError if the folder cannot be written; InputError naming the first image that cannot be read.
    """
    key, source, fingerprint = _describe(samples, frames, settings)
    folder = root / f"{settings.crop}_{settings.size}px_{key[:16]}"
    manifest = {**asdict(settings), "faces": len(samples), "source": source, "fingerprint": fingerprint}
    with _locked(root, folder.name):
        patches, reason = _open(folder, manifest)
        if patches is not None:
            return patches
        if reason:
            print(f"{folder}: {reason}; written anew", file=sys.stderr)
        else:
            _say_others(root, folder, manifest)
        _write(root, folder, manifest, cut, size)
        patches, reason = _open(folder, manifest)
    if patches is None:
        raise CacheError(f"{folder}: cannot be read back ({reason}). Choose another --cache-dir or --cache none.")
    return patches


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def _checksum(index: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(index, "<u8"))


def _describe(samples: Sequence[Sample], frames: np.ndarray, settings: Settings) -> tuple[str, str, str]:
    """Returns the key of a list of faces and settings, the folder of all its images, and the fingerprint.

    The key names the images, the fingerprint is also of their sizes and modification times and of the crop frames.
    """
    key = hashlib.sha256(json.dumps(asdict(settings)).encode())
    state = hashlib.sha256(np.ascontiguousarray(frames, "<f8").data)
    found: dict[Path, bytes] = {}
    for sample in samples:
        path = sample.image_path
        if path not in found:
            try:
                status = os.stat(path)
            except OSError as error:
                raise InputError(
                    f"{path}: image cannot be read ({error.strerror}). Is the download complete?"
                ) from error
            found[path] = b"%d %d " % (status.st_size, status.st_mtime_ns)
        key.update(f"{os.path.abspath(path)}\0{sample.index}\0".encode(errors="surrogateescape"))
        state.update(found[path])
    state.update(key.digest())
    source = os.path.commonpath({os.path.dirname(os.path.abspath(path)) for path in found})
    return key.hexdigest(), source, state.hexdigest()


def _open(folder: Path, expected: dict) -> tuple[DiskPatches | None, str]:
    """Returns the cache, or None and the reason why it does not serve; no reason where there is none."""
    try:
        manifest = read_json(folder / _MANIFEST)
        if manifest["fingerprint"] != expected["fingerprint"]:
            return None, "the images or boxes have changed since it was written"
        patches = DiskPatches(folder, manifest)
        if len(patches) != expected["faces"]:
            raise ValueError(f"{len(patches)} faces instead of {expected['faces']}")
        return patches, ""
    except (FileNotFoundError, NotADirectoryError) as error:
        return None, f"{Path(error.filename).name} is missing" if folder.exists() else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"damaged ({' '.join(str(error).split())[:100]})"


def _say_others(root: Path, folder: Path, manifest: dict) -> None:
    """Says which caches hold the same kind of patches of another list of faces from the same source."""
    same = ("source", "crop", "crop_scale", "size", "margin")
    for path in sorted(root.glob(f"*/{_MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            other = read_json(path)
            if all(other[key] == manifest[key] for key in same):
                print(
                    f"{folder}: {manifest['faces']} faces of {manifest['source']}, another list than the "
                    f"{other['faces']} in {path.parent.name}; remove that one if it is out of date",
                    file=sys.stderr,
                )


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Holds the lock of a cache; the system gives it back when the process ends, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / f".{name}.lock", "ab")  # noqa: SIM115
    except OSError:  # a read-only folder: nobody writes there, and if this cache is not in it, `_write` says so
        yield
        return
    with file:
        started, said = time.monotonic(), False
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said and time.monotonic() - started > 2:
                    said = True
                    print(f"{root / name}: another run is writing it; waiting", file=sys.stderr)
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield


def _write(root: Path, folder: Path, manifest: dict, cut: Callable[[int], Patch], size: int) -> None:
    """Writes a cache under another name, then renames it to `folder`."""
    again = "Choose another --cache-dir or --cache none."
    count = manifest["faces"]
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f".writing-{folder.name}-*"):  # of runs that were killed: whoever writes has the lock
            shutil.rmtree(left, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # outdated or damaged; runs that have it open can still read it
        free = shutil.disk_usage(root).free
        if size > free:
            raise CacheError(f"{folder}: needs up to {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. {again}")
        temporary = Path(tempfile.mkdtemp(prefix=f".writing-{folder.name}-", dir=root))
        shards = max(1, min(count // 16, MAX_SHARDS, max(16, size // SHARD_BYTES)))
        bounds = np.linspace(0, count, shards + 1).astype(int)
        rows = _write_shards(temporary, bounds, cut)
        np.save(temporary / _INDEX, np.concatenate(rows), allow_pickle=False)
        listed = []
        for k, part in enumerate(rows):
            file = temporary / _shard_name(k, shards)
            size = int(part[-1, 0] + part[-1, 1]) + 4
            if file.stat().st_size != size:
                raise OSError(f"{file.name} came out as {file.stat().st_size} bytes instead of {size}")
            listed.append({"file": file.name, "faces": len(part), "bytes": size, "checksum": _checksum(part)})
        text = json.dumps({**manifest, "shards": listed}, indent=1)
        (temporary / _MANIFEST).write_text(text + "\n", encoding="utf-8")
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders that only the owner may read
        os.rename(temporary, folder)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise CacheError(f"{folder}: cannot be written ({' '.join(str(reason).split())[:100]}). {again}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _shard_name(k: int, shards: int) -> str:
    return f"patches-{k:05d}-of-{shards:05d}.tfrecord"


def _write_shards(folder: Path, bounds: np.ndarray, cut: Callable[[int], Patch]) -> list[np.ndarray]:
    """Writes every shard, one thread each at a time; returns the index rows (offset, length, checksum) of each."""
    stop, turn = threading.Event(), threading.Lock()
    shards = len(bounds) - 1

    def write(k: int) -> np.ndarray:
        rows = np.zeros((bounds[k + 1] - bounds[k], 3), np.uint64)
        end = 0
        with tf.io.TFRecordWriter(str(folder / _shard_name(k, shards))) as writer:
            for row, i in enumerate(range(bounds[k], bounds[k + 1])):
                if stop.is_set():
                    break
                patch = cut(i)
                header = _HEADER.pack(*patch.pixels.shape[:2], *patch.image_to_patch.reshape(-1).tolist())
                data = header + patch.pixels.tobytes()
                writer.write(data)
                rows[row] = end + _FRAMING, len(data), zlib.crc32(data)
                end += _FRAMING + len(data) + 4
                with turn:
                    bar.update()
        return rows

    with (
        tqdm(total=int(bounds[-1]), desc="patches to disk", unit="face", disable=None, leave=False) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        try:
            return list(pool.map(write, range(shards)))
        except BaseException:
            stop.set()  # else leaving the block would wait until all shards are written
            pool.shutdown(cancel_futures=True)
            raise
