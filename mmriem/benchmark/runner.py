"""Every method at every setting on every network; finished cells are kept and can be used again."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmriem.core.atomic import write_whole
from mmriem.core.errors import RiemError
from mmriem.core.images.probe import Probe
from mmriem.core.weights.views import find_weights
from mmriem.engine.config import with_data_root

from .method import floating_tensors
from .methods import get_method
from .networks import Network, build_network
from .worker import images, work

__all__ = ['Benchmark', 'chosen', 'network_entries']

Row = dict[str, Any]
ORIGINAL = 'original, fp32'
IMAGES = 'images'
"""Folder of the images that networks run on, beside the finished cells."""


def chosen(entries: Sequence[Mapping[str, Any]], names: Sequence[str] | None, what: str) -> list[dict[str, Any]]:
    """The entries of a config with these names, all of them where none are given.

    An entry without a name is called as its type.

    Raises:
        RiemError: a name that no entry has.
    """
    named = {entry.get('name', entry.get('type')): dict(entry) for entry in entries}
    for name in names or ():
        if name not in named:
            raise RiemError(f'{what} {name!r}: expected one of {", ".join(map(str, named))} of the config')
    return [{**named[name], 'name': name} for name in (names or named)]


def network_entries(
    config: Mapping[str, Any], names: Sequence[str] | None, data_root: str | os.PathLike | None
) -> list[dict[str, Any]]:
    """Entries of the networks of a config that are asked for, all of them checked before the first is started.

    Raises:
        RiemError: a name that no entry has, or a network that cannot be built.
    """
    entries = chosen(with_data_root(config['networks'], data_root), names, 'network')
    for entry in entries:
        if entry['type'] == 'detector':
            entry.setdefault('checkpoint', str(Path(entry['config']).with_suffix('.pth')))
            entry['data_root'] = data_root
        build_network({key: value for key, value in entry.items() if key != 'settings'})
    return entries


@dataclass(frozen=True)
class Benchmark:
    """A run.

    Attributes:
        methods: entries with `name`, `type` and `settings`, a list of dicts.
        threads: how many each encoding and decoding computes with.
        cells: folder of the finished cells, small JSON files.
        reuse: whether to use those that are there.
        tell: called with what is left out, one line each.
    """

    methods: Sequence[Mapping[str, Any]]
    threads: int
    cells: Path
    reuse: bool
    tell: Callable[[str], None]

    def rows(self, entry: Mapping[str, Any]) -> Iterator[Row]:
        """The rows of a network: the original, then each method at each setting, as they are finished.

        Args:
            entry: for `build_network`; its `settings`, where there are any, replace those of the methods they name.

        Raises:
            RiemError: the network cannot be built, loaded or evaluated.
        """
        entry = dict(entry)
        settings = entry.pop('settings', {})
        network = build_network(entry)
        checkpoint = hashlib.sha256(Path(network.checkpoint).read_bytes()).hexdigest()
        folder = self.cells / IMAGES / _digest({'network': entry, 'checkpoint': checkpoint})
        if not self.reuse:
            shutil.rmtree(folder, ignore_errors=True)
        reference, probe = network.original(), functools.cache(lambda: images(network, folder)[0])
        weights = sum(math.prod(view.shape) for view in find_weights(reference))
        torch.set_num_threads(self.threads)

        def finished(method: str, setting: Mapping[str, Any], key: Mapping[str, Any], find: Callable[[], Row]) -> Row:
            cell = self._cell(f'{network.name}-{method}', {'network': entry, 'checkpoint': checkpoint, **key}, find)
            label = ', '.join(f'{name}={value}' for name, value in setting.items())
            bits = 8 * cell['bytes'] / weights
            return {'network': network.name, 'method': method, 'setting': label, 'bits/weight': bits, **cell}

        yield finished(ORIGINAL, {}, {}, lambda: _original(network, reference))
        for method in self.methods:
            for setting in settings.get(method['name'], method['settings']):
                key = {'method': method['type'], 'setting': setting}
                find = functools.partial(self._measured, network, entry, reference, probe, folder, key)
                try:
                    yield finished(method['name'], setting, key, find)
                except RiemError as error:
                    self.tell(f'left out: {network.name}, {method["name"]}, {json.dumps(setting)}: {error}')

    def _cell(self, label: str, key: Mapping[str, Any], find: Callable[[], Row]) -> Row:
        path = self.cells / f'{re.sub("[^A-Za-z0-9_.-]+", "_", label)}-{_digest(key)}.json'
        if self.reuse and path.is_file():
            return json.loads(path.read_text(encoding='utf-8'))
        cell = find()
        self.cells.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(cell, indent=1) + '\n')
        return cell

    def _measured(
        self,
        network: Network,
        entry: Mapping[str, Any],
        reference: nn.Module,
        probe: Callable[[], Probe],
        images_folder: Path,
        key: Mapping[str, Any],
    ) -> Row:
        """What a file costs and keeps; it is written and read in processes of their own, and then deleted."""
        with TemporaryDirectory() as folder:
            file, decoded = Path(folder) / 'encoded.riem', Path(folder) / 'decoded.pth'
            job = {'network': entry, 'method': key['method'], 'file': str(file), 'threads': self.threads}
            encoding = work({**job, 'setting': key['setting'], 'images': str(images_folder)})
            decoding = work({**job, 'state_dict': str(decoded)})
            size, state_dict = file.stat().st_size, torch.load(decoded, weights_only=True)
        again = None
        if get_method(key['method']).is_peer:
            again = network.accuracy(_recalibrated(network, state_dict, reference, probe()))
        return {
            'bytes': size,
            'accuracy': network.accuracy(state_dict),
            'recalibrated': again,
            'encode s': encoding['seconds'],
            'decode s': decoding['seconds'],
            'peak MB': encoding['peak_mb'],
        }


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _original(network: Network, reference: nn.Module) -> Row:
    state_dict = reference.state_dict()
    size = 4 * sum(state_dict[key].numel() for key in floating_tensors(reference))
    unmeasured = dict.fromkeys(('recalibrated', 'encode s', 'decode s', 'peak MB'))
    return {'bytes': size, 'accuracy': network.accuracy(state_dict), **unmeasured}


def _recalibrated(
    network: Network, state_dict: Mapping[str, Tensor], reference: nn.Module, probe: Probe
) -> dict[str, Tensor]:
    from mmriem.core.correction.recalibration import recalibrate

    model = network.build()
    model.load_state_dict(state_dict)
    recalibrate(model, reference, probe)
    return model.state_dict()
