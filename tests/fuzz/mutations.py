"""Damages files: at random places, and inside archives, arrays, JSON and HDF5 so that the damage passes checksums.

Every function takes and returns the bytes of a file and draws from a `numpy.random.Generator`: the same seed, the same
damage.
"""

import contextlib
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable

import h5py
import numpy as np

EXTREME_INTS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63))
EXTREME_TEXTS = (
    *("0", "-1", "1e308", "1e400", "-1e400", "nan", "inf", "-inf", "", "1_0", "0x10", "٣", "1,5", "a\x1b[31mb", "\0"),
    *("99999999999999999999999", "9" * 5000, "2147483648", "True", "(1,)", "../../etc/passwd", "/etc/passwd", "\n\n"),
)
ODD_VALUES = (None, True, -1, 0, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x", [], {}, [[]])
ZIP_NAMES = ("../../../escaped", "/escaped", "..\\escaped", "a/../../escaped", " ", "\0", "x" * 300, "config.json")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")

Mutation = Callable[[bytes, np.random.Generator], bytes]


def _place(content: bytes, rng: np.random.Generator) -> int:
    """Returns an offset, as often near the beginning or the end, where the headers are, as anywhere."""
    size = max(1, len(content))
    near = int(min(size - 1, rng.exponential(200)))
    return (near, size - 1 - near, int(rng.integers(size)))[rng.integers(3)]


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        if changed:
            changed[_place(changed, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def delete(content: bytes, rng: np.random.Generator) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + int(rng.integers(1, 64)) :]


def insert(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(content, rng), int(rng.integers(1, 64))
    random = rng.integers(0, 256, length, np.uint8).tobytes()
    return content[:start] + (random if rng.integers(2) else content[start : start + length] * 3) + content[start:]


def overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(content, rng), int(rng.integers(1, 64))
    filler = (b"\0", b"\xff", b"A")[rng.integers(3)] * length
    return content[:start] + filler + content[start + length :]


def extreme_integer(content: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([1, 2, 4, 8]))
    start = _place(content, rng) // size * size
    value = int(rng.choice(np.array(EXTREME_INTS, object))) % (1 << (8 * size))
    order = "little" if rng.integers(4) else "big"
    return content[:start] + value.to_bytes(size, order) + content[start + size :]


def extreme_number(content: bytes, rng: np.random.Generator) -> bytes:
    found = list(_NUMBER.finditer(content[:200_000]))
    if not found:
        return extreme_integer(content, rng)
    number = found[rng.integers(len(found))]
    text = EXTREME_TEXTS[rng.integers(len(EXTREME_TEXTS))].encode()
    return content[: number.start()] + text + content[number.end() :]


def shuffle_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Doubles, drops or swaps lines, or words within one."""
    lines = content.split(b"\n")
    i, j = rng.integers(len(lines), size=2)
    kind = rng.integers(4)
    if kind == 0:
        lines.insert(i, lines[j])
    elif kind == 1:
        del lines[i]
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        words = lines[i].split(b" ")
        lines[i] = b" ".join(words[k] for k in rng.permutation(len(words)))
    return b"\n".join(lines)


ANYWHERE: tuple[Mutation, ...] = (
    *(flip_bits, truncate, delete, insert, overwrite, extreme_integer, extreme_number, shuffle_lines),
)


def splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)] + other[_place(other, rng) :]


# --- inside a format --------------------------------------------------------------------------------------------------


def odd_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Replaces, drops, doubles or nests one value of a JSON text."""
    tree = json.loads(content)
    places: list[tuple] = []

    def visit(node) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            places.append((node, key))
            visit(value)

    visit(tree)
    if not places:
        return b"[" * 100_000
    node, key = places[rng.integers(len(places))]
    kind = rng.integers(5)
    if kind == 0:
        del node[key]
    elif kind == 1:
        other, other_key = places[rng.integers(len(places))]
        node[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 2 and isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    text = json.dumps(tree)
    return text.replace("{", '{"deep": ' + "[" * 5000 + "]" * 5000 + ", ", 1).encode() if kind == 4 else text.encode()


def odd_array(content: bytes, rng: np.random.Generator) -> bytes:
    """Replaces a `.npy` by another array of its name: other shape, type or values, or a header that lies."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    shape = tuple(int(n) for n in array.shape)
    kind = rng.integers(9)
    if kind == 0:
        array = array.astype(
            rng.choice(["f2", "f8", "c16", "i1", "u8", "S3", "U2", "?", "V8"]).item(), casting="unsafe"
        )
    elif kind == 1:
        array = array.reshape(rng.permutation(shape) if shape else (1,))
    elif kind == 2:
        array = array[None] if rng.integers(2) else array.reshape(-1)
    elif kind == 3:
        array = array.reshape(-1)[: int(rng.integers(0, array.size + 1))]
    elif kind == 4 and array.dtype.kind == "f":
        array = array.copy()
        array.reshape(-1)[rng.integers(0, max(1, array.size), 3) if array.size else []] = rng.choice(
            [np.nan, np.inf, -np.inf, 1e308, -1e30, 0]
        )
    elif kind == 5:
        array = np.array(["../../x", "a\nb", "\x1b[2J", ""][: max(1, array.ndim)])
    elif kind == 6:
        array = np.zeros(array.size or 1, [("a", "f4"), ("b", "S2")])
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(file, array, allow_pickle=False)
    if kind < 7:
        return file.getvalue()
    lied = list(shape) or [1]
    lied[rng.integers(len(lied))] = int(rng.choice(np.array(EXTREME_INTS, object)))
    descr = rng.choice(["<f8", "|O", "|V0", "<U0", "<U999999999", "<M8[s]", "|b1", "junk"]).item()
    file = io.BytesIO()
    header = {"descr": descr if kind == 8 else array.dtype.str, "fortran_order": False, "shape": tuple(lied)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def _members(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def odd_archive(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages one member of a zip archive and packs it again whole, or what the archive says of its members."""
    members = _members(content)
    i = int(rng.integers(len(members)))
    name, inside = members[i]
    kind = rng.integers(10)
    if kind == 0:
        members[i] = (ZIP_NAMES[rng.integers(len(ZIP_NAMES))], inside)
    elif kind == 1:
        members.append((ZIP_NAMES[rng.integers(len(ZIP_NAMES))], inside))
    elif kind == 2:
        members.append(members[i])
    elif kind == 3:
        del members[i]
    elif kind == 4:
        members[i] = (name, inside[:128] + bytes(int(rng.integers(1, 1 << 23))))
    else:
        members[i] = (name, mutate_format(name, inside, rng))
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.integers(2) or kind == 4 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # doubled names
        for member, data in members:
            archive.writestr(member, data)
    packed = file.getvalue()
    if kind == 9:  # sizes, method, flags of a central directory entry
        entry = packed.rfind(b"PK\1\2", 0, packed.rfind(b"PK\1\2") + int(rng.integers(0, 4)))
        start = entry + int(rng.choice([6, 8, 10, 16, 20, 24, 28, 30, 42]))
        value = int(rng.choice(np.array(EXTREME_INTS, object))) % (1 << 32)
        packed = packed[:start] + value.to_bytes(4, "little") + packed[start + 4 :]
    return packed


def odd_hdf5(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes one object or attribute of an HDF5 file through the library."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        _change_hdf5(file, rng)
    return buffer.getvalue()


def _change_hdf5(file: h5py.File, rng: np.random.Generator) -> None:
    names: list[str] = []
    file.visit(names.append)
    name = names[rng.integers(len(names))]
    entry = file[name]
    kind = rng.integers(8)
    if kind == 0:
        del file[name]
    elif kind == 1:
        del file[name]
        file[name] = h5py.ExternalLink("/etc/hostname", "/") if rng.integers(2) else h5py.SoftLink("/" + name)
    elif kind == 2:
        del file[name]
        file[name] = h5py.SoftLink("/" + names[rng.integers(len(names))].split("/")[0])
    elif kind == 3:
        keys = list(entry.attrs) or list(file.attrs)
        holder = entry if entry.attrs else file
        if keys:
            key = keys[rng.integers(len(keys))]
            value = holder.attrs[key]
            text = value.encode() if isinstance(value, str) else value
            odd = [7, "x", b"\xff", np.zeros(3), "../x", np.array([b"absent", b"x/y"])]
            if isinstance(text, bytes) and text[:1] == b"{" and rng.integers(4):
                holder.attrs[key] = odd_json(text, rng)
            else:
                holder.attrs[key] = odd[rng.integers(len(odd))]
    elif isinstance(entry, h5py.Dataset):
        shape, dtype = entry.shape, entry.dtype
        del file[name]
        if kind == 4:
            file.create_dataset(name, tuple(2 * n + 1 for n in shape), dtype)
        elif kind == 5:  # much on paper, nothing on disk
            file.create_dataset(name, (*shape[:-1], 1 << int(rng.integers(20, 40))), dtype, chunks=True)
        elif kind == 6:
            file[name] = np.full(shape, [np.nan, np.inf, 1e30][rng.integers(3)])
        else:
            file[name] = rng.choice(["text", "3"]) if rng.integers(2) else np.zeros(shape, "S4")
    else:
        del file[name]
        file[name] = np.zeros(3)


_INSIDE: dict[str, Mutation] = {
    ".json": odd_json,
    ".npy": odd_array,
    ".npz": odd_archive,
    ".keras": odd_archive,
    ".h5": odd_hdf5,
    ".mat": odd_hdf5,
}


def mutate_format(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file inside its format, or, as often, anywhere."""
    inside = next((change for ending, change in _INSIDE.items() if name.endswith(ending)), None)
    if inside is not None and rng.integers(2):
        with contextlib.suppress(Exception):  # damaged so much by now that the format cannot be read
            return inside(content, rng)
    return ANYWHERE[rng.integers(len(ANYWHERE))](content, rng)


def mutate(name: str, content: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Damages a file one to three times, or joins a part of it with a part of another."""
    if others and rng.integers(12) == 0:
        return splice(content, others[rng.integers(len(others))], rng)
    for _ in range(1 + int(rng.integers(6)) // 2 % 3):
        content = mutate_format(name, content, rng)
    return content
