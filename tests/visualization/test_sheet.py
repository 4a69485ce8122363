"""Many images on one sheet, and that sheet in a page."""

import base64
import re

import cv2
import numpy as np
import pytest

from mmriem.visualization.sheet import ACROSS, GAP, MOST, SIDE, contact_sheet, sheet_tag


def plain(height, width, colour=(250, 0, 0)):
    return np.full((height, width, 3), colour, np.uint8)


def test_images_stand_in_rows_with_white_between_them():
    colours = [(20 * number, 0, 200) for number in range(ACROSS + 1)]
    sheet = contact_sheet([plain(10, 20, colour) for colour in colours])
    assert sheet.shape == (2 * (10 + GAP) + GAP, ACROSS * (20 + GAP) + GAP, 3)
    for number, colour in enumerate(colours):
        top, left = number // ACROSS * (10 + GAP) + GAP, number % ACROSS * (20 + GAP) + GAP
        assert (sheet[top : top + 10, left : left + 20] == colour).all()
        assert (sheet[top - GAP : top, left : left + 20] == 255).all()
    assert (sheet[10 + 2 * GAP :, 20 + 2 * GAP :] == 255).all()


def test_large_images_become_small_ones_of_the_same_shape_and_grey_ones_are_grey():
    sheet = contact_sheet([np.full((800, 400), 90, np.uint8), plain(30, 30)])
    assert sheet.shape == (SIDE + 2 * GAP, 2 * (SIDE // 2 + GAP) + GAP, 3)
    assert (sheet[GAP : GAP + SIDE, GAP : GAP + SIDE // 2] == 90).all()


@pytest.mark.parametrize('count', [MOST, MOST + 5])
def test_a_sheet_has_room_for_so_many(count):
    assert contact_sheet([plain(8, 8)] * count).shape[0] == MOST // ACROSS * (8 + GAP) + GAP


def test_the_tag_holds_the_sheet():
    tag = sheet_tag([plain(64, 64), plain(64, 64, (0, 0, 250))])
    data = re.fullmatch(r'<img [^>]*src="data:image/jpeg;base64,([^"]+)">', tag)[1]
    found = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(found.astype(int) - contact_sheet([plain(64, 64), plain(64, 64, (0, 0, 250))])).mean() < 6
