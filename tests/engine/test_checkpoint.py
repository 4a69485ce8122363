import hashlib
import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.engine.checkpoint import load_into, read_checkpoint, unpickle, without_prefix
from mmriem.engine.detector import build_detector


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def state_dict():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()


def saved(tmp_path, tree, **options):
    path = tmp_path / 'model.pth'
    torch.save(tree, path, **options)
    return path


def assert_equal(read, expected):
    assert list(read) == list(expected)
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_runner_checkpoint(runner_checkpoint):
    if hasattr(torch.serialization, 'add_safe_globals'):
        with torch.serialization.safe_globals([]), pytest.raises(pickle.UnpicklingError):
            torch.load(runner_checkpoint)  # MMEngine's own way: fails under torch >= 2.6
    checkpoint = read_checkpoint(runner_checkpoint)
    trusted = torch.load(runner_checkpoint, weights_only=False)
    assert_equal(checkpoint.state_dict, trusted['state_dict'])
    assert checkpoint.state_dict._metadata == trusted['state_dict']._metadata
    assert checkpoint.dataset_meta == {
        'classes': ('square', 'bar'),
        'palette': [(220, 20, 60), (20, 60, 220)],
    }
    assert len(checkpoint.sha256) == 64 and checkpoint.path == runner_checkpoint
    scalars = unpickle(runner_checkpoint)['message_hub']['log_scalars']
    assert scalars['train/loss'].current() == trusted['message_hub']['log_scalars']['train/loss'].current()


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('nested', [lambda s: s, lambda s: {'state_dict': s, 'meta': None}, lambda s: {'model': s}])
def test_places_of_the_state_dict(tmp_path, state_dict, nested, zipped):
    path = saved(tmp_path, nested(state_dict), _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_equal(checkpoint.state_dict, state_dict)
    assert checkpoint.dataset_meta == {}


def test_prefix_of_wrapped_models_is_taken_off(tmp_path, state_dict):
    wrapped = OrderedDict((f'module.{name}', nn.Parameter(t.float())) for name, t in state_dict.items())
    read = read_checkpoint(saved(tmp_path, wrapped)).state_dict
    assert_equal(read, state_dict)
    assert not any(tensor.requires_grad for tensor in read.values())


@pytest.mark.parametrize(
    ('meta', 'expected'),
    [
        ({'CLASSES': ('a', 'b'), 'PALETTE': [(1, 2, 3)]}, {'classes': ('a', 'b'), 'palette': [(1, 2, 3)]}),
        ({'CLASSES': ('a',), 'PALETTE': None}, {'classes': ('a',)}),
        (
            {'dataset_meta': {'CLASSES': ('a',), 'palette': np.array([[1, 2, 3]])}},
            {'classes': ('a',), 'palette': [[1, 2, 3]]},
        ),
        ({'epoch': 3}, {}),
    ],
)
def test_dataset_meta(tmp_path, state_dict, meta, expected):
    assert read_checkpoint(saved(tmp_path, {'meta': meta, 'state_dict': state_dict})).dataset_meta == expected


def test_safetensors(tmp_path, state_dict):
    path = tmp_path / 'model.safetensors'
    safetensors.torch.save_file(state_dict, path)
    read = read_checkpoint(path).state_dict
    assert sorted(read) == sorted(state_dict) and all(torch.equal(read[n], state_dict[n]) for n in read)


def test_code_is_refused_unless_trusted(tmp_path, state_dict):
    witness = tmp_path / 'witness'
    path = saved(tmp_path, {'state_dict': state_dict, 'meta': Touch(witness)})
    with pytest.raises(RiemError, match=r'model\.pth.*(posix|nt)\.system.*--trust-checkpoint') as caught:
        read_checkpoint(path)
    assert '\n' not in str(caught.value) and not witness.exists()
    assert_equal(read_checkpoint(path, trust=True).state_dict, state_dict)
    assert witness.exists()


def test_whole_model_is_refused_by_name(tmp_path):
    with pytest.raises(RiemError, match=r'torch\.nn\.modules\.linear\.Linear'):
        read_checkpoint(saved(tmp_path, nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'an empty file'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'git lfs pull'),
        (b'<!DOCTYPE html><html>', 'DOCTYPE'),
        (b'PK\x03\x04 and no more', 'damaged or truncated'),
        (b'\x80\x02garbage', 'damaged'),
        (b'\x10\0\0\0\0\0\0\0{"broken', 'safetensors'),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / 'model.pth'
    path.write_bytes(content)
    with pytest.raises(RiemError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_missing_file_folder_and_riem(tmp_path, riem_file):
    for path, message in (
        (tmp_path / 'absent.pth', 'no such file'),
        (tmp_path / f'{"a" * 300}.pth', 'no such file; give'),
        (tmp_path, 'folder'),
        (riem_file, r'\.riem file'),
    ):
        with pytest.raises(RiemError, match=message):
            read_checkpoint(path)


@pytest.mark.parametrize('tree', [[1, 2], {'epoch': 3, 'ema': {}}, {'state_dict': {}}, {'state_dict': {'a': 1}}, 7])
def test_no_tensors_by_name(tmp_path, tree):
    with pytest.raises(RiemError, match='expected tensors by name'):
        read_checkpoint(saved(tmp_path, tree))


@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_a_later_pickle_protocol_is_read(tmp_path, state_dict, protocol):
    path = saved(tmp_path, {'state_dict': state_dict}, pickle_protocol=protocol)
    assert_equal(read_checkpoint(path).state_dict, state_dict)


def test_a_whole_model_is_what_its_state_dict_holds_where_it_is_trusted(tmp_path):
    net = nn.Linear(2, 2)
    for tree in (net, {'model': net}):
        path = saved(tmp_path, tree)
        with pytest.raises(RiemError, match='--trust-checkpoint'):
            read_checkpoint(path)
        assert_equal(read_checkpoint(path, trust=True).state_dict, net.state_dict())


def test_sound_files_of_other_kinds_are_named(tmp_path, state_dict):
    def refused(path):
        with pytest.raises(RiemError) as caught:
            read_checkpoint(path)
        assert '\n' not in str(caught.value) and 'damaged' not in str(caught.value)
        return str(caught.value)

    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / 'script.pt')
    assert 'found a TorchScript archive' in refused(tmp_path / 'script.pt')
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / 'program.pt2')
    assert 'found an archive of torch.export' in refused(tmp_path / 'program.pt2')
    with zipfile.ZipFile(tmp_path / 'around.zip', 'w') as archive:
        archive.write(saved(tmp_path, state_dict), 'deep/model.pth')
    assert 'a zip archive around deep/model.pth; unpack it' in refused(tmp_path / 'around.zip')
    arrays = {'model': {'w': np.zeros((2, 2))}, '__author__': 'somebody'}
    (tmp_path / 'detectron.pkl').write_bytes(pickle.dumps(arrays, protocol=2))
    assert 'found a plain pickle, as detectron2 has them' in refused(tmp_path / 'detectron.pkl')
    meta = {'dataset_meta': {'classes': np.array(['a', None], dtype=object)}}
    told = refused(saved(tmp_path, {'state_dict': state_dict, 'meta': meta}))
    assert 'O' in told and '--trust-checkpoint' in told


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {0: torch.zeros(2)}, r'found a name of type int, 0; save'),
        (
            lambda s: {**s, '_extra_state': {'v': 1}},
            r"found as '_extra_state' one of type dict; save the file again without it",
        ),
        (lambda s: {**s, 'w': torch.eye(3).to_sparse()}, r"found as 'w' a sparse one"),
        (lambda s: {**s, 'w': torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)}, r"'w' a quantised one"),
        (lambda s: {'w': torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)}, r"'w' a quantised one"),
    ],
)
def test_entries_that_are_no_dense_tensors_are_named(tmp_path, state_dict, change, message):
    with pytest.raises(RiemError, match=message):
        read_checkpoint(saved(tmp_path, {'state_dict': change(state_dict)}))


