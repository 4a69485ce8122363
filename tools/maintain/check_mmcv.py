#!/usr/bin/env python
"""Compare the ops of two builds of mmcv: every op that runs on a CPU, values and gradients, on random inputs.

    python tools/maintain/check_mmcv.py one.whl other.whl
    python tools/maintain/check_mmcv.py --build mmcv==2.1.0     # compiles it both ways first, `make check-mmcv`

Each argument is a wheel, or a folder that mmcv was installed into (`pip install --target`, `site-packages`). The builds
are run in processes of their own with the same seeds, and must agree in every bit. An op that only a GPU has is not
compared; that each op with code for the CPU is among those that are is read off mmcv's sources, which its wheels hold.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

SEEDS = 5
REGISTERED = re.compile(r'REGISTER_DEVICE_IMPL\(\s*(\w+?)_impl,\s*CPU')
NAMES = {
    'deformable_im2col': 'deform_conv_forward',
    'deformable_col2im': 'deform_conv_backward_input',
    'deformable_col2im_coord': 'deform_conv_backward_input',
    'modulated_deformable_im2col': 'modulated_deform_conv_forward',
    'modulated_deformable_col2im': 'modulated_deform_conv_backward',
    'modulated_deformable_col2im_coord': 'modulated_deform_conv_backward',
}
"""What the module calls an op whose registered name is another."""

Random = torch.Generator


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('builds', nargs='*', type=Path, metavar='BUILD', help='a wheel, or a folder that holds mmcv')
    parser.add_argument('--build', metavar='NAME==VERSION', help='build it the joined and the ordinary way instead')
    args = parser.parse_args(argv)
    if len(args.builds) != (0 if args.build else 2):
        parser.error('expected two builds, or --build with what to build')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    builds = [_built(args.build, way) for way in ('joined', 'ordinary')] if args.build else args.builds
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(build, Path(folder) / str(number)) for number, build in enumerate(builds)]
    problems = differences(*runs)
    for problem in problems:
        print(problem)
    values = sum(len(tensors) for tensors in runs[0]['results'].values())
    print(f'{len(runs[0]["results"])} cases, {values} tensors, {len(runs[0]["called"])} ops: ', end='')
    print('the builds differ' if problems else 'the builds agree in every bit')
    return 1 if problems else 0


def _built(requirement: str, way: str) -> Path:
    command = [sys.executable, str(Path(__file__).with_name('build_mmcv.py')), requirement, '--way', way]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def _run(build: Path, folder: Path) -> dict:
    """What a build computes, in a process that sees that build alone."""
    folder.mkdir()
    if build.is_file():
        zipfile.ZipFile(build).extractall(folder / 'site')
        build = folder / 'site'
    if not (build / 'mmcv').is_dir():
        sys.exit(f'{build}: expected a wheel of mmcv or a folder that holds it; there is no mmcv in it')
    path = os.pathsep.join([str(build.resolve()), str(Path(__file__).resolve().parent)])
    code = f'import check_mmcv; check_mmcv.record({str(folder / "out.pt")!r}, {str(build.resolve())!r})'
    subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': path}, check=True)
    return torch.load(folder / 'out.pt')


def differences(one: dict, other: dict) -> list[str]:
    """Sentences on what two recorded runs do not have in common, and on ops that no case calls."""
    found = [f'{name}: only one of the builds has it' for name in sorted(set(one['names']) ^ set(other['names']))]
    for case, tensors in one['results'].items():
        for number, (left, right) in enumerate(zip(tensors, other['results'][case])):
            if not _same(left, right):
                found.append(f'{case}: tensor {number} differs')
    for run in (one, other):
        found += [f'{name}: has code for the CPU, and no case calls it' for name in run['not_called']]
    return found


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()


def record(target: str, site: str) -> None:
    """Run all cases on the mmcv that Python finds, which must be the one under `site`, and save the results."""
    import mmcv._ext as ext
    import mmcv.ops

    if not Path(ext.__file__).is_relative_to(site):
        sys.exit(f'expected the compiled module under {site}, found {ext.__file__}')
    called: set[str] = set()
    _watch(ext, mmcv.ops, called)
    results = {}
    for case in CASES:
        for seed in range(SEEDS):
            outputs = case(mmcv.ops, torch.Generator().manual_seed(seed))
            results[f'{case.__name__} {seed}'] = [tensor.detach().clone() for tensor in outputs]
    sources = Path(mmcv.ops.__file__).parent / 'csrc' / 'pytorch' / 'cpu'
    wanted = {name for path in sources.glob('*.cpp') for name in REGISTERED.findall(path.read_text(encoding='utf-8'))}
    if not wanted:
        sys.exit(f'{sources}: expected the sources of the ops, found none; give a wheel that holds them')
    wanted = {NAMES.get(name, name) for name in wanted}
    names = [name for name in dir(ext) if not name.startswith('_')]
    torch.save(
        {'results': results, 'names': names, 'called': sorted(called), 'not_called': sorted(wanted - called)}, target
    )


def _watch(ext: object, ops: object, called: set[str]) -> None:
    """Note every call of a function of the compiled module: mmcv's Python files look it up as an attribute."""

    class Watched:
        def __getattr__(self, name: str):
            called.add(name)
            return getattr(ext, name)

    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            module.ext_module = Watched()


