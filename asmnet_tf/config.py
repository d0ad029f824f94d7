"""Datasets, recipes and the paper's constants. Standard library only: scripts import it before they parse arguments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

# what Keras must be set to
KERAS = {"backend": "tensorflow", "floatx": "float32", "image_data_format": "channels_last"}

# --- constants of the paper (sections 3 and 4; release configuration) -------------------------------------------------

ALPHAS = (2.0, 1.0, 0.5)  # weight of the ASM term in the first, second and last third of the epochs
ALPHA_SCHEDULES = ("epochs", "release")  # thirds of the epochs, or of the steps per epoch as in the release
POSE_WEIGHT = 0.5  # weight of the pose loss; the landmark loss has weight 1
CLIP_STD = 3.0  # shape parameters are clipped to +-3 sqrt(eigenvalue)
POSE_RANGE_DEG = 65.0  # O_P = angle / 65 degrees
PCA_PERCENT = 90.0
DROPOUT = 0.3
HEAD_L2 = 0.01
INPUT_SIZE = 224
VAL_FRACTION = 0.1  # of the photographs of the training faces, for every choice
INPUT_SIZES = (32, 1024)  # that a network can be built for; beyond, a batch takes more memory than machines have
ANGLES = ("yaw", "pitch", "roll")

CROPS = ("square", "tight")
SQUARE_CROP_SCALE = 1.2  # side of the square crop over the longer side of the landmark bounding box
TIGHT_MARGIN_PX = 10  # the release widens each side of the box by a random 0..10 source pixels in training


def crop_scale(crop: str) -> float:
    """Returns the side of crop frame `crop` over the side of the landmark bounding box it is made from."""
    return SQUARE_CROP_SCALE if crop == "square" else 1.0


# --- faces of photographs and videos ----------------------------------------------------------------------------------

DEFAULT_MODEL = "asmnet_300w"
FACE_FORMATS = ("json", "csv", "pts")
PHOTO_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
DETECTOR_SIZE = 640  # longest side of the face detector's larger view, pixels
# from the detector's box to the landmark box (`detection.to_landmark_boxes`): 300W training faces,
# by `python tests/benchmarks/face_detection.py --fit`
DETECTOR_SCALE = 0.923
DETECTOR_SHIFT = (-0.010, 0.134)


# --- datasets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One folder (300W layout) or list file (WFLW, COFW layouts) of a dataset, with its official number of faces."""

    name: str
    path: str
    expected: int


@dataclass(frozen=True)
class DatasetSpec:
    """All that differs between datasets. A further dataset of a known layout is one more of these.

    Indices are 0-based. `rigid_points` pairs a landmark with the point of the 68-point 3D mean face it stands for
    (`pose.py`); `contours` are (indices, closed) poly-lines for drawing.
    """

    name: str
    title: str
    num_landmarks: int
    layout: str  # "300w", "wflw" or "cofw": which reader of datasets.py
    default_data_dir: str
    outer_eye_corners: tuple[int, int]
    pupils: tuple[tuple[int, ...], tuple[int, ...]]  # points whose mean is a pupil
    flip_pairs: tuple[tuple[int, int], ...]
    rigid_points: tuple[tuple[int, int], ...]
    contours: tuple[tuple[tuple[int, ...], bool], ...]
    splits: dict[str, tuple[Source, ...]]
    subsets: dict[str, tuple[str, ...]]  # test subset -> the tags a sample needs one of (source name or attribute)
    subset_counts: dict[str, int]  # official number of faces
    thresholds: tuple[float, ...] = (0.08, 0.10)  # of failure rate and AUC, in NME as a fraction
    is_synthetic: bool = False
    published: dict[str, dict] = field(default_factory=dict)

    @property
    def flip_map(self) -> list[int]:
        """Point i of a mirrored face is point flip_map[i] of the original."""
        mapping = list(range(self.num_landmarks))
        for a, b in self.flip_pairs:
            mapping[a], mapping[b] = b, a
        return mapping


