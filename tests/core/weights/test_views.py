"""Weight views against loops and convolutions, and which weights are found in real modules."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.weights.views import LAYOUTS, WeightView, find_weights, parameter_owners


class Attention(nn.Module):
    """A packed projection, a bias table, a position embedding, an index buffer."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4)
        self.relative_position_bias_table = nn.Parameter(torch.rand(169, 8))
        self.position = nn.Parameter(torch.rand(1, 49, 32))
        self.token = nn.Parameter(torch.rand(1, 1, 1024))
        self.register_buffer('mean', torch.rand(64, 64))
        self.counts = nn.Parameter(torch.zeros(64, 64, dtype=torch.int64), requires_grad=False)


def only(module, **options):
    (view,) = find_weights(module, **options)
    return view


@pytest.mark.parametrize(
    ('module', 'matrix_shape'),
    [
        (nn.Linear(40, 30), (30, 40)),
        (nn.Conv1d(16, 8, 5), (8, 80)),
        (nn.Conv2d(16, 32, 3), (32, 144)),
        (nn.Conv2d(16, 32, 3, groups=4), (32, 36)),
        (nn.Conv2d(64, 64, 3, groups=64), (64, 9)),
        (nn.Conv3d(4, 8, 3), (8, 108)),
        (nn.ConvTranspose1d(16, 8, 5), (8, 80)),
        (nn.ConvTranspose2d(16, 32, 3), (32, 144)),
        (nn.ConvTranspose2d(16, 32, 3, groups=4), (32, 36)),
        (nn.ConvTranspose3d(4, 8, 3), (8, 108)),
        (nn.Embedding(100, 24), (100, 24)),
        (nn.Bilinear(8, 9, 10), (10, 72)),
    ],
    ids=lambda value: str(value),
)
def test_matrix_shape_of_each_kind_of_layer(module, matrix_shape):
    assert only(module).matrix_shape == matrix_shape


def test_grouped_convolution_is_the_matrix_times_the_columns_of_its_input():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, groups=2, bias=False)
    matrix = only(conv, min_numel=1).to_matrix(conv.weight)  # (12, 4 * 9)
    image = torch.rand(1, 8, 6, 6)
    columns = F.unfold(image, 3).reshape(2, 36, 16)  # (groups, in, positions)
    expected = torch.cat([matrix[:6] @ columns[0], matrix[6:] @ columns[1]]).reshape(1, 12, 4, 4)
    torch.testing.assert_close(conv(image), expected)


@pytest.mark.parametrize('groups', [1, 2, 3])
def test_transposed_convolution_has_one_row_per_output_channel(groups):
    deconv = nn.ConvTranspose2d(6, 12, (2, 3), groups=groups)
    weight = deconv.weight  # (in, out / groups, 2, 3)
    matrix = only(deconv, min_numel=1).to_matrix(weight)
    inputs, outputs = 6 // groups, 12 // groups
    for group, o in itertools.product(range(groups), range(outputs)):
        positions = [weight[group * inputs + i, o].flatten() for i in range(inputs)]
        assert torch.equal(matrix[group * outputs + o], torch.cat(positions))


@st.composite
def views(draw):
    layout = draw(st.sampled_from(LAYOUTS))
    sizes = st.integers(1, 5)
    if layout == 'in_first':
        groups = draw(st.integers(1, 3))
        shape = (groups * draw(sizes), draw(sizes), *draw(st.lists(sizes, max_size=3)))
        return WeightView('w', shape, layout, groups)
    shape = (draw(sizes), draw(sizes), *draw(st.lists(sizes, max_size=3)))
    if layout == 'unit_first':
        shape = (*[1] * draw(st.integers(1, 2)), shape[0] + 1, *shape[1:])
    return WeightView('w', shape, layout)


@settings(max_examples=60, deadline=None)
@given(views())
def test_from_matrix_inverts_to_matrix(view):
    tensor = torch.arange(torch.Size(view.shape).numel(), dtype=torch.float32).reshape(view.shape)
    matrix = view.to_matrix(tensor)
    assert matrix.shape == view.matrix_shape and matrix.dtype == torch.float32
    assert torch.equal(view.from_matrix(matrix), tensor)


