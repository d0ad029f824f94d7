"""ASMNet and the MobileNetV2 baseline as plain functional Keras models (paper section 3.3; TensorFlow / Keras).

Input: RGB pixels 0..255, float or uint8, (B, S, S, 3); rescaling is a layer. Outputs, in this order: `O_L` (B, 2L)
landmarks in network units x0, y0, x1, ...; `O_P` (B, 3) yaw, pitch, roll over 65 degrees.
"""

import math
from collections.abc import Collection

import numpy as np

from asmnet_tf.config import DROPOUT, HEAD_L2, HEADS, INPUT_SIZE, INPUT_SIZES
from asmnet_tf.files import InputError
from asmnet_tf.network import check_keras, keras

layers, Tensor = keras.layers, keras.KerasTensor
ASMNET_TAPS = (  # pooled features, in this order (paper figure 2; 24 + 32 + 64 + 96 + 160 + 160 = 536)
    "block_1_project_BN",
    "block_3_project_BN",
    "block_6_project_BN",
    "block_10_project_BN",
    "block_13_project_BN",
    "block_15_add",
)
# the spatial head: 4 x 4 cells (the last map of a 112 px input); 17 channels would make 1.4801 M parameters
SPATIAL_GRID = 4
SPATIAL_CHANNELS = 16


def build_asmnet(
    num_landmarks: int = 68,
    input_size: int = INPUT_SIZE,
    dropout: float = DROPOUT,
    l2_heads: float = HEAD_L2,
    input_range: tuple[float, float] = (-1.0, 1.0),
    head: str = "pooled",
) -> keras.Model:
    """Builds ASMNet: MobileNetV2 up to `block_15_add`, six pooled taps, two linear heads.

    Args:    num_landmarks: L. input_size: side of the input in pixels, 32 or more. dropout: rate before the heads.
             l2_heads: L2 on kernel and bias of both heads (in `model.losses`).
             input_range: what pixels 0 and 255 become; the release has (0, 1), ImageNet weights want (-1, 1).
             head: pooled: the heads see the 536 pooled features (the paper's). spatial: beside them `block_15_add` by
             position, see `_spatial_features`; weights of one input size fit every other.
    Returns: a model with random weights; for L = 68 1,439,507 parameters, 1,477,715 with the spatial head.
    Raises:  ValueError for a size below 32 or an unknown head.
    """
    if head not in HEADS:
        raise ValueError(f"head is {head!r}; it is one of {', '.join(HEADS)}")
    base, inputs = _backbone(input_size, input_range)
    taps = [base.get_layer(name).output for name in ASMNET_TAPS]
    pooled = [layers.GlobalAveragePooling2D(name=f"pool_{name}")(tap) for name, tap in zip(ASMNET_TAPS, taps)]
    features = layers.Concatenate(name="features")(pooled)
    if head == "spatial":
        features = layers.Concatenate(name="features_spatial")([features, _spatial_features(taps[-1])])
    return _with_heads("asmnet", inputs, features, num_landmarks, dropout, l2_heads)


def build_mobilenet_v2(
    num_landmarks: int = 68,
    input_size: int = INPUT_SIZE,
    dropout: float = DROPOUT,
    l2_heads: float = HEAD_L2,
    input_range: tuple[float, float] = (-1.0, 1.0),
    head: str = "pooled",
) -> keras.Model:
    """Builds the paper's baseline `mnv2`: the whole MobileNetV2, its 1280 pooled features into the same two heads.

    Arguments, result and errors as `build_asmnet`, but head can only be pooled; 2,436,043 parameters for L = 68.
    """
    if head != "pooled":
        raise ValueError(f"head is {head!r}; mobilenet_v2 has the pooled one only")
    base, inputs = _backbone(input_size, input_range)
    features = layers.GlobalAveragePooling2D(name="features")(base.get_layer("out_relu").output)
    return _with_heads("mobilenet_v2", inputs, features, num_landmarks, dropout, l2_heads)


BUILDERS = {"asmnet": build_asmnet, "mobilenet_v2": build_mobilenet_v2}


def _backbone(input_size: int, input_range: tuple[float, float]) -> tuple[keras.Model, Tensor]:
    check_keras()
    if not INPUT_SIZES[0] <= input_size <= INPUT_SIZES[1]:
        raise InputError(f"--input-size {input_size}: the network takes {INPUT_SIZES[0]} to {INPUT_SIZES[1]} pixels.")
    low, high = input_range
    inputs = layers.Input((input_size, input_size, 3), name="image")
    pixels = layers.Rescaling((high - low) / 255.0, offset=low, name="rescaling")(inputs)
    return keras.applications.MobileNetV2(input_tensor=pixels, include_top=False, weights=None), inputs


def _spatial_features(tap: Tensor) -> Tensor:
    """Returns a map (B, n, n, C) as 256 numbers that keep their place: 1 x 1 projection, 4 x 4 grid, flattened.

    Global average pooling throws position away. The grid is the same for every n, so the parameters are
    too: bilinear sampling reads all of a map of up to 8 x 8 (256 px input), and enlarges one below 4 x 4.
    """
    x = layers.Conv2D(SPATIAL_CHANNELS, 1, use_bias=False, name="spatial_project")(tap)
    x = layers.BatchNormalization(momentum=0.999, name="spatial_project_BN")(x)  # the sum of a residual has any scale
    if tap.shape[1] != SPATIAL_GRID:
        x = layers.Resizing(SPATIAL_GRID, SPATIAL_GRID, interpolation="bilinear", name="spatial_grid")(x)
    return layers.Flatten(name="spatial")(x)


def _with_heads(
    name: str, inputs: Tensor, features: Tensor, num_landmarks: int, dropout: float, l2_heads: float
) -> keras.Model:
    features = layers.Dropout(dropout, name="dropout")(features)
    l2 = keras.regularizers.L2(l2_heads) if l2_heads else None
    settings = {"kernel_regularizer": l2, "bias_regularizer": l2, "dtype": "float32"}
    sizes = {"O_L": 2 * num_landmarks, "O_P": 3}
    heads = [layers.Dense(units, name=head, **settings)(features) for head, units in sizes.items()]
    return keras.Model(inputs, heads, name=name)


def start_at_mean(model: keras.Model, landmarks_norm: np.ndarray, pose_norm: np.ndarray) -> None:
    """Makes an untrained model predict the mean shape (2L,) and the mean pose (3,): biases set, kernels near zero.

    Random heads start at an NME of 100 to 170 %, the mean shape at 15 to 35 %; that saves the first epochs.
    """
    for name, mean in (("O_L", landmarks_norm), ("O_P", pose_norm)):
        head = model.get_layer(name)
        head.kernel.assign(head.kernel * 0.01)
        head.bias.assign(mean)


def freeze_batch_norm(model: keras.Model, received: Collection[str]) -> None:
    """Keeps statistics, scales and offsets of the batch norms of layers `received` in training; new ones learn on."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.name in received:
            layer.trainable = False


def count_multiply_adds(model: keras.Model) -> int:
    """Returns the multiply-adds of convolutions and dense layers for one image.

    The paper's FLOPs are twice this number (0.51 G for ASMNet at 224 px, 0.60 G for MobileNetV2).
    """
    counted = [x for x in model.layers if isinstance(x, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense))]
    # positions in the output, none of a dense layer, times weights
    return sum(math.prod(x.output.shape[1:-1]) * math.prod(x.kernel.shape) for x in counted)
