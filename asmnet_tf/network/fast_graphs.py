"""Two more graphs over a model's own layers, one for training and one for inference, made for speed (TensorFlow).

Train through `TrainingGraph`, save the model: no class of this module gets into the file. The training graph differs in
two kinds of layer. Batch norm runs TensorFlow's fused kernel: the stock layer dominates the step. A zero padding before
a depthwise convolution of stride 2 becomes that convolution's own `same` padding, which saves two copies of the map.
`folded_model` has the batch norms folded into the convolutions before them.
"""

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from asmnet_tf.network import keras

Record = Callable[[keras.layers.BatchNormalization, tf.Tensor, tf.Tensor], None]


class FusedBatchNormalization(keras.layers.Layer):
    """Runs a `keras.layers.BatchNormalization` (channels last, 4-D input) with the fused kernel while training.

    Outputs and gradients equal the stock layer's. The moving statistics stay as they are, which saves a thousand small
    operations per step of ASMNet; those of the batch are handed to `record`: the stock layer, mean and biased variance
    (C,), what Keras' moving average takes (the kernel returns the unbiased one, n / (n - 1)). In inference, and where
    the stock layer is frozen, the stock layer is called.
    """

    def __init__(self, stock: keras.layers.BatchNormalization, record: Record | None = None) -> None:
        super().__init__(name=f"{stock.name}_fused", dtype=stock.dtype_policy, autocast=False)
        self.stock = stock
        self.record = record
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None) -> tf.Tensor:
        """(B, H, W, C) -> the same shape."""
        stock = self.stock
        if not training or not stock.trainable:
            return stock(inputs, training=False, mask=mask)
        scale, offset, none = tf.convert_to_tensor(stock.gamma), tf.convert_to_tensor(stock.beta), tf.zeros([0])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=none, variance=none, epsilon=stock.epsilon, is_training=True
        )
        if self.record is not None:
            shape = tf.shape(inputs)
            n = tf.cast(shape[0] * shape[1] * shape[2], variance.dtype)
            self.record(stock, mean, variance * (n - 1) / n)
        return outputs


class SamePaddedDepthwise(keras.layers.Layer):
    """Runs a depthwise convolution of stride 2 with `same` padding on the map its zero padding would have padded.

    For a 3 x 3 kernel of stride 2, `same` pads 0 and 1 where the side is even, 1 and 1 where it is odd: what
    MobileNetV2's padding layers pad.
    """

    def __init__(self, stock: keras.layers.DepthwiseConv2D) -> None:
        super().__init__(name=f"{stock.name}_same", dtype=stock.dtype_policy)
        self.stock = stock
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C)."""
        kernel = tf.cast(tf.convert_to_tensor(self.stock.kernel), inputs.dtype)
        return keras.ops.depthwise_conv(inputs, kernel, self.stock.strides, padding="same")


class TrainingGraph:
    """The training graph of a model and the control of its batch-norm statistics.

    model: a functional Keras model that shares every variable with the one given; call it with `training=True`. It
    leaves the moving statistics alone: `reestimate_statistics` sets them when they are needed.
    strategy: whose replicas run a forward pass of the re-estimation, each on its part of a batch.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy | None = None) -> None:
        self.model = _training_model(model)
        strategy = strategy or tf.distribute.get_strategy()
        recorded: list[tuple[keras.layers.BatchNormalization, tf.Tensor, tf.Tensor]] = []
        recording = _training_model(model, lambda *statistics: recorded.append(statistics))
        self._norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]

        def replica(images: tf.Tensor) -> tf.Tensor:
            recorded.clear()
            recording(tf.cast(images, tf.float32), training=True)
            self._norms = [norm for norm, *_ in recorded]  # in the order of the vector
            count = tf.cast(tf.shape(images)[:1], tf.float32)
            parts = [value * count for _, *statistics in recorded for value in statistics]
            return tf.concat([count, *parts], axis=0)  # one vector, so that replicas exchange it at once

        @tf.function(reduce_retracing=True)
        def statistics(images: tf.Tensor) -> tf.Tensor:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica, args=(images,)), axis=None)

        self._statistics = statistics

    def reestimate_statistics(self, batches: Iterable[tf.Tensor]) -> None:
        """Replaces all moving means and variances by their plain averages over batches of images (B, S, S, 3).

        Moving averages lag behind the weights, and ASMNet regresses from averages of normalised maps, whose
        differences between faces are small against that lag (NME 36.9 before, 12.6 after). Each replica
        normalises its own part of a batch, as in training; an average weighs by the number of images. Every worker
        computes the same numbers.
        """
        if not any(norm.trainable for norm in self._norms):
            return
        sums = sum(self._statistics(images).numpy().astype(np.float64) for images in batches)
        averages = sums[1:] / sums[0]
        variables = [v for norm in self._norms for v in (norm.moving_mean, norm.moving_variance)]
        for variable, average in zip(variables, np.split(averages, np.cumsum([v.shape[0] for v in variables])[:-1])):
            variable.assign(average)


