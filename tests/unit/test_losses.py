"""The loss by hand, alpha at its boundaries, and the ASM term under a moved image."""

import math

import numpy as np
import pytest
import tensorflow as tf

from asmnet_tf.data import augmentation
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.network import loss as losses
from asmnet_tf.network.loss import MultiTaskLoss
from asmnet_tf.shape.shape_model import ShapeModel

SPEC = DATASETS["300w"]


def shape_model(seed=0, components=4):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(136, components)))[0]
    values = np.array([0.04, 0.02, 0.01, 0.005])[:components]
    return ShapeModel(rng.uniform(-0.4, 0.4, 136), vectors, values, "300w", 100, 90.0, "square", 1.2)


def still_batch(landmarks, pose):
    count = len(landmarks)
    return {
        "landmarks_norm": tf.constant(landmarks, tf.float32),
        "affine": tf.constant(np.tile(np.eye(2, 3), (count, 1, 1)), tf.float32),
        "flip": tf.zeros(count, tf.bool),
        "pose": tf.constant(pose, tf.float32),
    }


def test_alpha_by_thirds_of_the_epochs():
    assert [losses.alpha_at(e, 9) for e in range(9)] == [2, 2, 2, 1, 1, 1, 0.5, 0.5, 0.5]
    assert [losses.alpha_at(e, 150) for e in (0, 49, 50, 99, 100, 149)] == [2, 2, 1, 1, 0.5, 0.5]
    assert [losses.alpha_at(e, 4) for e in range(4)] == [2, 2, 1, 0.5]  # 1 < 4/3, 2 < 8/3
    assert losses.alpha_at(0, 1) == 2
    assert losses.alpha_at(5, 6, (3.0, 2.0, 0.0)) == 0.0


def test_alpha_over_the_epochs_as_the_paper_says_and_as_the_release_does_it():
    """150 epochs; 63 steps an epoch (3,148 faces, batch 50), and 1,049 (batch 3, the release's configuration)."""
    paper = [losses.alpha_at(epoch, length=150) for epoch in range(150)]
    assert paper == [2.0] * 50 + [1.0] * 50 + [0.5] * 50
    assert [losses.alpha_at(epoch, length=63) for epoch in range(150)] == [2.0] * 21 + [1.0] * 21 + [0.5] * 108
    assert {losses.alpha_at(epoch, length=1049) for epoch in range(150)} == {2.0}
    # the docstring's figure: the first epoch, counted from 0, that is not below 1049 / 3
    assert [losses.alpha_at(epoch, length=1049) for epoch in (349, 350)] == [2.0, 1.0]


def test_landmark_metrics_by_hand():
    error = tf.constant([[0.0, 0.02, -0.1, 0.001]])
    size = [0.0, 0.02, 0.1, 0.001]
    assert float(losses.landmark_distance(error, "mse")) == pytest.approx(np.mean(np.square(size)), rel=1e-5)
    assert float(losses.landmark_distance(error, "l1")) == pytest.approx(np.mean(size), rel=1e-5)
    beta = 2 / 224
    smooth = [0.0, 0.02 - beta / 2, 0.1 - beta / 2, 0.001**2 / (2 * beta)]
    assert float(losses.landmark_distance(error, "smooth_l1")) == pytest.approx(np.mean(smooth), rel=1e-5)
    w, c = 10 / 224, 2 / 224
    wing = [w * math.log(1 + s / c) if s < w else s - (w - w * math.log(1 + w / c)) for s in size]
    assert float(losses.landmark_distance(error, "wing")) == pytest.approx(np.mean(wing), rel=1e-5)
    with pytest.raises(ValueError, match="'l3'"):
        losses.landmark_distance(error, "l3")


def test_awing_by_hand():
    """w = 10, c = 2, p = 1.6 in px of 224. At c: w ln 2; at w: w ln(1 + r), r = 5^1.6; then slope 1.6 r / (1 + r)."""
    px, ratio = 1 / 224, 5**1.6
    at_edge, slope = 10 * math.log(1 + ratio), 1.6 * ratio / (1 + ratio)
    expected = {0: 0, 2: 10 * math.log(2), -2: 10 * math.log(2), 0.5: 10 * math.log(1 + 0.25**1.6)}
    expected |= {10: at_edge, 20: at_edge + 10 * slope, -30: at_edge + 20 * slope}
    for error, value in expected.items():
        ours = float(losses.landmark_distance(tf.constant([[error * px]], tf.float64), "awing"))
        assert ours == pytest.approx(value * px, rel=1e-9, abs=1e-15), error
    assert slope == pytest.approx(1.486787, abs=1e-6)


