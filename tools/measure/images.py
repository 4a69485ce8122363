"""What images are worth: EfficientNet-Lite0 compressed with procedural, synthetic and real images.

    python tools/measure/images.py DATA [--bits 3] [--steps 0 40] [--real 64] [--count 334]

DATA holds efficientnet_lite0.pth and val/CLASS/*.JPEG, a folder for each of the 1,000 classes in the order of their
names. Every third image is a candidate for --real, those after them are the ones that accuracies are measured on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmriem import compress
from mmriem.classification import LabelledImages, efficientnet_lite0, read_image_folder
from mmriem.engine.checkpoint import load_into, read_checkpoint
from mmriem.engine.command_line import run
from mmriem.visualization import command_and_machine, markdown

SIZE = 224
MEAN, STD = 127 / 255, 128 / 255
BATCH = 8
COLUMNS = {
    'images': '{}',
    'bits/weight': '{:.2f}',
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
    parser.add_argument('--count', type=int, default=334, help='images that accuracies are measured on')
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def every_third(data: LabelledImages, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Images ``(n, 3, 224, 224)`` number ``first``, ``first + 3`` and so on, normalised, and their classes."""
    images, labels = (values[first::3][:count] for values in data)
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, labels


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of all images, a few at a time."""
    return torch.cat([model(part) for part in images.split(BATCH)])


def divergence(found: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence of what is found from what is expected, logits ``(n, classes)``, in nats."""
    terms = nn.functional.kl_div(found.log_softmax(1), expected.log_softmax(1), log_target=True, reduction='none')
    return float(terms.sum(1).mean())


def measured(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, bits: float, threads: int, **how: Any
) -> dict[str, Any]:
    """A row of the table."""
    started, expected = time.perf_counter(), logits(model, images)
    budget = {'bits': bits} if bits else {}
    compressed = compress(model, **budget, **how, threads=threads)
    seconds = time.perf_counter() - started
    decoded = efficientnet_lite0().eval()
    decoded.load_state_dict(compressed.archive.decode())
    found, totals = logits(decoded, images), compressed.report['totals']
    return {
        'images': name,
        'bits/weight': totals['bits_per_weight'],
        'top-1': 100 * float((found.argmax(1) == labels).double().mean()),
        'as the original': 100 * float((found.argmax(1) == expected.argmax(1)).double().mean()),
        'KL': divergence(found, expected),
        'predicted error': totals['predicted_error'],
        'seconds': seconds,
    }


def main() -> None:
    """Measure what the command line names, and print the table."""
    args = parse_args()
    model = efficientnet_lite0().eval()
    checkpoint = str(args.data / 'efficientnet_lite0.pth')
    load_into(model, read_checkpoint(checkpoint).state_dict, checkpoint)
    data = read_image_folder(args.data / 'val', SIZE)
    images, labels = every_third(data, 1, args.count)
    before = 100 * float((logits(model, images).argmax(1) == labels).double().mean())
    made = dict(input_size=(3, SIZE, SIZE), mean=[MEAN] * 3, std=[STD] * 3)
    ways = [(f'{steps} steps' if steps else 'procedural', {**made, 'synthesis': steps}) for steps in args.steps]
    ways += [(f'{count} real', {'inputs': every_third(data, 0, count)[0]}) for count in args.real]
    rows = [
        measured(model, images, labels, name, bits, args.threads, **how) for bits in args.bits for name, how in ways
    ]
    print(command_and_machine())
    print(f'The original: {before:.1f} % of {len(labels)} images.\n\n{markdown(rows, COLUMNS)}')


if __name__ == '__main__':
    run(main)