def test_a_prefix_is_named_and_can_be_taken_off(tmp_path, pair):
    target, source = pair
    both = {f'{part}.{name}': x for part in ('teacher', 'student') for name, x in source.items()}
    with pytest.raises(RiemError, match=r"begin with 'student\.' or 'teacher\.': take these with --prefix student\."):
        load_into(target, both, 'x.pth')
    load_into(target, without_prefix(both, 'teacher.', 'x.pth'), 'x.pth')
    load_into(target, source, 'x.pth')
    with pytest.raises(RiemError, match=r"x\.pth: expected names that begin with 'architecture\.', found"):
        without_prefix(both, 'architecture.', 'x.pth')
    averaged = {f'ema_{name.replace(".", "_")}': x for name, x in source.items()}
    with pytest.raises(RiemError, match=r"names that begin with 'ema_' are averages beside the weights"):
        load_into(target, {**source, **averaged}, 'x.pth')


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize('zipped', [True, False])
def test_truncation(tmp_path, state_dict, share, zipped):
    path = saved(tmp_path, state_dict, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RiemError, match=r'model\.pth'):
        read_checkpoint(path)


def test_download(tmp_path, monkeypatch, state_dict):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'served').mkdir()
    saved(tmp_path / 'served', state_dict)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *message):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path / 'served')) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        assert_equal(read_checkpoint(f'{address}/model.pth').state_dict, state_dict)
        with pytest.raises(RiemError, match=r'other\.pth: the download failed'):
            read_checkpoint(f'{address}/other.pth')
        server.shutdown()
    again = read_checkpoint(f'{address}/model.pth')
    assert again.path == tmp_path / 'cache' / 'hub' / 'checkpoints' / 'model.pth'
    with pytest.raises(RiemError, match='download the file first'):
        read_checkpoint('s3://bucket/model.pth')


