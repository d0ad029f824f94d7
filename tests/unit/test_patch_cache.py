"""The disk cache: the same patches as the other caches, written whole or not at all, never used when out of date."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from asmnet_tf.config import AUGMENTATIONS
from asmnet_tf.data import geometry
from asmnet_tf.data import patches as patch_cache
from asmnet_tf.data.annotations import Sample
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.readers import new_sample
from asmnet_tf.files import InputError

COUNT = 70


@pytest.fixture
def faces(tmp_path):
    rng = np.random.default_rng(3)
    result = []
    (tmp_path / "images").mkdir()
    for i in range(COUNT):
        path = tmp_path / f"images/{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (120, 140, 3), np.uint8))
        landmarks = rng.uniform(-5 if i % 5 == 0 else 20, 100, (68, 2)).astype(np.float32)  # some leave the image
        box = geometry.landmark_box(landmarks)
        result.append(Sample(str(i), path, landmarks, box, frozenset(), np.array([5.0, -3.0, 2.0])))
    return result


def on_disk(faces, root, **more):
    return FacePatches(faces, "square", 1.2, 32, cache="disk", cache_dir=root, **more)


def assert_same(ours, theirs):
    for i in range(len(theirs)):
        a, b = ours.patch(i), theirs.patch(i)
        assert np.array_equal(a.pixels, b.pixels)
        assert a.pixels.dtype == np.uint8
        assert np.array_equal(a.image_to_patch, b.image_to_patch)


def folders(root):
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


@pytest.fixture
def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("an image was read")

    return lambda: monkeypatch.setattr(Sample, "read_image", fail)


def test_all_caches_hold_the_same_patches_and_give_the_same_batches(faces, tmp_path, forbid_decoding):
    caches = {kind: FacePatches(faces, "square", 1.2, 32, cache=kind) for kind in ("memory", "none")}
    caches["written"], caches["read"] = on_disk(faces, tmp_path / "c"), on_disk(faces, tmp_path / "c")
    for patches in caches.values():
        assert_same(patches, caches["none"])
        assert np.array_equal(patches.crops(), np.concatenate(list(patches.batches_of_crops(16))))
    expected = TrainingBatches(caches["none"], AUGMENTATIONS["tuned"], 8, seed=1).batch(2, 3)
    forbid_decoding()
    for kind in ("memory", "written", "read"):
        batch = TrainingBatches(caches[kind], AUGMENTATIONS["tuned"], 8, seed=1).batch(2, 3)
        assert all(np.array_equal(a, b) for a, b in zip(batch, expected))


def test_the_files_are_plain_arrays_and_take_no_more_room_than_the_pixels(faces, tmp_path):
    patches = on_disk(faces, tmp_path / "c")
    (folder,) = (tmp_path / "c").glob("square_32px_*")
    assert sorted(p.name for p in folder.iterdir()) == ["index.npy", "manifest.json", "patches.npy"]
    pixels, index = (np.load(folder / name, allow_pickle=False) for name in ("patches.npy", "index.npy"))
    for i in range(COUNT):
        height, width = index[i, :2].astype(int)
        assert np.array_equal(pixels[i, : 3 * height * width].reshape(height, width, 3), patches.patch(i).pixels)
        assert not pixels[i, 3 * height * width :].any()
    used = (folder / "patches.npy").stat().st_blocks * 512
    assert used <= sum(patches.patch(i).pixels.nbytes + 8192 for i in range(COUNT))


def test_no_patch_is_larger_than_its_row(faces, tmp_path, capsys):
    """The crop of this box is seen at one pixel more than fractions of pixels say."""
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8))
    centre, half = np.array([446.88591462, 459.89834696]), 142.56956133 / 2.4
    samples = [
        new_sample(f"face{side:.0f}", path, np.array([centre - side, centre + side]), set()) for side in (half, 30)
    ]
    for _ in range(2):
        FacePatches(samples, "square", 1.2, 112, cache="disk", cache_dir=tmp_path / "cache").crops()
    assert not capsys.readouterr().err


def test_patches_are_written_once(faces, tmp_path, forbid_decoding, capsys):
    on_disk(faces, tmp_path / "c")
    assert folders(tmp_path / "c") == [p.name for p in (tmp_path / "c").glob("square_32px_*")]
    forbid_decoding()
    on_disk(faces, tmp_path / "c")
    assert capsys.readouterr().err == ""


def change_an_image(faces):
    pixels = np.full((120, 140, 3), 77, np.uint8)
    cv2.imwrite(str(faces[7].image_path), pixels)
    return faces


def touch_an_image(faces):
    stat = faces[7].image_path.stat()
    os.utime(faces[7].image_path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    return faces


def move_a_box(faces):
    landmarks = faces[7].landmarks + 3
    return [*faces[:7], replace(faces[7], landmarks=landmarks, bbox=geometry.landmark_box(landmarks)), *faces[8:]]


@pytest.mark.parametrize("change", [change_an_image, touch_an_image, move_a_box])
def test_a_changed_source_is_noticed(faces, tmp_path, capsys, change):
    on_disk(faces, tmp_path / "c")
    (name,) = folders(tmp_path / "c")
    changed = change(faces)
    patches = on_disk(changed, tmp_path / "c")
    assert folders(tmp_path / "c") == [name]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{name}: the images or boxes have changed since it was written; written anew")
    assert_same(patches, FacePatches(changed, "square", 1.2, 32, cache="none"))


def test_another_list_of_faces_gets_a_cache_of_its_own_and_that_is_said(faces, tmp_path, capsys):
    on_disk(faces, tmp_path / "c")
    on_disk(faces, tmp_path / "c", margin=1.0)
    assert capsys.readouterr().err == ""
    assert len(on_disk(faces[:-1], tmp_path / "c")) == COUNT - 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"69 faces of {tmp_path / 'images'}, another list than the 70 in" in line
    assert len(folders(tmp_path / "c")) == 3


def cut_the_pixels(folder):
    (folder / "patches.npy").rename(folder / "old")  # a file that is cut is cut for those who have it open, too
    (folder / "patches.npy").write_bytes((folder / "old").read_bytes()[:-5])


def remove_the_pixels(folder):
    (folder / "patches.npy").unlink()


def other_pixels(folder):
    (folder / "patches.npy").unlink()
    np.save(folder / "patches.npy", np.zeros((COUNT, 7), np.uint8))


def flip_a_bit_of_the_index(folder):
    content = bytearray((folder / "index.npy").read_bytes())
    content[-100] ^= 4
    (folder / "index.npy").write_bytes(content)


def cut_the_index(folder):
    (folder / "index.npy").write_bytes((folder / "index.npy").read_bytes()[:-8])


def cut_the_manifest(folder):
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-20])


def empty_the_checksum(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": None}))


def remove_the_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_the_pixels, "patches.npy: not a whole"),
        (remove_the_pixels, "patches.npy is missing"),
        (other_pixels, "patches.npy is uint8 (70, 7)"),
        (flip_a_bit_of_the_index, "index.npy has another checksum"),
        (cut_the_index, ""),
        (cut_the_manifest, ""),
        (empty_the_checksum, ""),
        (remove_the_manifest, "manifest.json is missing"),
    ],
)
def test_what_is_seen_to_be_damaged_is_written_anew(faces, tmp_path, capsys, damage, reason):
    expected = on_disk(faces, tmp_path / "c")
    (folder,) = (tmp_path / "c").glob("square_32px_*")
    damage(folder)
    patches = on_disk(faces, tmp_path / "c")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder}: ")
    assert reason in line
    assert line.endswith("; written anew")
    assert_same(patches, FacePatches(faces, "square", 1.2, 32, cache="none"))
    assert_same(expected, patches)  # it is still open


def test_a_flipped_bit_is_never_used(faces, tmp_path, capsys):
    on_disk(faces, tmp_path / "c")
    (folder,) = (tmp_path / "c").glob("square_32px_*")
    content = bytearray((folder / "patches.npy").read_bytes())
    row = (len(content) - 128) // COUNT
    content[128 + 35 * row] ^= 1
    content[128 + 69 * row + 1000] ^= 128
    (folder / "patches.npy").write_bytes(content)
    patches, decoded = on_disk(faces, tmp_path / "c"), FacePatches(faces, "square", 1.2, 32, cache="none")
    assert capsys.readouterr().err == ""
    assert_same(patches, decoded)
    (line,) = capsys.readouterr().err.splitlines()  # one, though two records are damaged
    assert line.startswith(f"{folder}: damaged at face 35;")
    assert_same(on_disk(faces, tmp_path / "c"), decoded)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{folder}: manifest.json is missing; written anew"


WRITER = """
import resource, sys, time
from pathlib import Path
import numpy as np
from asmnet_tf.data import patches
from asmnet_tf.data.annotations import Sample
from asmnet_tf.data.geometry import landmark_box
root, images, pause, limit = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
faces = []
for path, landmarks in zip(sorted(images.glob("*.png")), np.load(images / "landmarks.npy", allow_pickle=False)):
    faces.append(Sample(path.stem, path, landmarks, landmark_box(landmarks), frozenset(), np.zeros(3)))