def gradients(outputs: Tensor, inputs: Sequence[Tensor], random: Random) -> list[Tensor]:
    """The outputs, and the gradient of each input for a random one of the outputs."""
    grad = torch.randn(outputs.shape, generator=random, dtype=outputs.dtype)
    return [outputs, *torch.autograd.grad(outputs, inputs, grad)]


def normal(random: Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=random, dtype=dtype)


def leaf(random: Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(random, *shape, dtype=dtype).requires_grad_()


def boxes(random: Random, count: int, size: float = 40) -> Tensor:
    """Corners (x1, y1, x2, y2), overlapping much."""
    start = torch.rand(count, 2, generator=random) * size
    return torch.cat([start, start + 1 + torch.rand(count, 2, generator=random) * size / 2], 1)


def rois(random: Random, count: int, batch: int) -> Tensor:
    image = torch.randint(batch, (count, 1), generator=random).float()
    return torch.cat([image, boxes(random, count)], 1)


def rotated(random: Random, count: int) -> Tensor:
    """Centre, width, height and angle in radians."""
    place = torch.rand(count, 2, generator=random) * 30
    size = 2 + torch.rand(count, 2, generator=random) * 20
    return torch.cat([place, size, (torch.rand(count, 1, generator=random) - 0.5) * 3], 1)


def quadrangles(random: Random, count: int) -> Tensor:
    """Four corners in order, of boxes that were pulled out of shape."""
    x1, y1, x2, y2 = boxes(random, count).T
    corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], 1)
    return corners + torch.rand(count, 8, generator=random) * 0.5


def bbox_overlaps(ops, random: Random) -> list[Tensor]:
    one, other = boxes(random, 30), boxes(random, 20)
    results = [ops.bbox_overlaps(one, other, mode, False, offset) for mode in ('iou', 'iof') for offset in (0, 1)]
    return [*results, ops.bbox_overlaps(one[:20], other, 'iou', True), ops.bbox_overlaps(one[:0], other)]


def nms(ops, random: Random) -> list[Tensor]:
    places, scores = boxes(random, 300), torch.rand(300, generator=random)
    scores[:20] = 0.5  # ties
    found = []
    for offset in (0, 1):
        for threshold in (0.1, 0.5, 0.9):
            found += ops.nms(places, scores, threshold, offset)
    groups = torch.randint(3, (300,), generator=random)
    found += ops.batched_nms(places, scores, groups, dict(type='nms', iou_threshold=0.5))
    return [*found, *ops.nms(places[:0], scores[:0], 0.5)]


def soft_nms(ops, random: Random) -> list[Tensor]:
    places, scores = boxes(random, 100), torch.rand(100, generator=random)
    found = []
    for method in ('naive', 'linear', 'gaussian'):
        found += ops.soft_nms(places, scores, 0.3, 0.5, 1e-3, method)
    return found


