"""The reader of checkpoints: both formats of `torch.save`, and files that ask for more than they hold."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from mmriem.engine.pickled import STAND_INS
from mmriem.engine.plain_pickle import read_plain

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['archive', 'sequence'])


def save(tmp_path, tree, zipped=True, **settings):
    path = tmp_path / 'tree.pth'
    torch.save(tree, path, _use_new_zipfile_serialization=zipped, **settings)
    return path


def alike(read, saved):
    assert type(read) is type(saved)
    assert read.dtype == saved.dtype and read.shape == saved.shape and read.stride() == saved.stride()
    assert torch.equal(read, saved)


@FORMATS
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_tensors_of_every_type(tmp_path, dtype, zipped):
    tensor = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    tree = {'whole': tensor, 'turned': tensor.T, 'part': tensor[1:, ::2], 'none': tensor[:0], 'one': tensor[1, 1]}
    for name, read in read_plain(save(tmp_path, tree, zipped), {}).items():
        alike(read, tree[name])


@FORMATS
def test_tensors_that_share_memory_go_on_sharing_it(tmp_path, zipped):
    tensor = torch.arange(6.0)
    read = read_plain(save(tmp_path, [tensor, tensor[2:]], zipped), {})
    read[0][2] = 9
    assert read[1][0] == 9


@FORMATS
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_checkpoint_of_a_module_and_its_optimiser(tmp_path, zipped, protocol):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 2, 5, 5)).sum().backward()
    optimiser.step()
    tree = dict(
        state_dict=net.state_dict(), parameter=net[0].weight, optimizer=optimiser.state_dict(), size=torch.Size([2, 3]),
        kinds=(torch.float16, {1, 2}, OrderedDict(a=1), b'\x00\xff', 2**70, None, True, 'größe'),
    )  # fmt: skip
    read = read_plain(save(tmp_path, tree, zipped, pickle_protocol=protocol), {})
    assert read['state_dict']._metadata == net.state_dict()._metadata
    for name, tensor in net.state_dict().items():
        alike(read['state_dict'][name], tensor)
    alike(read['parameter'], net[0].weight)
    assert read['optimizer']['param_groups'] == tree['optimizer']['param_groups']
    alike(read['optimizer']['state'][0]['exp_avg'], tree['optimizer']['state'][0]['exp_avg'])
    assert read['kinds'] == tree['kinds'] and read['size'] == tree['size']


def test_a_sparse_tensor(tmp_path):
    tensor = torch.eye(3).to_sparse()
    assert torch.equal(read_plain(save(tmp_path, tensor), {}).to_dense(), torch.eye(3))


def test_map_location(tmp_path):
    path = save(tmp_path, {'w': torch.ones(3)})
    assert read_plain(path, {}, torch.device('cpu'))['w'].device.type == 'cpu'
    seen = []
    read_plain(path, {}, lambda storage, location: seen.append(location) or storage)
    assert seen == ['cpu']


def rewritten(path, name, change):
    """The archive at `path` with one record changed."""
    changed = path.with_name('changed.pth')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, 'w') as target:
        for record in source.namelist():
            data = source.read(record)
            target.writestr(record, change(data) if record.endswith(name) else data)
    return changed


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = save(tmp_path, {'w': torch.ones(1000)})
    larger = rewritten(path, 'data.pkl', lambda data: data.replace(b'M\xe8\x03\x85', b'M\xe9\x03\x85'))  # size (1001,)
    with pytest.raises(pickle.UnpicklingError, match='larger than its storage'):
        read_plain(larger, {})


def test_a_storage_larger_than_the_file_is_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path, {'w': torch.ones(1000)})
    huge = rewritten(path, 'data.pkl', lambda data: data.replace(b'M\xe8\x03t', b'J\x00\x00\x00\x7ft'))  # 8 GiB
    with pytest.raises(pickle.UnpicklingError, match='more than the file holds'):
        read_plain(huge, {})


def test_a_compressed_record_is_refused(tmp_path):
    path = save(tmp_path, {'w': torch.zeros(100_000)})
    small = tmp_path / 'small.pth'
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(small, 'w', zipfile.ZIP_DEFLATED) as target:
        for record in source.namelist():
            target.writestr(record, source.read(record))
    with pytest.raises(pickle.UnpicklingError, match='compressed'):
        read_plain(small, {})


@FORMATS
def test_every_truncation_is_an_error(tmp_path, zipped):
    data = save(tmp_path, {'w': torch.ones(4), 'n': [1, 2.0, 'three']}, zipped).read_bytes()
    path = tmp_path / 'cut.pth'
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, zipfile.BadZipFile)):
            read_plain(path, {})


def written(*instructions: bytes) -> bytes:
    """An archive whose pickle is made of these bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        archive.writestr('tree/data.pkl', b''.join([b'\x80\x02', *instructions, b'.']))
    return stream.getvalue()


