"""Where a file is found on this machine: local paths as they are, http(s) downloads in torch's cache."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank

from mmriem.core.atomic import whole_file
from mmriem.core.errors import RiemError, os_reason

__all__ = ['local_path']

PART = 1 << 20
"""Bytes of a download that are read at a time."""
SECONDS = 60
"""Seconds without a byte after which a download has failed."""
HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
"""What the names of published checkpoints end in: the first digits of the SHA-256 of the file."""


def local_path(source: str | os.PathLike) -> Path:
    """The path of `source` on this machine; an http(s) address is downloaded once, by the first rank.

    Downloads go where MMEngine and torch.hub keep theirs, `$TORCH_HOME/hub/checkpoints`.

    Raises:
        RiemError: the address has another scheme, or the download failed.
    """
    if '://' not in os.fspath(source):
        try:
            return Path(source).expanduser()
        except RuntimeError as error:  # nobody has that name
            raise RiemError(f'{source}: expected a path, found the home of nobody; give the whole path') from error
    try:
        address = urlparse(os.fspath(source))
    except ValueError as error:
        raise RiemError(f'{source}: expected an address, found none ({error})') from error
    if address.scheme not in ('http', 'https'):
        raise RiemError(
            f'{source}: expected a local file or an http(s) address, found the scheme {address.scheme}://; '
            'download the file first and give its path'
        )
    if not Path(address.path).name:
        raise RiemError(f'{source}: expected the address of a file, found that of a server; give all of it')
    target = Path(torch.hub.get_dir(), 'checkpoints', Path(address.path).name)
    if get_rank() == 0:
        _download(os.fspath(source), target)
    barrier()
    _download(os.fspath(source), target)  # on the other machines of a distributed run
    return target


def _download(address: str, target: Path) -> None:
    """Whole or not at all: the length that the server tells and the hash in the name are those of what came."""
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RiemError(f'{target.parent}: the folder of downloads cannot be made ({os_reason(error)})') from error
    with whole_file(target) as file:
        try:
            _fetch(address, file, target.name)
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
            raise RiemError(f'{address}: the download failed ({error}); check the address and the network') from error


def _fetch(address: str, file: BinaryIO, name: str) -> None:
    request = urllib.request.Request(address, headers={'User-Agent': 'mmriem'})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        expected = answer.headers.get('Content-Length')
        found, digest = _copy(answer, file, torch.hub.tqdm(total=expected and int(expected), **_BAR))
    if expected is not None and found != int(expected):
        raise RiemError(f'{address}: expected {expected} bytes, found {found}; the download was cut short, try again')
    told = HASH.search(name)
    if told and not digest.startswith(told[1]):
        raise RiemError(
            f'{address}: expected SHA-256 {told[1]}... by its name, found {digest[: len(told[1])]}...; if the file '
            'is right all the same, download it yourself and give its path'
        )


_BAR = {'disable': not sys.stderr.isatty(), 'unit': 'B', 'unit_scale': True}


def _copy(answer: BinaryIO, file: BinaryIO, bar: torch.hub.tqdm) -> tuple[int, str]:
    """Bytes that came, and their SHA-256 in hexadecimal."""
    digest, count = hashlib.sha256(), 0
    with bar:
        while part := answer.read(PART):
            file.write(part)
            digest.update(part)
            bar.update(len(part))
            count += len(part)
    return count, digest.hexdigest()
