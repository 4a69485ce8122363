"""tools/export.py: stock checkpoints and ONNX models of .riem files."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mmdet.apis import init_detector

from mmriem.core.errors import RiemError
from mmriem.core.file import reading
from mmriem.engine.config import read_config
from mmriem.engine.detector import build_detector
from mmriem.engine.export import RawOutputs, write_onnx
from mmriem.engine.onnx_weights import store_weights

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ('onnx', 'onnxscript')), reason='the extra "onnx" is not installed'
)


@pytest.mark.parametrize('flags, dtype', [((), torch.float32), (('--half',), torch.float16)])
def test_checkpoint(call, tools, tiny_config, riem_file, tmp_path, flags, dtype):
    """Loads into the stock detector without mmriem."""
    done = call(tools / 'export.py', riem_file, '--to', tmp_path / 'out/dense.pth', *flags)
    assert done.returncode == 0, done.stderr
    content = torch.load(tmp_path / 'out/dense.pth', weights_only=True)
    expected = reading.read(riem_file).decode()
    assert list(content['state_dict']) == list(expected) and content['meta']['dataset_meta']['classes'] == (
        'square',
        'bar',
    )
    for name, tensor in content['state_dict'].items():
        assert torch.equal(tensor, expected[name].to(dtype) if tensor.is_floating_point() else expected[name])
    ours, theirs = (
        init_detector(str(tiny_config), str(p), device='cpu') for p in (tmp_path / 'out/dense.pth', riem_file)
    )
    for found, wanted in zip(ours.state_dict().values(), theirs.state_dict().values()):
        torch.testing.assert_close(found, wanted, rtol=0 if dtype == torch.float32 else 1e-3, atol=1e-6)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['dense.pth']


def test_existing_files_and_wrong_names(call_here, tools, riem_file, runner_checkpoint, tmp_path):
    export = tools / 'export.py'
    (tmp_path / 'dense.pth').write_bytes(b'precious')
    assert 'exists already; choose another name or pass --force' in call_here(export, riem_file, '--to', 'dense.pth')
    assert (tmp_path / 'dense.pth').read_bytes() == b'precious'
    assert call_here(export, riem_file, '--to', 'dense.pth', '--force') is None
    assert len(torch.load(tmp_path / 'dense.pth', weights_only=True)['state_dict']) > 100
    assert '--to dense.bin: expected a name that ends in .pth or .onnx' in call_here(
        export, riem_file, '--to', 'dense.bin'
    )
    assert 'expected a .riem file' in call_here(export, runner_checkpoint, '--to', 'x.pth')
    assert 'expected --config, found none' in call_here(export, riem_file, '--to', 'x.onnx')


@pytest.mark.skipif(find_spec('onnxscript') is not None, reason='the extra "onnx" is installed')
def test_the_extra_is_named(call_here, tools, tiny_config, riem_file):
    error = call_here(tools / 'export.py', riem_file, '--to', 'x.onnx', '--config', tiny_config)
    assert 'pip install onnx onnxscript' in error


def run_onnx(path, image):
    """Outputs by name, of onnxruntime where it is installed, else of ONNX's own slow evaluator."""
    if find_spec('onnxruntime') is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        return dict(zip([o.name for o in session.get_outputs()], session.run(None, {'image': image.numpy()})))
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return dict(zip(session.output_names, session.run(None, {'image': image.numpy()})))


def assert_same_outputs(path, model, size):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = RawOutputs(model)(image)
    found = run_onnx(path, image)
    assert list(found) == RawOutputs(model).names(image)
    for ours, theirs in zip(found.values(), expected):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-4)


@needs_onnx
def test_onnx(call_here, tools, tiny_config, riem_file, tmp_path, capsys):
    import onnx

    flags = ['--config', tiny_config, '--size', '64', '96']
    assert call_here(tools / 'export.py', riem_file, '--to', 'x.onnx', *flags) is None
    assert 'input 1x3x64x96' in capsys.readouterr().out
    assert_same_outputs(tmp_path / 'x.onnx', init_detector(str(tiny_config), str(riem_file), device='cpu'), (64, 96))
    told = {p.key: json.loads(p.value) for p in onnx.load(str(tmp_path / 'x.onnx')).metadata_props}
    assert told['mean'] == [100.0, 110.0, 120.0] and told['std'] == [50.0] * 3 and told['bgr_to_rgb'] is False
    assert told['classes'] == ['square', 'bar'] and [p.name for p in tmp_path.iterdir()] == ['x.onnx']


RESNET = {'backbone.base_channels': 8, 'neck.in_channels': [32, 64, 128, 256]}
HEADS = {
    'autoassign/autoassign_r50-caffe_fpn_1x_coco': RESNET,
    'foveabox/fovea_r50_fpn_4xb4-1x_coco': RESNET,
    'fsaf/fsaf_r50_fpn_1x_coco': RESNET,
    'gfl/gfl_r50_fpn_1x_coco': RESNET,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': RESNET,
    'atss/atss_r50_fpn_1x_coco': RESNET,
    'swin/retinanet_swin-t-p4-w7_fpn_1x_coco': {'backbone.embed_dims': 24, 'neck.in_channels': [48, 96, 192]},
    'yolox/yolox_nano_8xb8-300e_coco': {},
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': {},
    'sabl/sabl-retinanet_r50_fpn_1x_coco': RESNET,  # boxes of a level are two tensors
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco': {},  # features of masks are one tensor, not one for each level
}