read = Sample.read_image
def slow(self):
    time.sleep(pause)
    return read(self)
Sample.read_image = slow
sys.stdin.readline()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
kept = patches.FacePatches(faces, "square", 1.2, 32, cache="disk", cache_dir=root)
print(len(kept), int(kept.crops().sum(dtype=np.int64)), flush=True)
"""


@pytest.fixture
def writer(tmp_path):
    """writer(pause, limit=0): another process that writes or opens the same cache, slowly, after a line on stdin."""
    started = []

    def start(pause, limit=0):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "c"), str(tmp_path / "images"), str(pause), str(limit)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen(command, cwd=Path(__file__).parents[2], text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_writing_leaves_no_cache_and_the_runs_that_waited_share_the_next(faces, tmp_path, writer):
    root = tmp_path / "c"
    faces.sort(key=lambda face: face.image_path)
    np.save(tmp_path / "images/landmarks.npy", np.stack([face.landmarks for face in faces]))
    victim, heir = writer(pause=1.0), writer(pause=0.02)
    victim.stdin.write("go\n")
    victim.stdin.flush()
    deadline = time.monotonic() + 120
    while not list(root.glob(".square_*/new/patches.npy")):
        assert victim.poll() is None and time.monotonic() < deadline  # noqa: PT018
        time.sleep(0.02)
    heir.stdin.write("go\n")
    heir.stdin.flush()
    time.sleep(0.5)
    assert folders(root) == []  # the heir waits
    victim.kill()
    patches = on_disk(faces, root)  # a third run, at the same time
    out, err = heir.communicate(timeout=120)
    assert heir.returncode == 0, err
    assert [path.name.startswith("square_32px_") for path in root.iterdir()] == [True]
    decoded = FacePatches(faces, "square", 1.2, 32, cache="none")
    assert_same(patches, decoded)
    assert out.split() == [str(COUNT), str(decoded.crops().sum(dtype=np.int64))]


def test_writing_that_is_interrupted_ends_soon_and_leaves_nothing(faces, tmp_path, monkeypatch):
    read, seen = Sample.read_image, []

    def interrupted(sample):
        seen.append(sample)
        if sample is faces[3]:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return read(sample)

    monkeypatch.setattr(Sample, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on_disk(faces, tmp_path / "c")
    assert len(seen) < COUNT // 2
    assert folders(tmp_path / "c") == []


def test_a_bad_image_is_named_and_leaves_nothing(faces, tmp_path):
    faces[40].image_path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"40\.png: 6 bytes that do not decode"):
        on_disk(faces, tmp_path / "c")
    assert folders(tmp_path / "c") == []
    faces[40].image_path.unlink()
    with pytest.raises(InputError, match=r"40\.png: image cannot be read"):
        on_disk(faces, tmp_path / "c")


def test_a_folder_that_cannot_be_written_is_named_or_gone_without(faces, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"file/c.*Choose another"):
        on_disk(faces, tmp_path / "file/c")
    monkeypatch.setattr(patch_cache, "MEMORY_LIMIT_BYTES", 1000)
    patches = FacePatches(faces, "square", 1.2, 32, cache_dir=tmp_path / "file/c")
    assert patches.cache == "none"
    (line,) = capsys.readouterr().err.splitlines()
    assert "Without a cache, images are decoded anew in every epoch" in line


def test_a_full_disk_is_noticed_before_writing(faces, tmp_path, monkeypatch):
    usage = patch_cache.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(patch_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(InputError, match=r"needs up to .* are free.*--cache-dir"):
            on_disk(faces, tmp_path / "c")
    assert folders(tmp_path / "c") == []


def test_a_disk_that_fills_up_while_writing(faces, tmp_path, writer):
    """The system itself refuses: no file of the writing process may grow beyond 40 kB."""
    np.save(tmp_path / "images/landmarks.npy", np.stack([face.landmarks for face in faces]))
    process = writer(pause=0, limit=40_000)
    _, err = process.communicate("go\n", timeout=120)
    assert process.returncode == 1
    assert re.search(r"OutputError: .*: cannot be written \(.*\)\..* --cache-dir, or use --cache none\.$", err.strip())
    assert folders(tmp_path / "c") == []


def test_killed_at_any_moment_the_next_run_has_a_whole_cache(faces, tmp_path, writer):
    faces.sort(key=lambda face: face.image_path)
    np.save(tmp_path / "images/landmarks.npy", np.stack([face.landmarks for face in faces]))
    decoded = FacePatches(faces, "square", 1.2, 32, cache="none")
    victims = [writer(pause=0.01) for _ in range(2)]
    for share, victim in zip((0.1, 0.9), victims):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        victim.stdin.write("go\n")
        victim.stdin.flush()
        deadline = time.monotonic() + 120
        while victim.poll() is None and time.monotonic() < deadline:
            written = sum(p.stat().st_size for p in (tmp_path / "c").glob(".*/new/patches.npy") if p.exists())
            if written >= share * 70 * 10_000:
                break
            time.sleep(0.002)
        victim.kill()
        victim.wait()
        assert_same(on_disk(faces, tmp_path / "c"), decoded)
        assert len(folders(tmp_path / "c")) == 1


def test_auto_chooses_by_the_limit_and_by_free_memory(faces, tmp_path, monkeypatch):
    def chosen():
        return FacePatches(faces, "square", 1.2, 32, cache_dir=tmp_path / "c").cache

    patches = FacePatches(faces, "square", 1.2, 32)
    assert patches.cache == "memory"
    need, real = patches._bytes(), sum(patches.patch(i).pixels.nbytes for i in range(COUNT))
    assert real <= need <= 3 * real
    monkeypatch.setattr(patch_cache, "MEMORY_LIMIT_BYTES", need)
    assert chosen() == "memory"
    monkeypatch.setattr(patch_cache, "free_memory", lambda: 2 * need - 2)
    assert chosen() == "disk"
    monkeypatch.undo()
    monkeypatch.setattr(patch_cache, "MEMORY_LIMIT_BYTES", need - 1)
    assert chosen() == "disk"
    assert patch_cache.free_memory() > 1 << 20


def test_the_bound_holds_for_the_largest_faces(tmp_path):
    """Whole image around the face, no shrinking, and shrinking by much."""
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((1500, 1500, 3), np.uint8))
    for side in (3.0, 20.0, 77.7, 501.3):
        points = 700 + side * np.random.default_rng(0).uniform(0, 1, (68, 2)).astype(np.float32)
        face = Sample("a", path, points, geometry.landmark_box(points), frozenset(), np.zeros(3))
        for size in (32, 64, 224):
            patches = FacePatches([face], "square", 1.2, size, cache="none")
            assert patches.patch(0).pixels.nbytes <= patches._bytes(), (side, size)


def test_many_threads_read_at_once(faces, tmp_path):
    patches, expected = on_disk(faces, tmp_path / "c"), FacePatches(faces, "square", 1.2, 32, cache="memory")
    failures = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, COUNT, 300):
            if not np.array_equal(patches.patch(i).pixels, expected.patch(i).pixels):
                failures.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
