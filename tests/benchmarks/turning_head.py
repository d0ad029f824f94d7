"""A rendered face turns its head from side to side: its exact yaw against what the video path says, as a plot.

    python tests/benchmarks/turning_head.py [--model MODEL] [--output turning_head]

Writes turning_head.mp4, its overlay, and turning_head.png: exact yaw, the output `O_P`, and PnP on the landmarks found.
The renderer's faces are not what a network trained on photographs has seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import clips
import harness
import matplotlib.pyplot as plt
import numpy as np

from asmnet_tf.config import DEFAULT_MODEL
from asmnet_tf.data.pose import estimate_pose
from asmnet_tf.faces.aligner import FaceAligner
from asmnet_tf.faces.tracking import FaceTracker
from asmnet_tf.faces.video import Video, follow_video
from asmnet_tf.files import make_folder
from asmnet_tf.synthetic import renderer

FRAMES, PERIOD, YAW, PITCH = 100, 100, 45.0, 5.0  # frames; degrees
SEED, PERSON, SIZE = 0, 3, 400


def poses() -> np.ndarray:
    """Returns the exact yaw, pitch, roll (T, 3), degrees, of the frames: one turn to each side, a slight nod."""
    phase = 2 * np.pi * np.arange(FRAMES) / PERIOD
    return np.stack([YAW * np.sin(phase), PITCH * np.sin(2 * phase), np.zeros(FRAMES)], axis=1)


def render(pose: np.ndarray) -> np.ndarray:
    """Returns the same person, light and background as ever, with the head at `pose`; RGB uint8 (SIZE, SIZE, 3)."""
    draw = renderer._draw_person

    def posed(rng: np.random.Generator, hard: bool) -> dict:
        return draw(rng, hard) | {"pose": pose, "occluder": False, "blur": 0.3}

    with patch.object(renderer, "_draw_person", posed):
        return renderer.render_face(SEED, PERSON, size=SIZE).image


def main(args: argparse.Namespace) -> None:
    """Renders, follows, plots; prints mean absolute errors."""
    make_folder(args.output)
    exact = poses()
    clip = clips.write(args.output / "turning_head.mp4", [render(pose) for pose in exact])
    tracker = FaceTracker(FaceAligner(args.model), smooth=args.smooth)
    said, by_landmarks = np.full((2, FRAMES, 3), np.nan)

    def take(frame, faces) -> None:
        for number, face in faces:
            if number == 1:
                said[frame.number] = face.angles
                by_landmarks[frame.number] = estimate_pose(face.landmarks, tracker.aligner.spec)

    frames, speed = follow_video(Video(clip), tracker, take, args.output / "turning_head_overlay.mp4")
    print(harness.machine())
    print(f"{frames} frames, {speed:.1f} frames/s, face 1 seen in {np.isfinite(said[:, 0]).sum()}")
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(exact[:, 0], "k", label="exact yaw")
    for name, angles in (("O_P", said), ("PnP on O_L", by_landmarks)):
        error = np.nanmean(np.abs(angles - exact), axis=0)
        print(f"{name}: mean error of yaw / pitch / roll {error[0]:.1f} / {error[1]:.1f} / {error[2]:.1f} degrees")
        axes.plot(angles[:, 0], ".-", lw=0.8, ms=3, label=f"{name}, mean error {error[0]:.1f} degrees")
    axes.set(xlabel="frame", ylabel="yaw, degrees (+: towards the left edge)", title=f"{args.model} on a rendered face")
    axes.grid(alpha=0.3)
    axes.legend()
    path = args.output / "turning_head.png"
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--smooth", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("turning_head"))
    main(parser.parse_args())
