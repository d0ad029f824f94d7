"""Boxes, crops and the coordinates of a face (NumPy, OpenCV, Pillow).

Coordinates. Pixel centres are integers: an image of width W covers [-0.5, W - 0.5]. Affine maps are (2, 3) float64
matrices that act on column vectors (x, y, 1). A crop frame is a rectangle of the image; in *network units* its centre
is 0 and its sides are +-0.5, whatever the crop's size in pixels, so a mirror image is exactly x -> -x.
"""

import contextlib
import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin

from asmnet_tf.config import CROPS, crop_scale
from asmnet_tf.files import InputError, refusing


# --- boxes and crop frames --------------------------------------------------------------------------------------------
def rotation(angle: np.ndarray | float) -> np.ndarray:
    """Returns the matrices (..., 2, 2) that turn column vectors by angles (...) in degrees, clockwise as seen."""
    sin, cos = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    return np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)


def landmark_box(landmarks: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """Returns bounding boxes (..., 4), x_min, y_min, x_max, y_max, of landmarks (..., L, 2), in their units.

    Args: angle: of the box that bounds them, which is returned turned back about its centre; degrees clockwise.
    """
    turn = rotation(angle)
    upright = landmarks @ turn if angle else landmarks
    low, high = upright.min(axis=-2), upright.max(axis=-2)
    if not angle:
        return np.concatenate([low, high], axis=-1)
    centre, half = (low + high) / 2 @ turn.T, (high - low) / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def crop_frame(box: np.ndarray, crop: str, scale: float | None = None) -> np.ndarray:
    """Returns the crop frames of bounding boxes (..., 4), float64 (..., 4): centre x, centre y, width, height.

    `square`: the box's centre, side `scale` (default 1.2) times its longer side. `tight`: the box itself, the
    release's crop; its aspect ratio is lost when it becomes a square image.
    """
    box = np.asarray(box, np.float64)
    centre = (box[..., :2] + box[..., 2:]) / 2
    size = np.maximum(box[..., 2:] - box[..., :2], 1e-6)  # a face of no extent must not divide by zero
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}; it is 'square' or 'tight'")
    if crop == "square":
        size = np.repeat(size.max(axis=-1, keepdims=True), 2, axis=-1)
    return np.concatenate([centre, size * (crop_scale(crop) if scale is None else scale)], axis=-1)


