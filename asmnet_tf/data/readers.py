"""The readers of annotation files: each gives the faces of one source of a dataset (NumPy, OpenCV, SciPy, h5py).

300W    <data_dir>/{helen,lfpw}/{trainset,testset}/, afw/, ibug/ with NAME.{jpg,png,...} beside NAME.pts
own     such folders, lists of images, csv, dlib XML, COCO keypoints: see layouts.py
WFLW    <data_dir>/WFLW_images/... and WFLW_annotations/list_98pt_rect_attr_train_test/*.txt (207 columns)
COFW    <data_dir>/COFW_{train,test}_color.mat (MATLAB v7.3, which is HDF5)
aflw2000  <data_dir>/**/NAME.jpg beside NAME.mat with Pose_Para, and pt3d_68 or pt2d; 300W-LP, too (Zhu et al. 2016)
biwi      <data_dir>/NN/frame_XXXXX_rgb.png beside frame_XXXXX_pose.txt (rotation, place of the head in mm), NN/rgb.cal

Angles of the last two (BIWI: Fanelli et al. 2013) are those of the annotated rotation in the convention of pose.py.
300W-LP takes the same rotation apart in another order, which differs where two angles are large, and puts the zero of
pitch elsewhere, a constant: PnP on the points of 16 AFLW2000-3D faces gives 3 degrees less (median). Faces with one of
their angles beyond 99 degrees are left out, as published tables do.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from asmnet_tf import files
from asmnet_tf.config import PHOTO_ENDINGS
from asmnet_tf.data.geometry import image_size, landmark_box, read_image
from asmnet_tf.data.layouts import DatasetSpec, Source
from asmnet_tf.data.pose import angles_of_300w_lp, matrix_to_angles, mean_face
from asmnet_tf.files import InputError, first_line, parse_numbers, read_csv, read_dataset, read_text, refusing

if TYPE_CHECKING:
    import h5py

MAX_PTS_BYTES = 1 << 20  # a .pts has about 2 kB; more is another kind of file
MAX_LIST_BYTES = 1 << 28  # the list of 7,500 WFLW faces has 16 MB
WFLW_ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")  # columns 200..205
MAX_ANGLE_DEG = 99.0
EYES_MM = 90.0  # between the outer eye corners, of the mean face that stands for BIWI's heads


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One annotated face.

    name: unique in its split: image path without its ending, relative to the data folder (WFLW: to WFLW_images, with
    `#k` for the k-th listed face of that image).
    """

    name: str
    image_path: Path
    landmarks: np.ndarray  # float32 (L, 2), pixels of the upright image, 0-based; half of them or more lie in it
    bbox: np.ndarray  # float32 (4,), their bounding box
    tags: frozenset[str]  # source folder and attribute flags
    pose: np.ndarray | None = None  # yaw, pitch, roll in degrees
    index: int | None = None  # which image of a file that holds several (COFW)

    def read_image(self) -> np.ndarray:
        """Returns RGB uint8 (H, W, 3). Raises: InputError naming the file."""
        if self.index is None:
            return read_image(self.image_path)
        return _read_cofw_image(self.image_path, self.index)

    def image_size(self) -> tuple[int, int, bool] | None:
        """Returns width and height of that image and whether EXIF turned it; see `geometry.image_size`."""
        return image_size(self.image_path) if self.index is None else _cofw_image_size(self.image_path, self.index)


