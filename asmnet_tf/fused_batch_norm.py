"""Trains Keras batch normalisation with TensorFlow's fused kernel (findings 1: the stock layer dominates the step).

`training_twin(model)` is a second functional graph over the *same* layers and variables in which only the batch-norm
layers call another kernel. Train through the twin, save the model: no class of this package gets into the file.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras
import tensorflow as tf


class FusedBatchNormalization(keras.layers.Layer):
    """Runs a `keras.layers.BatchNormalization` (channels last, 4-D input) with the fused kernel while training.

    Outputs, gradients and moving statistics equal the stock layer's: the kernel returns the unbiased variance
    (n / (n - 1)), the moving average takes the biased one, as Keras does. In inference the stock layer is called.

    `momentum` is a variable shared by all layers of a twin, or None for the stock layer's own.
    """

    def __init__(self, stock: keras.layers.BatchNormalization, momentum: tf.Variable | None = None) -> None:
        super().__init__(name=f"{stock.name}_fused", dtype=stock.dtype_policy, autocast=False)
        self.stock = stock
        self.shared_momentum = momentum
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None) -> tf.Tensor:
        """(B, H, W, C) -> the same shape."""
        stock = self.stock
        if not training or not stock.trainable:
            return stock(inputs, training=False, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(stock.gamma),
            offset=tf.convert_to_tensor(stock.beta),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=stock.epsilon,
            is_training=True,
        )
        shape = tf.shape(inputs)
        n = tf.cast(shape[0] * shape[1] * shape[2], variance.dtype)
        momentum = stock.momentum if self.shared_momentum is None else self.shared_momentum
        for moving, batch in ((stock.moving_mean, mean), (stock.moving_variance, variance * (n - 1) / n)):
            moving.assign(moving * momentum + tf.stop_gradient(batch) * (1 - momentum))
        return outputs


class TrainingTwin:
    """The training graph of a model and the control of its batch-norm statistics.

    model: the twin, a functional Keras model that shares every variable with the original; call it with
    `training=True`. momentum: the moving averages' momentum, a tf.Variable.
    """

    def __init__(self, model: keras.Model, momentum: float = 0.99, fused: bool = True) -> None:
        self.momentum = tf.Variable(momentum, trainable=False, dtype=tf.float32, name="batch_norm_momentum")
        self._default = momentum

        def substitute(layer: keras.layers.Layer) -> keras.layers.Layer:
            if fused and isinstance(layer, keras.layers.BatchNormalization):
                return FusedBatchNormalization(layer, self.momentum)
            return layer

        self.model = keras.models.clone_model(model, clone_function=substitute)

        @tf.function(reduce_retracing=True)
        def forward(images: tf.Tensor) -> None:
            self.model(images, training=True)

        self._forward = forward

    def reestimate_statistics(self, batches: Iterable[tf.Tensor]) -> None:
        """Replaces all moving means and variances by their plain averages over batches of images (B, S, S, 3).

        Moving averages lag behind the weights, and ASMNet regresses from averages of normalised maps, whose
        differences between faces are small against that lag (findings 2: NME 36.9 before, 12.6 after).
        """
        for k, images in enumerate(batches):
            self.momentum.assign(k / (k + 1.0))  # the first batch replaces, the k-th weighs 1 / (k + 1)
            self._forward(images)
        self.momentum.assign(self._default)
