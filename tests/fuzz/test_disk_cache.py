"""The disk cache with damaged files: every patch is still the right one, read from the cache or from its image."""

import os

import cv2
import numpy as np
import pytest
from mutations import ANYWHERE, odd_array, odd_json

from asmnet_tf.data import geometry
from asmnet_tf.data.annotations import Sample
from asmnet_tf.data.patches import FacePatches

FILES = 40


@pytest.fixture
def faces(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    result = []
    for i in range(4):
        points = np.random.default_rng(i).uniform(10, 50, (68, 2)).astype(np.float32)
        result.append(Sample(str(i), path, points, geometry.landmark_box(points), frozenset(), np.zeros(3)))
    return result


def test_no_damage_changes_a_patch(faces, tmp_path, capsys):
    root = tmp_path / "c"
    expected = FacePatches(faces, "square", 1.2, 32, cache="none")
    outside = sorted(p.name for p in tmp_path.iterdir())
    said = 0
    for i in range(FILES):
        patches = FacePatches(faces, "square", 1.2, 32, cache="disk", cache_dir=root)
        del patches  # a file that is cut is cut for those who have mapped it, too
        (folder,) = (p for p in root.iterdir())
        files = sorted(folder.iterdir())
        rng = np.random.default_rng(i)
        path = files[rng.integers(len(files))]
        inside = {".json": odd_json, ".npy": odd_array}.get(path.suffix)
        change = inside if inside and rng.integers(2) else ANYWHERE[rng.integers(len(ANYWHERE))]
        path.write_bytes(change(path.read_bytes(), rng))
        for _ in range(2):  # damage within a record shows when it is read, and the second run writes it anew
            patches = FacePatches(faces, "square", 1.2, 32, cache="disk", cache_dir=root)
            for k in range(len(faces)):
                assert np.array_equal(patches.patch(k).pixels, expected.patch(k).pixels), (i, path.name)
                assert np.array_equal(patches.patch(k).image_to_patch, expected.patch(k).image_to_patch), (i, path.name)
            del patches
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 2, (i, path.name, lines)
        said += bool(lines)
    assert said > FILES // 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*outside, "c"])
    assert len(os.listdir(root)) == 1
