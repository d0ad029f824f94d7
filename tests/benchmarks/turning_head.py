"""A rendered head turns: its exact angle against what the video path says, as a plot.

    python tests/benchmarks/turning_head.py [--model MODEL] [--output FOLDER]           # yaw, from side to side
    python tests/benchmarks/turning_head.py --spin [--person N] [--output FOLDER]       # roll: the picture turns once

Writes NAME.mp4, its overlay, the faces as NAME.jsonl, and NAME.png: exact angle, the output `O_P`, PnP on the landmarks
found, and the NME; NAME is turning_head or spin. The renderer's faces are not what a network trained on photographs has
seen.
"""

import argparse
import json
from pathlib import Path
from unittest.mock import patch

import clips
import harness
import matplotlib.pyplot as plt
import numpy as np
from rotated_faces import spin

from asmnet_tf.config import ANGLES, DEFAULT_MODEL
from asmnet_tf.data.pose import estimate_pose, signed
from asmnet_tf.evaluation import metrics
from asmnet_tf.faces.aligner import FaceAligner
from asmnet_tf.faces.face_files import ResultFiles
from asmnet_tf.faces.inputs import FaceRun, Failures
from asmnet_tf.faces.video import Video
from asmnet_tf.files import StopSignals, make_folder
from asmnet_tf.synthetic import renderer

FRAMES, PERIOD, YAW, PITCH = 100, 100, 45.0, 5.0  # frames; degrees
SPIN = 72  # frames: 5 degrees each
SEED, PERSON, SIZE = 0, 3, 400


def poses() -> np.ndarray:
    """Returns the exact yaw, pitch, roll (T, 3), degrees, of the frames: one turn to each side, a slight nod."""
    phase = 2 * np.pi * np.arange(FRAMES) / PERIOD
    return np.stack([YAW * np.sin(phase), PITCH * np.sin(2 * phase), np.zeros(FRAMES)], axis=1)


def render(pose: np.ndarray, person: int) -> renderer.SyntheticFace:
    """Returns the same person, light and background as ever, with the head at `pose`; SIZE x SIZE pixels."""
    draw = renderer._draw_person

    def posed(rng: np.random.Generator, hard: bool) -> dict:
        return draw(rng, hard) | {"pose": pose, "occluder": False, "blur": 0.3}

    with patch.object(renderer, "_draw_person", posed):
        return renderer.render_face(SEED, person, size=SIZE)


def main(args: argparse.Namespace) -> None:
    """Renders, follows, plots; prints mean absolute errors."""
    make_folder(args.output)
    if args.spin:
        name, shown = "spin", ANGLES.index("roll")
        face = render(np.array([0.0, 5.0, 0.0]), args.person)
        images, turned, truth = spin(face.image, face.landmarks_68, SPIN)
        exact = face.pose + turned[:, None] * [0, 0, 1]
    else:
        name, shown, exact = "turning_head", ANGLES.index("yaw"), poses()
        faces = [render(pose, args.person) for pose in exact]
        images, truth = [face.image for face in faces], np.stack([face.landmarks_68 for face in faces])
    clip = clips.write(args.output / f"{name}.mp4", images)
    aligner = FaceAligner(args.model)
    said, landmarks = np.full((len(exact), 3), np.nan), np.full_like(truth, np.nan)

    print(harness.machine())
    results = ResultFiles(args.output, ["jsonl"], aligner.spec, name)
    run = FaceRun(aligner, results, draw=True, failed=Failures(), signals=StopSignals(), open_aligner=FaceAligner)
    run.video(Video(clip), name, detect_every=10, smooth=args.smooth, limit=None, show=False)
    (found,) = results.write(args.model)
    for frame in map(json.loads, found.read_text(encoding="utf-8").splitlines()):
        for face in frame["faces"][:1]:
            said[frame["frame"]], landmarks[frame["frame"]] = [face[angle] for angle in ANGLES], face["landmarks"]
    by_landmarks = estimate_pose(landmarks, aligner.spec)
    nme = 100 * metrics.nme(landmarks, truth, metrics.normaliser(truth, aligner.spec))
    print(f"a face in {np.isfinite(nme).sum()} of {len(nme)} frames")
    print(f"NME {np.nanmean(nme):.2f} %, {nme[0]:.2f} in the first frame, {np.nanmax(nme):.2f} at most")
    figure, (axes, below) = plt.subplots(2, figsize=(8, 5.5), layout="constrained", sharex=True, height_ratios=(3, 1))
    axes.plot(exact[:, shown], "k", label=f"exact {ANGLES[shown]}")
    for label, angles in (("O_P", said), ("PnP on O_L", by_landmarks)):
        off = signed(angles - exact)
        error, most = np.nanmean(np.abs(off), axis=0), np.nanmax(np.abs(off), axis=0)
        for kind, values in (("mean", error), ("largest", most)):
            print(f"{label}: {kind} error of yaw / pitch / roll {' / '.join(f'{v:.1f}' for v in values)} degrees")
        axes.plot((exact + off)[:, shown], ".-", lw=0.8, ms=3, label=f"{label}, mean error {error[shown]:.1f} degrees")
    towards = {"yaw": "+: towards the left edge", "roll": "+: clockwise"}[ANGLES[shown]]
    axes.set(ylabel=f"{ANGLES[shown]}, degrees ({towards})", title=f"{args.model} on a rendered face")
    below.plot(nme, ".-", lw=0.8, ms=3)
    below.set(xlabel="frame", ylabel="NME, %", ylim=(0, None))
    for part in (axes, below):
        part.grid(alpha=0.3)
    axes.legend()
    path = args.output / f"{name}.png"
    figure.savefig(path, dpi=120)
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--spin", action="store_true", help="the picture turns in its plane, once around")
    parser.add_argument("--person", type=int, default=PERSON, metavar="N", help=f"of the renderer (default: {PERSON})")
    parser.add_argument("--smooth", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("turning_head"))
    main(parser.parse_args())
