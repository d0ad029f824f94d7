"""A prediction averaged with the mirrored image's: by hand, and exactly symmetric."""

import keras
import numpy as np
import pytest

from asmnet_tf.data.geometry import flip_landmarks
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.scoring import with_mirror
from asmnet_tf.formats.keras_runners import compiled

SPEC = DATASETS["300w"]
SIZE = 32


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def infer():
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3))
    features = keras.layers.Flatten()(keras.layers.Conv2D(8, 8, strides=8, activation="relu")(image))
    return compiled(keras.Model(image, [keras.layers.Dense(n)(features) for n in (136, 3)]))


def test_the_average_by_hand():
    """Two points that change places; the answer to an image is a constant plus its first pixel."""
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[0, 0, 0] = 1  # left; it is on the right of the mirrored image

    def infer(batch):
        first = batch[:, 0, :1, 0].astype(np.float64)
        return np.array([[0.3, 0.1, -0.2, 0.2]]) + 0.1 * first, np.array([[0.5, 0.4, 0.3]]) + 0.1 * first

    landmarks, pose = with_mirror(infer, [1, 0])(images)
    # image 0: (0.4, 0.2, -0.1, 0.3) and, mirrored back from (0.3, 0.1, -0.2, 0.2), (0.2, 0.2, -0.3, 0.1)
    assert landmarks[0] == pytest.approx([0.3, 0.2, -0.2, 0.2])
    assert landmarks[1] == pytest.approx([0.25, 0.15, -0.25, 0.15])
    assert pose[0] == pytest.approx([0.05, 0.45, 0.05])  # (0.6, 0.5, 0.4) and (-0.5, 0.4, -0.3)
    assert pose[1] == pytest.approx([0, 0.4, 0])


def test_a_mirrored_image_gives_exactly_the_mirrored_prediction(infer, images):
    mirrored = with_mirror(infer, SPEC.flip_map)
    landmarks, pose = mirrored(images)
    flipped, turned = mirrored(images[:, :, ::-1])
    assert np.array_equal(flipped, flip_landmarks(landmarks, SPEC.flip_map))
    assert np.array_equal(turned, pose * np.float32([-1, 1, -1]))
    assert not np.allclose(landmarks, infer(images)[0])
    assert landmarks.dtype == pose.dtype == np.float32
