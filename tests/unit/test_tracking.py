"""The One-Euro filter and the matching of boxes by hand; the tracker on faces whose motion is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks.rotated_faces import spin

from asmnet_tf.data.geometry import crop_frame
from asmnet_tf.data.pose import signed
from asmnet_tf.evaluation import metrics
from asmnet_tf.faces.aligner import Face, FaceAligner
from asmnet_tf.faces.detector import overlaps
from asmnet_tf.faces.tracking import FaceTracker, OneEuroFilter, look_of, match, still_there
from asmnet_tf.synthetic.renderer import render_face

IMAGE = np.zeros((200, 300, 3), np.uint8)


def box_at(x, y=50.0, side=40.0):
    return np.array([x, y, x + side, y + side])


class Scene:
    """Stands for detector and network: `faces` are the boxes of the faces there are; both see them exactly."""

    def __init__(self):
        self.faces, self.detections, self.hidden, self.roll = [], 0, (), 3.0
        self.aligner = SimpleNamespace(find=self.find, detect=self.detect)

    def find(self, image):
        self.detections += 1
        seen = [face for i, face in enumerate(self.faces) if i not in self.hidden]
        return np.array(seen).reshape(-1, 4), np.full(len(seen), 0.9), np.zeros(len(seen))

    def detect(self, image, boxes, angles):
        """A landmark regressor: finds the nearest face, where there is none something small in the box's corner."""
        found = []
        for box in boxes:
            near = [face for face in self.faces if np.abs(face - box).max() < 30]
            low, high = np.split(near[0] if near else np.array([*box[:2], *(box[:2] + 5)]), 2)
            found.append(Face(box, 1.0, np.array([low, high]), 1.0, 2.0, self.roll))
        return found


def test_the_filter_by_hand():
    """dt 0.1 s, 1 Hz: alpha = 1 / (1 + 1 / (2 pi 0.1)) = 0.385870. With beta 1 the speed 10 is smoothed to 3.8587, the
    cut-off is 4.8587 Hz, alpha = 0.753256."""
    plain, fast = OneEuroFilter(0.0), OneEuroFilter(1.0)
    assert plain(np.zeros(1), 0.1) == fast(np.zeros(1), 0.1) == 0
    assert plain(np.ones(1), 0.1) == pytest.approx(0.385870, abs=1e-6)
    assert plain(np.ones(1), 0.1) == pytest.approx(0.385870 + 0.385870 * 0.614130, abs=1e-6)
    assert fast(np.ones(1), 0.1) == pytest.approx(0.753256, abs=1e-5)


def test_the_filter_quietens_noise_and_follows_a_step():
    rng = np.random.default_rng(0)
    smooth = OneEuroFilter(0.1)
    values = np.array([smooth(v, 1 / 30) for v in rng.normal(0, 1, (300, 5))])
    assert values[100:].std() < 0.5
    assert [smooth(np.full(5, 100.0), 1 / 30) for _ in range(15)][-1] == pytest.approx(np.full(5, 100), abs=1)


def test_boxes_are_matched_largest_overlap_first():
    boxes, others = np.array([box_at(0), box_at(30)]), np.array([box_at(22), box_at(200), box_at(31)])
    table = overlaps(boxes, others)
    assert match(table) == {1: 2}  # box 0 and other 0: 18 of 62, less than 0.3
    assert match(table, least=0.29) == {1: 2, 0: 0}
    assert match(table[:0]) == match(table[:, :0]) == {}


def test_a_face_is_gone_when_it_leaves_its_box_or_the_image():
    assert still_there(box_at(0), box_at(10), IMAGE.shape)
    assert not still_there(box_at(0), box_at(25), IMAGE.shape)
    assert not still_there(box_at(290), box_at(290), IMAGE.shape)


def test_detection_every_few_frames_and_one_number_per_face():
    scene = Scene()
    tracker = FaceTracker(scene.aligner, detect_every=4)
    for step in range(8):
        scene.faces = [box_at(5.0 * step), box_at(200.0 - 5 * step, 100.0)]
        seen = tracker.update(IMAGE, 0.04)
        assert [number for number, _ in seen] == [1, 2]
        assert seen[0][1].landmark_box == pytest.approx(scene.faces[0])
        assert seen[0][1].score == 0.9
    assert scene.detections == 2


def test_a_lost_face_is_dropped_and_looked_for_at_once():
    scene = Scene()
    tracker = FaceTracker(scene.aligner, detect_every=10)
    scene.faces = [box_at(20), box_at(150)]
    assert len(tracker.update(IMAGE, 0.04)) == 2
    scene.faces = [box_at(150)]
    assert [number for number, _ in tracker.update(IMAGE, 0.04)] == [2]
    scene.faces = [box_at(150), box_at(60)]
    assert [number for number, _ in tracker.update(IMAGE, 0.04)] == [2, 3]
    assert scene.detections == 2


def test_an_unconfirmed_track_ends_and_an_empty_scene_is_empty():
    scene = Scene()
    tracker = FaceTracker(scene.aligner, detect_every=1)
    assert tracker.update(IMAGE, 0.04) == []
    scene.faces = [box_at(20)]
    assert len(tracker.update(IMAGE, 0.04)) == 1
    scene.faces = []
    assert tracker.update(IMAGE, 0.04) == []


def test_smoothing_does_not_depend_on_the_size_of_the_face():
    """The same jump by a tenth of the side, at 20 and at 40 px, is smoothed to the same share."""
    shares = []
    for side in (20.0, 40.0):
        scene = Scene()
        tracker = FaceTracker(scene.aligner, detect_every=100, smooth=True)
        scene.faces = [box_at(50, side=side)]
        tracker.update(IMAGE, 0.04)
        scene.faces = [box_at(50 + side / 10, side=side)]
        face = tracker.update(IMAGE, 0.04)[0][1]
        shares.append((face.landmarks[0, 0] - 50) / (side / 10))
    assert 0.2 < shares[0] < 0.9
    assert shares[0] == pytest.approx(shares[1])
    assert face.angles == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("detect_every", [1, 10])
