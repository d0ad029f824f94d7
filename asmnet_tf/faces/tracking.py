"""Follows faces from frame to frame: the landmarks' box of one frame is where the next is looked at (NumPy, OpenCV)."""

from dataclasses import dataclass, field, replace

import numpy as np

from asmnet_tf.data.geometry import crop_frame, crop_image, landmark_box
from asmnet_tf.data.pose import signed
from asmnet_tf.faces.aligner import Face, FaceAligner
from asmnet_tf.faces.detector import overlaps

SAME_FACE = 0.3  # IoU of a track's box and a detection's from which on they are one face
TOUCHING = 0.1  # IoU of two tracks from which on the landmarks of one may slide onto the other
REMEMBERED_S = 2.0  # for so long a lost face is expected where it would be by now
REMEMBERED = 1000  # lost faces, of which the look is known
SAME_LOOK = 0.85  # correlation of two looks from which on they are one face; of 20,301 pairs of people 10 have as much
LOOK_SIDE = 16  # pixels
SETTLED = 10  # frames over which a velocity is averaged
STEADY = 0.5  # IoU of the box looked at, or expected, and the landmarks' box found there; below, they may have slid
CUTOFF_HZ = 1.0  # One-Euro: of a face that stands still, and of the speed
BETA = 10.0  # One-Euro: how much a motion of one unit a second raises the cut-off
DEGREES_PER_UNIT = 30.0  # of smoothed angles, as box sides of landmarks: both move by about 1 a second


@dataclass
class OneEuroFilter:
    """The One-Euro filter (Casiez, Roussel, Vogel, CHI 2012): a low pass whose cut-off rises with the speed.

        alpha(f) = 1 / (1 + 1 / (2 pi f dt));  speed = low_pass(dx / dt);  cut-off = 1 Hz + beta |speed|

    A still face is smoothed strongly, a moving one is followed closely. Works on arrays, each number by itself.

    Args: beta: per unit of the signal, a number or one for each. value: the last output.
    """

    beta: float | np.ndarray = BETA
    value: np.ndarray | None = None
    _speed: np.ndarray | float = 0.0

    def __call__(self, value: np.ndarray, dt: float) -> np.ndarray:
        """Returns the smoothed `value`, any shape; `dt`: seconds since the last one. The first comes back as it is."""
        if self.value is None:
            self.value = np.array(value, np.float64)
            return self.value

        def alpha(cutoff: np.ndarray | float) -> np.ndarray | float:
            return 1.0 / (1.0 + 1.0 / (2.0 * np.pi * cutoff * dt))

        change = value - self.value
        self._speed = self._speed + alpha(CUTOFF_HZ) * (change / dt - self._speed)
        self.value = self.value + alpha(CUTOFF_HZ + self.beta * np.abs(self._speed)) * change
        return self.value


@dataclass(eq=False)
class Track:
    """One face over time. number: 1, 2, ... in order of appearance. face: as last seen, not smoothed.

    place: the box of the detection that last confirmed it, `age` frames ago. look: see `look_of`. velocity: pixels a
    frame, from detection to detection over `followed` frames. lost: seconds for which it has not been seen. alone: no
    other face touches it.
    """

    number: int
    face: Face
    place: np.ndarray
    look: np.ndarray
    age: int = 0
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    followed: int = 0
    lost: float = 0.0
    alone: bool = False
    filter: OneEuroFilter = field(default_factory=OneEuroFilter)

    @property
    def expected(self) -> np.ndarray:
        """Where the face is if it moved on as it did between the detections, box (4,)."""
        return self.place + np.tile(self.velocity * self.age, 2)

    def confirm(self, face: Face, box: np.ndarray) -> None:
        """Takes the face that was found in the box of a detection."""
        if self.age and (self.alone or self.followed < SETTLED):  # what covers a face pushes its box aside
            velocity = (box - self.place).reshape(2, 2).mean(axis=0) / self.age
            self.followed = min(SETTLED, self.followed + self.age)
            self.velocity = self.velocity + min(1.0, self.age / self.followed) * (velocity - self.velocity)
        if self.lost:  # the filter knows another time
            self.filter = OneEuroFilter()
        self.face, self.place, self.age, self.lost = face, box, 0, 0.0

    def smoothed(self, dt: float) -> Face:
        """Returns the face after the filter; once per frame."""
        points = self.face.landmarks
        side = max(float(np.ptp(points, axis=0).max()), 1e-6)  # so that the size of the face does not matter
        self.filter.beta = BETA / np.repeat([side, DEGREES_PER_UNIT], [points.size, 3])
        angles = self.face.angles
        if self.filter.value is not None:  # roll goes on beyond 180 degrees
            angles[2] = self.filter.value[-1] + signed(angles[2] - self.filter.value[-1])
        *points, yaw, pitch, roll = self.filter(np.append(points, angles), dt).tolist()
        return replace(self.face, landmarks=np.reshape(points, (-1, 2)), yaw=yaw, pitch=pitch, roll=signed(roll))


