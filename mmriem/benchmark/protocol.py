"""The paper's protocol: several seeds, the best few on a development split, their test figures averaged.

The states of the ``sigmoid`` representation have 8 bits. ``Dq`` follows from the bytes of a baseline's file, which that
of mmriem does not exceed; ``Dmu``, one for all layers, is the largest with which making the weights takes no more FLOPs
than it takes the baseline. Nothing is measured on images but the figures themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from mmriem.core.atomic import write_whole
from mmriem.core.budget.plan import allocate
from mmriem.core.errors import RiemError
from mmriem.core.file import writing
from mmriem.core.file.manifest import Source
from mmriem.core.live.complexity import flops
from mmriem.core.pipeline.compress import Compressed, compress
from mmriem.core.pipeline.settings import Settings
from mmriem.core.representations.sigmoid.representation import SIGMOID
from mmriem.core.weights.views import find_weights
from mmriem.engine.checkpoint import load_into, read_checkpoint
from mmriem.engine.complexity import image_shape, measure_complexity
from mmriem.engine.detector import build_detector, dataset_meta
from mmriem.engine.evaluation import evaluate
from mmriem.visualization import markdown

from .methods import Svd, get_method

__all__ = ['BASELINES', 'Protocol', 'Split', 'matched_dmu', 'run_protocol', 'split', 'table']

BASELINES = ('svd', 'minmax')
STATE_BITS = 8
MEASURES = ('coco/segm_mAP', 'coco/bbox_mAP', 'accuracy/top1')
"""Measures of which the first that an evaluation gives counts, where none is named."""
FEWEST = 2
"""Smallest ``Dmu``: the signs of the two sigmoids differ."""
RESULTS = 'protocol.json'


@dataclass(frozen=True)
class Protocol:
    """What is compared, and how.

    Attributes:
        baseline: ``svd`` or ``minmax``, see `mmriem.benchmark.methods`.
        bits: its setting: of a weight for ``svd``, of a code for ``minmax``.
        seeds, keep: how many seeds are drawn, and how many are kept.
        effort: see `mmriem.core.pipeline.settings.Settings`.
        dmu: ``Dmu``; 0: by the FLOPs of the baseline.
        development: share of the test set that chooses, where the config has no validation set of its own.
        images: of the test set, evenly spread; 0: all.
        measure: what counts, as the evaluator calls it; None: the first of `MEASURES`.

    Raises:
        RiemError: a number is out of range, or there is no such baseline.
    """

    baseline: str
    bits: float
    seeds: int = 10
    keep: int = 3
    effort: float = 1.0
    dmu: int = 0
    development: float = 0.2
    images: int = 0
    measure: str | None = None

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise RiemError(f'baseline: expected {" or ".join(BASELINES)}, found {self.baseline!r}')
        whole = self.baseline != 'minmax' or float(self.bits).is_integer()
        if not (0 < self.bits <= 8 and whole):
            raise RiemError(
                f'baseline bits: expected a number above 0 and at most 8, whole for minmax, found {self.bits}'
            )
        if not 1 <= self.keep <= self.seeds:
            raise RiemError(f'keep: expected 1 to {self.seeds}, the number of seeds, found {self.keep}')
        if not 0 < self.development < 1:
            raise RiemError(f'development: expected a share between 0 and 1, found {self.development}')
        if self.images < 0 or self.images == 1:
            raise RiemError(f'images: expected 0 (all) or at least 2, found {self.images}')

    @property
    def setting(self) -> dict[str, float]:
        """Of the method."""
        return {'bits': int(self.bits) if self.baseline == 'minmax' else self.bits}

    def baseline_flops(self, model: nn.Module) -> int:
        """What making the weights of its file takes: of rank ``r``, ``r`` multiply-adds each; of levels, one."""
        shapes = [view.matrix_shape for view in find_weights(model)]
        if self.baseline == 'minmax':
            return sum(out * inputs for out, inputs in shapes)
        return sum(out * inputs * Svd.rank((out, inputs), self.bits) for out, inputs in shapes)

    def product_bits(self) -> int:
        """Bits of a weight of the baseline in a product, see `mmriem.core.representations.base.Costs`."""
        return int(self.bits) if self.baseline == 'minmax' else 32


@dataclass(frozen=True)
class Split:
    """Configs whose test sets are the development set and the set that is reported, and how these were made."""

    development: Config
    test: Config
    description: str


def split(config: Config, share: float, folder: Path, images: int = 0) -> Split:
    """The development and the test set of a config.

    A validation set of its own (another dataset than the test set) is the development set. Else every ``1 / share``-th
    image of the test set is, in its own order, and the other ones are the test set; of ``images`` evenly spread ones,
    if that is not 0. Where the evaluator reads a COCO
    annotation file, two such files are written to ``folder``.

    Raises:
        RiemError: the config has no test set, or one that is too small.
    """
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if config.get(key) is None:
            raise RiemError(f'config: expected {key}, found none; name the data to evaluate on')
    own = config.get('val_dataloader')
    if own is not None and _data(own) != _data(config.test_dataloader):
        development = deepcopy(config)
        development.test_dataloader, development.test_evaluator = own, config.val_evaluator
        return Split(development, config, "the config's own validation set")
    init_default_scope(config.get('default_scope', 'mmdet'))
    dataset = config.test_dataloader.dataset
    step = max(2, round(1 / share))
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, (list, tuple)) else [config.test_evaluator]
    if any(evaluator.get('ann_file') for evaluator in evaluators):
        told = json.loads(_annotations(dataset).read_text(encoding='utf-8'))
        members = _spread(sorted(image['id'] for image in told['images']), images)
        paths = [folder / 'development.json', folder / 'test.json']
        for path, chosen in zip(paths, _divided(members, step)):
            _write_annotations(path, told, set(chosen))
        development, test = (_with_annotations(config, path) for path in paths)
    else:
        members = _spread(_members(dataset), images)
        development, test = (_with_indices(config, chosen) for chosen in _divided(members, step))
    count = len(members)
    if count < 2:
        raise RiemError(f'config: expected a test set of at least 2 images to split, found {count}')
    return Split(development, test, f'1 of {step} of {count:,} images of the test set, {-(-count // step):,}, chooses')


def matched_dmu(
    model: nn.Module, bits: float, most_flops: int, state_bits: int = STATE_BITS, shifts: int = 6
) -> tuple[int, int]:
    """The largest even ``Dmu`` with which making the weights takes at most so many FLOPs, and how many it takes.

    Where the smallest takes more, that one. So many that a weight would have no room for its metric are too many.

    Args:
        model: its weights' shapes count.
        bits: of all weights together.
        most_flops: see `mmriem.core.live.complexity`.
        state_bits, shifts: see `mmriem.core.pipeline.settings.Settings`.
    """
    views = find_weights(model)

    def works(dmu: int) -> list[int]:
        plans = allocate(views, SIGMOID.fitter_with(state_bits=state_bits, shifts=shifts, dmu=dmu), bits)
        found = [(plan.view.matrix_shape, plan.configuration) for plan in plans if plan.configuration is not None]
        return [flops(SIGMOID.costs.regeneration(shape, settings)) for shape, settings in found]

    dmu, found = FEWEST, works(FEWEST)
    with contextlib.suppress(RiemError):  # at last the metric takes more bytes than there are
        while len(larger := works(dmu + 2)) == len(found) and sum(larger) <= most_flops:
            dmu, found = dmu + 2, larger
    return dmu, sum(found)


def run_protocol(
    config: Config,
    checkpoint: str | os.PathLike,
    protocol: Protocol,
    folder: str | os.PathLike,
    *,
    threads: int = 1,
    trust: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Do it, or what is left of it: finished seeds in ``folder`` are not done again.

    Args:
        config: as read by `mmriem.engine.config.read_config`.
        checkpoint: a `.pth` file.
        protocol: how.
        folder: for the files of the seeds and `protocol.json`.
        threads: weights fitted at a time.
        trust: see `mmriem.engine.checkpoint.read_checkpoint`.
        say: called with a line of text as something is done.

    Returns:
        What `protocol.json` then holds.

    Raises:
        RiemError: the folder holds the results of another protocol or checkpoint, or something cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    read = read_checkpoint(checkpoint, trust=trust)
    model = build_detector(config).eval()
    load_into(model, read.state_dict, checkpoint)
    asked = {**asdict(protocol), 'checkpoint': read.sha256, 'config': hashlib.sha256(_text(config)).hexdigest()}
    results = _Results(folder / RESULTS, asked)
    parts = split(config, protocol.development, folder, protocol.images)
    logs = folder / 'logs'

    def figure(part: Config, path: str | os.PathLike, metrics: Mapping[str, float] | None = None) -> float:
        """Percent; 0 where a detector finds nothing at all, and its evaluator gives no figure."""
        value = (metrics or evaluate(part, path, logs)).get(results.found['measure'], 0.0)
        return 100 * value if results.found['measure'].startswith('coco/') else value

    def figures(path: str | os.PathLike, metrics: Mapping[str, float] | None = None) -> dict[str, float]:
        return {'development': figure(parts.development, path, metrics), 'test': figure(parts.test, path)}

    results.once('split', lambda: parts.description)
    metrics = results.once('metrics', lambda: _plain(evaluate(parts.development, checkpoint, logs)))
    results.once('measure', lambda: protocol.measure or _measure(metrics))
    results.once('original', lambda: {'bytes': _fp32_bytes(model), **figures(checkpoint, metrics)})
    size = results.once('baseline', lambda: _baseline(model, protocol, folder, figures))['bytes']
    payload = 8 * size - _rest_bits(model)
    dmu = results.once('dmu', lambda: protocol.dmu or matched_dmu(model, payload, protocol.baseline_flops(model))[0])
    settings = Settings.of(representation='sigmoid', size=size, state_bits=STATE_BITS, dmu=dmu, effort=protocol.effort)
    for seed in range(protocol.seeds):
        path = folder / f'seed_{seed}.riem'

        def fit(seed: int = seed, path: Path = path) -> dict[str, Any]:
            made = compress(
                model,
                settings.changed(seed=seed),
                dataset_meta=dataset_meta(config, read.dataset_meta),
                source=Source(Path(checkpoint).name, read.sha256),
                threads=threads,
            )
            writing.write(path, cast(Compressed, made).archive, force=True)  # this process is the first
            return {'bytes': path.stat().st_size, 'development': figure(parts.development, path)}

        found = results.once(f'seed {seed}', fit)
        say(f'seed {seed}: {found["development"]:.2f} on the development set')
    results.once('work', lambda: _work(config, folder / 'seed_0.riem', protocol, model))
    order = sorted(range(protocol.seeds), key=lambda seed: -results.found[f'seed {seed}']['development'])
    for seed in order[: protocol.keep]:
        results.once(f'test of seed {seed}', partial(figure, parts.test, folder / f'seed_{seed}.riem'))
    results.once('kept', lambda: order[: protocol.keep])
    return results.found


def table(found: Mapping[str, Any]) -> str:
    """The results as a Markdown table: mean and standard deviation over the seeds that were kept."""
    asked, work, kept = found['asked'], found['work'], found['kept']
    seeds = [found[f'seed {seed}'] for seed in kept]
    tests = [found[f'test of seed {seed}'] for seed in kept]
    baseline = found['baseline']
    rows = [
        _row('original, fp32', found['original'], work['original']),
        _row(f'{asked["baseline"]}, {asked["bits"]:g} bits', baseline, work['baseline']),
        {
            **_row(
                f'sigmoid, Dmu {found["dmu"]}, best {asked["keep"]} of {asked["seeds"]} seeds',
                seeds[0],
                work['sigmoid'],
            ),
            'bytes': f'{max(seed["bytes"] for seed in seeds):,}',
            'development': _mean([seed['development'] for seed in seeds]),
            'test': _mean(tests),
        },
    ]
    return markdown(rows, dict.fromkeys(rows[0], '{}'))


def _row(name: str, found: Mapping[str, Any], work: Mapping[str, int]) -> dict[str, str]:
    return {
        'weights': name,
        'bytes': f'{found["bytes"]:,}',
        'MFLOPs making': f'{work["making"] / 1e6:,.2f}',
        'MFLOPs an image': f'{work["product"] / 1e6:,.2f}',
        'GBOPs an image': f'{work["bops"] / 1e9:,.2f}',
        'development': f'{found["development"]:.2f}',
        'test': f'{found["test"]:.2f}' if 'test' in found else '',
    }


def _mean(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f'{statistics.fmean(values):.2f} ± {spread:.2f}'


def _baseline(model: nn.Module, protocol: Protocol, folder: Path, figures: Callable[[Path], dict]) -> dict[str, Any]:
    """The file of the baseline, decoded and evaluated."""
    method = get_method(protocol.baseline)()
    path, decoded = folder / f'{protocol.baseline}.safetensors', folder / f'{protocol.baseline}.pth'
    method.encode(model, protocol.setting, path)
    torch.save({'state_dict': method.decode(path, model)}, decoded)
    return {'bytes': path.stat().st_size, 'flops': protocol.baseline_flops(model), **figures(decoded)}


def _rest_bits(model: nn.Module) -> int:
    """Bits of the baseline's file for what is no weight matrix: fp16, as both files have it, nearly."""
    weights = {view.name for view in find_weights(model)}
    return 16 * sum(x.numel() for key, x in model.state_dict().items() if key not in weights and x.is_floating_point())