class BadSamples:
    """What becomes of a sample that cannot be used: it ends the run, or is left out, counted and listed.

    Args: skip: leave it out. images: whether images are decoded to see if they can be: once more, so only with `skip`.
    """

    def __init__(self, skip: bool = False, images: bool = True) -> None:
        self.skip = skip
        self.images = skip and images
        self.reasons: dict[str, str] = {}  # of those left out, by name

    @contextlib.contextmanager
    def catch(self, name: str) -> Iterator[None]:
        """Notes an InputError as that sample's, or lets it pass where nothing is to be skipped."""
        try:
            yield
        except InputError as error:
            if not self.skip:
                raise
            self.reasons[name] = str(error)

    def write(self, folder: str | Path) -> None:
        """Writes skipped.csv (name, reason) and says so in one line on stderr; without a bad sample there is none."""
        path = Path(folder) / "skipped.csv"
        if not self.reasons:
            path.unlink(missing_ok=True)  # of an earlier evaluation into the same folder
            return
        files.write_csv(path, ("name", "reason"), self.reasons.items())
        first = next(iter(self.reasons.values()))
        print(f"{path}: {len(self.reasons)} bad samples skipped, the first: {first}", file=sys.stderr)


def new_sample(name: str, path: Path, landmarks: np.ndarray, tags: Set[str], index: int | None = None) -> Sample:
    """Returns the sample of landmarks (L, 2), with their bounding box."""
    landmarks = landmarks.astype(np.float32)
    return Sample(name, path, landmarks, landmark_box(landmarks), frozenset(tags), index=index)


def progress(items: Iterable, title: str) -> Iterable:
    """Returns the items under a progress bar, where stderr is a terminal."""
    return tqdm(items, f"read {title}", unit="face", disable=None, leave=False)


# --- 300W -------------------------------------------------------------------------------------------------------------
def read_pts(path: str | Path, num_landmarks: int) -> np.ndarray:
    """Reads a `.pts` file, with or without the `version/n_points/{` header.

    Returns: float64 (L, 2), 0-based pixels: the file's coordinates are 1-based.
    Raises:  InputError naming the file and what is wrong with it.
    """
    rows, said = [], num_landmarks
    for number, line in enumerate(map(str.strip, read_text(path, MAX_PTS_BYTES).split("\n")), 1):
        if line in "{}" or line.casefold().startswith(("version", "n_points")):
            count = re.search(r"n_points\W*(\d{1,9})$", line.casefold())
            said = int(count[1]) if count else said
            continue
        try:
            point = _point(line)
            if len(point) != 2 or not all(abs(value) <= 1e6 for value in point):  # NaN is not
                raise ValueError("x and y")
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {line[:40]!r}, expected two numbers ({error}).") from error
        rows.append(point)
    if len(rows) != num_landmarks:
        raise InputError(f"{path}: {len(rows)} points, {num_landmarks} expected. Is --dataset right?")
    if said != num_landmarks:
        raise InputError(f"{path}: n_points says {said}, but there are {len(rows)} points. Is the file whole?")
    return np.array(rows) - 1.0


def _point(line: str) -> list[float]:
    """Returns the numbers of a line of a .pts: parted by spaces, tabs, semicolons or commas; see `parse_numbers`."""
    with contextlib.suppress(ValueError):
        return [float(part) for part in line.split()]
    fields = [part for part in (part.strip(",") for part in re.split(r"[\s;]+", line)) if part]
    if len(fields) == 1:
        fields = fields[0].split(",")
        if len(fields) > 2:
            raise ValueError("commas as decimal point and between the numbers? Write decimal points")
    return parse_numbers(fields)


def pts_text(landmarks: np.ndarray) -> str:
    """Returns landmarks (L, 2), 0-based pixels, as the text of a `.pts` file, whose first pixel is (1, 1)."""
    rows = "\n".join(f"{x + 1:.4f} {y + 1:.4f}" for x, y in landmarks.tolist())
    return f"version: 1\nn_points:  {len(landmarks)}\n{{\n{rows}\n}}\n"