def match(table: np.ndarray, least: float = SAME_FACE) -> dict[int, int]:
    """Pairs rows and columns of a table (N, M) of overlaps, largest first, none below `least`: {row: column}."""
    table, pairs = table.copy(), {}
    while table.size and table.max() >= least:
        i, j = np.unravel_index(table.argmax(), table.shape)
        pairs[int(i)] = int(j)
        table[i], table[:, j] = -1.0, -1.0
    return pairs


@dataclass(eq=False)
class FaceTracker:
    """Finds faces in the frames of a video: detected every few frames, followed by their landmarks in between.

    A number is one face. A face is lost when its landmarks leave the box they were looked for in, when it leaves the
    image, or when a detection does not confirm it; the frame after a loss is detected anew. A lost face is not
    reported. It gets its number back where it was or would be by now, within two seconds or when what covers it has
    moved on; later or elsewhere only if it looks as it did, so one whose head has turned meanwhile gets a new number.
    While faces touch, every frame is detected, lest the landmarks of one slide onto another. Not for several threads.

    detect_every: 1 detects in every frame. smooth: landmarks and angles (`OneEuroFilter`). tracks: faces in the image.
    """

    aligner: FaceAligner
    detect_every: int = 10
    smooth: bool = False
    tracks: list[Track] = field(default_factory=list)
    lost: list[Track] = field(default_factory=list)
    _frames_until_detection: int = 0
    _appeared: int = 0

    def update(self, image: np.ndarray, dt: float) -> list[tuple[int, Face]]:
        """Returns (track number, face) of every face of the next frame, RGB uint8 (H, W, 3), `dt` seconds later."""
        for track in self.tracks + self.lost:
            track.age += 1
        boxes = [track.face.landmark_box for track in self.tracks]
        near = [t for t in self.lost if t.lost < REMEMBERED_S and _is_inside(t.expected, image.shape)]
        touching = overlaps(boxes, [*boxes, *(track.expected for track in near)]) >= TOUCHING
        covered = dict(zip(near, touching[:, len(boxes) :].any(axis=0)))
        for track in self.lost:
            track.lost += 0.0 if covered.get(track) else dt
        for track, count in zip(self.tracks, touching.sum(axis=1)):
            track.alone = count == 1
        if self._frames_until_detection <= 0 or not all(track.alone for track in self.tracks):
            self._detect(image, near)
            self._frames_until_detection = self.detect_every
        else:
            self._follow(image)
        self._frames_until_detection -= 1
        return [(track.number, track.smoothed(dt) if self.smooth else track.face) for track in self.tracks]

    def _detect(self, image: np.ndarray, near: list[Track]) -> None:
        """Confirms, loses, finds again and adds tracks; `near`: lost ones that are known by their place."""
        detected, scores, angles = self.aligner.find(image)
        looked_at, known = detected.copy(), {}  # detection -> whose it is

        def recognise(tracks: list[Track], table: np.ndarray, least: float) -> None:
            table[:, list(known)] = 0.0
            known.update((found, tracks[i]) for i, found in match(table, least).items())

        steady = overlaps([track.face.landmark_box for track in self.tracks], detected)
        expected = overlaps([track.expected for track in self.tracks], detected)
        # where landmarks may have slid onto another face, the velocity has a say; alone, it does where they are lost
        say = np.array([0.0 if track.alone else 0.5 for track in self.tracks])[:, None]
        table = np.maximum((1 - say) * steady + say * expected, expected / 2)
        table[np.maximum(steady, expected) < SAME_FACE] = 0.0
        recognise(self.tracks, table, SAME_FACE / 2)
        for found, track in known.items():
            if steady[self.tracks.index(track), found] >= STEADY:  # then it is looked at where its landmarks were
                looked_at[found] = landmark_box(track.face.landmarks, angles[found])
        places, expected = [track.place for track in near], [track.expected for track in near]
        recognise(near, np.maximum(overlaps(places, detected), overlaps(expected, detected)), SAME_FACE)
        faces = self.aligner.detect(image, looked_at, angles=angles)
        faces = [replace(face, score=float(score)) for face, score in zip(faces, scores)]
        looks = np.reshape([look_of(image, face) for face in faces], (-1, 3 * LOOK_SIDE**2))
        others = [track for track in self.lost if track not in known.values()]
        recognise(others, np.reshape([track.look for track in others], (-1, 3 * LOOK_SIDE**2)) @ looks.T, SAME_LOOK)
        fit = overlaps([face.landmark_box for face in faces], detected)
        tracks = []
        for found, (face, look) in enumerate(zip(faces, looks)):
            if found not in known:
                self._appeared += 1
                known[found] = Track(self._appeared, face, detected[found], look)
            known[found].confirm(face, detected[found])
            if known[found].alone and ((face.landmarks >= 0) & (face.landmarks < image.shape[1::-1])).all():
                known[found].look = look
            if _is_inside(face.landmark_box, image.shape) and fit[found, found] >= fit[found].max():  # else it has slid
                tracks.append(known[found])
        everyone = dict.fromkeys([*self.lost, *self.tracks, *known.values()])
        self.lost = [track for track in everyone if track not in tracks][-REMEMBERED:]
        self.tracks = sorted(tracks, key=lambda track: track.number)

    def _follow(self, image: np.ndarray) -> None:
        boxes = np.array([track.face.landmark_box for track in self.tracks])
        angles = np.array([track.face.turned for track in self.tracks])
        faces = self.aligner.detect(image, boxes, angles=angles)
        tracks, self.tracks = self.tracks, []
        for track, box, angle, face in zip(tracks, boxes, angles, faces):
            there = still_there(box, landmark_box(face.landmarks, angle), image.shape)
            (self.tracks if there else self.lost).append(track)
            track.face = replace(face, score=track.face.score) if there else track.face
            if not there or overlaps([face.landmark_box], [track.expected]) < STEADY:  # it slides, bit by bit
                self._frames_until_detection = 0


def look_of(image: np.ndarray, face: Face) -> np.ndarray:
    """Returns the colours of a face as a vector of length 1 (LOOK_SIDE ** 2 * 3,), 0 of a surface without any change.

    The dot product of two is their correlation: what light and camera add or multiply does not matter, nor does by how
    much the face is turned in the plane.
    """
    angle = 0.0 if np.isnan(face.roll) else face.roll
    frame = crop_frame(landmark_box(face.landmarks, angle), "square", 1.0)
    pixels = crop_image(image, frame, LOOK_SIDE, angle).astype(np.float64)
    pixels -= pixels.mean(axis=(0, 1))
    return pixels.reshape(-1) / max(float(np.linalg.norm(pixels)), 1.0)


def still_there(looked_at: np.ndarray, found: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Returns whether the landmark box found (4,) is that of the face looked for at a box (4,), and in the image."""
    return _is_inside(found, shape) and bool(overlaps([looked_at], [found])[0, 0] >= STEADY)


def _is_inside(box: np.ndarray, shape: tuple[int, ...]) -> bool:
    centre = box.reshape(2, 2).mean(axis=0)
    return bool(((centre >= 0) & (centre < shape[1::-1])).all())