ORDERED = b'ccollections\nOrderedDict\n'


@pytest.mark.parametrize(
    'instructions',
    [
        [b'cos\nsystem\n', b'X\x04\x00\x00\x00true\x85R'],
        [b'\x8c\x02os\x8c\x06system\x93'],  # STACK_GLOBAL
        [b'ctorch._utils\n__builtins__\n'],
        [b'(ios\nsystem\n'],  # INST
        [b'(cos\nsystem\no'],  # OBJ
        [b'\x82\x01'],  # EXT1
        [b'X\x01\x00\x00\x00a)R'],  # a call of a text
        [ORDERED, b'}b'],  # a state for the function that makes an OrderedDict
        [ORDERED, b')R', b'(X\x05\x00\x00\x00itemsK\x01tb'],  # a state that is no dict
        [b'](K\x01K\x02u'],  # keys for a list
        [b'}K\x01a'],  # an item for a dict
        [ORDERED, b'K\x01a'],
        [b'(X\x03\x00\x00\x00osslX\x01\x00\x00\x00atQ'],  # a reference that is no storage
        [b'X\x06\x00\x00\x00moduleQ'],
        [b'ccollections\nCounter\nX\x03\x00\x00\x00abc\x85R'],
        [b'c__builtin__\nset\nK\x05\x85R'],
        [b'h\x05'],  # from a memory that is empty
        [b'0'],
        [b't'],
    ],
)
def test_pickles_that_are_more_than_values_are_refused(tmp_path, instructions):
    path = tmp_path / 'hostile.pth'
    path.write_bytes(written(*instructions))
    with pytest.raises(pickle.UnpicklingError):
        read_plain(path, {})


def test_only_the_metadata_of_a_state_dict_is_set(tmp_path):
    state = b'}(X\x09\x00\x00\x00_metadata' + ORDERED + b')RX\x05\x00\x00\x00itemsK\x01u'
    path = tmp_path / 'state.pth'
    path.write_bytes(written(ORDERED, b')R', state, b'b'))
    read = read_plain(path, {})
    assert vars(read) == {'_metadata': OrderedDict()}


def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / 'script.pth'
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(pickle.UnpicklingError, match='TorchScript'):
        read_plain(path, {})


def test_another_pickle_is_no_checkpoint(tmp_path):
    path = tmp_path / 'other.pth'
    path.write_bytes(pickle.dumps({'a': 1}, protocol=2) * 3)
    with pytest.raises(pickle.UnpicklingError, match='magic number'):
        read_plain(path, {})


def read_hostile(tmp_path, *instructions: bytes):
    path = tmp_path / 'hostile.pth'
    path.write_bytes(written(*instructions))
    tracemalloc.start()
    try:
        return read_plain(path, STAND_INS)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1000 * path.stat().st_size + 2_000_000


TEXT = b'X' + struct.pack('<I', 1000) + b'a' * 1000
MANY = b'](' + b'N' * 20_000 + b'eq\x01'
PAIRS = b'](' + b''.join(b'J' + struct.pack('<i', n) + b'N\x86' for n in range(5_000)) + b'eq\x01'
ENCODE, SET, ARRAY = b'c_codecs\nencode\n', b'c__builtin__\nset\n', b'cnumpy.core.multiarray\n_reconstruct\n'
FLOATS = b'cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R'
DEEP = b')' + b'\x85' * 300_000


