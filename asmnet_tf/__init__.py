"""ASMNet in TensorFlow / Keras: facial landmarks and head pose by one light network.

Importing the package imports nothing heavy; its modules are imported by name (`from asmnet_tf import models`).
"""

__version__ = "0.1.0"