def test_awing_is_continuous_in_value_and_slope_and_flat_at_zero():
    def value_and_slope(error):
        error = tf.constant(error, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(error)
            value = losses.landmark_distance(error[None], "awing")
        return float(value), float(tape.gradient(value, error)[0])

    edge, step = losses.AWING_WIDTH, 1e-9
    (below, slope_below), (above, slope_above) = value_and_slope([edge - step]), value_and_slope([edge + step])
    assert above - below == pytest.approx(2 * step * slope_above, rel=1e-4)
    assert slope_below == pytest.approx(slope_above, rel=1e-6)
    assert value_and_slope([0.0]) == (0.0, 0.0)
    right, left = value_and_slope([1e-6])[1], value_and_slope([-1e-6])[1]
    assert right == -left == pytest.approx(1.6 * 5 * (1e-6 * 112) ** 0.6, rel=1e-4)  # p w/c (e/c)^(p - 1)
    assert value_and_slope([-2 * edge])[1] == pytest.approx(-slope_above)


def test_smooth_in_the_graph_equals_numpy():
    model = shape_model()
    shapes = np.random.default_rng(1).uniform(-0.6, 0.6, (20, 136))
    arrays = [tf.constant(a, tf.float64) for a in (model.mean_shape, model.eigenvectors, model.eigenvalues)]
    assert losses.smooth(tf.constant(shapes), *arrays).numpy() == pytest.approx(model.smooth(shapes), abs=1e-12)


def test_total_is_the_papers_sum():
    """L = L_mse + alpha L_asm + 0.5 L_pose with every term computed apart."""
    rng = np.random.default_rng(2)
    model = shape_model()
    truth, guess = rng.uniform(-0.5, 0.5, (2, 5, 136))
    pose_gt, pose = rng.uniform(-1, 1, (2, 5, 3))
    loss = MultiTaskLoss(SPEC.flip_map, model)
    result = loss(tf.constant(guess, tf.float32), tf.constant(pose, tf.float32), still_batch(truth, pose_gt), 2.0)
    mse, asm = np.mean((truth - guess) ** 2), np.mean((model.smooth(truth) - guess) ** 2)
    angles = np.mean((pose - pose_gt) ** 2)
    assert float(result["loss_landmarks"]) == pytest.approx(mse, rel=1e-5)
    assert float(result["loss_asm"]) == pytest.approx(asm, rel=1e-5)
    assert float(result["loss_pose"]) == pytest.approx(angles, rel=1e-5)
    assert float(result["loss"]) == pytest.approx(mse + 2 * asm + 0.5 * angles, rel=1e-5)


def test_without_a_shape_model_there_is_no_asm_term():
    truth = np.zeros((1, 136))
    loss = MultiTaskLoss(SPEC.flip_map, None)
    result = loss(tf.ones((1, 136)), tf.zeros((1, 3)), still_batch(truth, np.zeros((1, 3))), 2.0)
    assert float(result["loss"]) == pytest.approx(1.0)
    assert float(result["loss_asm"]) == 0.0


def test_a_perfect_prediction_of_a_smooth_shape_costs_nothing():
    model = shape_model()
    truth = model.smooth(np.random.default_rng(3).uniform(-0.5, 0.5, (3, 136)))
    loss = MultiTaskLoss(SPEC.flip_map, model)
    result = loss(tf.constant(truth, tf.float32), tf.zeros((3, 3)), still_batch(truth, np.zeros((3, 3))), 2.0)
    assert float(result["loss"]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("flip", [False, True])
def test_rotating_does_not_change_the_smoothing_distance(flip):
    """ASM(G) is computed upright and moved with the image, so |ASM(G) - G| is the same for a turned face."""
    model = shape_model()
    truth = np.random.default_rng(4).uniform(-0.5, 0.5, (1, 136))
    frame = np.array([100.0, 90.0, 120.0, 120.0])
    flips = tf.constant(SPEC.flip_map)

    def distance(degrees):
        moved = augmentation.motion(frame, flip=flip, rotation_deg=degrees)
        affine, flipped = tf.constant(moved.affine[None]), tf.constant([flip])
        original = losses.move(tf.constant(truth), affine, flipped, flips)
        smoothed = losses.move(tf.constant(model.smooth(truth)), affine, flipped, flips)
        return float(tf.norm(original - smoothed))

    assert distance(0.0) > 0.1
    assert distance(30.0) == pytest.approx(distance(0.0), rel=1e-9)
    assert distance(-170.0) == pytest.approx(distance(0.0), rel=1e-9)


def test_loss_is_the_same_for_a_face_and_its_moved_copy():
    """Moving truth and prediction alike changes neither term when the motion keeps lengths."""
    model, rng = shape_model(), np.random.default_rng(5)
    truth, guess = rng.uniform(-0.5, 0.5, (2, 1, 136))
    moved = augmentation.motion(np.array([0.0, 0, 100, 100]), flip=True, rotation_deg=25.0, shift=(0.1, -0.05))
    loss = MultiTaskLoss(SPEC.flip_map, model)
    still = loss(tf.constant(guess, tf.float32), tf.zeros((1, 3)), still_batch(truth, np.zeros((1, 3))), 1.0)
    batch = still_batch(truth, np.zeros((1, 3)))
    batch["affine"] = tf.constant(moved.affine[None], tf.float32)
    batch["flip"] = tf.constant([True])
    there = losses.move(tf.constant(guess), moved.affine[None], tf.constant([True]), tf.constant(SPEC.flip_map))
    turned = loss(tf.cast(there, tf.float32), tf.zeros((1, 3)), batch, 1.0)
    for key in ("loss_landmarks", "loss_asm"):
        assert float(turned[key]) == pytest.approx(float(still[key]), rel=1e-4)


def test_a_foreign_shape_model_is_refused():
    with pytest.raises(ValueError, match="68 landmarks"):
        MultiTaskLoss(DATASETS["wflw"].flip_map, shape_model())