def nms_match(ops, random: Random) -> list[Tensor]:
    groups = ops.nms_match(torch.cat([boxes(random, 60), torch.rand(60, 1, generator=random)], 1), 0.4)
    return [torch.as_tensor(group) for group in groups]


def nms_rotated(ops, random: Random) -> list[Tensor]:
    places, scores = rotated(random, 80), torch.rand(80, generator=random)
    labels = torch.randint(3, (80,), generator=random)
    found = [*ops.nms_rotated(places, scores, 0.3), *ops.nms_rotated(places, scores, 0.1, clockwise=False)]
    return [*found, *ops.nms_rotated(places, scores, 0.3, labels)]


def nms_quadri(ops, random: Random) -> list[Tensor]:
    places, scores = quadrangles(random, 80), torch.rand(80, generator=random)
    return [*ops.nms_quadri(places, scores, 0.3), *ops.nms_quadri(places, scores, 0.1)]


def box_iou_rotated(ops, random: Random) -> list[Tensor]:
    one, other = rotated(random, 30), rotated(random, 30)
    return [
        ops.box_iou_rotated(one, other, mode, aligned, clockwise)
        for mode in ('iou', 'iof') for aligned in (False, True) for clockwise in (False, True)
    ]  # fmt: skip


def box_iou_quadri(ops, random: Random) -> list[Tensor]:
    one, other = quadrangles(random, 30), quadrangles(random, 30)
    return [ops.box_iou_quadri(one, other, mode, aligned) for mode in ('iou', 'iof') for aligned in (False, True)]


def roi_align(ops, random: Random) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        for mode in ('avg', 'max'):
            for ratio, aligned in ((0, True), (2, False)):
                features, places = leaf(random, 2, 3, 32, 32, dtype=dtype), rois(random, 12, 2).to(dtype)
                outputs = ops.roi_align(features, places, (7, 5), 0.5, ratio, mode, aligned)
                found += gradients(outputs, [features], random)
    return found


def roi_align_rotated(ops, random: Random) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        for ratio, aligned, clockwise in ((0, True, False), (2, False, True)):
            image = torch.randint(2, (12, 1), generator=random).float()
            places = torch.cat([image, rotated(random, 12)], 1).to(dtype)
            features = leaf(random, 2, 3, 32, 32, dtype=dtype)
            outputs = ops.roi_align_rotated(features, places, (7, 5), 0.5, ratio, aligned, clockwise)
            found += gradients(outputs, [features], random)
    return found


def bezier_align(ops, random: Random) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        for ratio, aligned in ((0, True), (2, False)):
            image = torch.randint(2, (6, 1), generator=random).float()
            curves = torch.cat([image, torch.rand(6, 16, generator=random) * 30], 1).to(dtype)
            features = leaf(random, 2, 3, 32, 32, dtype=dtype)
            found += gradients(ops.bezier_align(features, curves, (4, 8), 0.5, ratio, aligned), [features], random)
    return found


def rotated_feature_align(ops, random: Random) -> list[Tensor]:
    found = []
    for points in (1, 5):
        features, places = leaf(random, 2, 3, 8, 8), rotated(random, 2 * 8 * 8).view(2, 8, 8, 5)
        found += gradients(ops.rotated_feature_align(features, places, 0.5, points), [features], random)
    return found


def active_rotated_filter(ops, random: Random) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        filters = leaf(random, 4, 3, 8, 3, 3, dtype=dtype)
        indices = torch.randint(1, 73, (8, 3, 3, 8), generator=random, dtype=torch.int32)
        found += gradients(ops.active_rotated_filter(filters, indices), [filters], random)
    return found