def _run(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


_RIGID_68 = (8, 17, 19, 21, 22, 24, 26, 30, 31, 35, 36, 39, 42, 45, 48, 51, 54, 57)
_RIGID_98 = (16, 33, 35, 37, 42, 44, 46, 54, 55, 59, 60, 64, 68, 72, 76, 79, 82, 85)

_FLIP_68 = (
    *((i, 16 - i) for i in range(8)),
    *((17 + i, 26 - i) for i in range(5)),
    *((31, 35), (32, 34)),
    *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
    *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58)),
    *((60, 64), (61, 63), (65, 67)),
)
_FLIP_98 = (
    *((i, 32 - i) for i in range(16)),
    *((33 + i, 46 - i) for i in range(5)),
    *((38 + i, 50 - i) for i in range(4)),
    *((55, 59), (56, 58)),
    *((60, 72), (61, 71), (62, 70), (63, 69), (64, 68), (65, 75), (66, 74), (67, 73)),
    *((76, 82), (77, 81), (78, 80), (83, 87), (84, 86)),
    *((88, 92), (89, 91), (93, 95)),
    (96, 97),
)
_CONTOURS_68 = (
    (_run(0, 16), False),
    (_run(17, 21), False),
    (_run(22, 26), False),
    (_run(27, 30), False),
    (_run(31, 35), False),
    (_run(36, 41), True),
    (_run(42, 47), True),
    (_run(48, 59), True),
    (_run(60, 67), True),
)
_CONTOURS_98 = (
    (_run(0, 32), False),
    (_run(33, 41), True),
    (_run(42, 50), True),
    (_run(51, 54), False),
    (_run(55, 59), False),
    (_run(60, 67), True),
    (_run(68, 75), True),
    (_run(76, 87), True),
    (_run(88, 95), True),
)
_SUBSETS_300W = {
    "full": ("helen", "lfpw", "ibug"),
    "common": ("helen", "lfpw"),
    "challenging": ("ibug",),
    "helen": ("helen",),
    "lfpw": ("lfpw",),
    "ibug": ("ibug",),
    "afw": ("afw",),
}
_SUBSETS_WFLW = {
    name: (name,) for name in ("test", "largepose", "expression", "illumination", "makeup", "occlusion", "blur")
}

# Published tables (paper.md section 8): NME in %, inter-ocular; pose MAE in degrees against HopeNet's predictions.
_PUBLISHED_300W = {
    "nme_pct": {
        "mnv2": {"common": 3.93, "challenging": 7.52, "full": 4.70},
        "mnv2_r": {"common": 3.88, "challenging": 7.35, "full": 4.59},
        "ASMNet_nr": {"common": 5.86, "challenging": 8.80, "full": 6.46},
        "ASMNet": {"common": 4.82, "challenging": 8.20, "full": 5.50},
    },
    "pose_mae_deg": {
        "mnv2": {"full": (1.75, 1.93, 1.32)},
        "mnv2_r": {"full": (1.71, 1.89, 1.30)},
        "ASMNet_nr": {"full": (2.41, 1.87, 2.115)},
        "ASMNet": {"full": (1.62, 1.80, 1.24)},
    },
}
_PUBLISHED_WFLW = {
    "nme_pct": {
        method: dict(zip(("test", "largepose", "expression", "illumination", "makeup", "occlusion", "blur"), row))
        for method, row in {
            "mnv2": (9.57, 18.18, 9.93, 8.98, 9.92, 11.38, 10.79),
            "mnv2_r": (9.41, 17.86, 9.78, 8.90, 9.67, 11.25, 10.66),
            "ASMNet_nr": (11.96, 21.95, 13.08, 11.02, 11.84, 13.24, 12.60),
            "ASMNet": (10.77, 21.11, 12.02, 9.93, 10.55, 12.34, 11.62),
        }.items()
    },
    "pose_mae_deg": {
        "mnv2": {"test": (3.06, 3.03, 2.26)},
        "mnv2_r": {"test": (3.08, 2.94, 2.22)},
        "ASMNet_nr": {"test": (3.14, 2.99, 2.23)},
        "ASMNet": {"test": (2.97, 2.93, 2.21)},
    },
}


