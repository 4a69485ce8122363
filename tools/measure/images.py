"""What images are worth: EfficientNet-Lite0 compressed with procedural, synthetic and real images.

    python tools/measure/images.py DATA [--bits 3] [--steps 0 40] [--real 64] [--count 666]

DATA holds efficientnet_lite0.pth and val/CLASS/*.JPEG, a folder for each of the 1,000 classes in the order of their
names. Every third image is a candidate for --real, accuracies are measured on the others. Seconds of the first row of
each kind of images are those of the metric, too; those of making the images are told beside the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmriem.classification import LabelledImages, efficientnet_lite0, read_image_folder
from mmriem.core.errors import RiemError
from mmriem.core.execution.executor import Executor
from mmriem.core.file.manifest import Source
from mmriem.core.images.probe import ImageProbe, Probe, batch_size
from mmriem.core.pipeline.ladder import climb
from mmriem.core.pipeline.settings import Budget, Settings
from mmriem.engine.checkpoint import load_into, read_checkpoint
from mmriem.engine.command_line import run
from mmriem.image_probe import InputFormat, made_probe
from mmriem.visualization import command_and_machine, markdown

SIZE = 224
MEAN, STD = 127 / 255, 128 / 255
BATCH = 8
COLUMNS = {
    'images': '{}',
    'bits/weight': '{:.2f}',
    'KB': '{:,.0f}',
    'top-1': '{:.1f}',
    'as the original': '{:.1f}',
    'KL': '{:.3f}',
    'predicted error': '{:.3f}',
    'seconds': '{:.0f}',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='folder of the network and its images')
    parser.add_argument('--bits', nargs='*', type=float, default=[3.0], help='0: the default')
    parser.add_argument('--steps', nargs='*', type=int, default=[0, 40], help='of synthesis; 0: procedural images')
    parser.add_argument('--real', nargs='*', type=int, default=[64], help='numbers of real images')
    parser.add_argument('--count', type=int, default=666, help='images that accuracies are measured on')
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def every_third(data: LabelledImages, count: int) -> Tensor:
    """The first of every three images, normalised ``(n, 3, 224, 224)``: those that the network may be run on."""
    return normalised(data.images[::3][:count])


def others(data: LabelledImages, count: int) -> tuple[Tensor, Tensor]:
    """The images between them, of which the first ``count``, and their classes."""
    chosen = torch.arange(len(data.labels)) % 3 > 0
    return normalised(data.images[chosen][:count]), data.labels[chosen][:count]


def normalised(images: Tensor) -> Tensor:
    """Of uint8 ``(n, 224, 224, 3)``."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of all images, a few at a time."""
    return torch.cat([model(part) for part in images.split(BATCH)])


def divergence(found: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence of what is found from what is expected, logits ``(n, classes)``, in nats."""
    terms = nn.functional.kl_div(found.log_softmax(1), expected.log_softmax(1), log_target=True, reduction='none')
    return float(terms.sum(1).mean())


def measured(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, probe: Probe, bits: Sequence[float], threads: int
) -> Iterator[dict[str, Any]]:
    """Rows of the table, for files of several sizes that the network is run for once."""
    started, expected = time.perf_counter(), logits(model, images)
    budgets = [Budget(bits=rate) if rate else Budget() for rate in bits]
    source = Source('efficientnet_lite0.pth', '0' * 64)
    rungs = climb(model, Settings.of(), budgets, probe=probe, threads=threads, dataset_meta={}, source=source)
    for rung in rungs:
        seconds = time.perf_counter() - started
        if rung.compressed is None:
            raise RiemError(rung.refused)
        decoded = efficientnet_lite0().eval()
        decoded.load_state_dict(rung.compressed.archive.decode())
        found, totals = logits(decoded, images), rung.compressed.report['totals']
        yield {
            'images': name,
            'bits/weight': totals['bits_per_weight'],
            'KB': totals['bytes'] / 1e3,
            'top-1': 100 * float((found.argmax(1) == labels).double().mean()),
            'as the original': 100 * float((found.argmax(1) == expected.argmax(1)).double().mean()),
            'KL': divergence(found, expected),
            'predicted error': totals['predicted_error'],
            'seconds': seconds,
        }
        started = time.perf_counter()


def main() -> None:
    """Measure what the command line names, and print the table."""
    args = parse_args()
    model = efficientnet_lite0().eval()
    checkpoint = str(args.data / 'efficientnet_lite0.pth')
    load_into(model, read_checkpoint(checkpoint).state_dict, checkpoint)
    data = read_image_folder(args.data / 'val', SIZE)
    images, labels = others(data, args.count)
    before = 100 * float((logits(model, images).argmax(1) == labels).double().mean())
    taken, executor = InputFormat.told((3, SIZE, SIZE), [MEAN] * 3, [STD] * 3), Executor(args.threads)
    rows = []
    for steps in args.steps:
        started = time.perf_counter()
        probe = made_probe(model, taken, steps, executor=executor)
        name = f'{probe.images} synthetic' if steps else f'{probe.images} procedural'
        tell(f'{name}: {time.perf_counter() - started:.0f} s')
        rows += measured(model, images, labels, name, probe, args.bits, args.threads)
    for count in args.real:
        probe = ImageProbe(every_third(data, count), batch_size(SIZE, SIZE))
        rows += measured(model, images, labels, f'{probe.images} real', probe, args.bits, args.threads)
    print(command_and_machine())
    print(f'The original: {before:.1f} % of {len(labels)} images.\n\n{markdown(rows, COLUMNS)}')


def tell(line: str) -> None:
    """Print a line beside the table."""
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    run(main)
