"""The networks, their loss, and their files; Keras as this package computes with it: others import `keras` from here.

Programs set it so themselves (`cli.start_tensorflow`). In a process of others a setting is theirs, so it is refused.
"""

from asmnet_tf.config import KERAS
from asmnet_tf.files import InputError, refusing

_MEND = f"asmnet_tf needs {', '.join(KERAS.values())}: set KERAS_BACKEND and keras.json so, before Keras is imported."
with refusing("Keras cannot be imported", then=_MEND, length=200):  # no such backend, or keras.json is not valid
    import keras


def check_keras() -> None:
    """Raises: InputError where this process has set Keras to another backend, float type or order of channels."""
    others = [got for key, value in KERAS.items() if (got := getattr(keras.config, key)()) != value]
    if others:
        raise InputError(f"Keras is set to {', '.join(others)}. {_MEND}")