def _like_300w(name: str, title: str, default_data_dir: str, counts: tuple[int, ...], **more) -> DatasetSpec:
    """Returns a 68-point spec in the 300W layout; `counts` in the order of the six folders below."""
    helen, lfpw, afw, helen_test, lfpw_test, ibug = counts
    return DatasetSpec(
        name=name,
        title=title,
        num_landmarks=68,
        layout="300w",
        default_data_dir=default_data_dir,
        outer_eye_corners=(36, 45),
        pupils=(_run(36, 41), _run(42, 47)),
        flip_pairs=_FLIP_68,
        rigid_points=tuple((i, i) for i in _RIGID_68),
        contours=_CONTOURS_68,
        splits={
            "train": (
                Source("helen", "helen/trainset", helen),
                Source("lfpw", "lfpw/trainset", lfpw),
                Source("afw", "afw", afw),
            ),
            "test": (
                Source("helen", "helen/testset", helen_test),
                Source("lfpw", "lfpw/testset", lfpw_test),
                Source("ibug", "ibug", ibug),
            ),
        },
        subsets=_SUBSETS_300W,
        subset_counts={
            "full": helen_test + lfpw_test + ibug,
            "common": helen_test + lfpw_test,
            "challenging": ibug,
            "helen": helen_test,
            "lfpw": lfpw_test,
            "ibug": ibug,
            "afw": afw,
        },
        **more,
    )


def _like_wflw(
    name: str, title: str, default_data_dir: str, train: int, counts: tuple[int, ...], **more
) -> DatasetSpec:
    """Returns a 98-point spec in the WFLW layout; `counts` in the order of the seven subsets."""
    lists = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_"
    return DatasetSpec(
        name=name,
        title=title,
        num_landmarks=98,
        layout="wflw",
        default_data_dir=default_data_dir,
        outer_eye_corners=(60, 72),
        pupils=((96,), (97,)),
        flip_pairs=_FLIP_98,
        rigid_points=tuple(zip(_RIGID_98, _RIGID_68)),
        contours=_CONTOURS_98,
        splits={
            "train": (Source("train", f"{lists}train.txt", train),),
            "test": (Source("test", f"{lists}test.txt", counts[0]),),
        },
        subsets=_SUBSETS_WFLW,
        subset_counts=dict(zip(_SUBSETS_WFLW, counts)),
        thresholds=(0.10,),
        **more,
    )


SYNTHETIC_COUNTS = (1000, 400, 200, 160, 110, 60)  # faces per folder, roughly half of 300W
SYNTHETIC_WFLW_COUNTS = (1600, 320)

DATASETS: dict[str, DatasetSpec] = {
    "synthetic": _like_300w("synthetic", "Synthetic", "data/synthetic", SYNTHETIC_COUNTS, is_synthetic=True),
    "300w": _like_300w("300w", "300W", "data/300w", (2000, 811, 337, 330, 224, 135), published=_PUBLISHED_300W),
    "wflw": _like_wflw(
        "wflw", "WFLW", "data/wflw", 7500, (2500, 326, 314, 698, 206, 736, 773), published=_PUBLISHED_WFLW
    ),
    "synthetic_wflw": _like_wflw(
        "synthetic_wflw",
        "Synthetic (98 points)",
        "data/synthetic_wflw",
        SYNTHETIC_WFLW_COUNTS[0],
        (SYNTHETIC_WFLW_COUNTS[1],),  # how many faces carry an attribute is up to the seed
        is_synthetic=True,
    ),
    "cofw": DatasetSpec(
        name="cofw",
        title="COFW",
        num_landmarks=29,
        layout="cofw",
        default_data_dir="data/cofw",
        outer_eye_corners=(8, 9),
        pupils=((16,), (17,)),
        flip_pairs=((0, 1), (2, 3), (4, 6), (5, 7), (8, 9), (10, 11), (12, 14), (13, 15), (16, 17), (18, 19), (22, 23)),
        # brow ends, eye corners, nose wings and tip, mouth corners and middles, chin
        rigid_points=(
            *((0, 17), (1, 26), (2, 21), (3, 22), (8, 36), (9, 45), (10, 39), (11, 42)),
            *((18, 31), (19, 35), (20, 30), (22, 48), (23, 54), (24, 51), (27, 57), (28, 8)),
        ),
        contours=(
            *(((0, 4, 2, 5), True), ((1, 6, 3, 7), True), ((8, 12, 10, 13), True), ((9, 14, 11, 15), True)),
            *(((18, 20, 19, 21), True), ((22, 24, 23, 27), True), ((22, 25, 23, 26), True)),
        ),
        splits={
            "train": (Source("train", "COFW_train_color.mat", 1345),),
            "test": (Source("test", "COFW_test_color.mat", 507),),
        },
        subsets={"test": ("test",)},
        subset_counts={"test": 507},
    ),
}


