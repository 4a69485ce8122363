import cv2
import pytest

from mmriem.visualization import draw_curves


def rows(detectors):
    for detector in detectors:
        yield dict(detector=detector, method='original, fp32', bytes=1000, mAP=0.5)
        for method, gain in (('sigmoid', 0.1), ('bilinear', 0.0)):
            for size in (100, 200, 300):
                yield dict(detector=detector, method=method, bytes=size, mAP=gain + size / 1000)


@pytest.mark.parametrize('detectors', [['one'], ['one', 'two', 'three']])
def test_panels_side_by_side(tmp_path, detectors):
    draw_curves(list(rows(detectors)), tmp_path / 'picture.png')
    height, width, _ = cv2.imread(str(tmp_path / 'picture.png')).shape
    assert width / height == pytest.approx((1 + 3.6 * len(detectors)) / 3.8, rel=0.01)


def test_each_method_has_its_colour(tmp_path):
    draw_curves(list(rows(['one'])), tmp_path / 'picture.png')
    pixels = cv2.cvtColor(cv2.imread(str(tmp_path / 'picture.png')), cv2.COLOR_BGR2RGB).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == colour).all(1).sum() > 50


def test_same_rows_same_bytes(tmp_path):
    for name in ('a.png', 'b.png'):
        draw_curves(list(rows(['one'])), tmp_path / name)
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_names_are_those_that_are_given(tmp_path):
    for name, names in (
        ('a.png', {}),
        ('b.png', {'one': 'One'}),
        ('c.png', {'sigmoid': 'paper'}),
        ('d.png', {'x': 'y'}),
    ):
        draw_curves(list(rows(['one'])), tmp_path / name, names=names)
    without, *others = (cv2.imread(str(tmp_path / name)) for name in ('a.png', 'b.png', 'c.png', 'd.png'))
    assert [bool((without != other).any()) for other in others] == [True, True, False]