class Server(SimpleHTTPRequestHandler):
    """Serves a file, of which it may cut the end off."""

    content, length = b'', 0

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(self.length))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *message):
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Where a file of these bytes is served, and the folder of downloads."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    servers = []

    def start(content, length=None):
        handler = type('Handler', (Server,), {'content': content, 'length': length or len(content)})
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}', tmp_path / 'cache' / 'hub' / 'checkpoints'

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_download_that_is_cut_short_is_not_kept(tmp_path, serve, state_dict):
    content = saved(tmp_path, state_dict).read_bytes()
    address, folder = serve(content[:-100], len(content))
    with pytest.raises(RiemError, match=f'expected {len(content)} bytes, found {len(content) - 100}.*try again'):
        read_checkpoint(f'{address}/model.pth')
    assert list(folder.iterdir()) == []
    address, _ = serve(content)
    assert_equal(read_checkpoint(f'{address}/model.pth').state_dict, state_dict)


def test_a_download_has_the_hash_that_its_name_tells(tmp_path, serve, state_dict):
    content = saved(tmp_path, state_dict).read_bytes()
    address, folder = serve(content)
    digits = hashlib.sha256(content).hexdigest()
    assert_equal(read_checkpoint(f'{address}/r50_2020-{digits[:8]}.pth').state_dict, state_dict)
    with pytest.raises(RiemError, match=rf'expected SHA-256 01234567\.\.\. by its name, found {digits[:8]}\.\.\.;'):
        read_checkpoint(f'{address}/r50_2020-01234567.pth')
    assert [path.name for path in folder.iterdir()] == [f'r50_2020-{digits[:8]}.pth']


