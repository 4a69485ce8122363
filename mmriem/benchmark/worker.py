"""One encoding or decoding in a process of its own, so that seconds and peak memory are those of this work alone."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmriem.core.errors import RiemError
from mmriem.core.execution.journal import Journal
from mmriem.core.images.probe import Probe

from .methods import get_method
from .networks import Network, build_network

__all__ = ['do', 'images', 'work']

SECONDS = 'seconds'
"""Key in a journal of images: the seconds that they took."""


def work(job: Mapping[str, Any]) -> dict[str, float]:
    """Do a job in a new process: `seconds` that it took, and `peak_mb`, the peak memory of the process in MB (10^6).

    Args:
        job: JSON-able. `network` is an entry for `build_network`, `method` a name, `file` the encoded file, `threads`
            how many to compute with. With `setting` the file is written; with `state_dict`, a path, the file is
            decoded and the state dict saved there. `images` is a folder where the images that this network runs on are
            kept: they are made once, and the seconds of that count each time.

    Raises:
        RiemError: the process failed; the last line that it printed is told.
    """
    done = subprocess.run(
        [sys.executable, '-m', __name__, json.dumps(job)],
        capture_output=True,
        text=True,
        start_new_session=True,  # an interrupt reaches this process only, which ends that one
    )
    printed = done.stderr.strip().splitlines()
    if done.returncode:
        raise RiemError(printed[-1].removeprefix('error: ') if printed else f'ended with status {done.returncode}')
    return json.loads(done.stdout.splitlines()[-1])


def do(job: Mapping[str, Any]) -> dict[str, float]:
    """Do a job in this process, whose peak memory is told: see `work`."""
    torch.set_num_threads(job['threads'])
    network, method, path = build_network(job['network']), get_method(job['method'])(), Path(job['file'])
    method.prepare()
    if 'setting' in job:
        model = network.original()
        setting = dict(job['setting'])
        probe, before = (
            (None, 0.0) if method.is_peer else images(network, job['images'], setting.pop('synthesis', None))
        )
        started = time.perf_counter()
        method.encode(model, setting, path, probe)
        seconds = before + time.perf_counter() - started
    else:
        model = network.build()
        started = time.perf_counter()
        state_dict = method.decode(path, model)
        seconds = time.perf_counter() - started
        torch.save(state_dict, job['state_dict'])
    return {'seconds': seconds, 'peak_mb': peak_bytes() / 1e6}


def images(network: Network, folder: str | os.PathLike, synthesis: int | None = None) -> tuple[Probe, float]:
    """The probe of a network, and the seconds that it takes to make one.

    Args:
        network: a network of the benchmark.
        folder: where the images of this network are kept, and of no other one.
        synthesis: see `Network.probe`.
    """
    started, journal = time.perf_counter(), Journal(Path(folder) / str(synthesis))
    journal.folder.parent.mkdir(parents=True, exist_ok=True)
    journal.begin({'synthesis': synthesis})
    probe = network.probe(synthesis, journal)
    kept = journal.get(SECONDS)
    seconds = time.perf_counter() - started if kept is None else float(kept)
    if kept is None:
        journal.put(SECONDS, repr(seconds).encode())
    return probe, seconds


def peak_bytes() -> int:
    """Peak resident memory of this process.

    On Linux `ru_maxrss` will not do where there is /proc: it begins with the peak of the process that started this one.
    """
    status = Path('/proc/self/status')
    found = re.search(r'VmHWM:\s+(\d+) kB', status.read_text()) if status.is_file() else None
    if found:
        return 1024 * int(found[1])
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == '__main__':
    try:
        print(json.dumps(do(json.loads(sys.argv[1]))))
    except RiemError as error:
        sys.exit(f'error: {error}')