def _work(config: Config, path: Path, protocol: Protocol, model: nn.Module) -> dict[str, dict[str, int]]:
    """FLOPs of making the weights once, FLOPs and BOPs of the products of one image."""
    report = measure_complexity(config, path, image_shape(config))
    totals = report['totals']
    product = totals['flops']['dense']
    weights = {view.name for view in find_weights(model)}
    compressed = sum(entry['flops']['dense'] for entry in report['weights'] if entry['name'] in weights)
    saved = compressed * 32 * (32 - protocol.product_bits())
    return {
        'original': {'making': 0, 'product': product, 'bops': totals['bops']['dense']},
        'baseline': {
            'making': protocol.baseline_flops(model),
            'product': product,
            'bops': totals['bops']['dense'] - saved,
        },
        'sigmoid': {
            'making': totals['flops']['regeneration'],
            'product': product,
            'bops': totals['bops']['product'],
        },
    }


def _measure(metrics: Mapping[str, float]) -> str:
    found = next((name for name in MEASURES if name in metrics), None)
    if found is None:
        raise RiemError(f'measure: expected one of {", ".join(MEASURES)}, found {", ".join(metrics)}; give --measure')
    return found


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    """As JSON holds them."""
    return {name: float(value) for name, value in metrics.items()}


def _fp32_bytes(model: nn.Module) -> int:
    return 4 * sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())


