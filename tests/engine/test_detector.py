import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.apis import init_detector as mmdet_init_detector
from mmengine.config import Config

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.core.live.blank import BlankParameters
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector, dataset_meta, init_detector, with_teachers
from mmriem.engine.pipeline import inner_test_set


def test_build_reads_nothing(tiny_config):
    config = Config.fromfile(tiny_config)
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='/absent/resnet18.pth')
    assert build_detector(config).bbox_head.num_classes == 2


def test_same_detector_as_mmdet(riem_file, tiny_config, coco_data):
    ours = init_detector(Config.fromfile(tiny_config), riem_file)
    stock = mmdet_init_detector(str(tiny_config), str(riem_file), device='cpu')
    assert ours.dataset_meta == stock.dataset_meta and not ours.training
    image = str(coco_data / 'images' / '0.png')
    found, expected = (inference_detector(model, image).pred_instances for model in (ours, stock))
    assert torch.equal(found.bboxes, expected.bboxes) and torch.equal(found.scores, expected.scores)


def test_weights_that_stay_compressed_give_the_same_detections(riem_file, tiny_config, coco_data):
    dense = init_detector(Config.fromfile(tiny_config), riem_file)
    compressed = init_detector(Config.fromfile(tiny_config), riem_file, memory='compressed', cache='1MB')
    assert compressed.dataset_meta == dense.dataset_meta and not compressed.training
    names = {record.view.name for record in reading.read(riem_file).weights}
    assert names and names.isdisjoint(name for name, _ in compressed.named_parameters())
    for index in (0, 1, 0):
        image = str(coco_data / 'images' / f'{index}.png')
        found, expected = (inference_detector(model, image).pred_instances for model in (compressed, dense))
        torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.labels, expected.labels)
    assert compressed.backbone.conv1.riem.weight.decoded.held == 0


def test_what_cannot_stay_compressed_is_refused(riem_file, runner_checkpoint, tiny_config):
    config = Config.fromfile(tiny_config)
    with pytest.raises(RiemError, match=r"expected a .riem file for memory='compressed'"):
        init_detector(config, runner_checkpoint, memory='compressed')
    with pytest.raises(RiemError, match='memory: expected one of dense, compressed'):
        init_detector(config, riem_file, memory='little')
    config.model.neck.out_channels = config.model.bbox_head.in_channels = 16
    with pytest.raises(RiemError, match='does not fit'):
        init_detector(config, riem_file, memory='compressed')


def test_random_numbers_are_not_drawn_for_parameters_that_a_file_has():
    before = torch.get_rng_state()
    with BlankParameters():
        layer = torch.nn.Linear(300, 300)
        for draw in (torch.nn.init.kaiming_normal_, torch.nn.init.xavier_uniform_, torch.nn.init.uniform_):
            draw(layer.weight)
        assert torch.equal(torch.get_rng_state(), before)
        assert 2 <= float(torch.empty(5).uniform_(2, 3).min()) <= 3
    assert layer.weight.requires_grad and not torch.equal(torch.get_rng_state(), before)


def test_pth_and_a_wrong_config(runner_checkpoint, tiny_config):
    config = Config.fromfile(tiny_config)
    assert init_detector(config, runner_checkpoint).dataset_meta['classes'] == ('square', 'bar')
    config.model.neck.out_channels = config.model.bbox_head.in_channels = 16
    with pytest.raises(RiemError, match='does not fit'):
        init_detector(config, runner_checkpoint)


def test_build_leaves_the_config_as_it_was():
    config = read_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py')  # DINO writes to its bbox_head's settings
    before = config.pretty_text
    build_detector(config)
    assert config.pretty_text == before


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset', ''])
def test_what_the_test_set_says_is_read_without_building_it(wrapper):
    """Not even its class need be one that can be built."""
    dataset = dict(type='CocoPanopticDataset', ann_file='/no/such/file', pipeline=[dict(type='NoSuchStep')])
    wrapped = {
        'ConcatDataset': dict(type='ConcatDataset', datasets=[dataset, dataset]),
        'RepeatDataset': dict(type='RepeatDataset', times=2, dataset=dataset),
        '': dataset,
    }[wrapper]
    config = Config(dict(test_dataloader=dict(dataset=wrapped)))
    from mmdet.datasets import CocoPanopticDataset

    assert dataset_meta(config, {}) == CocoPanopticDataset.METAINFO
    assert dataset_meta(config, {'classes': ('a',)})['classes'] == ('a',)
    inner = inner_test_set(config)
    inner['metainfo'] = dict(classes=('b', 'c'))
    assert dataset_meta(config, {})['classes'] == ('b', 'c')


def test_classes_of_an_unknown_set_are_those_of_the_checkpoint(tmp_path):
    (tmp_path / 'classes.txt').write_text('one\ntwo\n')
    dataset = dict(type='NobodyKnowsIt', metainfo=dict(classes=str(tmp_path / 'classes.txt')))
    config = Config(dict(test_dataloader=dict(dataset=dataset)))
    assert dataset_meta(config, {}) == dict(classes=['one', 'two'], palette='random')
    assert dataset_meta(Config(dict()), {'classes': ('a',)}) == dict(classes=('a',), palette='random')


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(type='ResNeet'), r"found KeyError: 'ResNeet is not in the .* custom_imports"),
        (dict(type='ResNet', depth=18, nosuch=1), r"TypeError: .*unexpected keyword argument 'nosuch'"),
        (dict(type='mmpretrain.NoSuchNet'), r'mmpretrain'),
    ],
)
def test_models_that_cannot_be_built_are_one_error(model, message):
    with pytest.raises(RiemError, match=message) as caught:
        build_detector(Config(dict(model=model)))
    assert '\n' not in str(caught.value)


def test_a_teacher_is_built_from_its_config_without_its_checkpoint():
    """Its config is named relative to a checkout of mmdet, its checkpoint is on a server."""
    config = read_config('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    config.model.backbone.init_cfg = None
    assert config.model.teacher_ckpt.startswith('https://')
    told = with_teachers(config).model
    assert told.teacher_ckpt is None and told.teacher_config['model'].backbone.depth == 101
    assert config.model.teacher_config == 'configs/gfl/gfl_r101_fpn_ms-2x_coco.py'
    config.model.teacher_config = 'configs/gfl/nosuch.py'
    with pytest.raises(RiemError, match='mmdet ships no such config'):
        with_teachers(config)
