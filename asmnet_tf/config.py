"""The paper's constants and the recipes. Standard library only: scripts import it before they parse arguments."""

from dataclasses import dataclass, replace

# what Keras must be set to
KERAS = {"backend": "tensorflow", "floatx": "float32", "image_data_format": "channels_last"}

# --- constants of the paper (sections 3 and 4; release configuration) -------------------------------------------------

ALPHAS = (2.0, 1.0, 0.5)  # weight of the ASM term in the first, second and last third of the epochs
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
FACE_FORMATS = ("json", "csv", "jsonl", "pts")
PHOTO_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
DETECTOR_SIZE = 640  # longest side of the face detector's larger view, pixels
# from the detector's box to the landmark box (`detection.to_landmark_boxes`): 300W training faces,
# by `python tests/benchmarks/face_detection.py --fit`
DETECTOR_SCALE = 0.923
DETECTOR_SHIFT = (-0.010, 0.134)


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


_LIGHT = {"brightness": 0.2, "contrast": 0.3, "noise": 0.04}
_TUNED = Augmentation(
    flip=0.5, rotation_deg=30.0, scale=0.1, shift=0.05, colour=0.15, blur=0.1, occlusion=0.3, **_LIGHT
)
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "paper": Augmentation(margin_px=TIGHT_MARGIN_PX, colour=0.1, **_LIGHT),
    "tuned": _TUNED,
    "mild": replace(_TUNED, rotation_deg=12.0, occlusion=0.15),  # for the last epochs: closer to what is seen in use
}
# the faces that heads are fitted to: as they are evaluated, mirrored, and in boxes like those of a detector
HEAD_AUGMENTATIONS = (Augmentation(), Augmentation(flip=1.0), Augmentation(rotation_deg=12.0, scale=0.1, shift=0.05))
HEAD_RIDGE = 1.0  # of 1, 0.3, 0.1; on 202 held-out faces 3.52 % before, 3.41 after, in detector boxes 3.61 and 3.52

FINE_TUNING_LR = 2e-5  # where training starts from a whole model: a rate that cannot wreck it, even of 20 faces
HEAD_FACES = 2000  # that the landmark head of a model with other points is fitted to before training, about
FROZEN_LR = 2e-4  # the most that training with frozen batch norm stands: at 1.5e-3 the loss went from 0.057 to 0.345


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with an input size, an optimiser and a learning-rate schedule of its own."""

    epochs: int
    lr: float = FROZEN_LR  # peak
    augment: str = "none"
    input_size: int = INPUT_SIZE
    freeze_batch_norm: bool = False  # see `asmnet.freeze_batch_norm`
    pose_weight: float = POSE_WEIGHT

    def __post_init__(self) -> None:
        """Raises: ValueError for a learning rate that destroys a model whose batch norm is frozen."""
        if self.freeze_batch_norm and self.lr > FROZEN_LR:
            raise ValueError(f"--freeze-batch-norm: --lr {self.lr:g} destroys such a model. Use {FROZEN_LR:g} or less.")

    def __str__(self) -> str:
        return f"{self.epochs} epoch{'s' * (self.epochs > 1)} at {self.input_size} px"


@dataclass(frozen=True)
class Recipe:
    """The defaults that `train.py --recipe` stands for; every one of them has a flag of its own.

    Unless a recipe says otherwise, as in the release's loop: Adam, squared error, tight crop, no L2.
    """

    phases: tuple[Phase, ...]
    batch_size: int = 50
    schedule: str = "constant"  # or "cosine", of each phase
    loss: str = "asm"
    landmark_loss: str = "mse"
    crop: str = "tight"
    dropout: float = DROPOUT
    input_range: tuple[float, float] = (0.0, 1.0)  # what the model's rescaling layer makes of pixels 0..255
    start_at_mean: bool = False  # see `asmnet.start_at_mean`; else the untrained network predicts random numbers
    inverse_time_decay: float = 0.0  # lr / (1 + decay * step), of the constant schedule
    warmup_epochs: float = 0.0  # of each phase
    alpha: tuple[float, float, float] = ALPHAS
    weight_decay: float = 0.0  # decoupled, on kernels only; 0: plain Adam
    ema: float = 0.0  # momentum of the weights' moving average; 0: none
    l2_heads: float = 0.0
    fit_heads: bool = False  # at the end, see `checkpoints.fit_heads`


RECIPES: dict[str, Recipe] = {
    "paper": Recipe((Phase(150, lr=1e-2, augment="paper"),), inverse_time_decay=1e-5),
    # made asmnet_300w, there in three runs, but for its last 70 epochs on all faces: 4 hours on two quiet cores
    "tuned": Recipe(
        phases=(
            Phase(240, lr=1.5e-3, augment="tuned", input_size=112),
            Phase(70, lr=8e-4, augment="tuned", pose_weight=2.0),
            Phase(80, lr=FROZEN_LR, augment="mild", freeze_batch_norm=True, pose_weight=2.0),
        ),
        batch_size=32,
        schedule="cosine",
        warmup_epochs=2.0,
        loss="mse",
        landmark_loss="wing",
        crop="square",
        dropout=0.0,
        input_range=(-1.0, 1.0),
        start_at_mean=True,
        fit_heads=True,
    ),
}
# From a shipped or own model, with its batch norm: a handful of faces cannot move that far. The number of faces does
# not choose the rate. Of a kind that the model knows (21 of the 68 points; 20, 200, 1,812 faces) neither 2e-4 nor 2e-5
# made it better than the head fitted to them; of another kind (lying faces) 20 came from 71 to 30 % at 2e-4.
RECIPES["finetune"] = replace(
    RECIPES["tuned"],
    phases=(Phase(40, augment="mild", freeze_batch_norm=True, pose_weight=2.0),),
    batch_size=8,
    fit_heads=False,
)
LANDMARK_LOSSES = ("mse", "l1", "smooth_l1", "wing")
HEADS = ("pooled", "spatial")  # what the two linear heads of ASMNet see; pooled is the paper's
CACHES = ("auto", "memory", "disk", "none")  # where decoded patches are kept
