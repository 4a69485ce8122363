"""The RieM neck."""

import torch
from mmdet.models.necks import FPN
from mmdet.registry import MODELS

from mmriem.core.file.manifest import Source
from mmriem.core.live.module import LiveModule
from mmriem.core.pipeline.compress import compress
from mmriem.core.pipeline.settings import Settings

OPTIONS = dict(in_channels=[32, 48], out_channels=32, num_outs=3, norm_cfg=dict(type='BN'))


def features():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, c, s, s, generator=generator) for c, s in ((32, 16), (48, 8)))


def test_states_of_a_compressed_neck():
    stock = FPN(**OPTIONS)
    stock.init_weights()
    settings = Settings.of(representation='bilinear', ratio=0.5, exclude=('lateral_convs.0.*',))
    archive = compress(stock, settings, dataset_meta={}, source=Source('x.pth', '0' * 64)).archive
    stock.load_state_dict(archive.decode())
    neck = MODELS.build(dict(type='mmriem.RieMFPN', riem=dict(ratio=0.2), **OPTIONS))
    neck.load_state_dict(archive.decode())
    assert {key.split('.')[-1] for key in neck.state_dict() if '.riem.' in key} == {'q', 'p', 'dense'}
    with torch.no_grad():
        for found, expected in zip(neck.eval()(features()), stock.eval()(features())):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_initialised_by_its_own_rule():
    neck = MODELS.build(dict(type='mmriem.RieMFPN', riem=dict(representation='bilinear', ratio=0.4), **OPTIONS))
    neck.init_weights()
    conv = neck.fpn_convs[0].conv
    assert isinstance(conv, LiveModule)
    xavier = (2 / (9 * (32 + 32))) ** 0.5
    torch.testing.assert_close(conv.weight.std().item(), xavier, rtol=0.05, atol=0)
