"""Try one config of every folder in mmdet's wheel, narrowed to a few channels, with random weights.

    python tools/maintain/try_configs.py [--onnx] [--only FOLDER ...] [--part K N]     # rows to work_dirs/configs.jsonl
    python tools/maintain/try_configs.py --table docs/configs.md                       # puts these rows into the table

Each one is compressed with both metrics, loaded as a stock detector and as one of RieM modules, whose outputs must be
the same; then it runs with test-time augmentation, and is exported to ONNX and compared in onnxruntime. What fails is
one line. Rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import cv2
import mmdet
import mmdet.apis  # once for all forks, and so the others that registries import
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from torch.utils._pytree import tree_map

import mmriem.models  # noqa: F401
from mmriem.cli.test import augment
from mmriem.core.errors import RiemError
from mmriem.core.images.probe import float_tensors
from mmriem.core.images.procedural import procedural_images
from mmriem.core.live.convert import make_dense
from mmriem.core.pipeline.settings import Settings
from mmriem.core.weights.views import find_weights
from mmriem.engine.checkpoint import load_into
from mmriem.engine.compression import compress_detector
from mmriem.engine.config import read_config, registered, scope_of
from mmriem.engine.detector import build_detector, init_detector
from mmriem.engine.export import RawOutputs, write_onnx
from mmriem.engine.guard import guarded, in_one_line
from mmriem.engine.outputs import Outputs
from mmriem.engine.pipeline import inner_test_set, input_size, pipeline_steps, resized, type_name
from mmriem.engine.probe import probe_class
from mmriem.engine.scheme import load_from_riem

STOCK = Path(mmdet.__file__).parent / '.mim' / 'configs'
NO_DETECTORS = ('_base_', 'common')
CHANNELS = {
    *('in_channels', 'out_channels', 'feat_channels', 'channels', 'mid_channels', 'base_channels', 'stem_channels'),
    *('fc_out_channels', 'conv_out_channels', 'fc_channels', 'feedforward_channels', 'hidden_channels', 'num_channels'),
    *('embed_dims', 'embed_dim', 'num_feats', 'hidden_dim', 'query_dim', 'point_feat_channels', 'ffn_dims', 'c_out'),
    *('dynamic_feat_channels', 'proposal_feature_channel', 'dim_feedforward', 'sem_out_channels', 'stack_channels'),
    *('conv_in_channels', 'roi_feat_channels', 'mask_conv_channels', 'trans_conv_channels', 'proto_channels'),
    *(
        'num_deconv_filters',
        'stage_channels',
        'feat_channel',
        'hidden_dims',
        'inter_channels',
        'head_channels',
        'fpn_channels',
        'branch_channels',
        'cls_in_channels',
    ),
}
SHARE = 8
"""A narrowed detector has one of so many channels."""
LEAST = 32
"""Fewer channels stay as they are: masks, boxes and classes have few."""
FIXED = ('SSDVGG',)
"""Backbones whose channels no config changes."""
FORMS = (
    *((True, True, True), (True, True, False), (True, False, True), (True, False, False)),
    *((False, True, False), (False, False, False)),
)
"""Arguments of `narrowed`, until one runs."""
BYTES = 1
"""Of a weight that is compressed, where the size is given, and of an element of a norm."""
RECORD = 150
"""Bytes that each tensor takes beside its values, at most."""
SIDE = 256
"""Pixels of the longer side of an image."""
LARGE = 100_000
"""Elements of a weight that takes too long."""
SAME = 1e-4
"""Largest difference of an output from states and from decoded weights, relative to the output's largest value."""
TIES = 0.01
"""Share of the elements of an output that may be others: those of points that are suppressed by a neighbour as high."""
CLOSE = 1e-3
"""Largest difference of an output in onnxruntime, relative to the output's largest value."""
SECONDS = 1200
COLUMNS = {
    'folder': 'folder',
    'config': 'config',
    'detector': 'detector',
    'weights': 'weights',
    'pullback': 'default metric',
    'identity': '`--metric identity`',
    'live': 'drop-in equals live',
    'ONNX': 'ONNX',
    'TTA': 'TTA',
}
INTRODUCTION = """# Every folder of mmdet's configs

One config of each folder in mmdet {version}'s wheel, with one of {share} channels where the detector can be built so,
random weights and one small image, by `tools/maintain/try_configs.py`. *Weights*: how many are compressed; where there
are many, two of each kind. *Default metric*: compressed with the metric of the detector's own outputs. *Drop-in equals
live*: decoded weights in the stock detector and states in RieM modules ([models.md](models.md)) give the same outputs
of all heads within {same:g} of the largest. *ONNX*: what [deploy.md](deploy.md) describes, within {close:g} of torch in
onnxruntime. A number refers to the reasons below.

"""