@pytest.mark.parametrize("speed", [2.0, 6.0, -4.0])
def test_a_face_at_rest_keeps_number_and_place_when_another_passes_in_front(speed, detect_every):
    """Where boxes overlap the detector sees the one in front alone, and the landmarks are those of the nearer face."""
    scene = Scene()
    tracker = FaceTracker(scene.aligner, detect_every)
    numbers = []
    for step in range(int(240 / abs(speed))):
        front = box_at((20 if speed > 0 else 240) + speed * step, 55.0)
        scene.faces = [front, box_at(130)]
        scene.hidden = (1,) if abs(front[0] - 130) < 25 else ()
        seen = dict(tracker.update(IMAGE, 0.04))
        numbers += seen
        if step > 1 and 2 in seen:
            assert np.abs(seen[2].landmark_box - box_at(130)).max() <= 15
        assert seen[1].landmark_box == pytest.approx(front)
    assert set(numbers) == {1, 2}
    assert 2 in seen


def test_a_face_that_the_detector_misses_for_a_second_keeps_its_number_while_the_camera_pans():
    scene = Scene()
    tracker = FaceTracker(scene.aligner, detect_every=5)
    for step in range(60):
        scene.faces = [box_at(250.0 - 3 * step), box_at(230.0 - 3 * step, 120.0)]
        scene.hidden = (1,) if 20 <= step < 40 else ()
        seen = dict(tracker.update(IMAGE, 0.04))
        assert set(seen) <= {1, 2}
    assert set(seen) == {1, 2}


def test_after_two_seconds_or_outside_the_image_only_the_look_tells():
    """Three people as three patterns: the first leaves and comes back, the third comes where the first was."""
    scene = Scene()
    patterns = np.random.default_rng(0).integers(0, 256, (3, 41, 41, 3), np.uint8)

    def update(people):
        image = IMAGE.copy()
        scene.faces = [box_at(x) for _, x in people]
        for person, x in people:
            image[50:91, x : x + 41] = patterns[person]
        return [number for number, _ in tracker.update(image, 0.5)]

    tracker = FaceTracker(scene.aligner, detect_every=1)
    assert update([(0, 40), (1, 200)]) == [1, 2]
    for _ in range(6):
        assert update([(1, 200)]) == [2]
    assert update([(2, 40), (1, 200)]) == [2, 3]
    assert update([(2, 40), (0, 120), (1, 200)]) == [1, 2, 3]


@pytest.fixture(scope="module")
def spinning():
    """A rendered face that turns once around: frames, angles, landmarks, and its roll in the first frame."""
    face = render_face(0, 3, size=300)
    return *spin(face.image, face.landmarks_68, 72), float(face.pose[2])


def test_a_spinning_photograph_is_one_face_whose_roll_goes_around(spinning, monkeypatch):
    """A crop turned with the face has the size of the upright one; in the image's frame its box would be up to 11 %
    larger here, sqrt(2) for a square face."""
    frames, turned, truth, roll = spinning
    aligner = FaceAligner()
    tracker, sides, align = FaceTracker(aligner, detect_every=10), [], aligner.align

    def watched(image, boxes, angles):
        sides.append(crop_frame(boxes[0], "square", 1.0)[2])
        return align(image, boxes, angles)

    monkeypatch.setattr(aligner, "align", watched)
    seen = [tracker.update(frame, 0.04) for frame in frames]
    assert [[number for number, _ in faces] for faces in seen] == [[1]] * len(frames)
    faces = [faces[0][1] for faces in seen]
    nme = 100 * metrics.nme(np.array([f.landmarks for f in faces]), truth, metrics.normaliser(truth, aligner.spec))
    assert nme.max() < 1.3 * nme[0]
    assert np.abs(signed(np.array([f.roll for f in faces]) - turned - roll)).max() < 2
    upright = crop_frame(faces[0].landmark_box, "square", 1.0)[2]
    beyond = np.abs(signed(turned)) > 35
    assert np.array(sides)[beyond] / upright == pytest.approx(1, abs=0.05)


def test_a_face_that_has_turned_in_the_plane_looks_as_before(spinning):
    frames, turned, truth, roll = spinning
    looks = [
        look_of(frame, Face(np.zeros(4), 1.0, landmarks, 0.0, 0.0, float(signed(angle + roll))))
        for frame, landmarks, angle in zip(frames, truth, turned)
    ]
    assert (np.array(looks) @ looks[0]).min() > 0.95


def test_smoothed_roll_goes_on_beyond_180_degrees():
    """It lags while a face goes around, never the other way; one that stands on its head is as steady as another."""

    def smoothed(rolls):
        scene, found = Scene(), []
        tracker = FaceTracker(scene.aligner, detect_every=1000, smooth=True)
        scene.faces = [box_at(50)]
        for scene.roll in signed(np.asarray(rolls, float)).tolist():
            found.append(tracker.update(IMAGE, 0.04)[0][1].roll)
        assert -180 < min(found) < max(found) <= 180
        return np.array(found)

    rolls = smoothed(10 * np.arange(72))
    assert (np.diff(np.unwrap(rolls, period=360)) >= 0).all()
    assert 0 < signed(10 * np.arange(72) - rolls).max() < 30
    noise = np.random.default_rng(0).normal(0, 1.5, 100)
    assert signed(smoothed(180 + noise) - 180) == pytest.approx(smoothed(noise))
