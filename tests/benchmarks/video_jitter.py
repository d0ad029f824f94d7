"""Jitter of landmarks on a still face and lag on a moving one, with and without smoothing.

    python tests/benchmarks/video_jitter.py [MODEL]

The clips: matplotlib's photograph, 75 frames with camera noise of 6 / 255, and the same panned by 4 px a frame (about
half a face a second), both at 25 frames/s. jitter: standard deviation of a landmark over the frames, root mean square
over landmarks and both axes, in % of the inter-ocular distance; step: the same of the difference of neighbouring
frames. lag: mean distance to the landmarks found in the same frame of the pan by itself, first second left out.
"""

import sys

import clips
import harness
import numpy as np

from asmnet_tf.config import ANGLES, DEFAULT_MODEL
from asmnet_tf.evaluation.report import md_table
from asmnet_tf.faces.aligner import FaceAligner
from asmnet_tf.faces.tracking import FaceTracker

FRAMES, STEP = 75, 4.0
CASES = {  # detect_every, smooth; None: every frame by itself, detected anew
    "every frame by itself": (None, False),
    "tracked, detected every 10": (10, False),
    "tracked, detected every 10, smoothed": (10, True),
}


def follow(
    aligner: FaceAligner, frames: list[np.ndarray], detect_every: int | None, smooth: bool
) -> tuple[np.ndarray, ...]:
    """Returns landmarks (T, L, 2) and angles (T, 3) of the one face in all frames."""
    tracker = FaceTracker(aligner, detect_every or 1, smooth)
    if detect_every is None:
        seen = [[(1, face) for face in aligner.detect(frame)] for frame in frames]
    else:
        seen = [tracker.update(frame, 1 / clips.FPS) for frame in frames]
    if any([number for number, _ in faces] != [1] for faces in seen):
        raise SystemExit("the face was lost on the way")
    return tuple(np.array([getattr(faces[0][1], name) for faces in seen]) for name in ("landmarks", "angles"))


def main(model: str) -> None:
    """Prints the table."""
    aligner = FaceAligner(model)
    left, right = aligner.spec.outer_eye_corners
    still, pan = clips.still(FRAMES), clips.pan(FRAMES // 2, STEP)
    truth = follow(aligner, pan, None, False)[0]
    rows = []
    for name, (detect_every, smooth) in CASES.items():
        points, angles = follow(aligner, still, detect_every, smooth)
        eyes = np.linalg.norm(points[:, left] - points[:, right], axis=1).mean()
        jitter = np.sqrt(points.var(axis=0).mean()) / eyes
        step = np.sqrt(np.diff(points, axis=0).var(axis=0).mean()) / eyes
        moved = follow(aligner, pan, detect_every, smooth)[0]
        lag = np.linalg.norm(moved - truth, axis=-1)[int(clips.FPS) :].mean() / eyes
        spread = " / ".join(f"{value:.2f}" for value in angles.std(axis=0))
        rows.append([name, *(f"{100 * value:.2f}" for value in (jitter, step)), spread, f"{100 * lag:.2f}"])
    print(harness.machine())
    print("\n".join(md_table(("", "jitter %", "step %", f"{', '.join(ANGLES)} deg", "lag %"), rows)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL)