def _text(config: Config) -> bytes:
    return repr(config.to_dict()).encode()


class _Results:
    """What is known so far, written to a file whenever something is added.

    Raises:
        RiemError: the file is of something else that was asked.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {'asked': asked}
        if path.exists():
            self.found = json.loads(path.read_text(encoding='utf-8'))
            if differences := [key for key, value in asked.items() if self.found['asked'].get(key) != value]:
                raise RiemError(
                    f'{path}: expected results of the same {", ".join(differences)}, found others; give another '
                    '--work-dir, or remove the folder'
                )

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """What is known by that key, found now if it is not."""
        if key not in self.found:
            self.found[key] = find()
            write_whole(self.path, json.dumps(self.found, indent=1) + '\n')
        return self.found[key]


# ---- the split ---------------------------------------------------------------------------------------------------


def _data(loader: Mapping[str, Any]) -> Any:
    """What tells one set of images from another."""
    dataset = dict(loader['dataset'])
    return {key: dataset.get(key) for key in ('type', 'data_root', 'ann_file', 'data_prefix', 'split', 'dataset')}


def _with_indices(config: Config, indices: list[int]) -> Config:
    config = deepcopy(config)
    config.test_dataloader.dataset.indices = indices
    return config


def _annotations(dataset: Mapping[str, Any]) -> Path:
    if 'ann_file' not in dataset:
        raise RiemError('config: expected test_dataloader.dataset with an ann_file, as its evaluator has, found none')
    return Path(dataset.get('data_root') or '') / dataset['ann_file']


def _members(dataset: Mapping[str, Any]) -> list[int]:
    """Numbers of the images of a set, those alone that its own `indices` name."""
    own = dataset.get('indices')
    if own is None:
        return list(range(len(DATASETS.build(deepcopy(dataset)))))
    return list(range(own)) if isinstance(own, int) else list(own)


def _spread(members: list[int], count: int) -> list[int]:
    """So many of them, evenly spread; all, if there are no more or `count` is 0.

    >>> _spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 2, 4]
    """
    if not 0 < count < len(members):
        return members
    return [members[number * len(members) // count] for number in range(count)]


def _divided(members: list[int], step: int) -> tuple[list[int], list[int]]:
    """Every `step`-th, and the other ones.

    >>> _divided([5, 6, 7, 8], 3)
    ([5, 8], [6, 7])
    """
    return members[::step], [member for number, member in enumerate(members) if number % step]


def _write_annotations(path: Path, told: Mapping[str, Any], chosen: set[int]) -> None:
    """A COCO file of these images alone."""
    images = [image for image in told['images'] if image['id'] in chosen]
    boxes = [box for box in told['annotations'] if box['image_id'] in chosen]
    path.write_text(json.dumps({**told, 'images': images, 'annotations': boxes}), encoding='utf-8')


def _with_annotations(config: Config, path: Path) -> Config:
    config = deepcopy(config)
    config.test_dataloader.dataset.ann_file = str(path.resolve())
    several = isinstance(config.test_evaluator, (list, tuple))
    for evaluator in config.test_evaluator if several else [config.test_evaluator]:
        if evaluator.get('ann_file'):
            evaluator.ann_file = str(path.resolve())
    return config
