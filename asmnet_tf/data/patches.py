"""The image surroundings of samples: kept in memory, in a memory map on disk, or decoded at every use.

A cache folder holds patches.npy (a row for each face: its RGB pixels; what is left of the row is a hole in the file),
index.npy (height, width, checksum and `image_to_patch` of each) and manifest.json. It appears whole or not at all, and
is written anew where the images, their boxes or the settings are no longer those of its manifest. The manifest has a
checksum of the index, the index one of each patch, so that nothing damaged is ever used.

Pixels are as they are: a face of 300W at 224 px takes 0.2 ms, as PNG 4.0, from its photograph 1.9 (433 kB, one core).
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from asmnet_tf.config import CACHES
from asmnet_tf.data import geometry
from asmnet_tf.data.pose import cache_folder
from asmnet_tf.data.readers import Sample
from asmnet_tf.files import OutputError, cores, first_line, free_memory, owned, read_array, read_json, writing

FORMAT = 4  # 1: images as stored, whatever their EXIF orientation; 2: TFRecord files; 3: rows too short
MEMORY_LIMIT_BYTES = 4 << 30  # --cache auto keeps patches in memory up to this, and up to half of what is free
Read = Callable[[int], geometry.Patch | None]
_BATCHES_AHEAD = 2  # that `batches_of_crops` prepares while the caller works on one
_MANIFEST, _INDEX, _PIXELS = "manifest.json", "index.npy", "patches.npy"


class FacePatches:
    """The image surroundings of every sample; the same pixels whichever cache holds them; beside it, none are kept.

    Args:
        crop, crop_scale: which crop frame. size: the network's input side, pixels.
        margin: how much around the crop is kept; 1 where nothing is augmented.
        cache: memory: decoded once and kept; disk: decoded once and written; none: decoded at every use; auto: memory
            where all patches take less than MEMORY_LIMIT_BYTES and half of the free memory, else disk, or none where
            the folder cannot hold them.
        cache_dir: folder of the disk cache; default: `patches` in `pose.cache_folder()`.
        angles: (N,) by which the crops, not the patches, are turned, degrees clockwise; such images are read each time.
    Raises: InputError naming the first image that cannot be read; OutputError naming the folder that cannot be written.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        crop: str,
        crop_scale: float,
        size: int,
        margin: float = geometry.PATCH_MARGIN,
        cache: str = "auto",
        cache_dir: Path | None = None,
        angles: np.ndarray | None = None,
    ) -> None:
        if cache not in CACHES:
            raise ValueError(f"cache is {cache!r}; it is one of {', '.join(CACHES)}")
        self.samples, self.size, self.margin = list(samples), size, margin
        self.frames = geometry.crop_frame(np.stack([s.bbox for s in self.samples]), crop, crop_scale)
        self.landmarks_norm = np.empty((len(self.samples), self.samples[0].landmarks.size), np.float32)
        for row, sample, frame in zip(self.landmarks_norm, self.samples, self.frames):
            row[:] = geometry.normalise(sample.landmarks.astype(np.float64), frame)
        self.poses = np.stack([np.full(3, np.nan) if s.pose is None else s.pose for s in self.samples])
        self.angles = np.zeros(len(self.samples)) if angles is None else angles
        self._kept: Read = {}.get  # nothing is
        self.cache = cache
        if cache == "auto":
            self.cache = "memory" if self._bytes() <= min(MEMORY_LIMIT_BYTES, free_memory() // 2) else "disk"
        if self.cache == "memory":
            self._kept = _for_each(self._decode, len(self), "images").__getitem__
        elif self.cache == "disk":
            try:
                self._kept = self._open_disk(cache_dir or cache_folder() / "patches", crop, crop_scale)
            except OutputError as error:
                if cache == "disk":
                    raise OutputError(f"{error} See --cache-dir, or use --cache none.") from error
                print(f"{error} Without a cache, images are decoded anew in every epoch.", file=sys.stderr)
                self.cache = "none"

    def __len__(self) -> int:
        return len(self.samples)

    def _bytes_each(self) -> np.ndarray:
        """Returns upper bounds of the bytes of the pixels, (N,): of faces whose surroundings lie inside the image."""
        extent = self.frames[:, 2:]
        reach = extent * self.margin + 4  # whole pixels, one more on each side: see `geometry.cut_patch`
        kept = np.ceil(np.ceil(reach) * np.minimum(1.0, self.size * geometry.PATCH_DETAIL / extent))
        return (3 * kept.prod(axis=1)).astype(np.int64)

    def _bytes(self) -> int:
        return int(self._bytes_each().sum()) + 128 * len(self)

    def _decode(self, i: int) -> geometry.Patch:
        return geometry.cut_patch(self.samples[i].read_image(), self.frames[i], self.size, self.margin)

    def patch(self, i: int) -> geometry.Patch:
        """Returns the patch of sample i. Raises: InputError naming an image that has to be read and cannot be."""
        patch = self._kept(i)
        return self._decode(i) if patch is None else patch

    def _crop(self, i: int) -> np.ndarray:
        if self.angles[i]:
            return geometry.crop_image(self.samples[i].read_image(), self.frames[i], self.size, self.angles[i])
        return geometry.warp_patch(self.patch(i), geometry.crop_to_image(self.frames[i], self.size), self.size)

    def crops(self) -> np.ndarray:
        """Returns the un-augmented network inputs of all samples, RGB uint8 (N, size, size, 3)."""
        return np.stack([self._crop(i) for i in range(len(self))])

    def batches_of_crops(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yields what `crops` gives, a batch at a time: of a few batches is the memory; threads read the next ones.

        Raises: InputError naming an image that has to be read and cannot be.
        """
        waiting: deque[list[Future]] = deque()
        with ThreadPoolExecutor(cores()) as pool:
            try:
                for first in range(0, len(self) + _BATCHES_AHEAD * batch_size, batch_size):
                    waiting.append([pool.submit(self._crop, i) for i in range(len(self))[first : first + batch_size]])
                    if len(waiting) > _BATCHES_AHEAD:
                        yield np.stack([crop.result() for crop in waiting.popleft()])
            finally:
                pool.shutdown(cancel_futures=True)

    # --- the cache on disk --------------------------------------------------------------------------------------------
    def _open_disk(self, root: Path, crop: str, crop_scale: float) -> Read:
        """Opens the cache of these samples below `root`; writes it first where it is absent, outdated or damaged."""
        settings = {"crop": crop, "crop_scale": crop_scale, "size": self.size, "margin": self.margin}
        settings |= {"detail": geometry.PATCH_DETAIL, "opencv": cv2.__version__, "format": FORMAT}  # as do decoders
        key, manifest = self._describe(settings)
        folder, row = root / f"{crop}_{self.size}px_{key[:16]}", int(self._bytes_each().max())
        cached, reason = _open(folder, manifest, row)
        if cached is not None:  # also from a folder that cannot be written
            return cached
        with owned(root / f".{folder.name}", waiting=f"{folder}: another run is writing it") as own:
            new = own / "new"
            cached, reason = _open(folder, manifest, row)
            if cached is None:
                print(f"{folder}: {reason}; written anew", file=sys.stderr) if reason else _say_others(folder, manifest)
                with contextlib.ExitStack() as stack, writing(folder):
                    stack.callback(shutil.rmtree, new, ignore_errors=True)
                    for left in (new, folder):  # of a run that was killed; runs that have it open can still read it
                        shutil.rmtree(left, ignore_errors=True)
                    free = shutil.disk_usage(root).free
                    if self._bytes() > free:
                        raise OSError(f"needs up to {self._bytes() / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
                    new.mkdir()
                    self._write(new, manifest, row)
                    os.rename(new, folder)
                cached, reason = _open(folder, manifest, row)
        with contextlib.suppress(OSError):
            own.rmdir()  # a killed run has left it
        if cached is None:
            raise OutputError(f"{folder}: cannot be read back ({reason}). Choose another output.")
        return cached

    def _describe(self, settings: dict) -> tuple[str, dict]:
        """Returns the key of these faces and settings, and their manifest.

        The key names the images; the fingerprint is also of their sizes and modification times and of the crop frames.
        """
        key = hashlib.sha256(json.dumps(settings).encode())
        state = hashlib.sha256(np.ascontiguousarray(self.frames, "<f8").data)
        found: dict[Path, bytes] = {}
        for sample in self.samples:
            path = sample.image_path
            if path not in found:
                with geometry.reading(path):
                    status = os.stat(path)
                found[path] = b"%d %d " % (status.st_size, status.st_mtime_ns)
            key.update(f"{os.path.abspath(path)}\0{sample.index}\0".encode(errors="surrogateescape"))
            state.update(found[path])
        state.update(key.digest())
        source = os.path.commonpath({os.path.dirname(os.path.abspath(path)) for path in found})
        manifest = {**settings, "faces": len(self), "source": source, "fingerprint": state.hexdigest()}
        return key.hexdigest(), manifest

    def _write(self, folder: Path, manifest: dict, row: int) -> None:
        """Writes the files of a cache. By plain writing: a disk that is full would end a process that fills a map."""
        turn = threading.Lock()
        with open(folder / _PIXELS, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(self), row)}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()

            def write(i: int) -> list[float]:
                patch = self._decode(i)
                data = patch.pixels.tobytes()
                with turn:
                    file.seek(start + i * row)
                    file.write(data)
                return [*patch.pixels.shape[:2], zlib.crc32(data), *patch.image_to_patch.flat]

            index = np.array(_for_each(write, len(self), "patches to disk"), "<f8")
            file.truncate(start + len(self) * row)
        np.save(folder / _INDEX, index, allow_pickle=False)
        text = json.dumps({**manifest, "checksum": zlib.crc32(index)}, indent=1)
        (folder / _MANIFEST).write_text(text + "\n", encoding="utf-8")


def _open(folder: Path, expected: dict, row: int) -> tuple[Read | None, str]:
    """Returns what reads patch i of a cache, or None and why it does not serve; no reason where there is no cache.

    It may be called by many threads and returns None for a patch that fails its checksum: that is said once and the
    manifest removed, so that the next run writes the cache anew.
    """
    try:
        manifest = read_json(folder / _MANIFEST)
        if manifest["fingerprint"] != expected["fingerprint"]:
            raise ValueError("the images or boxes have changed since it was written")
        index = read_array(folder / _INDEX)
        pixels = np.asarray(read_array(folder / _PIXELS, mapped=True))  # the memory map itself slices slowly
        for name, array, form in ((_INDEX, index, (9, "f8")), (_PIXELS, pixels, (row, "u1"))):
            if array.shape != (expected["faces"], form[0]) or array.dtype != form[1]:
                raise ValueError(f"damaged: {name} is {array.dtype} {array.shape}")
        if zlib.crc32(np.ascontiguousarray(index)) != manifest["checksum"]:
            raise ValueError(f"damaged: {_INDEX} has another checksum")
    except (FileNotFoundError, NotADirectoryError) as error:
        return None, f"{Path(error.filename).name} is missing" if folder.exists() else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, first_line(error, 200)
    said = threading.Lock()

    def read(i: int) -> geometry.Patch | None:
        height, width, checksum = (int(v) for v in index[i, :3])
        data = np.ascontiguousarray(pixels[i, : 3 * height * width])  # read-only
        if zlib.crc32(data) == checksum:
            return geometry.Patch(data.reshape(height, width, 3), index[i, 3:].reshape(2, 3))
        if said.acquire(blocking=False):  # by the first one, for good
            what = "such faces are read from their images, and the next run writes the cache anew"
            print(f"{folder}: damaged at face {i}; {what}", file=sys.stderr)
            with contextlib.suppress(OSError):
                (folder / _MANIFEST).unlink()
        return None

    return read, ""


def _say_others(folder: Path, manifest: dict) -> None:
    """Says which caches hold the same kind of patches of another list of faces from the same source."""
    same = ("source", "crop", "crop_scale", "size", "margin")
    for path in sorted(folder.parent.glob(f"*/{_MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            other = read_json(path)
            if all(other[key] == manifest[key] for key in same):
                faces = f"{manifest['faces']} faces of {manifest['source']}, another list than the {other['faces']} in"
                print(f"{folder}: {faces} {path.parent.name}; remove that one if it is out of date", file=sys.stderr)


def _for_each(work: Callable[[int], object], count: int, title: str) -> list:
    """Returns what `work` returns for 0, 1, ..., by several threads: OpenCV decodes outside the interpreter lock."""
    with ThreadPoolExecutor(cores()) as pool:  # after an error, `map` lets no other image be read
        return list(tqdm(pool.map(work, range(count)), title, count, unit="face", disable=None, leave=False))