@pytest.mark.parametrize(
    'source', ['http://[x/model.pth', 'http://localhost', 'http://localhost:port/x', '~nobody-of-that-name/x']
)
def test_addresses_and_homes_that_are_none_are_one_error(source, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(RiemError):
        read_checkpoint(source)


def one_sentence(path):
    with pytest.raises(RiemError) as raised:
        read_checkpoint(path)
    message = str(raised.value)
    assert message.startswith(f'{path}: ') and '\n' not in message and len(message) < 1000
    assert 'recursion' not in message
    return message


def deep(levels, leaf=None):
    for _ in range(levels):
        leaf = [leaf]
    return leaf


def shared_lists():
    leaf = ['a'] * 10
    for _ in range(30):
        leaf = [leaf] * 10
    return leaf


def circle():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ('meta', 'said'),
    [
        (lambda: {'dataset_meta': {'classes': shared_lists()}}, 'expected at most 1000000 values, 16 deep'),
        (lambda: {'CLASSES': [['x' * 10**6] * 100]}, 'expected at most 1000000 values'),
        (lambda: {'dataset_meta': {'classes': deep(50)}}, 'expected at most 1000000 values, 16 deep'),
        (lambda: {'other': deep(110)}, 'nested more than 100 deep'),
        (lambda: {'dataset_meta': {'classes': circle()}}, 'a value that contains itself'),
    ],
)
def test_descriptions_of_data_that_never_end_are_one_error(tmp_path, state_dict, meta, said):
    assert said in one_sentence(saved(tmp_path, {'state_dict': state_dict, 'meta': meta()}))


@pytest.mark.parametrize('metadata', [{'': 3}, {0: {}}, {'': {'version': 'new'}}, {'': {'version': [1]}}])
def test_metadata_that_modules_could_not_use_is_one_error(tmp_path, state_dict, metadata):
    whole = OrderedDict(state_dict)
    whole._metadata = OrderedDict(metadata)
    assert 'expected version numbers of modules' in one_sentence(saved(tmp_path, {'state_dict': whole}))


def by_hand(tmp_path, *instructions):
    """An archive of torch.save whose pickle is made of these bytes."""
    path = tmp_path / 'model.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('tree/data.pkl', b''.join([b'\x80\x02', *instructions, b'.']))
    return path


@pytest.mark.parametrize('levels', [700, 10**6])
@pytest.mark.parametrize('opening', [b']', b'('])
def test_a_checkpoint_of_nothing_but_depth_is_one_error(tmp_path, levels, opening):
    closing = b'a' * (levels - 1) if opening == b']' else b't' * levels
    assert 'nested more than 100 deep' in one_sentence(by_hand(tmp_path, opening * levels, closing))


def test_methods_of_a_dictionary_cannot_be_shadowed(tmp_path):
    shadows = b''.join(b'X' + bytes([len(name), 0, 0, 0]) + name + b'K\x01' for name in (b'get', b'values', b'items'))
    tree = unpickle(by_hand(tmp_path, b'ccollections\nOrderedDict\n)R}(', shadows, b'ub'))
    assert tree == {} and tree.get('x') is None and list(tree.values()) == []


