import pytest
import torch
from safetensors import safe_open
from torch import nn

from mmriem.benchmark.method import complete, floating_tensors
from mmriem.benchmark.methods import METHODS, MinMax, Rounding, Svd, folding_pairs, get_method
from mmriem.core.errors import RiemError
from mmriem.core.weights.views import find_weights


class Net(nn.Module):
    """Convolutions with norms, one transposed and one grouped, a linear layer used twice, a scalar, a counter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 64, 3, groups=4, bias=False)
        self.grouped_norm = nn.BatchNorm2d(64)
        self.up = nn.ConvTranspose2d(64, 20, 2, bias=False)
        self.up_norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 30)
        self.same_head = self.head
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer('count', torch.tensor(3))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.grouped_norm(self.grouped(x)).relu()
        return self.scale * self.same_head(self.up_norm(self.up(x)).mean((2, 3)))


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    model = Net()
    for norm in (model.norm, model.grouped_norm, model.up_norm):
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean, 0, 0.1)
        nn.init.uniform_(norm.running_var, 0.1, 0.4)
    return model.eval()


FINE = {
    'fp16': {},
    'rounding': dict(bits=8),
    'minmax': dict(bits=8),
    'svd': dict(bits=30),
    'hqq': dict(bits=8),
    'nncodec': dict(qp=-50, bnf=True),
    'mmriem': dict(representation='bilinear', bits=24),
}


def installed(name):
    method = METHODS[name]
    return pytest.param(name, marks=pytest.mark.skipif(not method.is_installed(), reason=method.install))


def coded(name, setting, model, path):
    method = METHODS[name]()
    method.prepare()
    method.encode(model, setting, path)
    torch.manual_seed(1)
    return method.decode(path, Net())


@pytest.mark.parametrize('name', [installed(name) for name in FINE])
def test_a_fine_setting_keeps_the_output(net, name, tmp_path):
    state_dict = coded(name, FINE[name], net, tmp_path / 'file')
    assert list(state_dict) == list(net.state_dict())
    assert state_dict['same_head.weight'].data_ptr() == state_dict['head.weight'].data_ptr()
    decoded = Net().eval()
    decoded.load_state_dict(state_dict)
    x = torch.randn(4, 3, 8, 8)
    assert (decoded(x) - net(x)).norm() < 0.02 * net(x).norm()


@pytest.mark.parametrize(
    ('name', 'setting'),
    [
        ('rounding', dict(bits=3)),
        ('minmax', dict(bits=3)),
        ('svd', dict(bits=3)),
        ('hqq', dict(bits=3)),
        ('nncodec', {}),
    ],
)
def test_a_coarse_setting_is_smaller_and_worse(net, name, setting, tmp_path):
    if not METHODS[name].is_installed():
        pytest.skip(METHODS[name].install)
    setting = setting or dict(qp=-20)
    errors, sizes = [], []
    for number, each in enumerate((setting, FINE[name])):
        state_dict = coded(name, each, net, tmp_path / f'{number}')
        errors.append((state_dict['grouped.weight'] - net.grouped.weight).norm())
        sizes.append((tmp_path / f'{number}').stat().st_size)
    assert errors[0] > 2 * errors[1] and sizes[0] < sizes[1]


@pytest.mark.parametrize('bits', [2, 3, 5])
def test_rounding_takes_the_bytes_that_it_claims(net, bits, tmp_path):
    coded('rounding', dict(bits=bits), net, tmp_path / 'file')
    shapes = [view.matrix_shape for view in find_weights(net)]
    assert shapes == [(32, 27), (64, 72), (20, 256), (30, 20)]
    with safe_open(tmp_path / 'file', 'pt') as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118
    assert sizes['payload'] == sum(2 * rows + (rows * columns * bits + 7) // 8 for rows, columns in shapes)
    assert sizes['half'] + sizes['single'] // 2 == 2 * (4 * (32 + 64 + 20) + 30 + 1)
    assert (tmp_path / 'file').stat().st_size < sum(sizes.values()) + 600


def test_rounding_by_hand():
    matrix = torch.tensor([[3.0, -1.4, 0.2, 1.6], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[3.0, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(unpacked(Rounding(), matrix, bits=3), expected)


def test_minmax_by_hand():
    matrix = torch.tensor([[0.0, 1.0, 2.4, 3.0], [-1.0, -1.0, 0.0, 5.0]])
    expected = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-1.0, -1.0, -1.0, 5.0]])
    assert torch.equal(unpacked(MinMax(), matrix, bits=2), expected)
    assert len(MinMax().pack(matrix, bits=2)) == 2 * 4 + 2


@pytest.mark.parametrize(('bits', 'rank'), [(0.1, 1), (4.0, 6), (100.0, 24)])
def test_svd_keeps_the_rank_that_the_bits_allow(bits, rank):
    torch.manual_seed(0)
    matrix = torch.randn(24, 40)  # a column takes 8 * (24 + 40) + 64 = 576 bits of 960 for each bit per weight
    payload = Svd().pack(matrix, bits)
    assert len(payload) == rank * 576 // 8
    found = unpacked(Svd(), matrix, bits=bits)
    left, values, right = torch.linalg.svd(matrix)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    assert (found - best).norm() < 0.02 * matrix.norm()


def unpacked(method, matrix, **setting):
    from mmriem.core.coding.packing import PayloadReader

    payload = method.pack(matrix, **setting)
    return method.unpack(PayloadReader(payload, len(payload)), tuple(matrix.shape), **setting)


@pytest.mark.parametrize('name', [installed('hqq')])
def test_hqq_pads_what_does_not_split_into_groups(name):
    method = METHODS[name]()
    method.prepare()
    torch.manual_seed(0)
    matrix = torch.randn(10, 13)
    assert len(method.pack(matrix, bits=3, group=64)) == 3 * 4 + 3 * 64 * 3 // 8
    assert (unpacked(method, matrix, bits=8, group=64) - matrix).abs().max() < 0.05


def test_norms_fold_into_the_convolution_before_them(net):
    assert folding_pairs(net) == {'conv': 'norm', 'grouped': 'grouped_norm'}
    shared = nn.Module()
    shared.a = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    shared.b = nn.Sequential(shared.a[0], nn.BatchNorm2d(4))
    shared.c = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=1e-3))
    shared.d = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert folding_pairs(shared) == {}


@pytest.mark.parametrize('name', [installed('nncodec')])
def test_folded_norms_take_less(net, name, tmp_path):
    for bnf in (False, True):
        coded(name, dict(qp=-30, bnf=bnf), net, tmp_path / f'{bnf}')
    assert (tmp_path / 'True').stat().st_size < (tmp_path / 'False').stat().st_size


def test_complete_shares_tensors_and_keeps_buffers(net):
    assert floating_tensors(net)['head.weight'] == ('head.weight', 'same_head.weight')
    state_dict = complete(net, {key: net.state_dict()[key].flatten() + 1 for key in floating_tensors(net)})
    assert state_dict['same_head.weight'] is state_dict['head.weight']
    assert int(state_dict['count']) == 3 and float(state_dict['scale'].detach()) == 2.5


def test_unknown_method():
    with pytest.raises(RiemError, match=r"method 'zip': expected one of fp16, rounding"):
        get_method('zip')
