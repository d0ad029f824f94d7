"""Seconds and memory as the work grows, 1,000 to 100,000 samples: reading, training, evaluation (6 minutes, 6 GB).

Every figure is of a process of its own. The faces are a few synthetic ones, repeated: hard links for the reader, copies
of the samples for the rest. Linear is a time per sample that stays, memory the anonymous pages of the process.
"""

import harness

harness.use(harness.OURS)

import json  # TensorFlow reads its environment when it is imported
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from harness import Row
from peak_memory import watched_worker

from asmnet_tf.config import AUGMENTATIONS
from asmnet_tf.data.annotations import Sample, read_pts, read_samples, with_pose
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.synthetic.dataset import write_dataset

SPEC = DATASETS["300w"]
COUNTS = (1_000, 10_000, 100_000)
BASE, SIDE, SIZE, BATCH = 200, 160, 64, 32  # different faces, pixels of their images, of the input, faces a batch
DRAWN = 10_000  # samples that a pipeline stage draws from all, in as many epochs as it takes
TRAINED = 3_200  # images of the training stage, after WARM_UP steps that do not count
WARM_UP = 10
STAGES = {
    "datasets": "`datasets.read_samples`",
    "pose": "`datasets.with_pose` by PnP, not cached",
    "write": "`input_pipeline`: disk cache, written",
    "disk": "`input_pipeline`: batches from the disk cache",
    "train": "`train.py`: training steps of ASMNet from the disk cache",
    "none": "`input_pipeline`: batches, no cache",
    "evaluate": "`prediction` + `report`, a network that costs nothing",
}


def make_faces(folder: Path) -> None:
    """Writes BASE faces of SIDE pixels (decoding must not hide what grows) and trees of links to them."""
    write_dataset(folder / "large", counts=(BASE, 0, 0, 0, 0, 0), workers=1)
    base = folder / "base/helen/trainset"
    base.mkdir(parents=True)
    for path in sorted((folder / "large/helen/trainset").glob("*.jpg")):
        image = cv2.imread(str(path))
        ratio = SIDE / max(image.shape[:2])
        cv2.imwrite(str(base / path.name), cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA))
        points = read_pts(path.with_suffix(".pts"), SPEC.num_landmarks) * ratio + 1
        np.savetxt(
            base / f"{path.stem}.pts", points, "%.4f", header="version: 1\nn_points: 68\n{", comments="", footer="}"
        )
    files = sorted(base.iterdir())
    for count in COUNTS:
        tree = folder / f"{count}/helen/trainset"
        tree.mkdir(parents=True)
        for i in range(count):
            for file in files[2 * (i % BASE) : 2 * (i % BASE) + 2]:
                os.link(file, tree / f"face_{i:06d}{file.suffix}")


def repeated(folder: Path, count: int) -> list[Sample]:
    """Returns that many samples, each with a name and arrays of its own."""
    base = with_pose(read_samples(SPEC, folder / "base", "train", quiet=True), SPEC, folder, None)
    picked = (base[i % BASE] for i in range(count))
    copies = [replace(s, name=f"helen/{i:06d}", landmarks=s.landmarks.copy()) for i, s in enumerate(picked)]
    return [replace(s, bbox=s.bbox.copy(), pose=s.pose.copy(), image_path=Path(str(s.image_path))) for s in copies]


def work(stage: str, folder: Path, count: int) -> tuple[float, int]:
    """Runs one stage. Returns its seconds and the number of samples that it worked on."""
    if stage == "datasets":
        return _timed(lambda: read_samples(SPEC, folder / str(count), "train", quiet=True)), count
    samples = repeated(folder, count)
    if stage == "pose":
        os.environ["ASMNET_CACHE"] = str(folder / f"pose{count}")
        moved = [replace(s, landmarks=s.landmarks + np.float32(1)) for s in samples]
        return _timed(lambda: with_pose(moved, SPEC, folder, None)), count
    if stage == "evaluate":
        return _timed(lambda: _evaluate(samples, folder / f"evaluation{count}")), count

    from asmnet_tf.data.batches import TrainingBatches
    from asmnet_tf.data.patches import FacePatches

    cache = "none" if stage == "none" else "disk"
    root = folder / "cache"
    if stage == "write":
        return _timed(lambda: FacePatches(samples, "square", 1.2, SIZE, cache=cache, cache_dir=root)), count
    patches = FacePatches(samples, "square", 1.2, SIZE, cache=cache, cache_dir=root)
    stream = TrainingBatches(patches, AUGMENTATIONS["tuned"], BATCH, seed=0).iterate()
    next(stream)  # starts the threads
    if stage == "train":
        import training_parts

        step, *_ = training_parts.build(True, SIZE)
        for _ in range(WARM_UP):
            step(next(stream))
        steps = TRAINED // BATCH
        return _timed(lambda: [float(step(next(stream))["loss"]) for _ in range(steps)] and None), steps * BATCH
    steps = DRAWN // BATCH
    return _timed(lambda: [next(stream) for _ in range(steps)] and None), steps * BATCH


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _evaluate(samples: list[Sample], output: Path) -> None:
    from asmnet_tf.data.patches import FacePatches
    from asmnet_tf.evaluation import report
    from asmnet_tf.evaluation.records import Faces, Method
    from asmnet_tf.evaluation.scoring import predict_faces

    patches = FacePatches(samples, "square", 1.2, SIZE, margin=1.0, cache="none")
    landmarks, pose = predict_faces(lambda images: (np.zeros((len(images), 136)), np.zeros((len(images), 3))), patches)
    truth = np.stack([s.landmarks for s in samples])
    faces = Faces(SPEC, [s.name for s in samples], truth, np.stack([s.pose for s in samples]))
    methods = [Method("nothing", landmarks, pose)]
    report.write_report(output, methods, faces, (0.08,), protocol={}, image_reader=lambda i: samples[i].read_image())


def rows() -> list[Row]:
    """One row for each stage and number of samples; the ratio of the last is time per sample, few over many."""
    result = []
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        make_faces(folder)
        for stage, title in STAGES.items():
            first = None
            for count in COUNTS:
                found = watched_worker("growth.py", stage, folder, count)
                each = found["seconds"] / found["samples"]
                first = first or (each, found["peak_mb"], count)
                ratio, more = None, ""
                if count == COUNTS[-1]:
                    ratio = first[0] / each
                    grown = found["peak_mb"] - first[1]
                    more = f", {grown:.0f} MB more, {1e3 * grown / (count - first[2]):.2f} kB a further sample"
                detail = f"{found['seconds']:.2f} s, {1e6 * each:.0f} us a sample; peak {found['peak_mb']:.0f} MB{more}"
                print(f"{stage} {count}: {detail}", file=sys.stderr, flush=True)
                result.append(Row(f"{title}, {count:,} samples", f"{COUNTS[0]:,} samples", ratio, "about 1", detail))
    return result


if __name__ == "__main__":
    if "--worker" in sys.argv:
        stage, folder, count = sys.argv[-3:]
        seconds, samples = work(stage, Path(folder), int(count))
        print(json.dumps({"seconds": seconds, "samples": samples}))
    else:
        harness.main(rows)
