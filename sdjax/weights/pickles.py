"""PyTorch's pickled checkpoints (.ckpt, .bin, .pt), read without running anything in them: a zip
archive of a pickle and storages, or the older format in which these follow one another.
"""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.pickle_machine import Machine, Storage, translated
from sdjax.weights.tensors import mapped

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_pickle(path: str | os.PathLike) -> dict:
    """The dictionary in a PyTorch file, its tensors as `LazyTensor`.

    Raises SdjaxError for a file that is neither of PyTorch's formats, is truncated, or would run
    code when it is unpickled the usual way.
    """
    path = Path(path)
    with translated(path):
        if zipfile.is_zipfile(path):
            return _checked(path, _read_zip(path))
        with path.open("rb") as file:
            return _checked(path, _read_legacy(path, file))


def _checked(path: Path, value) -> dict:
    if not isinstance(value, dict):
        raise SdjaxError(f"{path} holds a {type(value).__name__}, expected a dictionary of tensors")
    return value


def _read_zip(path: Path):
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise SdjaxError(f"{path} is a zip file without a PyTorch data.pkl in it")
        folder = pickles[0].removesuffix("data.pkl")
        entries = {info.filename: info for info in archive.infolist()}
        stored = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        for entry in entries.values():
            if entry.flag_bits & 1 or entry.compress_type not in stored:
                raise SdjaxError(
                    f"{path} is damaged or no PyTorch file: its {entry.filename} is encrypted, or "
                    "compressed otherwise than by deflate"
                )
        info = entries[pickles[0]]
        if info.file_size > 2**28:
            raise SdjaxError(f"{path}: its pickle of {info.file_size} bytes is too large")
        program = archive.read(info)

    proven = set()  # storages whose checksum is right

    def read(storage: Storage) -> np.ndarray:
        entry = entries[f"{folder}data/{storage.key}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(path) as archive:
                return np.frombuffer(archive.read(entry), storage.dtype, storage.size)
        raw = mapped(path, np.dtype(np.uint8), _data_offset(path, entry), entry.file_size)
        if storage.key not in proven and zlib.crc32(raw) != entry.CRC:
            raise SdjaxError(f"{path} is damaged: the checksum of storage {storage.key} is wrong")
        proven.add(storage.key)
        return raw.view(storage.dtype)

    def check(storage: Storage) -> None:
        entry = entries.get(f"{folder}data/{storage.key}")
        wanted = storage.size * storage.dtype.itemsize
        if entry is None or entry.file_size != wanted:
            raise SdjaxError(
                f"{path} is truncated: storage {storage.key} should have {wanted} bytes, "
                f"found {entry.file_size if entry else 'none'}"
            )

    return Machine(path, read, check).run(io.BytesIO(program))


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed entry begin: after its own header, name and extra."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        signature, lengths = struct.unpack("<4s22x4s", file.read(30))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{entry.filename} is not where the directory says")
    return entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))


def _read_legacy(path: Path, file):
    """The format before PyTorch 1.6: five pickles, then the storages one after another."""
    offsets: dict[str, int] = {}

    def read(storage: Storage) -> np.ndarray:
        if storage.key not in offsets:
            raise SdjaxError(f"{path} is truncated: storage {storage.key} is missing")
        try:
            return mapped(path, storage.dtype, offsets[storage.key], storage.size)
        except ValueError as error:
            raise SdjaxError(f"{path} is truncated: storage {storage.key} is cut short") from error

    machine = Machine(path, read, lambda storage: None)
    if file.read(1) != b"\x80":
        raise SdjaxError(f"{path} is neither a safetensors nor a PyTorch file")
    file.seek(0)
    if machine.run(file) != _LEGACY_MAGIC:
        raise SdjaxError(f"{path} is a pickle, but not one of PyTorch")
    machine.run(file), machine.run(file)
    value = machine.run(file)
    keys = machine.run(file)
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str):
            raise SdjaxError(f"{path} is damaged: the key of a storage is not text")
        size = int.from_bytes(file.read(8), "little")
        offsets[key] = file.tell()
        storage = machine.storages.get(key)
        if storage is None or storage.size != size:
            raise SdjaxError(f"{path} is damaged: storage {key} has {size} elements")
        file.seek(size * storage.dtype.itemsize, os.SEEK_CUR)
    return value
