"""FLOPs, BOPs and bytes of a detector or classifier of a config, with the weights of a file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from rich.table import Table
from torch import Tensor, nn

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.file.archive import WeightRecord
from mmriem.core.images.procedural import procedural_images
from mmriem.core.live.complexity import complexity

from .checkpoint import load_into, read_checkpoint
from .detector import build_detector
from .probe import input_size
from .terminal import plain_console

__all__ = ['image_shape', 'measure_complexity', 'print_complexity']


def measure_complexity(
    config: Config,
    checkpoint: str | os.PathLike,
    shape: tuple[int, int],
    *,
    activation_bits: int = 32,
    trust: bool = False,
) -> dict[str, Any]:
    """Run the model of a config on one procedural image and count.

    The model runs as mmdet's own `get_flops.py` runs it, in mode `tensor`, and has the weights of the checkpoint: the
    number of proposals of a first stage depends on them.

    Args:
        config: as read by `mmriem.engine.config.read_config`.
        checkpoint: a `.riem` or `.pth` file.
        shape: height and width of the image, before the preprocessor pads it.
        activation_bits: see `mmriem.core.live.complexity.complexity`.
        trust: see `mmriem.engine.checkpoint.read_checkpoint`.

    Returns:
        What `mmriem.core.live.complexity.complexity` gives, with `file_bytes`, `input` (channels, height, width after
        padding) and `mmengine_flops`: what `mmengine.analysis` counts for the dense network, norms, activation
        functions and resampling included; None where it cannot follow the network, for the reason in `mmengine_error`.

    Raises:
        RiemError: the checkpoint cannot be read, or does not fit the config.
    """
    model = build_detector(config).eval()
    records: tuple[WeightRecord, ...] = ()
    if os.fspath(checkpoint).endswith('.riem'):
        archive = reading.read(checkpoint)
        records, state_dict = archive.weights, archive.decode()
    else:
        state_dict = read_checkpoint(checkpoint, trust=trust).state_dict
    load_into(model, state_dict, checkpoint)
    data = _one_image(model, shape)
    forward = partial(model.forward, data_samples=data.get('data_samples'), mode='tensor')
    report = complexity(model, lambda: forward(data['inputs']), records, activation_bits)
    flops, error = _mmengine_flops(model, forward, data['inputs'])
    return {
        'checkpoint': os.path.basename(checkpoint),
        'file_bytes': os.path.getsize(checkpoint),
        'input': list(data['inputs'].shape[1:]),
        **report,
        'mmengine_flops': flops,
        'mmengine_error': error,
    }


def image_shape(config: Config) -> tuple[int, int]:
    """Height and width that the test pipeline of a config scales images to.

    Raises:
        RiemError: it does not say.
    """
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    size = input_size([dict(step) for step in dataset.get('pipeline') or config.get('test_pipeline') or []])
    if size is None:
        raise RiemError('config: expected a step with a scale in the test pipeline, found none; give --shape H W')
    return size[1], size[0]


def print_complexity(report: Mapping[str, Any]) -> None:
    """A line for each weight, and the totals."""
    channels, height, width = report['input']
    title = f'{report["checkpoint"]}, {report["file_bytes"]:,} bytes; one image {channels}x{height}x{width}'
    table = Table(title=title, title_justify='left')
    for heading in ('weight', 'shape', 'representation', 'KB fp32', 'KB', *HEADINGS):
        text = heading in ('weight', 'representation')
        table.add_column(heading, justify='left' if text else 'right', no_wrap=heading == 'weight')
    for entry in report['weights']:
        shape = 'x'.join(map(str, entry['shape']))
        table.add_row(entry['name'], shape, entry['representation'], *_sizes(entry), *_operations(entry))
    table.add_section()
    other = report['totals']['other_flops']
    table.add_row('activations with each other', '', '', '', '', f'{other / 1e6:,.3f}', '', '', '', '', '')
    table.add_row('total', '', '', *_sizes(report['totals']), *_operations(report['totals']))
    console = plain_console(220)
    console.print(table)
    console.print(
        'MFLOPs: one is a million multiply-adds, or sigmoids. regenerated: made once at loading (making), then applied '
        f'as dense. matrix-free: made in each run, in blocks. GBOPs: times the bits of both numbers, '
        f'{report["activation_bits"]} of an activation.',
    )
    if report['mmengine_flops'] is None:
        console.print(f'mmengine.analysis cannot follow this network: {report["mmengine_error"]}')
    else:
        console.print(
            f'mmengine.analysis: {report["mmengine_flops"] / 1e6:,.3f} MFLOPs of the dense network, norms, activation '
            'functions and resampling included',
        )
    if report['not_counted']:
        console.print(f'no product seen of: {", ".join(report["not_counted"])}')


HEADINGS = ('MFLOPs dense', 'making', 'matrix-free', 'GBOPs dense', 'regenerated', 'matrix-free')


def _sizes(entry: Mapping[str, Any]) -> tuple[str, str]:
    return f'{entry["bytes_fp32"] / 1e3:,.1f}', f'{entry["bytes"] / 1e3:,.1f}'


def _operations(entry: Mapping[str, Any]) -> tuple[str, ...]:
    flops, bops = entry['flops'], entry['bops']
    millions = (flops['dense'], flops['regeneration'], flops['matrix_free'])
    billions = (bops['dense'], bops['product'], bops['matrix_free'])
    return *(f'{x / 1e6:,.3f}' for x in millions), *(f'{x / 1e9:,.3f}' for x in billions)


def _one_image(model: nn.Module, shape: tuple[int, int]) -> dict[str, Any]:
    """What the preprocessor of the model makes of a procedural image."""
    (image,) = procedural_images(1, *shape)
    mean = getattr(model.data_preprocessor, 'mean', None)
    if mean is not None and mean.numel() == 1:
        image = image[:1]
    data: dict[str, Any] = {'inputs': [image]}
    if hasattr(model, 'add_pred_to_datasample'):  # a detector of mmdet
        from mmdet.structures import DetDataSample

        said = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), img_id=0)
        data['data_samples'] = [DetDataSample(metainfo=said)]
    return cast(Callable[..., Any], model.data_preprocessor)(data, False)


def _mmengine_flops(model: nn.Module, forward: Any, inputs: Tensor) -> tuple[int | None, str | None]:
    """What `mmengine.analysis` counts, or why it does not."""
    model.forward = forward
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # of tracing
            analyser = FlopAnalyzer(model, inputs)
            return int(analyser.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()), None
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return None, str(error).strip().partition('\n')[0]
    finally:
        del model.forward
