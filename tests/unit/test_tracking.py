"""The One-Euro filter and the matching of boxes by hand; the tracker on faces whose motion is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from asmnet_tf.faces import tracking
from asmnet_tf.faces.aligner import Face
from asmnet_tf.faces.tracking import FaceTracker, OneEuroFilter, match, still_there

IMAGE = np.zeros((200, 300, 3), np.uint8)


def box_at(x, y=50.0, side=40.0):
    return np.array([x, y, x + side, y + side])


class Scene:
    """Stands for detector and network: `faces` are the boxes of the faces there are; both see them exactly."""

    def __init__(self, monkeypatch):
        self.faces, self.detections = [], 0
        self.aligner = SimpleNamespace(min_score=0.5, detector_size=256, detect=self.detect)
        monkeypatch.setattr(tracking, "detect_faces", self.detect_faces)

    def detect_faces(self, image, min_score, size):
        self.detections += 1
        return np.array(self.faces).reshape(-1, 4), np.full(len(self.faces), 0.9)

    def detect(self, image, boxes):
        """A landmark regressor: finds the nearest face, where there is none something small in the box's corner."""
        found = []
        for box in boxes:
            near = [face for face in self.faces if np.abs(face - box).max() < 30]
            low, high = np.split(near[0] if near else np.array([*box[:2], *(box[:2] + 5)]), 2)
            found.append(Face(box, 1.0, np.array([low, high]), 1.0, 2.0, 3.0))
        return found


def test_the_filter_by_hand():
    """dt 0.1 s, 1 Hz: alpha = 1 / (1 + 1 / (2 pi 0.1)) = 0.385870. With beta 1 the speed 10 is smoothed to 3.8587, the
    cut-off is 4.8587 Hz, alpha = 0.753256."""
    plain, fast = OneEuroFilter(1.0, 0.0, 1.0), OneEuroFilter(1.0, 1.0, 1.0)
    assert plain(np.zeros(1), 0.1) == fast(np.zeros(1), 0.1) == 0
    assert plain(np.ones(1), 0.1) == pytest.approx(0.385870, abs=1e-6)
    assert plain(np.ones(1), 0.1) == pytest.approx(0.385870 + 0.385870 * 0.614130, abs=1e-6)
    assert fast(np.ones(1), 0.1) == pytest.approx(0.753256, abs=1e-5)


def test_the_filter_quietens_noise_and_follows_a_step():
    rng = np.random.default_rng(0)
    smooth = OneEuroFilter(1.0, 0.1, 1.0)
    values = np.array([smooth(v, 1 / 30) for v in rng.normal(0, 1, (300, 5))])
    assert values[100:].std() < 0.5
    assert [smooth(np.full(5, 100.0), 1 / 30) for _ in range(15)][-1] == pytest.approx(np.full(5, 100), abs=1)


def test_boxes_are_matched_largest_overlap_first():
    boxes, others = np.array([box_at(0), box_at(30)]), np.array([box_at(22), box_at(200), box_at(31)])
    assert match(boxes, others) == {1: 2}  # box 0 and other 0: 18 of 62, less than 0.3
    assert match(boxes, others, least=0.29) == {1: 2, 0: 0}
    assert match(boxes[:0], others) == match(boxes, others[:0]) == {}


def test_a_face_is_gone_when_it_leaves_its_box_or_the_image():
    assert still_there(box_at(0), box_at(10), IMAGE.shape)
    assert not still_there(box_at(0), box_at(25), IMAGE.shape)
    assert not still_there(box_at(290), box_at(290), IMAGE.shape)


def test_detection_every_few_frames_and_one_number_per_face(monkeypatch):
    scene = Scene(monkeypatch)
    tracker = FaceTracker(scene.aligner, detect_every=4)
    for step in range(8):
        scene.faces = [box_at(5.0 * step), box_at(200.0 - 5 * step, 100.0)]
        seen = tracker.update(IMAGE, 0.04)
        assert [number for number, _ in seen] == [1, 2]
        assert seen[0][1].landmark_box == pytest.approx(scene.faces[0])
        assert seen[0][1].score == 0.9
    assert scene.detections == 2


def test_a_lost_face_is_dropped_and_looked_for_at_once(monkeypatch):
    scene = Scene(monkeypatch)
    tracker = FaceTracker(scene.aligner, detect_every=10)
    scene.faces = [box_at(20), box_at(150)]
    assert len(tracker.update(IMAGE, 0.04)) == 2
    scene.faces = [box_at(150)]
    assert [number for number, _ in tracker.update(IMAGE, 0.04)] == [2]
    scene.faces = [box_at(150), box_at(60)]
    assert [number for number, _ in tracker.update(IMAGE, 0.04)] == [2, 3]
    assert scene.detections == 2


def test_an_unconfirmed_track_ends_and_an_empty_scene_is_empty(monkeypatch):
    scene = Scene(monkeypatch)
    tracker = FaceTracker(scene.aligner, detect_every=1)
    assert tracker.update(IMAGE, 0.04) == []
    scene.faces = [box_at(20)]
    assert len(tracker.update(IMAGE, 0.04)) == 1
    scene.faces = []
    assert tracker.update(IMAGE, 0.04) == []


def test_smoothing_does_not_depend_on_the_size_of_the_face(monkeypatch):
    """The same jump by a tenth of the side, at 20 and at 40 px, is smoothed to the same share."""
    shares = []
    for side in (20.0, 40.0):
        scene = Scene(monkeypatch)
        tracker = FaceTracker(scene.aligner, detect_every=100, smooth=True)
        scene.faces = [box_at(50, side=side)]
        tracker.update(IMAGE, 0.04)
        scene.faces = [box_at(50 + side / 10, side=side)]
        face = tracker.update(IMAGE, 0.04)[0][1]
        shares.append((face.landmarks[0, 0] - 50) / (side / 10))
    assert 0.2 < shares[0] < 0.9
    assert shares[0] == pytest.approx(shares[1])
    assert face.angles == pytest.approx([1, 2, 3])
