"""tools/maintain/check_coco.py on small folders in COCO's layout."""

from __future__ import annotations

import json
import runpy

import cv2
import numpy as np
import pytest


@pytest.fixture
def coco(tmp_path):
    """A whole `data/coco` with three validation images."""
    root = tmp_path / 'data' / 'coco'
    (root / 'annotations').mkdir(parents=True)
    (root / 'val2017').mkdir()
    images = [dict(id=n, file_name=f'{n:012d}.jpg', width=8 + n, height=6) for n in range(3)]
    for image in images:
        cv2.imwrite(str(root / 'val2017' / image['file_name']), np.zeros((6, image['width'], 3), np.uint8))
    categories = [dict(id=n, name=str(n)) for n in range(80)]
    content = dict(images=images, annotations=[dict(id=1, image_id=0)], categories=categories)
    (root / 'annotations' / 'instances_val2017.json').write_text(json.dumps(content))
    return root


def test_a_whole_folder(call_here, tools, coco, capsys):
    assert call_here(tools / 'maintain' / 'check_coco.py') == 0
    printed = capsys.readouterr().out
    assert printed.startswith('val2017: complete, 3 images') and '1 annotations' in printed
    assert '3 images, COCO has 5,000; AP is not comparable' in printed and 'missing' not in printed


def test_training_needs_more(call_here, tools, coco, capsys):
    assert call_here(tools / 'maintain' / 'check_coco.py', coco, '--train') == 1
    printed = capsys.readouterr().out
    assert 'val2017: complete' in printed and 'train2017: incomplete' in printed
    assert 'instances_train2017.json: expected, found nothing' in printed and 'annotations_trainval2017.zip' in printed
    assert 'zips/train2017.zip' in printed


def test_missing_empty_and_odd_images(call_here, tools, coco, capsys):
    (coco / 'val2017' / '000000000000.jpg').unlink()
    (coco / 'val2017' / '000000000001.jpg').write_bytes(b'')
    cv2.imwrite(str(coco / 'val2017' / '000000000002.jpg'), np.zeros((5, 5, 3), np.uint8))
    assert call_here(tools / 'maintain' / 'check_coco.py', coco, '--samples', 0) == 1
    printed = capsys.readouterr().out
    assert 'expected 3 images, 2 are missing or empty (000000000000.jpg, 000000000001.jpg)' in printed
    assert '000000000002.jpg: expected an image of 10x6 pixels, found 5x5' in printed


def test_an_unreadable_image(call_here, tools, coco, capsys):
    (coco / 'val2017' / '000000000001.jpg').write_bytes(b'<html>not found</html>')
    assert call_here(tools / 'maintain' / 'check_coco.py', coco) == 1
    assert '000000000001.jpg: expected an image of 9x6 pixels, found no image' in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['.jpg', '.png'])
@pytest.mark.parametrize('share', [0.999, 0.9, 0.5])
def test_an_image_that_is_cut(call_here, tools, coco, capsys, kind, share):
    """Decoders fill in what is missing, so that its size is right."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    data = cv2.imencode(kind, noise)[1].tobytes()
    path = coco / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    content['images'] = [dict(id=0, file_name=f'noise{kind}', width=300, height=200)]
    path.write_text(json.dumps(content))
    image = coco / 'val2017' / f'noise{kind}'
    image.write_bytes(data)
    assert call_here(tools / 'maintain' / 'check_coco.py', coco) == 0
    image.write_bytes(data + b'appended by a camera')
    assert call_here(tools / 'maintain' / 'check_coco.py', coco) == 0
    image.write_bytes(data[: int(share * len(data))])
    assert call_here(tools / 'maintain' / 'check_coco.py', coco) == 1
    found = capsys.readouterr().out.splitlines()
    assert any(f'noise{kind}: expected an image of 300x200 pixels, found ' in line for line in found)


def test_the_end_of_a_thumbnail_is_not_that_of_the_image(tools):
    is_cut = runpy.run_path(str(tools / 'maintain' / 'check_coco.py'))['is_cut']
    data = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    thumbnail = b'\xff\xe1' + (2 + len(data)).to_bytes(2, 'big') + data
    whole = data[:2] + thumbnail + data[2:]
    assert not is_cut(data) and not is_cut(whole)
    assert is_cut(data[:-1]) and is_cut(whole[:-1]) and is_cut(data[:2]) and is_cut(data[:30])


@pytest.mark.parametrize('text', ['{', '[]', '{"images": [{}], "annotations": [], "categories": []}'])
def test_damaged_annotations(call_here, tools, coco, capsys, text):
    (coco / 'annotations' / 'instances_val2017.json').write_text(text)
    assert call_here(tools / 'maintain' / 'check_coco.py', coco) == 1
    assert 'expected COCO annotations, found others' in capsys.readouterr().out


def test_another_set_of_categories_is_a_note(call_here, tools, coco, capsys):
    path = coco / 'annotations' / 'instances_val2017.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'categories': [dict(id=1, name='cell')]}))
    assert call_here(tools / 'maintain' / 'check_coco.py', coco) == 0
    assert 'note: ' in (printed := capsys.readouterr().out) and '1 categories' in printed


def test_no_folder_and_a_wrong_number(call_here, tools, coco):
    assert 'absent: expected the COCO folder, found none' in call_here(tools / 'maintain' / 'check_coco.py', 'absent')
    assert call_here(tools / 'maintain' / 'check_coco.py', coco, '--samples', '-1') == 2
