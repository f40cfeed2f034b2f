"""Safetensors files: a checked header, tensors as views of the mapped file, writing as a stream.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header,
the header ``{name: {dtype, shape, data_offsets}}``, then the tensors' bytes without gaps. Reading
it here and not through the ``safetensors`` package gives bfloat16 without torch, slices without
copies, and messages that name the tensor.
"""

import json
import math
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from imm_jax.errors import InputError

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
          "BF16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16,
    "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors package


class Entry(NamedTuple):
    """Where a tensor lies: its file, type name, shape, and the bytes from ``begin`` to ``end``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: str | os.PathLike) -> dict[str, Entry]:
    """Reads where each tensor of a safetensors file lies, checked against the size of the file.

    Raises:
      InputError: the file cannot be read, is cut short or has bytes too many, or its header is not
        what the format asks for; names the file, and the tensor where it is one tensor's fault.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if 8 <= size < 8 + length or length > LONGEST_HEADER:
                raise InputError(
                    f"{path}: its first bytes announce a header of {length:,} bytes, but the file "
                    f"has {size:,}: truncated, or not a safetensors file"
                )
            text = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not length:
        raise InputError(f"{path}: {size:,} bytes without a header: not a safetensors file")
    try:
        header = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: the header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is not a JSON object")
    header.pop("__metadata__", None)
    data = 8 + length
    entries = {name: _entry(path, name, fields, data) for name, fields in header.items()}
    _check_layout(path, entries, data, size)
    return entries


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: the header has {twice!r} twice")
    return found


def _whole(values: Any, count: int | None = None) -> bool:
    """Whether ``values`` is a list of ``count`` integers from 0."""
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
    )


def _entry(path: Path, name: str, fields: Any, data: int) -> Entry:
    fields = fields if isinstance(fields, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _whole(shape) and _whole(offsets, 2)):
        raise InputError(
            f"{path}: tensor {name} has dtype {dtype!r}, shape {shape!r} and data_offsets "
            f"{offsets!r}, expected a name, a list of sizes and a list of two positions"
        )
    if dtype not in ITEM_BITS:
        raise InputError(f"{path}: tensor {name} has the unknown dtype {dtype!r}")
    needed = -(-math.prod(shape) * ITEM_BITS[dtype] // 8)
    if offsets[1] - offsets[0] != needed:
        raise InputError(
            f"{path}: tensor {name} ({dtype} {shape}) needs {needed:,} bytes, but the header gives "
            f"it {offsets[1] - offsets[0]:,}"
        )
    return Entry(path, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _check_layout(path: Path, entries: Mapping[str, Entry], data: int, size: int) -> None:
    end = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise InputError(
                f"{path}: tensor {name} starts at byte {entry.begin:,}, expected {end:,}: the "
                "header leaves gaps or lets tensors overlap"
            )
        end = entry.end
        if end > size:
            raise InputError(
                f"{path}: truncated: tensor {name} ends at byte {end:,}, but the file has {size:,}"
            )
    if end != size:
        raise InputError(f"{path}: {size:,} bytes, but its tensors end at byte {end:,}")


class TensorReader:
    """Tensors as NumPy views of their mapped files; files are mapped when first asked for."""

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = entries
        self.maps: dict[Path, mmap.mmap] = {}
        self.files: dict[Path, Any] = {}
        self.lock = threading.Lock()

    def __getitem__(self, name: str) -> np.ndarray:
        """A read-only view of one tensor, in its stored type."""
        entry = self.entries[name]
        if entry.file not in self.maps:
            with open(entry.file, "rb") as file:
                self.maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = math.prod(entry.shape)
        view = np.frombuffer(self.maps[entry.file], DTYPES[entry.dtype], count, entry.begin)
        return view.reshape(entry.shape)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements ``[start, stop)`` of a flattened tensor, copied out of the file.

        A third of the time of touching the mapped file for the first time, and the memory is at a
        multiple of 64 bytes, so that JAX on CPU takes it over as it is.
        """
        entry = self.entries[name]
        with self.lock:  # a second file in place of the first would close it while it is read
            if entry.file not in self.files:
                self.files[entry.file] = open(entry.file, "rb", buffering=0)  # noqa: SIM115
        values = aligned_empty((stop - start,), DTYPES[entry.dtype])
        target = memoryview(values.view(np.uint8))
        at = entry.begin + start * values.itemsize
        while target:
            count = os.preadv(self.files[entry.file].fileno(), [target], at)
            if not count:
                raise InputError(f"{entry.file}: cut short while it was read, in tensor {name}")
            target, at = target[count:], at + count
        return values

    def origin(self, name: str) -> Path:
        """The file to blame for a tensor's elements."""
        return self.entries[name].file

    def release(self, names: Iterable[str]) -> None:
        """Gives back the memory that the pages of these tensors take; they stay readable."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for name in names:
            entry = self.entries[name]
            start = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
            if entry.file in self.maps and entry.end > start:
                self.maps[entry.file].madvise(mmap.MADV_DONTNEED, start, entry.end - start)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array at a multiple of 64 bytes, which JAX on CPU takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


class Planned(NamedTuple):
    """A tensor to write: its name, type, shape and size, before there are any values."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: str | os.PathLike, plan: list[Planned], values: Iterable[np.ndarray]
) -> None:
    """Writes a safetensors file, drawing ``values`` one by one in the order of ``plan``.

    Wider types must come first in ``plan``, so that every tensor is aligned.

    Raises:
      OSError: the file cannot be written.
    """

    def pieces() -> Iterator[list[np.ndarray]]:
        for tensor, value in zip(plan, values, strict=True):
            if value.shape != tensor.shape:
                raise AssertionError(f"{tensor.name}: planned {tensor}, got {value.shape}")
            yield [np.ascontiguousarray(value).reshape(-1)]

    write_pieces(path, plan, pieces())


def write_pieces(
    path: str | os.PathLike, plan: list[Planned], tensors: Iterable[Iterable[np.ndarray]]
) -> None:
    """Writes a safetensors file whose tensors come in consecutive 1-D pieces.

    Raises:
      OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in plan:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor, pieces in zip(plan, tensors, strict=True):
            written = 0
            for piece in pieces:
                if piece.dtype != tensor.dtype:
                    raise AssertionError(f"{tensor.name}: planned {tensor}, got {piece.dtype}")
                written += file.write(piece.view(np.uint8).data)
            if written != tensor.nbytes:
                raise AssertionError(f"{tensor.name}: planned {tensor}, got {written} bytes")
        file.flush()
        os.fsync(file.fileno())
