import numpy as np
import pytest

from mmriem.visualization.side_by_side import BAR, COLOURS, GAP, LEAST, MOST, Drawn, side_by_side


@pytest.mark.parametrize(
    'shape, size', [((40, 80), (LEAST // 2, LEAST)), ((50, 50, 3), (LEAST, LEAST)), ((2000, 500, 3), (MOST, MOST // 4))]
)
def test_two_pictures_of_a_size_that_can_be_read(shape, size):
    picture = side_by_side(np.zeros(shape, np.uint8), ('a', 'b'))
    assert picture.shape == (size[0] + BAR, 2 * size[1] + GAP, 3)
    assert picture.dtype == np.uint8


def test_boxes_have_the_colour_of_their_kind_on_their_side():
    image = np.zeros((LEAST, LEAST, 3), np.uint8)
    box = (100, 200, 300, 400)
    picture = side_by_side(image, ('a', 'b'), ([Drawn(box, 'cat', 'missed')], [Drawn(box, 'käse', 'new')]))
    left, right = picture[BAR:, :LEAST], picture[BAR:, LEAST + GAP :]
    for half, kind in ((left, 'missed'), (right, 'new')):
        assert tuple(half[300, 100]) == tuple(half[400, 200]) == COLOURS[kind]
        assert tuple(half[300, 200]) == (0, 0, 0)
