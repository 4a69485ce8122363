"""Small files with large wishes: refused by what they say, before anything is read for them, parsed or allocated.

Every file here is right in each hash and in its spelling; only what it asks for is too much.
"""

import dataclasses
import hashlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import mmriem
from mmriem.core.coding import entropy
from mmriem.core.errors import RiemError
from mmriem.core.file import archive as archives
from mmriem.core.file import reading, writing
from mmriem.core.file.dense import DenseLayout
from mmriem.core.file.derived import DerivedRecord
from mmriem.core.file.frame import pack
from mmriem.core.file.limits import VARIABLE
from mmriem.core.file.manifest import Manifest, Source, WeightEntry, compress_manifest
from mmriem.core.file.reading import from_bytes, read
from mmriem.core.representations.registry import get_representation, representation_names
from mmriem.core.weights.views import WeightView

ZEROS = struct.pack('<fII', 1.0, 0, 0) + entropy.encode(np.zeros((2, 2), np.int32))
"""The payload of a lattice of any size, all zeros."""


def digest(data):
    return hashlib.sha256(data).digest()


def made(weights=(), dense=(), derived=(), **blobs):
    """A file of these records, of a payload for each weight."""
    entries = tuple(entry for entry, _ in weights)
    keys = [entry.view.name for entry in entries] + [record.name for record in (*dense, *derived)]
    manifest = Manifest(
        keys=tuple(keys),
        weights=entries,
        dense=tuple(dense),
        derived=tuple(derived),
        blobs={name: digest(blob) for name, blob in blobs.items()},
        dataset_meta={},
        settings={},
        source=Source('x.pth', '0' * 64),
        producer='1',
    )
    streams = b''.join(payload for _, payload in weights)
    return pack({**blobs, 'streams': streams, 'manifest': compress_manifest(manifest)})


def weight(shape, kind='lattice', settings=None, payload=ZEROS, name='w', symbols=None):
    settings = {'period': 1} if settings is None else settings
    view = WeightView(name, shape)
    if symbols is None:
        symbols = get_representation(kind).codec.record_demand(view.matrix_shape, settings).symbols
    return WeightEntry(view, kind, settings, symbols, len(payload), digest(payload), bytes(32)), payload


def refused(data, *said, expected=None, memory=1 << 22):
    """The error, with so many bytes of memory at most on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(RiemError) as raised:
            from_bytes(data, 'model.riem', expected).decode()
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()
    message = str(raised.value)
    assert message.startswith('model.riem: ') and '\n' not in message
    for text in said:
        assert text in message, message
    return message


def zeros_like(shape):
    return made([weight(shape)])


HUGE = {
    'zeros': lambda: zeros_like((65536, 32768)),
    'many zeros': lambda: made([weight((4096, 4096), name=f'w{n}') for n in range(40)]),
    'one row': lambda: zeros_like((2**31 - 1, 1)),
    'float64': lambda: made(derived=[DerivedRecord('d', (2**22,), 'float64', 'constant', (0.0,))]),
    'vector': lambda: made(dense=[DenseLayout('v', (2**28,), 'float32', 'linear')], vectors=b'\1' * 20),
    'window': lambda: made(derived=[DerivedRecord('d', (4096, 4096), 'int64', 'relative_position_index', (64, 64))]),
    'windows': lambda: made(derived=[DerivedRecord(f'd{n}', (2**20,), 'bool', 'constant', (True,)) for n in range(9)]),
    'rank 1': lambda: made(
        [weight((2**15, 2**15), 'bilinear', {'rank': 1, 'state_bits': 2}, bytes(8 + 2**14))]
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', HUGE)
def test_a_small_file_does_not_decode_to_gigabytes(name):
    refused(HUGE[name](), 'expected at most', 'decoded bytes, found', f'{VARIABLE}=')


def test_the_limit_is_raised_by_an_argument_and_by_the_environment(monkeypatch):
    data = zeros_like((2100, 2100))
    refused(data, f'{VARIABLE}=2')  # a little above
    assert from_bytes(zeros_like((2000, 2000)), limit=1.0).shapes == {'w': (2000, 2000)}
    assert from_bytes(data, limit=2.0).shapes == {'w': (2100, 2100)}
    monkeypatch.setenv(VARIABLE, '2')
    assert from_bytes(data).shapes == {'w': (2100, 2100)}


def test_a_larger_file_may_ask_for_more():
    values = bytes(20_000)
    dense = DenseLayout('d', (10_000,), 'float32', 'half')
    assert from_bytes(made([weight((3000, 3000))], [dense], dense16=values)).shapes['w'] == (3000, 3000)
    refused(made([weight((3000, 3000))]), 'decoded bytes')


def test_a_model_of_that_size_takes_what_a_file_alone_may_not(tmp_path):
    data = zeros_like((3000, 3000))
    refused(data, 'decoded bytes')
    assert from_bytes(data, expected={'w': (3000, 3000)}).shapes == {'w': (3000, 3000)}


class Stream(io.BytesIO):
    """Counts what is read of it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_shapes_are_compared_before_anything_but_the_manifest_is_read():
    values = bytes(2_000_000)
    data = made(dense=[DenseLayout('w', (1_000_000,), 'float32', 'half')], dense16=values)
    stream = Stream(data)
    with pytest.raises(RiemError, match=r'w \(expected \(4, 4\), found \(1000000,\)\)'):
        reading._from_stream(stream, len(data), 'model.riem', {'w': (4, 4)}, None)
    assert stream.count < 1000