def test_a_compressed_archive_is_one_error_with_its_remedy(tmp_path, state_dict):
    small = tmp_path / 'small.pth'
    with (
        zipfile.ZipFile(saved(tmp_path, state_dict)) as source,
        zipfile.ZipFile(small, 'w', zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.namelist():
            target.writestr(record, source.read(record))
    assert 'zip it again without compression' in one_sentence(small)


def test_running_out_of_memory_is_one_error(tmp_path, state_dict, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr('mmriem.engine.checkpoint.load_plain', fail)
    assert 'expected enough memory' in one_sentence(saved(tmp_path, state_dict))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pth')
    assert 'found a device or pipe' in one_sentence(tmp_path / 'pipe.pth')


def test_names_of_any_length_and_letters_make_short_messages(tmp_path):
    assert one_sentence(saved(tmp_path, {'a\nb' * 10**5: 1, 3: 2}))
    assert one_sentence(saved(tmp_path, {'w': torch.zeros(2), 'a\nb' * 10**5: 1}))
    assert one_sentence(saved(tmp_path, {'w': torch.zeros(2), 10**400: 1}))


class Renaming(nn.Module):
    """Reads old files, in which `new` was called `old`, and has a constant that it does not save."""

    def __init__(self):
        super().__init__()
        self.new = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer('mean', torch.tensor([1.0, 2.0]), persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        for name in [name for name in state_dict if name.startswith(f'{prefix}old.')]:
            state_dict[name.replace('old.', 'new.')] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@pytest.fixture
def pair():
    """A model and the state_dict of another one of the same kind, all values different."""
    torch.manual_seed(0)
    return Renaming(), OrderedDict((n, t + 1) for n, t in Renaming().state_dict().items())


def test_load_into(pair):
    model, state_dict = pair
    load_into(model, state_dict, 'x.pth')
    assert_equal(model.state_dict(), state_dict)


def test_load_into_follows_renamings_and_tta(pair):
    model, state_dict = pair
    old = OrderedDict((name.replace('new.', 'old.'), tensor.half()) for name, tensor in state_dict.items())

    class Wrapped(BaseTTAModel):
        merge_preds = None

    model.test_step = None  # BaseTTAModel asks for it
    load_into(Wrapped(model), old, 'x.pth')
    assert torch.equal(model.new.weight, state_dict['new.weight'].half().float())


class Resizing(nn.Linear):
    """Takes weights of any size, as modules that hold states do."""

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.weight = nn.Parameter(torch.empty_like(state_dict[f'{prefix}weight']))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_modules_decide_about_shapes():
    model = nn.Sequential(Resizing(2, 3, bias=False), nn.Linear(3, 3))
    state_dict = {**nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 3)).state_dict()}
    load_into(model, state_dict, 'x.pth')
    assert torch.equal(model[0].weight, state_dict['0.weight'])
    state_dict['1.bias'] = torch.ones(4)
    with pytest.raises(RiemError, match=r'config: wrong shape 1\.bias \(4,\) instead of \(3,\); give'):
        load_into(model, state_dict, 'x.pth')


def test_harmless_differences(pair):
    model, state_dict = pair
    del state_dict['norm.num_batches_tracked']
    state_dict['mean'] = torch.tensor([1.0, 2.0])
    load_into(model, state_dict, 'x.pth')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('norm.running_mean'), r'x\.pth: .*missing norm\.running_mean'),
        (lambda s: s.update(extra=torch.ones(1)), 'unexpected extra'),
        (lambda s: s.update(mean=torch.tensor([1.0, 3.0])), 'unexpected mean'),
        (lambda s: s.update({'new.bias': torch.ones(4)}), r'wrong shape new\.bias \(4,\) instead of \(3,\)'),
        (lambda s: s.update({'old.bias': torch.ones(4)}), r'\(size mismatch for new\.bias'),
        (
            lambda s: s.pop('norm.weight') is None or s.update({'norm.bias': torch.ones(4), 'b': torch.ones(1)}),
            r'missing norm\.weight; unexpected b; wrong shape norm\.bias \(4,\) instead',
        ),
        (lambda s: s.clear() or s.update(a=torch.ones(1)), 'missing .* and 3 more; unexpected a'),
    ],
)
def test_differences_are_one_error(pair, change, message):
    model, state_dict = pair
    change(state_dict)
    with pytest.raises(RiemError, match=message) as caught:
        load_into(model, state_dict, 'x.pth')
    assert '\n' not in str(caught.value)


def test_detector_of_another_config(tiny_config, runner_checkpoint):
    config = Config.fromfile(tiny_config)
    state_dict = read_checkpoint(runner_checkpoint).state_dict
    load_into(build_detector(config), state_dict, runner_checkpoint)
    config.model.bbox_head.num_classes = 3
    with pytest.raises(
        RiemError, match=r'wrong shape bbox_head\.retina_cls\.weight \(2, 8, 3, 3\) instead of \(3, 8, 3, 3\)'
    ):
        load_into(build_detector(config), state_dict, runner_checkpoint)
