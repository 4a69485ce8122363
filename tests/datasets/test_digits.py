"""The demo set: the same bytes every time, tight boxes, disjoint writers, valid COCO."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from mmriem.core.errors import RiemError
from mmriem.datasets import digits as d

SMALL = {'train': 3, 'val': 2}


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def small_set(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('set') / 'digits'
    assert d.write_digits(root, **SMALL)
    return root


# ---- determinism


def test_same_bytes_twice(small_set, tmp_path):
    d.write_digits(tmp_path / 'again', **SMALL)
    assert contents(tmp_path / 'again') == contents(small_set)


def test_pixels_are_pinned():
    digest = hashlib.sha256()
    for part in ('train', 'val'):
        for index in range(3):
            digest.update(d.draw_scene(part, index).image.tobytes())
    assert digest.hexdigest() == '1b5f90d19c5dca35afe77be0be529343b414f2356d2a38cdaff8e6746bc590db'


def test_smaller_set_is_the_beginning_of_a_larger_one(small_set, tmp_path):
    d.write_digits(tmp_path / 'less', train=1, val=2)
    less, more = contents(tmp_path / 'less'), contents(small_set)
    images = {name for name in less if name.startswith('images/')}
    assert images == {'images/train/000000.png', 'images/val/000000.png', 'images/val/000001.png'}
    assert all(less[name] == more[name] for name in images)


def test_seed_and_part_change_the_scene():
    scene = d.draw_scene('val', 0).image
    assert not np.array_equal(scene, d.draw_scene('val', 0, seed=1).image)
    assert not np.array_equal(scene, d.draw_scene('train', 0).image)


# ---- writers


def test_forms_repeat_one_sequence_of_labels():
    """What the split rests on: from every start on, the labels are those of the first form, a few missing."""
    labels = ''.join(map(str, load_digits().target))
    first = labels[: d.FORM_STARTS[1]]
    for start, end in zip(d.FORM_STARTS, (*d.FORM_STARTS[1:], len(labels))):
        assert difflib.SequenceMatcher(None, first, labels[start:end], autojunk=False).ratio() > 0.96


def test_parts_share_no_form():
    train, val = d.part_indices('train'), d.part_indices('val')
    assert train.start == 0 and val.stop == len(load_digits().target)
    assert train.stop in d.FORM_STARTS and val.start in d.FORM_STARTS
    assert val.start - train.stop >= 120  # one whole form between them


@pytest.mark.parametrize('part', ['train', 'val'])
def test_pools_hold_every_class_of_the_part_only(part):
    _, labels, pools = d._source(part)
    assert sorted(np.concatenate(pools)) == list(d.part_indices(part))
    assert all(len(pool) >= 30 and set(labels[pool]) == {c} for c, pool in enumerate(pools))


# ---- drawing


@settings(max_examples=40, deadline=None)
@given(
    sample=st.integers(0, 1796),
    height=st.floats(20, 60),
    aspect=st.floats(0.85, 1.15),
    half_tangent=st.floats(-0.13, 0.13),
)
def test_coverage_is_the_tight_part_of_what_torch_samples(sample, height, aspect, half_tangent):
    ink = load_digits().images[sample] / 16
    angle = 2 * np.arctan(half_tangent)
    side = int(1.5 * max(height, height * aspect)) + 4
    grid = torch.arange(side, dtype=torch.float64) + 0.5 - side / 2
    y, x = torch.meshgrid(grid, grid, indexing='ij')
    u = (np.cos(angle) * x - np.sin(angle) * y) / (height * aspect / 2)
    v = (np.sin(angle) * x + np.cos(angle) * y) / (height / 2)
    field = torch.nn.functional.grid_sample(
        torch.from_numpy(ink)[None, None], torch.stack([u, v], -1)[None], mode='bicubic', align_corners=False
    )
    full = ((field[0, 0] - 0.34) / 0.30).clamp(0, 1).numpy()
    x0, y0, width, hight = cv2.boundingRect((full >= 0.5).astype(np.uint8))
    patch = d.coverage(ink, height * aspect, height, half_tangent)
    if np.abs(full - 0.5).min() > 1e-9:  # no pixel so near the limit that rounding decides
        assert patch.shape == (hight, width)
        np.testing.assert_allclose(patch, full[y0 : y0 + hight, x0 : x0 + width], atol=1e-9)


def test_every_digit_can_be_drawn_smallest():
    for ink in load_digits().images / 16:
        height, width = d.coverage(ink, 17, 20).shape
        assert height >= 8 and width >= 3


@pytest.mark.parametrize('part', ['train', 'val'])
def test_boxes_are_what_was_painted(part, monkeypatch):
    painted = []
    paste = d.paste

    def watched(canvas, *args):
        before = canvas.copy()
        paste(canvas, *args)
        painted.append(cv2.boundingRect((np.abs(canvas - before).sum(2) > 0).astype(np.uint8)))

    monkeypatch.setattr(d, 'paste', watched)
    for index in range(20):
        painted.clear()
        scene = d.draw_scene(part, index)
        assert scene.image.shape == (160, 160, 3) and scene.image.dtype == np.uint8
        assert list(scene.boxes) == painted and len(scene.labels) == len(painted)
        assert 1 <= len(painted) <= 8
        for n, (x, y, w, h) in enumerate(scene.boxes):
            assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 160 and y + h <= 160
            assert all(_covered(scene.boxes[n], other) <= 0.1 for other in scene.boxes[:n])


def _covered(a, b) -> float:
    """Share of the smaller box that lies in the other, by counting pixels."""
    masks = np.zeros((2, 160, 160), bool)
    for mask, (x, y, w, h) in zip(masks, (a, b)):
        mask[y : y + h, x : x + w] = True
    return (masks[0] & masks[1]).sum() / min(masks[0].sum(), masks[1].sum())


def test_paste_blends_by_coverage():
    canvas = np.full((4, 5, 3), 100.0)
    d.paste(canvas, np.array([[0.0, 0.5, 1.0]]), (1, 2), np.array([200.0, 0.0, 100.0]))
    assert canvas[2].tolist() == [
        [100, 100, 100],
        [100, 100, 100],
        [150, 50, 100],
        [200, 0, 100],
        [100, 100, 100],
    ]
    assert (canvas[[0, 1, 3]] == 100).all()


# ---- files


def test_coco_reads_what_was_drawn(small_set):
    for part, count in SMALL.items():
        coco = COCO(small_set / 'annotations' / f'{part}.json')
        assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(d.CLASSES)
        assert len(coco.getImgIds()) == count
        for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
            scene = d.draw_scene(part, index)
            found = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
            assert [tuple(a['bbox']) for a in found] == list(scene.boxes)
            assert [a['category_id'] - 1 for a in found] == list(scene.labels)
            assert all(a['area'] == a['bbox'][2] * a['bbox'][3] and a['iscrowd'] == 0 for a in found)
            pixels = cv2.imread(str(small_set / 'images' / part / image['file_name']))
            np.testing.assert_array_equal(pixels, scene.image)


def test_second_call_writes_nothing(small_set):
    before = {p: p.stat().st_mtime_ns for p in small_set.rglob('*')}
    assert not d.write_digits(small_set, **SMALL)
    assert {p: p.stat().st_mtime_ns for p in small_set.rglob('*')} == before
    assert [p.name for p in small_set.parent.iterdir()] == ['digits']  # no scratch folder left


def distortion(root: Path, how: str) -> None:
    if how == 'changed image':
        (root / 'images/val/000000.png').write_bytes(b'x')
    elif how == 'missing image':
        (root / 'images/train/000001.png').unlink()
    elif how == 'extra file':
        (root / 'annotations/more.json').write_text('{}')
    else:
        (root / d.MANIFEST).write_text('[')


@pytest.mark.parametrize('how', ['changed image', 'missing image', 'extra file', 'broken manifest'])
def test_damaged_set_is_replaced_by_force_only(small_set, tmp_path, how):
    root = tmp_path / 'digits'
    d.write_digits(root, **SMALL)
    distortion(root, how)
    with pytest.raises(RiemError, match='--force'):
        d.write_digits(root, **SMALL)
    assert d.write_digits(root, **SMALL, force=True)
    assert contents(root) == contents(small_set)
    assert [p.name for p in tmp_path.iterdir()] == ['digits']


def test_other_settings_need_force(tmp_path):
    d.write_digits(tmp_path / 'digits', train=1, val=1)
    with pytest.raises(RiemError, match='other settings'):
        d.write_digits(tmp_path / 'digits', train=1, val=1, seed=1)
    assert d.write_digits(tmp_path / 'digits', train=1, val=1, seed=1, force=True)


@pytest.mark.parametrize('force', [False, True])
def test_foreign_folder_is_never_touched(tmp_path, force):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(RiemError, match='found something else'):
        d.write_digits(tmp_path, **SMALL, force=force)
    assert contents(tmp_path) == {'thesis.tex': b'precious'}


def test_failure_half_way_leaves_nothing(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        d.write_digits(tmp_path / 'digits', **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('bad', [{'train': 0}, {'val': -1}, {'seed': -1}, {'val': 1.5}, {'train': True}])
def test_bad_settings_are_refused(tmp_path, bad):
    with pytest.raises(RiemError, match=next(iter(bad))):
        d.write_digits(tmp_path / 'digits', **bad)
    assert list(tmp_path.iterdir()) == []


def test_manifest_counts_every_file(small_set):
    manifest = json.loads((small_set / d.MANIFEST).read_text())
    assert set(manifest['sha256']) == set(contents(small_set)) - {d.MANIFEST}
    assert manifest['settings'] == dict(format=1, image_size=160, seed=0, **SMALL)
