"""Where a file is found on this machine: local paths as they are, http(s) downloads in torch's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank

from mmriem.core.errors import RiemError

__all__ = ['local_path']


def local_path(source: str | os.PathLike) -> Path:
    """The path of `source` on this machine; an http(s) address is downloaded once, by the first rank.

    Downloads go where MMEngine and torch.hub keep theirs, `$TORCH_HOME/hub/checkpoints`.

    Raises:
        RiemError: the address has another scheme, or the download failed.
    """
    address = urlparse(os.fspath(source))
    if '://' not in os.fspath(source):
        return Path(source).expanduser()
    if address.scheme not in ('http', 'https'):
        raise RiemError(
            f'{source}: expected a local file or an http(s) address, found the scheme {address.scheme}://; '
            'download the file first and give its path'
        )
    target = Path(torch.hub.get_dir(), 'checkpoints', Path(address.path).name)
    if get_rank() == 0:
        _download(os.fspath(source), target)
    barrier()
    _download(os.fspath(source), target)  # on the other machines of a distributed run
    return target


def _download(address: str, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, os.fspath(target), progress=sys.stderr.isatty())
    except (URLError, ConnectionError, TimeoutError) as error:
        raise RiemError(f'{address}: the download failed ({error}); check the address and the network') from error