def read_folder_pts(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    """Reads a folder of images and .pts; `NAME_1.pts` may be the first face of NAME.jpg."""
    folder = data_dir / source.path
    # one listing instead of three look-ups a file; natural order is not needed, only a fixed one
    names = [os.path.splitext(name) for name in sorted(os.listdir(folder), reverse=True) if not name.startswith(".")]
    images = {stem: stem + ending for stem, ending in names if ending.lower() in PHOTO_ENDINGS}
    points = {stem: stem + ending for stem, ending in reversed(names) if ending.lower() == ".pts"}
    for stem in [stem for stem in points if stem not in images]:  # what predict writes: a number for each face
        if (photo := re.sub(r"_[1-9]\d?$", "", stem)) in images and photo not in points:
            images[stem] = images[photo]
    paired = [(stem, name) for stem, name in points.items() if stem in images]
    if lonely := [name for stem, name in points.items() if stem not in images]:
        print(f"{folder}: {len(lonely)} .pts without an image ({lonely[0]}), left out", file=sys.stderr)
    used, both = {*images.values(), *points.values()}, images.keys() & points.keys()
    others = (stem + end for stem, end in names if stem in both and end.lower() in (".pts", *PHOTO_ENDINGS))
    if spare := sorted(name for name in others if name not in used):
        print(f"{folder}: {len(spare)} more files of the same faces ({spare[0]}), left out", file=sys.stderr)
    for stem, file in progress(paired[:limit], source.path):
        name = (PurePosixPath(source.path) / stem).as_posix()
        with bad.catch(name):
            yield new_sample(name, folder / images[stem], read_pts(folder / file, spec.num_landmarks), {source.name})


def _read_list(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    path = data_dir / source.path
    lines = filter(None, map(str.strip, read_text(path, MAX_LIST_BYTES).split("\n")))
    for line in itertools.islice(lines, limit):
        with bad.catch(line):
            image, name = _find_image(path, data_dir, line)
            points, upper = image.with_suffix(".pts"), image.with_suffix(".PTS")
            landmarks = read_pts(upper if upper.is_file() and not points.is_file() else points, spec.num_landmarks)
            yield new_sample(name, image, landmarks, {source.name})


# --- csv, dlib XML, COCO ----------------------------------------------------------------------------------------------
def _find_image(path: Path, data_dir: Path, name: str) -> tuple[Path, str]:
    """Returns an image that an annotation file names, from its folder or the data folder alone, and the sample name."""
    if not name.strip():
        raise InputError(f"{path}: a face whose image has no name or is not listed.")
    roots = [os.path.abspath(root) for root in (path.parent, data_dir)]
    places = [os.path.abspath(os.path.join(root, name.replace("\\", "/"))) for root in roots]
    inside = [place for place in places if any(place.startswith(root + os.sep) for root in roots)]
    if not inside:
        raise InputError(f"{path}: image name {name[:60]!r} leaves the data folder.")
    found = next((place for place in inside if os.path.isfile(place)), None)
    if found is None:
        raise InputError(f"{path}: no image {name[:60]!r} beside it or in {data_dir}.")
    relative = Path(os.path.relpath(found, data_dir))
    return data_dir / relative, relative.with_suffix("").as_posix()


def _csv_faces(path: Path, spec: DatasetSpec, bad: BadSamples) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    """Yields where a face stands, its image and what gives its points, (2L,) or another number of them."""
    columns = [f"{axis}{i}" for i in range(spec.num_landmarks) for axis in "xy"]
    for line, image, values in read_csv(path, "image", columns, bad.catch, without=f"x{spec.num_landmarks}"):
        yield f"{path}, line {line}", image, functools.partial(np.array, values)


def _dlib_faces(path: Path, spec: DatasetSpec, bad: BadSamples) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    with refusing(f"{path}: not XML", (ElementTree.ParseError, ValueError)):
        root = ElementTree.fromstring(read_text(path, MAX_LIST_BYTES))

    def points(box: ElementTree.Element) -> np.ndarray:
        parts = {part.get("name", ""): [float(part.get(axis, "nan")) for axis in "xy"] for part in box.iter("part")}
        if set(parts) != set(spec.point_names) and not all(map(str.isdecimal, parts)):
            raise ValueError(f"parts {', '.join(parts)[:60]} are neither all numbers nor the description's points")
        order = spec.point_names if set(parts) == set(spec.point_names) else sorted(parts, key=int)
        return np.array([parts[name] for name in order]).reshape(-1)

    for image in root.iter("image"):
        for k, box in enumerate(image.iter("box")):
            yield f"{path}, {image.get('file')}, box {k + 1}", image.get("file", ""), functools.partial(points, box)


def _coco_faces(path: Path, spec: DatasetSpec, bad: BadSamples) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    try:
        content = json.loads(read_text(path, MAX_LIST_BYTES))
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        named = {kind["id"]: kind.get("keypoints") for kind in content.get("categories", ())}
        faces = [
            (face["id"], images.get(face["image_id"], ""), face["keypoints"], named.get(face.get("category_id")))
            for face in content["annotations"]
        ]
        if len(images) < len(content["images"]):
            raise ValueError("two images have the same id")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        known = "images with id and file_name, annotations with id, image_id and keypoints"
        raise InputError(f"{path}: not COCO keypoints ({told}). Expected {known}.") from error

    def points(keypoints: list, names: list | None) -> np.ndarray:
        table = np.array(keypoints, np.float64).reshape(-1, 3)
        if names and len(names) == len(table) and set(names) == set(spec.point_names):  # in the order of the file
            table = table[[names.index(name) for name in spec.point_names]]
        if (table[:, 2] == 0).any():
            raise ValueError(f"point {int(table[:, 2].argmin())} is not labelled")
        return table[:, :2].reshape(-1)

    for number, image, keypoints, names in faces:
        yield f"{path}, annotation {number}", image, functools.partial(points, keypoints, names)


def _read_annotated(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    path = data_dir / source.path
    faces = list(_FACES[path.suffix.lower()](path, spec, bad))
    times, seen = Counter(image for _, image, _ in faces), Counter()
    for at, name, points in progress(faces[:limit], path.name):
        seen[name] += 1
        with bad.catch(at.removeprefix(f"{path.parent}{os.sep}")):
            image, label = _find_image(path, data_dir, name)
            with refusing(f"{at}: not x and y of each point", (ValueError, TypeError, OverflowError)):
                numbers = points()
            if len(numbers) != 2 * spec.num_landmarks:
                raise InputError(f"{at}: {len(numbers) / 2:g} points, {spec.title} has {spec.num_landmarks}.")
            if not (np.abs(numbers) <= 1e6).all():  # NaN is not
                raise InputError(f"{at}: a point that is not a number.")
            label += f"#{seen[name] - 1}" if times[name] > 1 else ""
            yield new_sample(label, image, numbers.reshape(-1, 2), {source.name})


_FACES = {".csv": _csv_faces, ".xml": _dlib_faces, ".json": _coco_faces}


# --- WFLW -------------------------------------------------------------------------------------------------------------
def _read_wflw(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> list[Sample]:
    path = data_dir / source.path
    samples, faces, absent = [], Counter(), 0
    columns = 2 * spec.num_landmarks + 11
    is_file = functools.cache(os.path.isfile)  # unlike Path.is_file() also False for what no file can be called
    for number, line in enumerate(progress(read_text(path, MAX_LIST_BYTES).split("\n"), path.name), 1):
        if len(samples) >= limit:
            break
        if not line.strip():
            continue
        with bad.catch(f"{path.name}, line {number}"):
            at = f"{path}, line {number}"
            parts = next((p for s in (None, ",", ";") if len(p := line.split(s, columns - 1)) == columns), line.split())
            if len(parts) != columns:
                raise InputError(f"{at}: {len(parts)} columns, {columns} expected. Is --dataset right?")
            relative = Path(parts[-1].strip().replace("\\", "/"))
            if relative.anchor or ".." in relative.parts:
                raise InputError(f"{at}: image name {relative.as_posix()[:60]!r} leaves the data folder.")
            if not relative.name:
                raise InputError(f"{at}: {relative.as_posix()!r} is no image name. Download the list again.")
            name = f"{relative.with_suffix('').as_posix()}#{faces[relative]}"
            faces[relative] += 1
            with refusing(f"{at}: a column that is not a number", then="Download the list again."):
                numbers = np.array(parse_numbers([part.strip(" ,;\t") for part in parts[:-1]]))
                if not (np.abs(numbers) <= 1e6).all():  # NaN is not
                    raise ValueError("not finite, or beyond 1e6")
            image = data_dir / "WFLW_images" / relative
            if not is_file(image):
                absent += 1
                continue
            tags = {source.name} | {tag for tag, flag in zip(WFLW_ATTRIBUTES, numbers[-6:]) if flag > 0.5}
            samples.append(new_sample(name, image, numbers[: 2 * spec.num_landmarks].reshape(-1, 2), tags))
    if absent:
        print(f"{path}: {absent} listed faces whose image is absent, left out", file=sys.stderr)
    return samples


# --- COFW -------------------------------------------------------------------------------------------------------------
def _read_cofw(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    path = data_dir / source.path
    ending = "Tr" if source.name == "train" else "T"
    with _open_mat(path, f"phis{ending} and Is{ending}") as file:
        table = read_dataset(file, f"phis{ending}").astype(np.float64)  # MATLAB is column-major: (87, N) here
        count = file[f"Is{ending}"].size
    rows = 3 * spec.num_landmarks
    if table.shape != (rows, count):
        raise InputError(f"{path}: phis{ending} has shape {table.shape}, expected ({rows}, {count}).")
    for i, column in enumerate(progress(table.T[:limit], path.name)):
        name = f"{source.name}/{i:04d}"
        with bad.catch(name):
            if not (np.abs(column) <= 1e6).all():  # NaN is not
                raise InputError(f"{path}: face {i} has a point that is not a number. Download it again.")
            x, y, occluded = np.split(column, 3)
            tags = {source.name} | ({"occlusion"} if occluded.any() else set())
            landmarks = np.stack([x, y], axis=1) - 1.0  # MATLAB counts from 1
            yield new_sample(name, path, landmarks, tags, index=i)


def _cofw_reference(file: h5py.File, index: int) -> h5py.Reference:
    return read_dataset(file, "IsTr" if "IsTr" in file else "IsT").reshape(-1)[index]


def _cofw_image_size(path: Path, index: int) -> tuple[int, int, bool] | None:
    with contextlib.suppress(InputError), _open_mat(path, f"image {index}") as file:
        width, height = file[_cofw_reference(file, index)].shape[-2:]
        return width, height, False
    return None


def _read_cofw_image(path: Path, index: int) -> np.ndarray:
    with _open_mat(path, f"image {index}") as file:
        image = read_dataset(file, _cofw_reference(file, index))
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and len(image) != 3):
        raise InputError(f"{path}: image {index} is {image.dtype} {image.shape}, expected uint8 (3, W, H) or (W, H).")
    image = image.T if image.ndim == 3 else np.repeat(image.T[..., None], 3, axis=-1)  # (3, W, H) -> (H, W, 3)
    return np.ascontiguousarray(image)


@contextlib.contextmanager
def _open_mat(path: Path, wanted: str) -> Iterator[h5py.File]:
    """Opens a COFW file. Raises: InputError if `wanted`, what the caller reads, is damaged."""
    import h5py  # comes with Keras; only this dataset needs it

    told = f"{path}: {wanted} cannot be read"
    with refusing(told, files.BROKEN_HDF5, "Is it COFW's colour file?"), h5py.File(path, "r") as file:
        yield file


# --- AFLW2000-3D, 300W-LP, BIWI ---------------------------------------------------------------------------------------
def _read_aflw2000(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    from scipy.io import loadmat  # only this dataset needs it

    beyond = 0
    files_of_faces = [  # 300W-LP brings landmarks/**/*_pts.mat, both bring Code/**/*.mat
        path
        for path in _files(data_dir / source.path, "*.mat")
        if not path.stem.endswith("_pts") and "Code" not in path.relative_to(data_dir).parts
    ]
    for path in progress(files_of_faces[:limit], spec.title):
        name = path.relative_to(data_dir).with_suffix("").as_posix()
        with bad.catch(name):
            with refusing(f"{path}: no whole file of AFLW2000-3D or 300W-LP"):  # SciPy raises whatever comes
                content = loadmat(path, variable_names=("Pose_Para", "pt3d_68", "pt2d"))
                points = np.asarray(content["pt3d_68" if "pt3d_68" in content else "pt2d"], np.float64)[:2].T
                angles = np.asarray(content["Pose_Para"], np.float64).reshape(-1)[:3]  # pitch, yaw, roll in radians
            if points.shape != (68, 2) or angles.shape != (3,) or not (np.abs([*points.flat, *angles]) < 1e6).all():
                told = f"{points.shape[0]} points and {angles.size} angles, expected 68 and 3 finite ones"
                raise InputError(f"{path}: {told}.")
            image = next((p for end in PHOTO_ENDINGS if (p := path.with_suffix(end)).is_file()), None)
            if image is None:
                raise InputError(f"{path}: no image beside it. Is the download whole?")
            if np.abs(angles).max() > np.radians(MAX_ANGLE_DEG):
                beyond += 1
                continue
            sample = new_sample(name, image, points - 1.0, {source.name})  # MATLAB counts from 1
            yield replace(sample, pose=angles_of_300w_lp(angles).astype(np.float32))
    if beyond:
        told = f"{beyond} faces with an angle beyond {MAX_ANGLE_DEG:g} degrees, left out"
        print(f"{data_dir / source.path}: {told}", file=sys.stderr)


def _read_biwi(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    """Landmarks are the mean face put where the head is annotated: enough for a crop, not for an NME."""
    camera_of = functools.cache(_numbers)
    for path in progress(_files(data_dir / source.path, "frame_*_pose.txt")[:limit], spec.title):
        name = path.relative_to(data_dir).as_posix().removesuffix("_pose.txt")
        with bad.catch(name):
            image = path.with_name(path.name.replace("_pose.txt", "_rgb.png"))
            camera, pose = camera_of(path.parent / "rgb.cal", 25), _numbers(path, 12)
            rotation, place = pose[:9].reshape(3, 3), pose[9:12]
            if np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.05:
                raise InputError(f"{path}: its first nine numbers are no rotation. Is it a file of BIWI?")
            turn, shift = camera[13:22].reshape(3, 3), camera[22:25]  # behind them the size of the image
            face = (mean_face() * EYES_MM) @ rotation.T + place
            seen = (face @ turn.T + shift) @ camera[:9].reshape(3, 3).T
            if (seen[:, 2] <= 0).any():
                raise InputError(f"{path}: the head is behind the camera. Is {path.parent / 'rgb.cal'} its own?")
            sample = new_sample(name, image, seen[:, :2] / seen[:, 2:], {source.name})
            yield replace(sample, pose=matrix_to_angles(turn @ rotation).astype(np.float32))
    told = "landmarks are the mean face put at the place of the head, for the crop; only pose is measured"
    print(f"{spec.title}: {told}", file=sys.stderr)


def _files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.rglob(pattern)) if not path.name.startswith(".")]


def _numbers(path: Path, count: int) -> np.ndarray:
    with refusing(f"{path}: not numbers alone", (ValueError,)):
        numbers = np.array(read_text(path).split(), np.float64)
    if len(numbers) < count or not np.isfinite(numbers).all():
        raise InputError(f"{path}: {len(numbers)} numbers, {count} expected. Is it a file of BIWI?")
    return numbers


# by the ending of a file of faces, or by the layout of a dataset of such
FILE_READERS = {".txt": _read_list, **dict.fromkeys(_FACES, _read_annotated), "wflw": _read_wflw, "cofw": _read_cofw}
READERS = {**FILE_READERS, "aflw2000": _read_aflw2000, "biwi": _read_biwi}
