"""What evaluate.py compares with: the ground truth of a dataset or of prediction files, and names (NumPy only)."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asmnet_tf.config import VAL_FRACTION
from asmnet_tf.data.annotations import BadSamples, Sample, pose_of, read_samples, select, training_faces
from asmnet_tf.data.geometry import crop_frame, denormalise, landmark_box
from asmnet_tf.data.layouts import DatasetSpec, read_spec, spec_of
from asmnet_tf.data.pose import align_signs, estimate_pose
from asmnet_tf.data.sidecars import find_model, read_sidecar, sidecar_path
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.predictions import Predictions, align, check_frame, read_predictions
from asmnet_tf.evaluation.records import Faces, Method
from asmnet_tf.faces.detector import detect_faces, overlaps, place_boxes
from asmnet_tf.files import InputError, numbered
from asmnet_tf.formats.release_pca import to_units
from asmnet_tf.shape.shape_model import ShapeModel

FOUND = 0.4  # IoU of a detection and a landmark box from which on the face is found
IMPLAUSIBLE = 0.5  # NME; the mean face put on the middle of each has 0.15, points in another order or frame 0.6 or more


def read_files(arguments: list[str], saved_to: Path | None = None) -> dict[str, Predictions]:
    """Returns the prediction files of NAME=FILE arguments by name.

    Raises: InputError, also for a name given twice and a file in the folder where predictions are saved.
    """
    files = {name: read_predictions(path) for name, _, path in (text.partition("=") for text in arguments)}
    if len(files) < len(arguments):
        raise InputError("--predictions: two files have the same NAME. Give each its own.")
    for path in (file.path.resolve() for file in files.values()):
        if saved_to and path.parent == saved_to.resolve():
            raise InputError(f"{path}: --save-predictions writes there and might replace it. Choose another --output.")
    return files


def find_truth(
    files: dict[str, Predictions],
    spec: DatasetSpec | None,
    data_dir: Path | None,
    split: str = "test",
    subsets: list[str] | None = None,
    limit: int | None = None,
    pose_labels: Path | None = None,
    models: Sequence[Path] = (),
    bad: BadSamples | None = None,
) -> tuple[list[Sample], Faces]:
    """Returns what to compare with: samples of a dataset and the same as `Faces`; without a spec the files' own faces.

    Args:
        files: their faces are the first one's; then the samples are empty, and all that only a dataset has is refused.
        split: train, val or test; `val` is what the `models` held out in training.
        subsets: those whose faces are taken; None: every test subset that has a face here, of training faces all.
        limit: takes the first of these faces.
    Raises: InputError, also for an unknown subset or where no subset asked for has a face.
    """
    if spec is None:
        if models:
            raise InputError("--predictions beside a MODEL: name the --dataset of these faces.")
        for file in files.values():
            if file.landmarks_gt is None:
                raise InputError(f"{file.path}: no landmarks_gt, no true landmarks. Name the --dataset of these faces.")
        given = {"--data-dir": data_dir, "--subset": subsets, "--pose-labels": pose_labels, "--split": split != "test"}
        if unused := [flag for flag, value in given.items() if value]:
            raise InputError(f"{unused[0]}: prediction files bring their own faces. Name a --dataset to use its faces.")
        return [], truth_of_files(next(iter(files.values())), limit)
    if split == "val":
        samples = training_faces(spec, data_dir, held_out_fraction(models, spec), bad=bad)[1]
    else:
        samples = read_samples(spec, data_dir, split, bad=bad)
    wanted = subsets or (list(spec.subsets) if split == "test" and spec.subsets else ["all"])
    masks = {name: select(samples, spec, name) for name in wanted}
    masks = {name: mask for name, mask in masks.items() if subsets or mask.any()}
    keep = np.flatnonzero(np.logical_or.reduce(list(masks.values())))[:limit]
    if not len(keep):
        raise InputError(f"{data_dir}: no face of {', '.join(wanted)} in the {split} split. Is --subset right?")
    for name, mask in masks.items():
        if not mask.any():
            print(f"{spec.title} {name}: no face of it in {data_dir} ({split} split)", file=sys.stderr)
    samples = [samples[i] for i in keep]
    pose, pose_from = pose_of(samples, spec, data_dir, pose_labels)
    names, landmarks = [sample.name for sample in samples], np.stack([sample.landmarks for sample in samples])
    masks = {name: mask[keep] for name, mask in masks.items()}
    return samples, Faces(spec, names, landmarks.astype(np.float64), pose, masks, pose_from)


def held_out_fraction(models: Sequence[Path], spec: DatasetSpec) -> float:
    """Returns what `hold_out` was given when these models were trained; without a model train.py's default.

    Raises: InputError for models that do not say, held nothing or different faces out, or know another dataset.
    """
    fractions = {}
    for path in models:
        sidecar = read_sidecar(find_model(path))
        how = sidecar.get("hold_out") if isinstance(sidecar.get("hold_out"), dict) else {}
        value = how.get("fraction") if how.get("by") in ("photograph", "description") else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            told = "does not say which photographs were held out in training"
            advice = "so --split val may hold faces that this model was trained on. Train it again with train.py."
            raise InputError(f"{sidecar_path(path)}: {told}, {advice}")
        if sidecar.get("dataset") != spec.name:
            raise InputError(f"{path}: trained on {sidecar.get('dataset')}, so it held out no {spec.title} faces.")
        if not value:
            raise InputError(f"{path}: trained on all faces (--val-fraction 0), so there is no val split for it.")
        if "seen_by" in how:
            seen = f"{how['seen_by']}, which it started from, may have learned from the faces that it held out"
            raise InputError(f"{path}: {seen}, so there is no val split for it.")
        fractions[value] = path
    if len(fractions) > 1:
        told = ", ".join(f"{path} {value:g}" for value, path in fractions.items())
        raise InputError(f"--split val: these models held out different parts ({told}). Evaluate them one by one.")
    return next(iter(fractions), VAL_FRACTION)


def truth_of_files(first: Predictions, limit: int | None) -> Faces:
    """Returns the faces that a prediction file, the first of several, brings along. Raises: InputError, see `align`."""
    spec = spec_of({}, first.landmarks.shape[1], first.path)
    first = align(first, first.names[:limit], spec.num_landmarks)
    pose, pose_from = estimate_pose(first.landmarks_gt, spec), "PnP on landmarks_gt"
    if first.pose_gt is not None:
        pose, negated = align_signs(first.pose_gt, pose, f"{first.path}, pose_gt")
        pose_from = "pose_gt of the first prediction file" + (f"; negated: {', '.join(negated)}" if negated else "")
    return Faces(spec, first.names, first.landmarks_gt, pose, pose_from=pose_from)


def detected_boxes(samples: list[Sample], spec: DatasetSpec, models: Sequence[Path] = ()) -> np.ndarray:
    """Returns where the face detector sees each sample, float64 (N, 5): box like that of landmarks, and its angle.

    NaN where it does not see it. The box is turned by the angle about its centre, degrees clockwise.
    A face is found where a detection covers its landmark box with an IoU of FOUND or more; the best one counts. Where
    the landmarks are in the detector's box the spec tells, else the side-car of the first of the models that does.
    """
    described = {sidecar_path(path): read_sidecar(path).get("description") for path in map(find_model, models)}
    specs = [spec, *(read_spec(table, path) for path, table in described.items() if isinstance(table, dict))]
    place = next((each.detector_box for each in specs if each.detector_box), None)
    boxes = np.full((len(samples), 5), np.nan)
    seen: dict[tuple[Path, int | None], np.ndarray] = {}  # an image of many faces is looked at once
    for row, sample in zip(boxes, tqdm(samples, "detect", unit="face", disable=None, leave=False)):
        key = sample.image_path, sample.index
        if key not in seen:
            found, _, angles = detect_faces(sample.read_image())
            seen[key] = np.column_stack([place_boxes(found, angles, place), angles])
        shared = overlaps(sample.bbox[None].astype(np.float64), seen[key][:, :4])[0]
        if shared.size and shared.max() >= FOUND:
            row[:] = seen[key][shared.argmax()]
    found = int(np.isfinite(boxes[:, 0]).sum())
    print(f"face detector: {found} of {len(samples)} faces found; the others count as failures", file=sys.stderr)
    return boxes


def protocol(split: str, samples: list[Sample], faces: Faces, methods: list[Method], boxes=None) -> dict:
    """Returns, in words, how the numbers come about: data, boxes, normaliser, what the pose is measured against."""
    negated = [f"{' and '.join(m.info['pose_negated'])} of {m.name}" for m in methods if m.info.get("pose_negated")]
    told = {"dataset": faces.spec.name if samples else None, "split": split if samples else None}
    told |= {"faces": len(faces.names), "boxes": "of the landmarks"}
    if boxes is not None:
        told["boxes"] = f"face detector's: {np.isfinite(boxes[:, 0]).sum()} of {len(boxes)} faces found"
    corners, names = faces.spec.outer_eye_corners, faces.spec.point_names
    told["normaliser"] = "inter-ocular (outer eye corners); inter-pupil beside it"
    if not faces.spec.is_known:
        points = " and ".join(names[i] if names else str(i) for i in corners)
        told["normaliser"] = f"distance of points {points}" if corners else "diagonal of the landmarks' box"
    told["pose_labels"] = faces.pose_from
    return told | ({"pose_negated": "; ".join(negated)} if negated else {})


def methods_of_files(files: dict[str, Predictions], faces: Faces, samples: list[Sample]) -> list[Method]:
    """Returns what each prediction file says of these faces, pose with our signs. Raises: as `align`, `check_frame`."""
    methods = []
    for name, file in files.items():
        chosen = align(file, faces.names, faces.spec.num_landmarks)
        check_frame(chosen, faces, samples)
        errors = metrics.nme(chosen.landmarks, faces.landmarks, metrics.normaliser(faces.landmarks, faces.spec))
        errors = errors[metrics.scored(errors)]
        if len(errors) and np.median(errors) > IMPLAUSIBLE:
            told = f"NME is over {100 * IMPLAUSIBLE:.0f} % on most faces"
            asked = "Do its coordinates belong to other images (the originals before they were cropped?)"
            print(f"{file.path}: {told}. {asked}, or are its points in another order?", file=sys.stderr)
        pose, negated = None, []
        if chosen.pose is not None:
            pose, negated = align_signs(chosen.pose, faces.pose, f"{file.path}, pose")
        info = {"file": str(file.path), "pose_negated": negated}
        methods.append(Method(name, chosen.landmarks, pose, estimate_pose(chosen.landmarks, faces.spec), info))
    return methods


def mean_shape_method(path: Path, spec: DatasetSpec, landmarks_gt: np.ndarray) -> Method:
    """Returns the mean of a shape model in the crop of every face (N, L, 2). Raises: InputError for another L."""
    model = to_units(ShapeModel.load(path))
    if model.num_landmarks != spec.num_landmarks:
        raise InputError(f"{path}: {model.num_landmarks} landmarks, {spec.title} has {spec.num_landmarks}.")
    frames = crop_frame(landmark_box(landmarks_gt), model.crop, model.crop_scale)
    landmarks = denormalise(np.broadcast_to(model.mean_shape, (len(frames), len(model.mean_shape))), frames)
    info = {"file": str(path), "crop": f"{model.crop} {model.crop_scale:g}"}
    return Method("mean_shape", landmarks, None, estimate_pose(landmarks, spec), info)


def unique_names(models: list[Path], taken: set[str]) -> list[tuple[str, Path]]:
    """Returns (name, path): the run folder for best.keras and last.keras, else the stem; `-2`, `-3` where taken."""
    named: dict[str, Path] = {}
    for path in models:
        stem = path.name if path.is_dir() else path.stem
        base = path.resolve().parent.name if stem in ("best", "last") else stem
        base += ".tflite" if path.suffix == ".tflite" else ""  # to tell best.tflite from best.keras
        named[next(name for name in numbered(base) if name not in taken | named.keys())] = path
    return list(named.items())