@pytest.mark.parametrize(
    ('instructions', 'said'),
    [
        ([b'c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R'], 'GLOBAL builtins.bytearray'),
        ([ENCODE, TEXT, b'X\x09\x00\x00\x00hex_codec\x86R'], 'GLOBAL _codecs.encode'),
        ([ENCODE, TEXT, b'X\x08\x00\x00\x00punycode\x86R'], 'GLOBAL _codecs.encode'),
        ([PAIRS, ORDERED, b'q\x02', b'h\x02h\x01\x85R' * 2000], 'more copies of its values'),
        ([b'cmmengine.config.config\nConfigDict\nq\x02', PAIRS, b'h\x02h\x01\x85R' * 2000], 'more copies'),
        ([b'](', b''.join(b'J' + struct.pack('<i', n) for n in range(5_000)), b'eq\x01', SET, b'q\x02',
          b'h\x02h\x01\x85R' * 2000], 'more copies'),
        ([TEXT, b'q\x01', ENCODE, b'q\x02X\x06\x00\x00\x00latin1q\x03', b'h\x02h\x01h\x03\x86R' * 2000], 'more copies'),
        ([b'B', struct.pack('<I', 80_000), bytes(80_000), b'q\x01', FLOATS, b'q\x02](',
          (ARRAY + b')R(K\x01M\x20\x4e\x85h\x02\x89h\x01tb') * 200, b'e'], 'more copies'),
        ([b'}', DEEP, b'Ns'], 'a key that is no text or number'),
        ([SET, b'](', DEEP, b'e\x85R'], 'a key that is no text or number'),
        ([ORDERED, b'](', DEEP, b'N\x86e\x85R'], 'a key that is no text or number'),
        ([b'}(', b'N' * 20, b'tNs'], 'a key that is no text or number'),
        ([b'}\x8a\x20', bytes(31), b'\x01Ns'], 'a key that is no text or number'),
        ([DEEP], 'nested more than 100 deep'),
        ([b']q\x01h\x01a'], 'a value that contains itself'),
        ([b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\n', DEEP, b'X\x03\x00\x00\x00cpuK\x01tQ'], 'a reference to'),
    ],
)  # fmt: skip
def test_small_pickles_do_not_ask_for_memory_or_time_without_end(tmp_path, instructions, said):
    with pytest.raises((pickle.UnpicklingError, ValueError), match=said):
        read_hostile(tmp_path, *instructions)


def test_lists_that_share_lists_take_no_more_than_they_are(tmp_path):
    tree = read_hostile(
        tmp_path,
        b'](N',
        b'N' * 8,
        b'e',
        b''.join(b'q' + bytes([n]) + b'](' + (b'h' + bytes([n])) * 9 + b'e' for n in range(60)),
    )
    for _ in range(60):
        assert all(each is tree[0] for each in tree)
        tree = tree[0]


COMPLEX = b'cbuiltins\ncomplex\n'


def key_of_one_hash(number):
    """A complex number whose hash is that of zero: a million of them would take hours to be put into a dictionary."""
    return COMPLEX + b'G' + struct.pack('>d', -1000003.0 * number) + b'G' + struct.pack('>d', number) + b'\x86R'


@pytest.mark.parametrize(
    ('opening', 'value', 'closing'),
    [
        (b'}(', b'N', b'u'),
        (b'\x8f(', b'', b'\x90'),
        (b'cbuiltins\nset\n](', b'', b'e\x85R'),
        (b'ccollections\nOrderedDict\n](', b'N\x86', b'e\x85R'),
    ],
)
def test_many_keys_of_one_hash_are_refused(tmp_path, opening, value, closing):
    path = tmp_path / 'keys.pth'

    def read(count):
        keys = b''.join(key_of_one_hash(number) + value for number in range(1, count + 1))
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', b'\x80\x04' + opening + keys + closing + b'.')
        return read_plain(path, {})

    found = read(1000)
    assert len(found) == 1000 and {hash(key) for key in found} == {0}
    with pytest.raises(pickle.UnpicklingError, match='more than 1000 keys, and a complex among them'):
        read(1001)


def test_a_tensor_repeated_beyond_measure_is_refused(tmp_path):
    small = read_plain(save(tmp_path, {'w': torch.ones(1).expand(1000, 1000)}), {})['w']
    assert small.shape == (1000, 1000) and small.stride() == (0, 0)
    with pytest.raises(pickle.UnpicklingError, match='in a storage of less'):
        read_plain(save(tmp_path, {'w': torch.ones(1).expand(2**20, 2**20)}), {})


def test_the_older_format_asks_for_no_more_than_is_there(tmp_path):
    path = tmp_path / 'short.pth'
    path.write_bytes(b'\x80\x02\x8b\xff\xff\xff\x7f')  # a number of 2 GiB
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            read_plain(path, {})
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_two_readers_at_once_do_not_disturb_each_other(tmp_path):
    """Torch's list of what may be read belongs to the whole process; this reader does not touch it."""
    path = save(tmp_path, {'w': torch.ones(3), 'n': np.float64(0.5)})
    before = set(torch.serialization.get_safe_globals()) if hasattr(torch.serialization, 'get_safe_globals') else None
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(lambda _: read_plain(path, STAND_INS), range(200)))
    assert all(tree['n'] == 0.5 and torch.equal(tree['w'], torch.ones(3)) for tree in trees)
    if before is not None:
        assert set(torch.serialization.get_safe_globals()) == before