def stock_configs() -> dict[str, Path]:
    """One config of each folder: that with the shortest name, which is mostly the plainest."""
    folders = sorted(path for path in STOCK.iterdir() if path.is_dir() and path.name not in NO_DETECTORS)
    found = {}
    for folder in folders:
        files = sorted(folder.glob('*.py'), key=lambda file: (len(file.name), file.name))
        with_model = [file for file in files if 'tta' not in file.name]
        if with_model:
            found[folder.name] = with_model[0]
    return found


def narrowed(config: Config, channels: bool = True, pixels: bool = True, defaults: bool = True) -> Config:
    """The config with a share of the channels and small images, and nothing to download.

    Args:
        config: as it is in the wheel.
        channels: whether there are fewer channels.
        pixels: whether images are small.
        defaults: whether channels that the config leaves to the classes are fewer, too.
    """
    config = deepcopy(config)
    if channels and type_name(config.model.get('backbone') or {}) not in FIXED:
        init_default_scope(scope_of(config))
        _narrow(config._cfg_dict['model'], defaults)
    if pixels:
        steps = resized(pipeline_steps(config), (SIDE, SIDE))
        inner_test_set(config)['pipeline'] = steps
    return config


def _narrow(tree: Any, defaults: bool) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in CHANNELS:
                tree[key] = _share(value)
            elif key == 'num_groups' and isinstance(value, int):
                tree[key] = min(value, 4)
            elif key == 'widen_factor':
                tree[key] = value / SHARE
            else:
                _narrow(value, defaults)
        for key, value in _default_channels(tree.get('type')).items() if defaults else ():
            tree.setdefault(key, _share(value))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _narrow(value, defaults)


def _default_channels(kind: Any) -> dict[str, int]:
    """Channels that a class has where the config does not say."""
    with suppress(Exception):  # what is not registered is told when it is built
        kind = registered(MODELS, kind)
    found: dict[str, int] = {}
    for each in getattr(kind, '__mro__', ())[::-1]:
        for name, what in signature(each.__init__).parameters.items() if each is not object else ():
            if name in CHANNELS:
                found[name] = what.default
    return {name: value for name, value in found.items() if isinstance(value, int) and value >= LEAST}