def normalise(landmarks: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Image pixels (..., L, 2) -> network units, flat (..., 2L): x0, y0, x1, ... of crop frame (..., 4)."""
    norm = (landmarks - frame[..., None, :2]) / frame[..., None, 2:]
    return norm.reshape(*norm.shape[:-2], -1)


def denormalise(landmarks_norm: np.ndarray, frame: np.ndarray, angle: np.ndarray | float = 0.0) -> np.ndarray:
    """Inverse of `normalise`: flat network units (..., 2L) -> image pixels (..., L, 2); angle: see `crop_to_image`."""
    norm = np.asarray(landmarks_norm)
    points = norm.reshape(*norm.shape[:-1], -1, 2) * frame[..., None, 2:]
    return (points @ np.swapaxes(rotation(angle), -1, -2) if np.any(angle) else points) + frame[..., None, :2]


def crop_to_image(frame: np.ndarray, size: int, angle: float = 0.0) -> np.ndarray:
    """Returns the (2, 3) map from pixels of a `size` x `size` crop to image pixels.

    Network units of crop pixel q are (q - (size - 1) / 2) / size; the crop covers [-0.5, size - 0.5].

    Args: angle: by which the frame is turned about its centre, degrees clockwise: a face of that roll is upright.
    """
    step = frame[2:] / size
    turn = rotation(angle)
    return np.column_stack([turn * step, frame[:2] - turn @ (step * (size - 1) / 2)])


# --- affine maps ------------------------------------------------------------------------------------------------------
def compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns the affine map x -> second(first(x)); both (..., 2, 3)."""
    linear = second[..., :2] @ first[..., :2]
    shift = second[..., :2] @ first[..., 2:] + second[..., 2:]
    return np.concatenate([linear, shift], axis=-1)


def invert(affine: np.ndarray) -> np.ndarray:
    """Returns the inverse of affine maps (..., 2, 3)."""
    linear = np.linalg.inv(affine[..., :2])
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def transform(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies one affine map (2, 3) to points (..., 2)."""
    return points @ affine[:, :2].T + affine[:, 2]


def flip_landmarks(landmarks_norm: np.ndarray, flip_map: list[int]) -> np.ndarray:
    """Mirrors shapes (..., 2L) in network units: x -> -x, and points change places by the dataset's flip map."""
    points = landmarks_norm.reshape(*landmarks_norm.shape[:-1], -1, 2)[..., flip_map, :] * np.array([-1.0, 1.0])
    return points.reshape(landmarks_norm.shape).astype(landmarks_norm.dtype, copy=False)


# --- images -----------------------------------------------------------------------------------------------------------
MAX_PIXELS = 1 << 27  # of an image; a file of some kB can say that it has a thousand million
_ORIENTATION = 0x0112  # tag of EXIF and TIFF
# by how a file begins; `PIL.Image.open` would warn and refuse by a limit of its own, which belongs to the program
_KINDS = {
    b"\xff\xd8": JpegImagePlugin.JpegImageFile,
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*"), TiffImagePlugin.TiffImageFile),
    b"BM": BmpImagePlugin.BmpImageFile,
    b"P": PpmImagePlugin.PpmImageFile,
}


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file as RGB uint8 (H, W, 3), turned upright as its EXIF orientation says.

    Grey becomes RGB, 16 bits become 8, alpha is dropped.

    Args:   max_pixels: width x height beyond which it is refused before anything is decoded.
    Raises: InputError if the file is absent, does not decode or is too large.
    """
    with reading(path):
        data = Path(path).read_bytes()
    width, height, _ = _header(io.BytesIO(data)) or (0, 0, False)
    if width * height > max_pixels:
        million = f"{width * height / 1e6:.0f} million pixels, more than {max_pixels / 1e6:.0f} million"
        raise InputError(f"{path}: {width} x {height} are {million}. Shrink the image.")
    image = None
    with contextlib.suppress(cv2.error):
        if width and not _is_cut_png(data):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{path}: {len(data)} bytes that do not decode as an image. Replace or remove the file.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def reading(path: str | Path) -> contextlib.AbstractContextManager:
    """Returns a context that turns an OSError into the InputError of an image file."""
    return refusing(f"{path}: image cannot be read", (OSError,), "Is the download complete?")


def image_size(path: str | Path) -> tuple[int, int, bool] | None:
    """Returns, by its header, width and height of an image as `read_image` gives it and whether it is stored turned.

    None where that cannot be read: `read_image` says why.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return _header(file)
    return None


def _header(file: BinaryIO) -> tuple[int, int, bool] | None:
    start = file.read(4)
    file.seek(0)
    kind = next((kind for begins, kind in _KINDS.items() if start.startswith(begins)), None)
    try:
        with kind(file) as image:
            (width, height), exif = image.size, Image.Exif()
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                return width, height, image.tag_v2.get(_ORIENTATION) in range(2, 9)  # Pillow's size is the upright one
            exif.load(image.info.get("exif"))
            orientation = exif.get(_ORIENTATION)
    except Exception:  # Pillow raises whatever comes for a damaged header
        return None
    return (height, width, True) if orientation in range(5, 9) else (width, height, orientation in range(2, 5))


def _is_cut_png(data: bytes) -> bool:
    """Says whether a PNG has a chunk that reaches beyond its end: OpenCV takes the memory it says, up to 2 GB."""
    start, kind = 8, b""
    while data[:8] == b"\x89PNG\r\n\x1a\n" and kind != b"IEND":
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        start += 12 + length  # length, kind, data, checksum
        if start > len(data):
            return True
    return False


class Patch(NamedTuple):
    """The part of an image around one face, at no more resolution than the network can use."""

    pixels: np.ndarray  # RGB uint8 (h, w, 3)
    image_to_patch: np.ndarray  # (2, 3), from image pixels to patch pixels


PATCH_MARGIN = 1.7  # side of the patch over the side of the crop: a crop turned by 45 degrees and 20 % larger fits
PATCH_DETAIL = 1.25  # patch pixels per crop pixel at most
FLOAT_AREA = 1000 * 1000  # pixels; beyond, the float32 copy costs more than it saves


def shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Shrinks an image uint8 (h, w, 3) by area averaging.

    OpenCV sums float32 pixels a quarter faster than uint8 ones, to the same bits: half of what a crop costs is here.
    """
    if pixels.shape[0] * pixels.shape[1] > FLOAT_AREA:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.convertScaleAbs(cv2.resize(pixels.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA))


def cut_patch(image: np.ndarray, frame: np.ndarray, size: float, margin: float = PATCH_MARGIN) -> Patch:
    """Cuts the surroundings of crop frame (4,) out of an image, shrunk with area averaging where it has more detail.

    `warpAffine` samples bilinearly and would alias when shrinking, so shrinking happens here, once, for training and
    test alike; what is outside the image is left out and becomes black in `warp_patch`. size: of the network's input.
    """
    height, width = image.shape[:2]
    reach = frame[2:] * margin / 2 + 1
    low = np.clip(np.floor(frame[:2] - reach), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(frame[:2] + reach) + 1, low + 1, [width, height]).astype(int)
    pixels = image[low[1] : high[1], low[0] : high[0]]
    shape = high - low
    target = np.minimum(shape, np.maximum(1, np.round(shape * size * PATCH_DETAIL / frame[2:]))).astype(int)
    # a copy, for a view would keep the whole image in memory
    pixels = shrink(pixels, *target.tolist()) if (target < shape).any() else pixels.copy()
    ratio = target / shape
    offset = (0.5 - low) * ratio - 0.5  # resize keeps the outer edges: (x - low + 0.5) * ratio - 0.5
    return Patch(pixels, np.array([[ratio[0], 0.0, offset[0]], [0.0, ratio[1], offset[1]]]))


def warp_patch(patch: Patch, crop_to_image_map: np.ndarray, size: int) -> np.ndarray:
    """Samples the `size` x `size` crop, RGB uint8, whose pixels map to image pixels by `crop_to_image_map` (2, 3)."""
    matrix = compose(patch.image_to_patch, crop_to_image_map)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(patch.pixels, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT)


def crop_image(image: np.ndarray, frame: np.ndarray, size: int, angle: float = 0.0) -> np.ndarray:
    """Returns the network input of crop frame (4,), as evaluated: RGB uint8 (size, size, 3); see `crop_to_image`."""
    extent = np.abs(rotation(angle)) @ frame[2:]
    patch = cut_patch(image, np.append(frame[:2], extent), size * (extent[0] / frame[2]), margin=1.0)
    return warp_patch(patch, crop_to_image(frame, size, angle), size)
