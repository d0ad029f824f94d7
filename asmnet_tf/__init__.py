"""ASMNet in TensorFlow / Keras: facial landmarks and head pose by one light network.

    from asmnet_tf import FaceAligner
    faces = FaceAligner().detect(image)                          # RGB array; landmarks, yaw, pitch, roll of every face

    import asmnet_tf
    model = asmnet_tf.load_pretrained("asmnet_300w")             # a plain Keras model
    asmnet_tf.pretrained_sidecar("asmnet_300w")["crop"]          # what it was trained with
    asmnet_tf.pretrained_names()

Importing the package imports nothing heavy; its modules are imported by name (`from asmnet_tf import models`), and what
stands above brings its own when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"
_MODULES = {  # public name -> module
    "FaceAligner": "aligner",
    "Face": "aligner",
    "load_pretrained": "models",
    "pretrained_sidecar": "model_zoo",
    "pretrained_names": "model_zoo",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