class _FoldedConvolution(keras.layers.Layer):
    """A convolution and the batch norm after it as one convolution with a bias; the weights are constants."""

    def __init__(self, stock: keras.layers.Layer, norm: keras.layers.BatchNormalization, padding: str) -> None:
        super().__init__(name=f"{stock.name}_folded")
        gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
        self.depthwise = isinstance(stock, keras.layers.DepthwiseConv2D)
        self.kernel = tf.constant(stock.kernel.numpy() * (gain[:, None] if self.depthwise else gain))
        self.bias = tf.constant(norm.beta.numpy() - norm.moving_mean.numpy() * gain)
        self.strides = [1, *stock.strides, 1]
        self.padding = padding
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) -> (B, H / stride, W / stride, D)."""
        convolve = tf.nn.depthwise_conv2d if self.depthwise else tf.nn.conv2d
        return tf.nn.bias_add(convolve(inputs, self.kernel, self.strides, self.padding), self.bias)


class _Passed(keras.layers.Layer):
    """Stands where a layer was that is part of another one now; returns its input."""

    def call(self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None) -> tf.Tensor:
        return inputs


def folded_model(model: keras.Model) -> keras.Model:
    """Returns a functional model with MobileNetV2's batch norms folded into its convolutions, as it is now.

    TensorFlow then runs convolution, bias and relu6 as one kernel. Later changes of the weights are not seen. A batch
    norm whose convolution is not found by MobileNetV2's names stays as it is.
    """
    padded = dict(_padded_depthwise_layers(model))
    by_name = {layer.name: layer for layer in model.layers}
    folded = {}
    for norm in model.layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            name = norm.name.removeprefix("bn_").removesuffix("_BN").removesuffix("_bn")
            stock = by_name.get(name)
            if _is_foldable(model, stock, norm):
                padding = "SAME" if name in padded.values() else stock.padding.upper()
                folded[name] = _FoldedConvolution(stock, norm, padding)
                folded[norm.name] = _Passed(name=norm.name)
    folded |= {pad: _Passed(name=pad) for pad, fed in padded.items() if fed in folded}
    return keras.models.clone_model(model, clone_function=lambda layer: folded.get(layer.name, layer))


def _is_foldable(model: keras.Model, stock: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> bool:
    """Returns whether a layer feeds this batch norm alone and does nothing that `_FoldedConvolution` does not."""
    if not isinstance(stock, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)) or stock.use_bias:
        return False
    plain = stock.activation is keras.activations.linear and stock.data_format == "channels_last"
    plain = plain and set(stock.dilation_rate) == {1} and len(set(stock.strides)) == getattr(stock, "groups", 1) == 1
    fed = [x for x in model.layers if any(tensor is stock.output for tensor in keras.tree.flatten(x.input))]
    return plain and norm.scale and norm.center and fed == [norm]


def _training_model(model: keras.Model, record: Record | None = None) -> keras.Model:
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    fast = {norm.name: FusedBatchNormalization(norm, record) for norm in norms}
    for pad, fed in _padded_depthwise_layers(model):
        fast |= {pad: _Passed(name=pad), fed: SamePaddedDepthwise(model.get_layer(fed))}
    return keras.models.clone_model(model, clone_function=lambda layer: fast.get(layer.name, layer))


def _padded_depthwise_layers(model: keras.Model) -> Iterable[tuple[str, str]]:
    """Yields (name of a zero padding, name of the depthwise convolution it feeds) of MobileNetV2's stride-2 blocks."""
    names = {layer.name for layer in model.layers}
    for layer in model.layers:
        following = layer.name.replace("_pad", "_depthwise")
        if isinstance(layer, keras.layers.ZeroPadding2D) and following in names:
            convolution = model.get_layer(following)
            if (convolution.strides, convolution.kernel_size, convolution.padding) == ((2, 2), (3, 3), "valid"):
                yield layer.name, following