def deform_conv(ops, random: Random) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        for groups, deform_groups, stride, dilation in ((1, 1, 1, 1), (2, 2, 2, 2)):
            features, weight = leaf(random, 2, 4, 11, 9, dtype=dtype), leaf(random, 6, 4 // groups, 3, 3, dtype=dtype)
            height, width = (size + 2 - 2 * dilation - 1 for size in (11, 9))
            height, width = height // stride + 1, width // stride + 1
            offset = leaf(random, 2, 18 * deform_groups, height, width, dtype=dtype)
            outputs = ops.deform_conv2d(features, offset, weight, stride, 1, dilation, groups, deform_groups, False, 2)
            found += gradients(outputs, [features, offset, weight], random)
    return found


def modulated_deform_conv(ops, random: Random) -> list[Tensor]:
    found = []
    for dtype in (torch.float32, torch.float64):
        for groups, deform_groups in ((1, 1), (2, 2)):
            features, weight = leaf(random, 2, 4, 9, 9, dtype=dtype), leaf(random, 6, 4 // groups, 3, 3, dtype=dtype)
            offset, mask = (
                leaf(random, 2, 18 * deform_groups, 9, 9, dtype=dtype),
                leaf(random, 2, 9 * deform_groups, 9, 9, dtype=dtype),
            )
            bias = leaf(random, 6, dtype=dtype)
            outputs = ops.modulated_deform_conv2d(features, offset, mask, weight, bias, 1, 1, 1, groups, deform_groups)
            found += gradients(outputs, [features, offset, mask, weight, bias], random)
    return found


def psamask(ops, random: Random) -> list[Tensor]:
    found = []
    for kind in ('collect', 'distribute'):
        features = leaf(random, 2, 15, 4, 6)
        found += gradients(ops.PSAMask(kind, (3, 5))(features), [features], random)
    return found


def pixel_group(ops, random: Random) -> list[Tensor]:
    score = torch.rand(20, 20, generator=random)
    label = torch.zeros(20, 20, dtype=torch.int32)
    label[2:5, 2:6], label[10:14, 9:15] = 1, 2
    contour = (torch.rand(20, 20, generator=random) > 0.5).to(torch.uint8) * (label > 0)
    mask, embedding = score > 0.2, torch.rand(20, 20, 4, generator=random)
    groups = ops.pixel_group(score, mask, embedding, label, contour.to(torch.uint8), 3, 0.8)
    return [torch.tensor(group) for group in groups]


def contour_expand(ops, random: Random) -> list[Tensor]:
    kernels = (torch.rand(3, 20, 20, generator=random) > 0.4).to(torch.uint8)
    labels = torch.zeros(20, 20, dtype=torch.int32)
    labels[2:5, 2:6], labels[10:14, 9:15] = 1, 2
    return [torch.tensor(ops.contour_expand(kernels, labels, 2, 3))]


def points_in_boxes(ops, random: Random) -> list[Tensor]:
    points = torch.rand(2, 200, 3, generator=random) * 10
    sizes = torch.rand(2, 6, 3, generator=random) * 6 + 1
    boxes_3d = torch.cat([torch.rand(2, 6, 3, generator=random) * 8, sizes, normal(random, 2, 6, 1)], 2)
    return [ops.points_in_boxes_cpu(points, boxes_3d)]


def voxelization(ops, random: Random) -> list[Tensor]:
    points = torch.rand(500, 4, generator=random) * 10
    found = [ops.voxelization(points, (1.0, 1.5, 2.0), (0, 0, 0, 9, 9, 9), -1, -1)]
    for many in (20, 2000):
        found += ops.voxelization(points, (1.0, 1.5, 2.0), (0, 0, 0, 9, 9, 9), 5, many)
    return found


CASES: tuple[Callable[..., list[Tensor]], ...] = (
    active_rotated_filter,
    bbox_overlaps,
    bezier_align,
    box_iou_quadri,
    box_iou_rotated,
    contour_expand,
    deform_conv,
    modulated_deform_conv,
    nms,
    nms_match,
    nms_quadri,
    nms_rotated,
    pixel_group,
    points_in_boxes,
    psamask,
    roi_align,
    roi_align_rotated,
    rotated_feature_align,
    soft_nms,
    voxelization,
)

if __name__ == '__main__':
    sys.exit(main())