# --- recipes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes made to a training face; each is drawn uniformly."""

    flip: float = 0.0  # probability
    rotation_deg: float = 0.0  # +-
    scale: float = 0.0  # side of the crop times 1 +- this
    shift: float = 0.0  # +- this share of the crop's side
    margin_px: float = 0.0  # each side moves outwards by 0..this many source pixels (the release's crop)
    brightness: float = 0.0  # +- this share of 255
    contrast: float = 0.0  # factor 1 +- this
    colour: float = 0.0  # factor 1 +- this for each channel
    noise: float = 0.0  # standard deviation up to this share of 255
    blur: float = 0.0  # probability of a 3 x 3 box blur
    occlusion: float = 0.0  # probability of a random grey or noisy rectangle


_TUNED = Augmentation(
    flip=0.5,
    rotation_deg=30.0,
    scale=0.1,
    shift=0.05,
    brightness=0.2,
    contrast=0.3,
    colour=0.15,
    noise=0.04,
    blur=0.1,
    occlusion=0.3,
)
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "paper": Augmentation(margin_px=TIGHT_MARGIN_PX, brightness=0.2, contrast=0.3, colour=0.1, noise=0.04),
    "tuned": _TUNED,
    "mild": replace(_TUNED, rotation_deg=12.0, occlusion=0.15),  # for the last epochs: closer to what is seen in use
}


@dataclass(frozen=True)
class Recipe:
    """The defaults that `train.py --recipe` stands for; every one of them has a flag of its own."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str  # "constant" or "cosine"
    inverse_time_decay: float  # lr / (1 + decay * step), of the constant schedule
    warmup_epochs: float
    weight_decay: float  # decoupled, on kernels only; 0: plain Adam
    ema: float  # momentum of the weights' moving average; 0: none
    landmark_loss: str
    alpha: tuple[float, float, float]
    pose_weight: float
    l2_heads: float
    crop: str
    augment: str
    dropout: float
    input_range: tuple[float, float]  # what the model's rescaling layer makes of pixels 0..255
    start_at_mean: bool  # whether the untrained network predicts the mean shape instead of random numbers


RECIPES: dict[str, Recipe] = {
    # paper.md section 5: Adam, 1e-2 with decay 1e-5 per step, squared error, tight crop, no L2 in the release's loop
    "paper": Recipe(
        epochs=150,
        batch_size=50,
        lr=1e-2,
        schedule="constant",
        inverse_time_decay=1e-5,
        warmup_epochs=0.0,
        weight_decay=0.0,
        ema=0.0,
        landmark_loss="mse",
        alpha=ALPHAS,
        pose_weight=POSE_WEIGHT,
        l2_heads=0.0,
        crop="tight",
        augment="paper",
        dropout=DROPOUT,
        input_range=(0.0, 1.0),
        start_at_mean=False,
    ),
    "tuned": Recipe(
        epochs=150,
        batch_size=32,
        lr=1.5e-3,
        schedule="cosine",
        inverse_time_decay=0.0,
        warmup_epochs=2.0,
        weight_decay=0.0,
        ema=0.0,
        landmark_loss="wing",
        alpha=ALPHAS,
        pose_weight=POSE_WEIGHT,
        l2_heads=0.0,
        crop="square",
        augment="tuned",
        dropout=0.0,
        input_range=(-1.0, 1.0),
        start_at_mean=True,
    ),
}
FINE_TUNING_LR = 2e-5  # where training starts from a whole model: a rate that cannot wreck it, even of 20 faces
LANDMARK_LOSSES = ("mse", "l1", "smooth_l1", "wing", "awing")
ARCHITECTURES = ("asmnet", "mobilenet_v2")
HEADS = ("pooled", "spatial")  # what the two linear heads of ASMNet see; pooled is the paper's
LOSSES = ("asm", "mse")
CACHES = ("auto", "memory", "disk", "none")  # where decoded patches are kept
