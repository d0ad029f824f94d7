"""The ASM-assisted multi-task loss (paper section 3; TensorFlow). It knows neither models nor datasets."""

import math

import numpy as np
import tensorflow as tf

from asmnet_tf.config import ALPHAS, CLIP_STD, LANDMARK_LOSSES, POSE_WEIGHT
from asmnet_tf.shape.shape_model import ShapeModel

WING_WIDTH = 10 / 224  # Feng et al. 2018: 10 and 2 pixels; here in network units of a 224 px crop
WING_CURVATURE = 2 / 224
SMOOTH_L1_BETA = 2 / 224


def alpha_at(epoch: int, length: int, alphas: tuple[float, float, float] = ALPHAS) -> float:
    """Returns the weight of the ASM term in `epoch`, counted from 0 (paper eq. 6).

    alphas[0] while epoch < length/3, alphas[1] while epoch < 2 length/3, alphas[2] afterwards. The paper's length is
    the number of epochs. The release's is, by mistake, the number of steps per epoch: its 1,049 steps (3,148 faces,
    batch 3) keep alpha at 2 for 350 epochs, longer than it trains.
    """
    return alphas[(3 * epoch >= length) + (3 * epoch >= 2 * length)]


def landmark_distance(error: tf.Tensor, kind: str) -> tf.Tensor:
    """Returns the mean over batch and coordinates of a function of the error (B, 2L), network units; a scalar.

    mse: e^2 (the paper's). l1: |e|. smooth_l1: e^2 / 2b below b, |e| - b/2 above. wing (Feng et al. 2018, eq. 5):
    w ln(1 + |e| / c) below w, |e| - C above. Raises: ValueError for another kind.
    """
    size = tf.abs(error)
    if kind == "mse":
        value = tf.square(error)
    elif kind == "l1":
        value = size
    elif kind == "smooth_l1":
        value = tf.where(size < SMOOTH_L1_BETA, tf.square(error) / (2 * SMOOTH_L1_BETA), size - SMOOTH_L1_BETA / 2)
    elif kind == "wing":
        offset = WING_WIDTH - WING_WIDTH * math.log1p(WING_WIDTH / WING_CURVATURE)
        value = tf.where(size < WING_WIDTH, WING_WIDTH * tf.math.log1p(size / WING_CURVATURE), size - offset)
    else:
        raise ValueError(f"landmark loss is {kind!r}; it is one of {', '.join(LANDMARK_LOSSES)}")
    return tf.reduce_mean(value)


def smooth(shapes: tf.Tensor, mean_shape: tf.Tensor, eigenvectors: tf.Tensor, eigenvalues: tf.Tensor) -> tf.Tensor:
    """Smooths shapes (B, 2L) with the ASM operator, in the graph, as `ShapeModel.smooth` in NumPy (paper section 3.1).

    Args: mean_shape: (2L,). eigenvectors: (2L, K). eigenvalues: (K,). All in the units of the shapes.
    """
    limit = CLIP_STD * tf.sqrt(eigenvalues)
    parameters = tf.clip_by_value(tf.matmul(shapes - mean_shape, eigenvectors), -limit, limit)
    return mean_shape + tf.matmul(parameters, eigenvectors, transpose_b=True)


def move(shapes: tf.Tensor, affine: tf.Tensor, flip: tf.Tensor, flip_map: tf.Tensor) -> tf.Tensor:
    """Moves shapes (B, 2L) as the image was moved: points change places where flip (B,), then affine (B, 2, 3)."""
    points = tf.reshape(shapes, [tf.shape(shapes)[0], -1, 2])
    points = tf.where(flip[:, None, None], tf.gather(points, flip_map, axis=1), points)
    points = tf.matmul(points, affine[:, :, :2], transpose_b=True) + affine[:, None, :, 2]
    return tf.reshape(points, tf.shape(shapes))


class MultiTaskLoss:
    """L = L_facial + w_pose L_pose,  L_facial = d(G - P) + alpha d(ASM(G) - P)  (paper section 3, eq. 4 to 8).

    d is `landmark_distance` (the paper: mean square). L_pose is the mean over batch and angles of the squared error of
    yaw, pitch, roll in units of 65 degrees. Without a shape model the ASM term is left out (`ASMNet_nr`, `mnv2`).

    Args: flip_map: the dataset's point order in a mirrored face. shape_model: in network units of the crop in use.
    Raises: ValueError if the shape model has another number of landmarks or other units.
    """

    def __init__(
        self,
        flip_map: list[int],
        shape_model: ShapeModel | None,
        landmark_loss: str = "mse",
        pose_weight: float = POSE_WEIGHT,
    ) -> None:
        self.flip_map = tf.constant(np.array(flip_map, np.int32))
        self.landmark_loss = landmark_loss
        self.pose_weight = pose_weight
        self.asm: tuple[tf.Tensor, ...] | None = None
        if shape_model is not None:
            if shape_model.num_landmarks != len(flip_map) or shape_model.units != "network":
                raise ValueError(f"shape model: {shape_model.num_landmarks} landmarks, {shape_model.units} units")
            arrays = (shape_model.mean_shape, shape_model.eigenvectors, shape_model.eigenvalues)
            self.asm = tuple(tf.constant(a, tf.float32) for a in arrays)

    @tf.function
    def __call__(
        self, landmarks_pred: tf.Tensor, pose_pred: tf.Tensor, batch: dict[str, tf.Tensor], alpha: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Returns the scalars loss, loss_landmarks, loss_asm (before alpha, see `alpha_at`) and loss_pose.

        Args: landmarks_pred, pose_pred: (B, 2L), (B, 3), network units. batch: landmarks_norm (B, 2L) in the
              un-augmented crop frame, affine (B, 2, 3), flip (B,) and pose (B, 3).
        """
        shapes, flip_map = batch["landmarks_norm"], self.flip_map
        if self.asm is not None:
            # smoothed in the upright frame the eigen-shapes were fitted in, then both are moved like the image
            shapes = tf.concat([shapes, smooth(shapes, *self.asm)], axis=1)
            flip_map = tf.concat([flip_map, flip_map + tf.size(flip_map)], axis=0)
        targets = move(shapes, batch["affine"], batch["flip"], flip_map)
        size = tf.shape(landmarks_pred)[1]
        landmark_loss = landmark_distance(targets[:, :size] - landmarks_pred, self.landmark_loss)
        asm_loss = tf.zeros([])
        if self.asm is not None:
            asm_loss = landmark_distance(targets[:, size:] - landmarks_pred, self.landmark_loss)
        pose_loss = tf.reduce_mean(tf.square(batch["pose"] - pose_pred))
        total = landmark_loss + alpha * asm_loss + self.pose_weight * pose_loss
        return {"loss": total, "loss_landmarks": landmark_loss, "loss_asm": asm_loss, "loss_pose": pose_loss}
