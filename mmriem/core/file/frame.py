"""The frame of a ``.riem`` file: a safetensors file of a few flat tensors, in one canonical spelling.

    length of the header (8 bytes, little-endian) | header (JSON, padded with spaces) | tensors, no gaps

``__metadata__`` names the format, its version, and the SHA-256 of the tensor ``manifest``. The reader
rebuilds the header from what it found in it and compares it byte for byte, so no byte of the frame is free.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import RiemError, brief

FORMAT = 'riem'
FORMAT_VERSION = '1'
MAX_HEADER_BYTES = 4096
# in file order, widest first so that every tensor is aligned; safetensors dtype and item size in bytes
TENSORS = {
    'dense32': ('F32', 4),
    'dense16': ('F16', 2),
    'raw': ('U8', 1),
    'vectors': ('U8', 1),
    'streams': ('U8', 1),
    'manifest': ('U8', 1),
}


def encode_digest(digest: bytes) -> str:
    """Base64 of a hash, as files and errors show it."""
    return base64.b64encode(digest).decode('ascii')


def pack(blobs: Mapping[str, bytes]) -> bytes:
    """The file of the given tensors: bytes by name, names of ``TENSORS``; an empty one is left out."""
    present = {name: blobs[name] for name in TENSORS if blobs.get(name)}
    header = _header({name: len(blob) for name, blob in present.items()}, _digest(present['manifest']))
    return b''.join([len(header).to_bytes(8, 'little'), header, *present.values()])


@dataclass(frozen=True)
class Frame:
    """A file whose header was read, and nothing else.

    Attributes:
        stream: the file, which can seek.
        where: its name, for the errors.
        starts: place of each tensor in the file, by name; in file order.
        sizes: bytes of each tensor, by name; 0 where it is absent.
        digest: of the manifest, as the header has it.
    """

    stream: BinaryIO
    where: str
    starts: dict[str, int]
    sizes: dict[str, int]
    digest: str

    def read(self, name: str) -> bytes:
        """The bytes of a tensor. Of the manifest the hash is checked, which holds those of the others.

        Raises:
            RiemError: the file is shorter than it was, or the manifest is another one.
        """
        self.stream.seek(self.starts[name])
        blob = _read(self.stream, self.sizes[name], self.where)
        if name == 'manifest' and (found := _digest(blob)) != self.digest:
            raise RiemError(
                f'{self.where}: expected SHA-256 {brief(self.digest)} of the manifest, found {found!r}; '
                'copy the file again'
            )
        return blob


def open_frame(stream: BinaryIO, size: int, where: str) -> Frame:
    """The frame of a file of ``size`` bytes, of which only the header is read.

    Args:
        stream: positioned at the file's first byte.
        size: bytes of the whole file.
        where: name of the file, for the errors.

    Raises:
        RiemError: anything but a whole file of this format, naming what was expected and found.
    """
    header = _read_header(stream, size, where)
    sizes, digest = _parse_header(header, size, where)
    sizes = {name: sizes.get(name, 0) for name in TENSORS}
    *starts, expected = itertools.accumulate(sizes.values(), initial=8 + len(header))
    if expected != size:
        raise RiemError(f'{where}: expected {expected} bytes by its header, found {size}; copy the file again')
    return Frame(stream, where, dict(zip(TENSORS, starts)), sizes, digest)


def unpack(stream: BinaryIO, size: int, where: str) -> dict[str, bytes]:
    """The tensors of a file of ``size`` bytes, each as bytes; every name of ``TENSORS``, empty where absent.

    Args and errors are those of :func:`open_frame` and :meth:`Frame.read`.
    """
    frame = open_frame(stream, size, where)
    return {name: frame.read(name) for name in ('manifest', *TENSORS)}


def _digest(blob: bytes) -> str:
    return encode_digest(hashlib.sha256(blob).digest())


def _header(sizes: Mapping[str, int], digest: str) -> bytes:
    header: dict[str, object] = {
        '__metadata__': {'format': FORMAT, 'format_version': FORMAT_VERSION, 'manifest_sha256': digest}
    }
    start = 0
    for name, size in sizes.items():
        dtype, itemsize = TENSORS[name]
        header[name] = {'dtype': dtype, 'shape': [size // itemsize], 'data_offsets': [start, start + size]}
        start += size
    text = json.dumps(header, separators=(',', ':')).encode('ascii')
    return text + b' ' * (-len(text) % 8)


def _read(stream: BinaryIO, count: int, where: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise RiemError(f'{where}: expected {count} more bytes, found {len(data)}; copy the file again')
    return data


def _read_header(stream: BinaryIO, size: int, where: str) -> bytes:
    if size < 8:
        raise RiemError(f'{where}: expected a .riem file, found only {size} bytes')
    prefix = _read(stream, 8, where)
    length = int.from_bytes(prefix, 'little')
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise RiemError(f'{where}: expected a .riem file, found {_kind(prefix, length)}')
    return _read(stream, length, where)


def _kind(prefix: bytes, length: int) -> str:
    if prefix.startswith(b'PK\x03\x04'):
        return 'a zip archive (a PyTorch checkpoint is one; tools/compress.py makes a .riem file of it)'
    if prefix[:1] == b'\x80' and prefix[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'a pickle (tools/compress.py makes a .riem file of a checkpoint)'
    return f'a header length of {length} bytes, of which at most {MAX_HEADER_BYTES} can be right'


def _parse_header(header: bytes, size: int, where: str) -> tuple[dict[str, int], str]:
    """Bytes of each tensor, and the manifest's SHA-256 in base64."""
    try:
        parsed = json.loads(header)
        metadata = parsed['__metadata__']
        kind, version, digest = (metadata.get(key) for key in ('format', 'format_version', 'manifest_sha256'))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RiemError(f'{where}: expected the header of a .riem file, found none that can be read') from error
    if kind != FORMAT:
        raise RiemError(f'{where}: expected metadata format {FORMAT!r}, found {brief(kind)}; it is no .riem file')
    if version != FORMAT_VERSION:
        raise RiemError(
            f'{where}: expected format version {FORMAT_VERSION!r}, found {brief(version)}; '
            'read it with the mmriem that wrote it'
        )
    sizes = {name: _size_of(parsed[name], size) for name in TENSORS if name in parsed}
    whole = isinstance(digest, str) and 'manifest' in sizes and 0 not in sizes.values()
    if not whole or header != _header(sizes, digest):
        raise RiemError(
            f'{where}: expected the canonical header of a .riem file, found another one; copy the file again'
        )
    return sizes, digest


def _size_of(entry: object, limit: int) -> int:
    """Bytes of a tensor by its header entry; 0, which is refused, where the entry makes no sense."""
    try:
        start, end = entry['data_offsets']  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return 0
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= limit:
        return 0
    return end - start