def test_loading_compares_with_the_model_before_it_parses_a_payload(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError('a payload was parsed')

    for name in representation_names():
        monkeypatch.setattr(get_representation(name).codec, 'from_payload', never)
    path = tmp_path / 'other.riem'
    path.write_bytes(
        made(
            [weight((65536, 32768), name='weight')],
            derived=[DerivedRecord('bias', (4,), 'float32', 'constant', (0.0,))],
        )
    )
    model = nn.Linear(4, 4)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(RiemError, match=r'weight \(expected \(4, 4\), found \(65536, 32768\)\)'):
        mmriem.load(model, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ('kind', 'settings', 'size'),
    [('lattice', {'period': 1}, 13), ('bilinear', {'rank': 2, 'state_bits': 4}, 24), ('sigmoid', None, None)],
)
def test_symbols_and_bytes_are_compared_before_a_payload_is_parsed(kind, settings, size, monkeypatch):
    shape = (4, 4)
    settings = settings or dict(dq=1, dmu=2, shifts=6, row_blocks=1, col_blocks=1, state_bits=4)
    demand = get_representation(kind).codec.record_demand(shape, settings)
    size = size or demand.least
    assert demand.least <= size <= demand.most
    monkeypatch.setattr(get_representation(kind).codec, 'from_payload', lambda *_: pytest.fail('a payload was parsed'))
    wrong = made([weight(shape, kind, settings, bytes(size), symbols=demand.symbols + 1)])
    refused(wrong, f'expected {demand.symbols} symbols by shape and settings, found {demand.symbols + 1}')
    for other in (demand.least - 1, demand.most + 1):
        refused(made([weight(shape, kind, settings, bytes(other))]), f'found {other}')


def sigmoid(shape, **settings):
    settings = {**dict(dq=1, dmu=1, shifts=1, row_blocks=1, col_blocks=1, state_bits=2), **settings}
    size = get_representation('sigmoid').codec.record_demand(shape, settings).least
    return weight(shape, 'sigmoid', settings, bytes(size))


@pytest.mark.parametrize(
    ('entries', 'said'),
    [
        ([sigmoid((1024, 1024), dmu=4096, shifts=16)], 'bytes to regenerate a weight'),
        ([sigmoid((256, 256), dmu=4096, shifts=4, row_blocks=64, col_blocks=64)], 'nanoseconds to regenerate weights'),
        ([sigmoid((512, 512), row_blocks=512, col_blocks=512)], 'nanoseconds to regenerate weights'),
    ],
    ids=['memory', 'sigmoids', 'tiles'],
)
def test_sigmoids_are_work_that_the_size_of_the_file_must_be_worth(entries, said):
    refused(made(entries), said)


def test_the_work_of_all_weights_together_counts():
    one = sigmoid((512, 512), dmu=100, shifts=2)
    assert from_bytes(made([one]))
    entry, payload = one
    many = [(dataclasses.replace(entry, view=WeightView(f'w{n}', (512, 512))), payload) for n in range(12)]
    refused(made(many), 'nanoseconds to regenerate weights')


def test_running_out_of_memory_is_one_error(monkeypatch):
    data = zeros_like((64, 64))
    allocators = [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ]
    for error in allocators:

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(archives.WeightRecord, 'decode', fail)
        for action in (from_bytes(data, 'model.riem').decode, from_bytes(data, 'model.riem').verify):
            with pytest.raises(RiemError, match=r'^model\.riem: expected enough memory'):
                action()
        monkeypatch.setattr(reading, 'expand_manifest', fail)
        with pytest.raises(RiemError, match=r'^model\.riem: expected enough memory'):
            from_bytes(data, 'model.riem')
        monkeypatch.undo()


def test_other_errors_of_torch_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(reading, 'expand_manifest', lambda *_: (_ for _ in ()).throw(RuntimeError('a fault of ours')))
    with pytest.raises(RuntimeError, match=r'^a fault of ours$'):
        from_bytes(zeros_like((4, 4)))


def test_weights_that_are_not_finite_in_their_dtype_are_refused():
    payload = struct.pack('<fII', 1e30, 0, 0) + entropy.encode(np.full((4, 4), 5, np.int32))
    view = WeightView('w', (4, 4), dtype=torch.float16)
    decoded = digest(np.full((4, 4), np.float32(1e30) * 5, '<f4').tobytes())
    entry = WeightEntry(view, 'lattice', {'period': 1}, 16, len(payload), digest(payload), decoded)
    refused(made([(entry, payload)]), "weight 'w': expected finite decoded values")


def test_an_empty_vector_is_refused():
    with pytest.raises(RiemError, match='does not go with storage'):
        DenseLayout('v', (0,), 'float32', 'linear')


def test_a_writer_verifies_files_that_only_the_model_allows(tmp_path):
    data = zeros_like((4, 4))
    archive = from_bytes(data)
    record = archive.weights[0]
    shape = (3000, 3000)
    whole = archives.WeightRecord(
        WeightView('w', shape),
        type(record.encoded).of(np.zeros(shape, np.int8), 1.0, np.zeros(3000, np.int32), np.zeros(3000, np.int32)),
    )
    big = archives.Archive.from_state_dict(
        {'w': torch.zeros(shape)}, [whole], dataset_meta={}, source=Source('x', ''), settings={}
    )
    path = tmp_path / 'zeros.riem'
    writing.write(path, big)
    with pytest.raises(RiemError, match=f'{VARIABLE}=3'):
        read(path)
    assert read(path, {'w': shape}).shapes == {'w': shape}


def test_a_manifest_with_more_values_than_its_file_is_worth_is_refused():
    many = dataclasses.replace(from_bytes(zeros_like((4, 4))), dataset_meta={'x': [{'a': []}] * 50_000})
    refused(many.to_bytes(), 'values in the manifest')