@needs_onnx
@pytest.mark.parametrize('name', HEADS)
def test_onnx_of_mmdet_detectors(name, tmp_path):
    config = read_config(f'mmdet::{name}.py', {f'model.{key}': value for key, value in HEADS[name].items()})
    torch.manual_seed(0)
    model = build_detector(config).eval()
    write_onnx(model, tmp_path / 'x.onnx', (96, 128))
    assert_same_outputs(tmp_path / 'x.onnx', model, (96, 128))


@needs_onnx
def test_weights_in_fewer_bits_are_smaller_and_say_nearly_the_same(tiny_config, riem_file, tmp_path):
    import onnx

    model = init_detector(str(tiny_config), str(riem_file), device='cpu')
    write_onnx(model, tmp_path / 'fp32.onnx', (64, 64))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    said, sizes = {}, {}
    for form in ('fp32', 'fp16', 'int8'):
        graph = onnx.load(str(tmp_path / 'fp32.onnx'))
        assert (store_weights(graph, form) > 20) == (form != 'fp32')
        onnx.checker.check_model(graph)
        onnx.save(graph, str(tmp_path / f'{form}.onnx'))
        outputs = run_onnx(tmp_path / f'{form}.onnx', image)
        said[form] = torch.cat([torch.from_numpy(its).flatten() for its in outputs.values()])
        sizes[form] = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    for form, share, error in (('fp16', 0.55, 1e-3), ('int8', 0.32, 0.05)):
        assert sizes[form] < share * sizes['fp32']
        assert 0 < (said[form] - said['fp32']).norm() < error * said['fp32'].norm()


@needs_onnx
def test_int8_is_within_half_a_step_of_each_channel():
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        'conv': rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        'up': rng.normal(size=(4, 6, 2, 2)).astype(np.float32),
        'table': rng.normal(size=(9, 8)).astype(np.float32),
        'shared': rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
        'bias': rng.normal(size=4).astype(np.float32),
    }
    weights['conv'][1] = 0
    nodes = [
        helper.make_node('Conv', ['image', 'conv', 'bias'], ['a'], pads=[1, 1, 1, 1]),
        helper.make_node('Conv', ['a', 'shared'], ['b']),
        helper.make_node('Mul', ['a', 'shared'], ['c']),
        helper.make_node('ConvTranspose', ['a', 'up'], ['d']),
        helper.make_node('MatMul', ['d', 'table'], ['e']),
    ]
    shapes = {'image': [1, 3, 8, 8], 'e': [None] * 4}
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    initial = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, 'g', info[:1], info[1:], initial), opset_imports=[helper.make_opsetid('', 18)]
    )
    assert store_weights(model, 'int8') == 3
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name for name in stored if not name.endswith(('_int8', '_scale'))} == {'shared', 'bias'}
    for name, axis in (('conv', 0), ('up', 1), ('table', 1)):
        codes, scale = stored[f'{name}_int8'], stored[f'{name}_scale']
        assert codes.dtype == np.int8 and scale.shape == (weights[name].shape[axis],)
        shape = [-1 if at == axis else 1 for at in range(codes.ndim)]
        error = np.abs(codes * scale.reshape(shape) - weights[name])
        assert (error <= 0.5001 * scale.reshape(shape)).all()
    assert not stored['conv_int8'][1].any()
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node[:4]] == ['DequantizeLinear'] * 3 + ['Conv']


def test_weights_that_cannot_be_stored_so(tmp_path):
    with pytest.raises(RiemError, match='--weights int4: expected one of fp32, fp16, int8'):
        write_onnx(torch.nn.Identity(), tmp_path / 'x.onnx', (64, 64), weights='int4')
    assert not list(tmp_path.iterdir())


def test_fewer_bits_are_for_onnx(call_here, tools, riem_file):
    error = call_here(tools / 'export.py', riem_file, '--to', 'x.pth', '--weights', 'int8')
    assert '--weights int8: expected with --to NAME.onnx' in error


@needs_onnx
def test_two_stages_are_refused(tmp_path):
    config = read_config(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        {'model.backbone.base_channels': 8, 'model.neck.in_channels': [32, 64, 128, 256]},
    )
    with pytest.raises(RiemError, match='expected a single-stage detector'):
        write_onnx(build_detector(config), tmp_path / 'x.onnx', (64, 64))
    assert not list(tmp_path.iterdir())


NARROW = {'model.backbone.base_channels': 8, 'model.neck.in_channels': [32, 64, 128, 256]}


@needs_onnx
@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('tood/tood_r50_fpn_1x_coco', NARROW, 'deform_conv of mmcv'),
        ('reppoints/reppoints-moment_r50_fpn_1x_coco', NARROW, 'deform_conv of mmcv'),
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco', {}, 'found Mask2Former; export a .pth'),
    ],
)
def test_what_onnx_cannot_do_is_one_line(name, options, message, tmp_path, capsys):
    model = build_detector(read_config(f'mmdet::{name}.py', options))
    model.eval()
    with pytest.raises(RiemError, match=message) as caught:
        write_onnx(model, tmp_path / 'x.onnx', (128, 128))
    assert '\n' not in str(caught.value) and not list(tmp_path.iterdir())
    assert not capsys.readouterr().out