def _share(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_share, value))
    return max(value // SHARE, 4) if isinstance(value, int) and value >= LEAST else value


def trial(path: Path, work: Path, checks: Callable[..., None] | None = None) -> dict[str, str]:
    """A row of the table."""
    row = {'config': path.name}
    config, model = _that_runs(path, row)
    if model is None:
        return row
    row['detector'] = type_name(config.model)
    state = model.state_dict()
    checkpoint, written = work / 'x.pth', work / 'x.py'
    torch.save({'state_dict': state, 'meta': {}}, checkpoint)
    config.dump(written)
    weights = find_weights(model)
    include = of_each_kind({view.name: state[view.name].numel() for view in weights})
    row['weights'] = f'{len(include)} of {len(weights)}'
    settings = {
        'identity': Settings.of(size=_size(state, include), include=include),
        'pullback': Settings.of(tolerance=0.1, include=include),
    }
    for metric, chosen in settings.items():
        outputs = Outputs.named(work / f'{metric}.riem', str(written), str(checkpoint))
        images = {'image_count': 1} if metric == 'pullback' else {}
        row[metric] = _said(_compressed, str(written), str(checkpoint), outputs, chosen, metric, images)
    outputs = Outputs.named(work / 'pullback.riem', str(written), str(checkpoint))
    if not outputs.riem.exists():
        outputs = Outputs.named(work / 'identity.riem', str(written), str(checkpoint))
    if not outputs.riem.exists():
        return row
    row['live'] = _said(_live, outputs)
    return {**row, **{name: _said(check, outputs) for name, check in (checks or {}).items()}}


def of_each_kind(elements: dict[str, int]) -> tuple[str, ...]:
    """The smallest and the last weight of each kind, without large ones; a kind has names that differ by numbers."""
    kinds: dict[str, list[str]] = {}
    for name, numel in elements.items():
        if numel <= LARGE:
            kinds.setdefault(re.sub(r'\d+', '#', name), []).append(name)
    return tuple(
        name for names in kinds.values() for name in dict.fromkeys((min(names, key=elements.__getitem__), names[-1]))
    )


def _size(state: dict[str, torch.Tensor], include: tuple[str, ...]) -> int:
    """Bytes of a file that holds these weights in a byte each, and others as they are."""
    small = sum(x.numel() for name, x in state.items() if name in include or x.dim() < 2)
    large = sum(x.numel() for name, x in state.items() if name not in include and x.dim() > 1)
    return BYTES * small + 4 * large + RECORD * len(state)


def _that_runs(path: Path, row: dict[str, str]) -> tuple[Config, torch.nn.Module | None]:
    """The narrowest form of a config whose detector can be built and run, and the detector."""
    failure, config = '', None
    for channels, pixels, defaults in FORMS:
        try:
            config = narrowed(read_config(path), channels, pixels, defaults)
            model = _random_detector(config)
            model.eval()
            with torch.no_grad():
                probe_class(model)(config, 1).run(model, 0, 1)
        except RiemError as error:
            failure = failure if failure and 'can be built' in str(error) else str(error)
            row.setdefault('unnarrowed', str(error))
            continue
        row['form'] = f'{"narrow" if channels else "whole"}, {"small" if pixels else "own"} images'
        return config, model
    row['default metric'] = row['why'] = failure
    with_model = None
    try:  # what can be built is compressed with the other metric
        config = narrowed(read_config(path), True, False)
        with_model = _random_detector(config)
    except RiemError as error:
        row['why'] = str(error)
    return config, with_model


def _random_detector(config: Config) -> torch.nn.Module:
    """With what its constructor draws; what it leaves as memory was, as it is for `init_weights`, is drawn here."""
    torch.manual_seed(0)
    with _memory_of_nan():
        model = build_detector(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all():
                parameter.normal_(0.0, 0.02)
        for module in model.modules():
            if type(module).__name__ == 'EmbeddingRPNHead':
                module.init_weights()  # boxes with sides that are not negative
        model.load_state_dict(dict(model.named_parameters()), strict=False)  # scales of weights that come with these
    return model


@contextmanager
def _memory_of_nan() -> Iterator[None]:
    """Within, `torch.empty` gives NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _compressed(
    config: str, checkpoint: str, outputs: Outputs, settings: Settings, metric: str, images: dict[str, int]
) -> str:
    report = compress_detector(config, checkpoint, outputs, settings, metric=metric, force=True, **images)
    others = [
        entry for entry in report['weights'] if entry['representation'] != 'dense' and entry['metric'] == 'identity'
    ]
    share = sum(entry['bits'] for entry in others) / sum(entry['bits'] for entry in report['weights'])
    return 'yes' if metric == 'identity' or not others else f'yes, {share:.0%} of the weights unmeasured'


@torch.no_grad()
def _live(outputs: Outputs) -> str:
    """Whether states in RieM modules give each output of each part of the detector that decoded weights do.

    The parts are compared on the same inputs: near ties of random scores, a second stage may see other boxes.
    """
    config = read_config(outputs.config)
    stock = init_detector(config, outputs.riem)
    live_config = deepcopy(config)
    live_config.model = ConfigDict({**config.model, 'type': f'mmriem.RieM{type_name(config.model)}', 'riem': {}})
    live = init_detector(live_config, outputs.riem)
    try:
        with _outermost_calls(stock) as calls:
            probe_class(stock)(config, 1).run(stock, 0, 1)
        pairs = _outputs_of_parts(live, calls)
    except (RiemError, LookupError):  # it cannot run, or a part needs what another has left: then the weights tell
        pairs = list(zip(_decoded(live), _decoded(stock)))
    for found, wanted in pairs:
        near = torch.isclose(
            found, wanted, rtol=0.0, atol=SAME * float(wanted.nan_to_num(0.0, 0.0, 0.0).abs().max()), equal_nan=True
        )
        if near.float().mean() < 1 - TIES:
            raise RiemError(f'outputs differ by {_apart(found, wanted):.1g}')
    return 'yes'


def _outputs_of_parts(live: torch.nn.Module, calls: list[tuple]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs of the parts of a detector, each beside that of the call, on the arguments of the call."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name, arguments, options, wanted in calls:
        found = list(float_tensors(live.get_submodule(name)(*arguments, **options)))
        if [value.shape for value in found] != [value.shape for value in wanted]:
            raise AssertionError(f'shapes of the outputs of {name} differ')
        pairs += zip(found, wanted)
    return pairs


@contextmanager
def _outermost_calls(model: torch.nn.Module) -> Iterator[list[tuple]]:
    """Name, arguments and outputs of each call of a part that no other part makes."""
    calls: list[tuple] = []
    running: list[tuple] = []
    hooks = []

    def entering(name: str) -> Callable:
        def enter(module: torch.nn.Module, arguments: tuple, options: dict) -> None:
            copies = (None, None) if running else tree_map(_copy, (arguments, options))
            running.append((name, *copies))

        return enter

    def leave(module: torch.nn.Module, arguments: tuple, output: Any) -> None:
        name, *given = running.pop()
        if not running and (outputs := [tensor.clone() for tensor in float_tensors(output)]):
            calls.append((name, *given, outputs))

    for name, module in model.named_modules():
        if name and not name.startswith('data_preprocessor') and not hasattr(module, 'add_pred_to_datasample'):
            hooks.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))


def _decoded(model: torch.nn.Module) -> list[torch.Tensor]:
    make_dense(model)
    return list(model.parameters())


def onnx(outputs: Outputs) -> str:
    """Whether the exported detector gives the outputs of torch in onnxruntime; how far off they are at most."""
    import onnxruntime

    config = read_config(outputs.config)
    model = init_detector(config, outputs.riem)
    width, height = (input_size(pipeline_steps(config)) if inner_test_set(config) else None) or (SIDE, SIDE)
    target = outputs.riem.with_suffix('.onnx')
    write_onnx(model, target, (height, width), force=True)
    raw = RawOutputs(model)
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = raw(image)
    found = onnxruntime.InferenceSession(str(target), providers=['CPUExecutionProvider']).run(
        None, {'image': image.numpy()}
    )
    if [value.shape for value in found] != [tuple(value.shape) for value in wanted]:
        raise RiemError('shapes of outputs differ')
    error = max(_apart(torch.from_numpy(a), b) for a, b in zip(found, wanted))
    if error > CLOSE:
        raise RiemError(f'outputs differ by {error:.1g}')
    return 'yes'


def tta(outputs: Outputs) -> str:
    """Whether the detector predicts on an image of a file and on its mirror image."""
    config = read_config(outputs.config)
    if not inner_test_set(config):
        raise RiemError('--tta: expected test_dataloader, found none; name the data to evaluate on')
    steps = pipeline_steps(config)
    augment(config)
    model = build_detector(config)
    model.eval()
    load_into(model, load_from_riem(str(outputs.riem))['state_dict'], outputs.riem)
    picture = outputs.riem.with_suffix('.png')
    cv2.imwrite(str(picture), procedural_images(1, SIDE, SIDE)[0].permute(1, 2, 0).numpy())
    sample = {'img_path': str(picture), 'img_id': 0, 'instances': [], 'height': SIDE, 'width': SIDE}
    if any(type_name(step) == 'LoadProposals' for step in steps):
        boxes = np.array([[0, 0, SIDE, SIDE], [SIDE // 4, SIDE // 4, SIDE // 2, SIDE // 2]], np.float32)
        sample['proposals'] = {'bboxes': boxes, 'scores': np.ones(len(boxes), np.float32)}
    with torch.no_grad(), guarded(model, 'predict on an image and its mirror image', remedy='evaluate without --tta'):
        (found,) = model.test_step(pseudo_collate([Compose(config.tta_pipeline)(sample)]))
    return 'yes' if found.pred_instances.bboxes.shape[1] == 4 else 'no boxes'


def _said(check: Callable[..., str], *arguments: Any) -> str:
    """What a check says, or in one line why it does not; an exception that gets away is marked."""
    try:
        return check(*arguments)
    except RiemError as error:
        return f'no: {error}'
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f'TRACEBACK {in_one_line(error)} ({Path(place.filename).name}:{place.lineno})'


def in_a_fork(path: Path, checks: dict[str, Callable] | None) -> dict[str, str]:
    """The row of a config, made in a process of its own, which ends in any case."""
    with tempfile.TemporaryDirectory() as work:
        result = Path(work) / 'row.json'
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            try:
                row = trial(path, Path(work), checks)
            except BaseException as error:  # told in the table
                row = {'config': path.name, 'default metric': f'TRACEBACK {type(error).__name__}: {str(error)[:200]}'}
                traceback.print_exc()
            result.write_text(json.dumps(row))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return json.loads(result.read_text()) if result.exists() else {'config': path.name, 'why': f'killed, {status}'}


def rows(
    only: list[str], part: tuple[int, int], known: dict[str, dict], checks: dict[str, Callable] | None
) -> Iterator[dict[str, str]]:
    for folder, path in list(stock_configs().items())[part[0] :: part[1]]:
        if (only and folder not in only) or folder in known:
            continue
        started = time.perf_counter()
        row = {'folder': folder, **in_a_fork(path, checks)}
        yield {**row, 'seconds': round(time.perf_counter() - started)}


def table(rows: list[dict[str, str]]) -> str:
    """The page: a line for each folder, and the reasons why something does not work, each once."""
    reasons: list[str] = []

    def cell(row: dict[str, str], key: str) -> str:
        told = row.get(key) or row.get('why') or 'not tried'
        if key in ('folder', 'config') or told.startswith(('yes', 'not tried')):
            return told
        reason = _general(told)
        if reason not in reasons:
            reasons.append(reason)
        return f'[{reasons.index(reason) + 1}](#reasons)'

    lines = ['| ' + ' | '.join(COLUMNS.values()) + ' |', '|---' * len(COLUMNS) + '|']
    for row in sorted(rows, key=lambda row: row['folder']):
        named = {'detector': '', 'weights': '', **row}
        cells = [named[key] if key in ('detector', 'weights') else cell(named, key) for key in COLUMNS]
        lines.append('| ' + ' | '.join(cells) + ' |')
    untried = len(stock_configs()) - len(rows)
    if untried:
        lines.append(f'\n{untried} folders have not been tried yet.')
    listed = [f'{number}. {reason}' for number, reason in enumerate(reasons, 1)]
    told = {'version': mmdet.__version__, 'share': SHARE, 'same': SAME, 'close': CLOSE}
    return INTRODUCTION.format(**told) + '\n'.join([*lines, '', '## Reasons', '', *listed]) + '\n'


def rows_of(page: str) -> list[dict[str, str]]:
    """The rows of a page that `table` has written; an empty page has none."""
    reasons = dict(re.findall(r'^(\d+)\. (.*)$', page, re.MULTILINE))
    named = re.compile(r'\[(\d+)\]\(#reasons\)')
    found = []
    for line in page.splitlines():
        cells = line.split('|')[1:-1] if line.startswith('| ') else []
        told = [named.sub(lambda number: f'no: {reasons[number[1]]}', cell.strip()) for cell in cells]
        if len(told) == len(COLUMNS) and told[0] != 'folder':
            found.append(dict(zip(COLUMNS, told)))
    return found


def _general(reason: str) -> str:
    """A reason without what is only of this machine and this run."""
    reason = reason.removeprefix('no: ').replace(f'{STOCK}/', '')
    reason = re.sub(r'^\S+\.onnx: ', 'ONNX: ', reason)
    reason = re.sub(r'(whose raw outputs are tensors, found) \w+', r'\1 another', reason)
    reason = re.sub(r', the current sys\.path is: .*?(?=, because)', '', reason)
    reason = re.sub(r'(?<![\w.])/[\w.+-]+(?:/[\w.+-]+)+', lambda found: Path(found[0]).name, reason)
    return reason.replace('|', '/').replace('<', '&lt;')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', nargs='+', default=[], metavar='FOLDER', help='folders to try (default: all)')
    parser.add_argument('--rows', type=Path, default=Path('work_dirs/configs.jsonl'), help='rows that are done')
    parser.add_argument('--onnx', action='store_true', help='also export to ONNX, which takes most of the time')
    parser.add_argument(
        '--part', type=int, nargs=2, default=(0, 1), metavar=('K', 'N'), help='every Nth folder from K on'
    )
    parser.add_argument('--table', type=Path, metavar='FILE', help='put the rows into this page, and try nothing')
    args = parser.parse_args()
    if args.table is not None:
        page = args.table.read_text() if args.table.exists() else ''
        made = [*rows_of(page), *map(json.loads, args.rows.read_text().splitlines())]
        args.table.write_text(table(list({row['folder']: row for row in made}.values())))
        return
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel('ERROR')
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    known = (
        {row['folder']: row for row in map(json.loads, args.rows.read_text().splitlines())}
        if args.rows.exists()
        else {}
    )
    with args.rows.open('a') as file:
        for row in rows(args.only, args.part, known, {'TTA': tta, **({'ONNX': onnx} if args.onnx else {})}):
            print(json.dumps(row), flush=True)
            file.write(json.dumps(row) + '\n')
            file.flush()


if __name__ == '__main__':
    main()
