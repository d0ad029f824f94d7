"""Image, landmarks and pose move together."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from asmnet_tf.config import AUGMENTATIONS, Augmentation
from asmnet_tf.data import augmentation, geometry
from asmnet_tf.data.annotations import BadSamples, Sample, trainable
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.files import InputError
from asmnet_tf.network import loss
from asmnet_tf.training.distribution import Replicas

SPEC = DATASETS["300w"]


def move_landmarks(shape, moved, flip_map):
    """Moves one shape (2L,) as `loss.move` does in the graph for a batch."""
    points = shape.reshape(-1, 2)
    return geometry.transform(moved.affine, points[flip_map] if moved.flip else points).reshape(-1)


MOTIONS = [
    {},
    {"flip": True},
    {"rotation_deg": 33.0},
    {"flip": True, "rotation_deg": -20.0, "scale": 1.1, "shift": (0.05, -0.03)},
    {"margins_px": (3.0, 10.0, 0.0, 6.0)},
    {"rotation_deg": 10.0, "margins_px": (10.0, 0.0, 5.0, 2.0)},
]


@pytest.mark.parametrize("crop", ["square", "tight"])
@pytest.mark.parametrize("change", MOTIONS)
def test_a_dot_in_the_image_stays_under_its_landmark(crop, change):
    """Three dots painted at three landmarks: after any motion their centres of mass are where the landmarks went."""
    dots = np.array([[110.0, 90.0], [150.0, 120.0], [128.0, 160.0]])
    frame = geometry.crop_frame(np.array([80.0, 70.0, 180.0, 190.0]), crop)
    size = 200
    for i, dot in enumerate(dots):
        image = np.zeros((260, 260, 3), np.uint8)
        cv2.circle(image, tuple(int(v) for v in dot), 4, (255, 255, 255), -1)
        image = cv2.GaussianBlur(image, (0, 0), 1.5)
        moved = augmentation.motion(frame, **change)
        crop_image = augmentation.render(geometry.cut_patch(image, frame, size), frame, moved, size)[..., 0]
        y, x = np.mgrid[:size, :size]
        weight = crop_image.astype(float)
        assert weight.sum() > 1000, f"dot {i} is not in the crop"
        seen = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
        norm = geometry.normalise(dot[None], frame)
        there = move_landmarks(norm, moved, [0])
        assert seen == pytest.approx(there * size + (size - 1) / 2, abs=0.35)


def test_motion_by_hand():
    frame = np.array([50.0, 50.0, 100.0, 200.0])
    point = np.array([0.2, 0.1])  # 20 px right, 20 px below the centre

    def moved(**change):
        return move_landmarks(point, augmentation.motion(frame, **change), [0])

    assert moved() == pytest.approx([0.2, 0.1])
    assert moved(flip=True) == pytest.approx([-0.2, 0.1])
    assert moved(rotation_deg=90) == pytest.approx([-0.2, 0.1])  # (20, 20) px -> (-20, 20) px
    assert moved(scale=2.0) == pytest.approx([0.1, 0.05])
    assert moved(shift=(0.1, 0)) == pytest.approx([0.3, 0.1])
    # 10 px more on the left: 110 px wide, the centre 5 px further left
    assert moved(margins_px=(10, 0, 0, 0)) == pytest.approx([25 / 110, 0.1])
    assert moved(margins_px=(0, 0, 0, 50)) == pytest.approx([0.2, -5 / 250])


def test_pose_moves_with_the_image():
    frame = np.array([0.0, 0, 10, 10])
    pose = np.array([20.0, -5.0, 10.0])
    assert augmentation.motion(frame).move_pose(pose) == pytest.approx(pose)
    assert augmentation.motion(frame, flip=True).move_pose(pose) == pytest.approx([-20, -5, -10])
    assert augmentation.motion(frame, rotation_deg=30).move_pose(pose) == pytest.approx([20, -5, 40])
    assert augmentation.motion(frame, flip=True, rotation_deg=30).move_pose(pose) == pytest.approx([-20, -5, 20])
    assert augmentation.motion(frame, rotation_deg=175).move_pose(pose) == pytest.approx([20, -5, -175])


def test_moving_in_the_graph_equals_numpy():
    rng = np.random.default_rng(0)
    shapes = rng.uniform(-0.5, 0.5, (len(MOTIONS), 136))
    frame = np.array([10.0, 20.0, 120.0, 150.0])
    moved = [augmentation.motion(frame, **change) for change in MOTIONS]
    there = loss.move(
        tf.constant(shapes),
        tf.constant(np.stack([m.affine for m in moved])),
        tf.constant([m.flip for m in moved]),
        tf.constant(SPEC.flip_map),
    )
    expected = [move_landmarks(s, m, SPEC.flip_map) for s, m in zip(shapes, moved)]
    assert there.numpy() == pytest.approx(np.array(expected), abs=1e-12)


def test_mirroring_twice_is_the_original():
    shape = np.random.default_rng(1).uniform(-0.5, 0.5, 136)
    mirror = augmentation.motion(np.array([0.0, 0, 10, 10]), flip=True)
    once = move_landmarks(shape, mirror, SPEC.flip_map)
    assert once == pytest.approx(geometry.flip_landmarks(shape, SPEC.flip_map))
    assert move_landmarks(once, mirror, SPEC.flip_map) == pytest.approx(shape)


def test_pixel_changes_stay_in_range_and_do_nothing_when_off():
    image = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    still = augmentation.change_pixels(image.copy(), Augmentation(), np.random.default_rng(0))
    assert np.array_equal(still, image)
    changed = augmentation.change_pixels(image.copy(), AUGMENTATIONS["tuned"], np.random.default_rng(0))
    assert changed.dtype == np.uint8
    assert not np.array_equal(changed, image)


def samples(tmp_path, count=5):
    rng = np.random.default_rng(3)
    result = []
    for i in range(count):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (120, 140, 3), np.uint8))
        landmarks = rng.uniform(20, 100, (68, 2)).astype(np.float32)
        box = geometry.landmark_box(landmarks)
        result.append(Sample(str(i), path, landmarks, box, frozenset(), np.array([5.0 * i, -3.0, 2.0])))
    return result


def test_batches_are_a_function_of_seed_epoch_and_step(tmp_path):
    patches = FacePatches(samples(tmp_path), "square", 1.2, 48)
    batches = TrainingBatches(patches, AUGMENTATIONS["tuned"], 2, seed=7)
    assert batches.steps_per_epoch == 2
    for a, b in zip(batches.batch(3, 1), TrainingBatches(patches, AUGMENTATIONS["tuned"], 2, seed=7).batch(3, 1)):
        assert np.array_equal(a, b)
    assert not np.array_equal(batches.batch(3, 1)[0], batches.batch(4, 1)[0])
    other = TrainingBatches(patches, AUGMENTATIONS["tuned"], 2, seed=8)
    assert not np.array_equal(batches.batch(3, 1)[0], other.batch(3, 1)[0])


def test_parts_of_workers_make_up_the_batch(tmp_path):
    """Five faces of three workers: 1, 2 and 2, in the order of the whole batch."""
    patches = FacePatches(samples(tmp_path, 11), "square", 1.2, 32)
    whole = TrainingBatches(patches, AUGMENTATIONS["tuned"], 5, seed=7)
    parts = [
        TrainingBatches(patches, AUGMENTATIONS["tuned"], 5, 7, Replicas(worker=w, workers=3).part) for w in range(3)
    ]
    assert [part.steps_per_epoch for part in parts] == [whole.steps_per_epoch] * 3
    split = [part.batch(2, 1) for part in parts]
    assert [len(arrays[0]) for arrays in split] == [1, 2, 2]
    for arrays, expected in zip(zip(*split), whole.batch(2, 1)):
        assert np.array_equal(np.concatenate(arrays), expected)
    assert [next(iter(part.dataset(2)))["image"].shape[0] for part in parts] == [1, 2, 2]


def test_dataset_yields_the_same_batches_in_order(tmp_path):
    patches = FacePatches(samples(tmp_path), "tight", 1.0, 32)
    batches = TrainingBatches(patches, AUGMENTATIONS["paper"], 2, seed=0)
    for position, element in enumerate(batches.dataset(1).take(4)):
        expected = batches.batch(1 + position // 2, position % 2)
        for key, value in zip(("image", "landmarks_norm", "affine", "flip", "pose"), expected):
            assert np.array_equal(element[key].numpy(), value), (position, key)


def test_annotations_of_a_mirrored_face_are_as_far_right_of_what_they_mark(tmp_path):
    """Eight faces, each with something at (40, 50) that is marked 3 pixels further right, mirrored or not."""
    patches = FacePatches(samples(tmp_path, 8), "square", 1.2, 32)
    patches.landmarks_norm[:, :2] = geometry.normalise(np.array([[43.0, 50.0]]), patches.frames)
    marked = geometry.normalise(np.array([[40.0, 50.0]]), patches.frames)
    mirrors = TrainingBatches(patches, Augmentation(flip=0.5), 8, seed=0, right_px=3.0)
    _, shapes, affine, flip, _ = mirrors.batch(0, 0)
    assert 0 < flip.sum() < 8
    order = np.random.default_rng([0, 0]).permutation(8)
    for shape, move, i in zip(shapes, affine, order):
        points = geometry.transform(move, np.stack([shape[:2], marked[i]]))
        assert (points[0] - points[1]) * patches.frames[i, 2] == pytest.approx([3.0, 0.0], abs=1e-4)


def test_every_face_is_seen_once_an_epoch(tmp_path):
    patches = FacePatches(samples(tmp_path, 6), "square", 1.2, 32)
    batches = TrainingBatches(patches, AUGMENTATIONS["none"], 2, seed=0)
    seen = np.concatenate([batches.batch(0, step)[1] for step in range(3)])
    order = np.argsort(seen[:, 0])
    assert np.array_equal(seen[order], patches.landmarks_norm[np.argsort(patches.landmarks_norm[:, 0])])


def test_cache_does_not_change_the_images(tmp_path):
    faces = samples(tmp_path)
    cached, decoded = FacePatches(faces, "square", 1.2, 48), FacePatches(faces, "square", 1.2, 48, cache="none")
    assert np.array_equal(cached.crops(), decoded.crops())
    scored = FacePatches(faces, "square", 1.2, 48, margin=1.0, cache="none")
    assert np.array_equal(scored.crops()[0], geometry.crop_image(faces[0].read_image(), scored.frames[0], 48))


def test_a_bad_image_is_named_whether_cached_or_not(tmp_path):
    faces = samples(tmp_path)
    faces[3].image_path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"3\.png: 6 bytes that do not decode"):
        FacePatches(faces, "square", 1.2, 48)
    patches = FacePatches(faces, "square", 1.2, 48, cache="none")
    stream = TrainingBatches(patches, AUGMENTATIONS["none"], 5, seed=0).iterate()
    with pytest.raises(InputError, match=r"3\.png"):
        next(stream)


def test_a_face_without_pose_is_named(tmp_path):
    faces = samples(tmp_path)
    faces[2] = Sample("2", faces[2].image_path, faces[2].landmarks, faces[2].bbox, frozenset(), np.full(3, np.nan))
    with pytest.raises(InputError, match=r"2\.png: no head pose"):
        trainable(faces, BadSamples())
    bad = BadSamples(skip=True)
    assert trainable(faces, bad) == [face for face in faces if face.name != "2"]
    assert list(bad.reasons) == ["2"]