def test_matrices_are_float32_and_differentiable():
    view = WeightView('w', (4, 2, 3, 3), 'in_first', 2)
    parameter = torch.rand(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    matrix = view.to_matrix(parameter)
    assert matrix.dtype == torch.float32
    (view.from_matrix(matrix) ** 2).sum().backward()
    torch.testing.assert_close(parameter.grad, 2 * parameter.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ('fields', 'found'),
    [
        ({'shape': (5,)}, r'\(5,\)'),
        ({'shape': (5, 0)}, r'\(5, 0\)'),
        ({'shape': (4, 4), 'layout': 'diagonal'}, 'diagonal'),
        ({'shape': (4, 4), 'groups': 0}, '0 groups'),
        ({'shape': (4, 4), 'groups': 2}, '2 groups'),
        ({'shape': (5, 4, 3), 'layout': 'in_first', 'groups': 2}, '2 groups'),
        ({'shape': (2, 4, 3), 'layout': 'unit_first'}, 'unit_first'),
        ({'shape': (1, 1, 3), 'layout': 'unit_first'}, 'unit_first'),
        ({'shape': (1, 1, 1), 'layout': 'unit_first'}, 'unit_first'),
    ],
)
def test_contradicting_fields_are_refused(fields, found):
    with pytest.raises(RiemError, match=f"'layer.weight'.*{found}"):
        WeightView('layer.weight', **fields)


def test_tensors_of_another_shape_are_refused():
    view = WeightView('w', (4, 6))
    with pytest.raises(RiemError, match=r'expected shape \(4, 6\), found \(6, 4\)'):
        view.to_matrix(torch.zeros(6, 4))
    with pytest.raises(RiemError, match=r'expected a matrix \(4, 6\), found \(24,\)'):
        view.from_matrix(torch.zeros(24))


def test_weights_of_an_attention_layer():
    found = {view.name: (view.layout, view.matrix_shape) for view in find_weights(Attention())}
    assert found == {
        'relative_position_bias_table': ('out_first', (169, 8)),
        'position': ('unit_first', (49, 32)),
        'attention.in_proj_weight': ('out_first', (96, 32)),
        'attention.out_proj.weight': ('out_first', (32, 32)),
    }


def test_small_and_single_row_or_column_weights_stay_dense():
    model = nn.ModuleDict(
        {
            'row': nn.Conv2d(600, 1, 1),
            'column': nn.Conv2d(1, 600, 1),
            'small': nn.Linear(16, 31),
            'enough': nn.Linear(16, 32),
            'norm': nn.BatchNorm2d(600),
        }
    )
    assert [view.name for view in find_weights(model)] == ['enough.weight']
    assert [view.name for view in find_weights(model, min_numel=1)] == ['small.weight', 'enough.weight']


def test_views_come_in_state_dict_order_with_the_parameter_dtype():
    model = nn.Sequential(Attention(), nn.Linear(32, 32), nn.Conv2d(8, 8, 3)).half()
    names = [view.name for view in find_weights(model)]
    assert names == [key for key in model.state_dict() if key in names]
    assert {view.dtype for view in find_weights(model)} == {torch.float16}


def test_shared_parameters_come_once_with_aliases():
    shared, words = nn.Conv2d(16, 16, 3), nn.Embedding(100, 24)
    last = nn.Linear(24, 100, bias=False)
    model = nn.ModuleDict({'a': shared, 'b': nn.Sequential(shared), 'words': words, 'last': last})
    last.weight = words.weight
    found = [(view.name, view.aliases) for view in find_weights(model)]
    assert found == [('a.weight', ('b.0.weight',)), ('words.weight', ('last.weight',))]
    assert [owner.name for owner in parameter_owners(model)] == list(model.state_dict())


def test_owners_can_be_replaced_in_place():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5)))
    owners = list(parameter_owners(model))
    assert [owner.name for owner in owners] == list(model.state_dict())
    for owner in owners:
        assert getattr(owner.module, owner.attribute) is model.get_parameter(owner.name)


@pytest.mark.parametrize(
    ('include', 'exclude', 'expected'),
    [
        (('*',), (), ['backbone.0.weight', 'backbone.1.weight', 'neck.weight', 'head.weight']),
        (('backbone.*', 'neck.*'), (), ['backbone.0.weight', 'backbone.1.weight', 'neck.weight']),
        (('*',), ('backbone.*',), ['neck.weight', 'head.weight']),
        (('backbone.*',), ('*.1.*',), ['backbone.0.weight']),
        (('*',), ('*.bias',), ['backbone.0.weight', 'backbone.1.weight', 'neck.weight', 'head.weight']),
        (('shared.weight',), (), ['neck.weight']),
        (('*',), ('shared.*',), ['backbone.0.weight', 'backbone.1.weight', 'head.weight']),
    ],
)
def test_patterns(include, exclude, expected):
    assert [view.name for view in find_weights(detector(), include, exclude)] == expected


def detector():
    neck = nn.Conv2d(16, 16, 3)
    backbone = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3))
    return nn.ModuleDict({'backbone': backbone, 'neck': neck, 'head': nn.Linear(32, 32), 'shared': neck})


@pytest.mark.parametrize(('option', 'pattern'), [('include', 'bakbone.*'), ('include', '*.bias'), ('exclude', 'nek.*')])
def test_a_pattern_without_a_match_is_an_error_that_names_close_keys(option, pattern):
    with pytest.raises(RiemError) as raised:
        find_weights(detector(), **{option: ('*', pattern) if option == 'include' else (pattern,)})
    message = str(raised.value)
    assert option in message and repr(pattern) in message and '\n' not in message
    assert {'bakbone.*': 'backbone.0.weight', '*.bias': '.weight', 'nek.*': 'neck.'}[pattern] in message
