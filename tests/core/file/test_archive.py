"""The ``.riem`` file as a whole: exact on reading back, strict with damaged and hostile files, atomic."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mmriem.core.errors import RiemError
from mmriem.core.file.archive import Archive, WeightRecord
from mmriem.core.file.frame import pack, unpack
from mmriem.core.file.manifest import Source
from mmriem.core.file.reading import from_bytes, read
from mmriem.core.file.writing import write
from mmriem.core.representations.bilinear.codec import Bilinear
from mmriem.core.representations.bilinear.representation import BILINEAR
from mmriem.core.representations.bilinear.settings import BilinearSettings
from mmriem.core.representations.lattice.representation import LATTICE
from mmriem.core.representations.sigmoid.representation import SIGMOID
from mmriem.core.weights.views import WeightView, find_weights

EVERY = (BILINEAR, LATTICE, SIGMOID)
VECTORS = {'stem.bias': 'linear', 'norm.running_var': 'logarithm', 'wide.bias': 'linear'}
"""The variance is constant, which takes even less."""


class Detector(nn.Module):
    """Everything that a state dict of a detector may hold, small."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.deconv = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.heads = nn.ModuleList([nn.Linear(12, 5)] * 2)
        self.wide = nn.Linear(6, 9).double()
        self.scale = nn.Parameter(torch.tensor(1.25))
        self.register_buffer('mask', torch.tensor([True, False, True]))
        self.register_buffer('anchors', torch.tensor([[1e6, 2.0]]))
        coordinates = torch.arange(4)
        self.register_buffer('index', (coordinates[:, None] // 2 - coordinates // 2 + 1) * 3)
        self.index += coordinates[:, None] % 2 - coordinates % 2 + 1
        self.register_buffer('prior', torch.tensor([0.1, 0.2]).bfloat16())


def encode(view, tensor, kind=BILINEAR):
    matrix = view.to_matrix(tensor)
    fitter = kind.fitter_with(effort=0.01)
    settings = BilinearSettings(2, 5)
    if kind is not BILINEAR:
        settings = fitter.configure(view.matrix_shape, 16.0 * matrix.numel())
    return WeightRecord(view, fitter.fit(matrix, settings))


def make_archive(kinds=(BILINEAR,)):
    torch.manual_seed(0)
    model = Detector()
    views = find_weights(model, min_numel=30)
    state_dict = model.state_dict()
    records = [encode(view, state_dict[view.name], kinds[i % len(kinds)]) for i, view in enumerate(views)]
    meta = {'classes': ('cell', 'plate'), 'palette': [(1, 2, 3), (4, 5, 6)]}
    source = Source('epoch_12.pth', 'ab' * 32)
    return Archive.from_state_dict(
        state_dict, records, dataset_meta=meta, source=source, settings={'ratio': 0.1}, vectors=VECTORS
    )


@pytest.fixture(scope='module')
def archive():
    return make_archive()


@pytest.fixture(scope='module')
def data(archive):
    return archive.to_bytes()


def digest(payload):
    return hashlib.sha256(payload).digest()


def refused(action, *expected):
    with pytest.raises(RiemError) as raised:
        action()
    message = str(raised.value)
    assert '\n' not in message and len(message) < 1500
    for text in expected:
        assert text in message
    return message


def with_manifest(data, change):
    """The file with its manifest changed as JSON, in canonical spelling and with a right hash."""
    blobs = unpack(io.BytesIO(data), len(data), 'x')
    manifest = json.loads(zlib.decompress(blobs['manifest']))
    manifest = change(manifest) or manifest
    text = json.dumps(manifest, separators=(',', ':'), sort_keys=True)
    return pack({**blobs, 'manifest': zlib.compress(text.encode(), 9)})


def same(left, right):
    return (
        list(left) == list(right)
        and all(left[key].dtype == right[key].dtype for key in left)
        and all(torch.equal(left[key], right[key]) for key in left)
    )


# ---- what comes back


def test_every_key_comes_back_in_order_shape_and_dtype(data):
    model = Detector()
    decoded = from_bytes(data).decode()
    expected = model.state_dict()
    assert list(decoded) == list(expected)
    for key, tensor in expected.items():
        assert decoded[key].shape == tensor.shape and decoded[key].dtype == tensor.dtype
    model.load_state_dict(decoded, strict=True)


def test_what_is_not_compressed_comes_back_exactly_or_nearly(archive, data):
    torch.manual_seed(0)
    expected, decoded = Detector().state_dict(), from_bytes(data).decode()
    compressed = {key for record in archive.weights for key in (record.view.name, *record.view.aliases)}
    assert compressed == {'stem.weight', 'deconv.weight', 'heads.0.weight', 'heads.1.weight', 'wide.weight'}
    for key in expected.keys() - compressed:
        tolerance = {'rtol': 2**-11, 'atol': 2**-25} if 'bias' in key else {'rtol': 0, 'atol': 0}
        if key in VECTORS:
            tolerance['atol'] = 2**-6 * float(expected[key].std())
        torch.testing.assert_close(decoded[key], expected[key], **tolerance)
    for record in archive.weights:
        error = (decoded[record.view.name] - expected[record.view.name]).std() / expected[record.view.name].std()
        assert 0 < error < 1


def test_compressed_weights_carry_their_record(data):
    archive = from_bytes(data)
    decoded = archive.decode()
    records = {record.view.name: record for record in archive.weights}
    for key, tensor in decoded.items():
        name = 'heads.0.weight' if key == 'heads.1.weight' else key
        assert getattr(tensor, 'riem', None) is records.get(name)
    assert records['deconv.weight'].view == WeightView('deconv.weight', (8, 3, 2, 2), 'in_first', 2)


def test_shared_tensors_are_stored_once_and_shared_again(archive, data):
    decoded = from_bytes(data).decode()
    assert decoded['heads.0.weight'] is decoded['heads.1.weight']
    assert decoded['heads.0.bias'] is decoded['heads.1.bias']
    assert decoded['norm.bias'] is not decoded['norm.running_mean']
    assert [record.layout.aliases for record in archive.dense if record.layout.name == 'heads.0.bias'] == [
        ('heads.1.bias',)
    ]


def test_derivable_tensors_are_not_stored(archive):
    recipes = {record.name: record.recipe for record in archive.derived}
    assert recipes == {
        'index': 'relative_position_index',
        'norm.weight': 'constant',
        'norm.bias': 'constant',
        'norm.running_mean': 'constant',
        'norm.running_var': 'constant',
        'norm.num_batches_tracked': 'constant',
    }


def test_writing_what_was_read_gives_the_same_bytes(archive, data):
    again = from_bytes(data)
    assert again.to_bytes() == data == make_archive().to_bytes()
    assert again.dataset_meta == {'classes': ['cell', 'plate'], 'palette': [[1, 2, 3], [4, 5, 6]]}
    assert (again.source, again.settings, again.producer) == (
        archive.source,
        archive.settings,
        archive.producer,
    )
    assert again.keys == archive.keys and again.shapes == archive.shapes


def test_all_representations_in_one_file():
    archive = make_archive(EVERY)
    again = from_bytes(archive.to_bytes())
    assert {record.encoded.name for record in again.weights} == {'bilinear', 'lattice', 'sigmoid'}
    assert same(again.decode(), archive.decode())


def test_two_processes_decode_the_same_bits(tmp_path):
    archive = make_archive(EVERY)
    path = tmp_path / 'model.riem'
    write(path, archive)
    program = (
        'import hashlib, sys\n'
        'from mmriem.core.file.reading import read\n'
        'for key, tensor in read(sys.argv[1]).decode().items():\n'
        '    print(key, hashlib.sha256(tensor.double().numpy().tobytes()).hexdigest())\n'
    )
    runs = [subprocess.run([sys.executable, '-c', program, path], capture_output=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.splitlines()) == len(archive.keys)


def test_progress_ends_at_one(archive):
    shares = []
    archive.decode(shares.append)
    assert shares == sorted(shares) and len(shares) == len(archive.weights) and shares[-1] == 1


TENSORS = st.sampled_from(
    [
        torch.arange(12.0).reshape(3, 4),
        torch.linspace(0, 1, 30, dtype=torch.float64).reshape(5, 6),
        torch.ones(4),
        torch.tensor(3),
        torch.tensor([], dtype=torch.int32),
        torch.tensor([1, 2], dtype=torch.uint8),
        torch.tensor([False, True]),
        torch.tensor([1e-9, 1e9]),
        torch.tensor(0.3, dtype=torch.float16),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text('a.0', min_size=1, max_size=6), TENSORS, max_size=8), st.text())
def test_any_state_dict_makes_the_round_trip(state_dict, name):
    views = {key: WeightView(key, tuple(x.shape), dtype=x.dtype) for key, x in state_dict.items() if x.ndim == 2}
    # of tensors that share memory, only what is not compressed is shared again
    records = [encode(view, state_dict[key]) for key, view in views.items()]
    archive = Archive.from_state_dict(state_dict, records, dataset_meta={}, source=Source(name, ''), settings={})
    data = archive.to_bytes()
    again = from_bytes(data)
    assert again.to_bytes() == data
    assert same(again.decode(), archive.decode())
    assert again.shapes == {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    for key in state_dict.keys() - views.keys():
        torch.testing.assert_close(again.decode()[key], state_dict[key], rtol=2**-11, atol=2**-25)


def golden_archive():
    """What is in GOLDEN: a file that every later version must read to the same bits."""
    grids = struct.pack('<4e', -1.0, 0.5, 0.0, 2.0)  # rows -1 + 0.5 z, columns 2 z
    payload = grids + bytes([0, 1, 6]) + bytes([1, 2, 3, 4])
    encoded = Bilinear.from_payload((3, 4), BilinearSettings(1, 8), payload)
    record = WeightRecord(WeightView('conv.weight', (3, 1, 2, 2), aliases=('shared.weight',)), encoded)
    weight = record.decode()
    state_dict = {
        'conv.weight': weight,
        'conv.bias': torch.tensor([0.5, -1.0, 3.0]),
        'bn.num_batches_tracked': torch.tensor(7),
        'shared.weight': weight,
    }
    return Archive.from_state_dict(
        state_dict, [record], dataset_meta={'classes': ['a']}, source=Source('x.pth', ''), settings={}
    )


# base64 of zlib of golden_archive().to_bytes() as format version 1 wrote it
GOLDEN = (
    'eNozYGQAg2ql+Pjc1JLElMSSxPh4JatqpbT8otzEEiUrpaLM1FwlHSg/viy1qDgzPw8obggUzE3My0xLLS6JL85INDI1A4qaWaSn'
    '5xSHFxcXVyYHB+R5JoUZGvl5ZplXVVRleVlklIVlWjgZBxUElScV2yrV6iilpOYVpxqagWxMKaksSAUa4Qbk6igBTQTxoo1jgYpA'
    'rspPSytOLSkGChnomMUCtRaXFKUm5hYjaw21QNJpaIqp1UzHyBCkF+ZwnJpNzIwwdRsZ6phYGMfW1iowWDDsYXACYgtg4DkwMLIx'
    'MjGzVNzKDbzYN9tA4I/4frZADkuPyt1mWl5O1S9jRZ92CERtEK5pOHuzjcX15/dbT9YFLbG7GXf+3JszcQJXRFQmatyxXtn6adbz'
    'X3WOMww8Y+RbM75dm3P3xu9nKuus5ffMV9f/dm3T9GgbHaFv3nlxZY9uvm5fvpwpVrfFMdNuqqlLo6JW1gTzOhYNU4bDNl4rFqou'
    'q1thqZHftWWfTuKat3uv7BERL5AxVL3S3l/mWN30nkMj+N+ZLdsVFhhG/T7whTvogvSiBz5aCa/8lE1rRCWPPZwTkFz12+XFxpAT'
    'TnkzXid8OcpZnLZ53cmiAFfPlGUsIlPnHajJ1HP8kD5dbb3G4Vn8czcw9GawHo91bFlnsS3beteSw4FTZH1PRcV98hN53JG+O3Tp'
    'P3Md8339riIy0vsz9n5Rj+bxtV5vvntHp5i0xK8fNpG255itPOe8X333iP6+Ks8v0Zf/6N9d/CA2+86uX4GHD1inCvw6wRdy4iLD'
    '6U+Ovb+L5I9xRDuqJHKJPD2zoDgq2M2hJ/Df5037FRjXOC3MvsbWlWJpyvbs+u61UetMty7bfpeLqXfbV7lw/o9qfFfO2atMjNgT'
    '/vP1L+67+1xOh3543C989FDl592SdbGzvrSpPd8qyHPp9Vd9k/QnUwGz9Eh5'
)
STATES = ((-1.0, -0.5, 2.0), (2.0, 4.0, 6.0, 8.0))


def test_a_file_of_the_first_format_version_is_still_read():
    decoded = from_bytes(zlib.decompress(base64.b64decode(GOLDEN))).decode()
    rows, columns = (torch.tensor(states) for states in STATES)
    assert torch.equal(decoded['conv.weight'], (rows[:, None] * columns).reshape(3, 1, 2, 2))
    assert decoded['shared.weight'] is decoded['conv.weight']
    assert torch.equal(decoded['conv.bias'], torch.tensor([0.5, -1.0, 3.0]))
    assert decoded['bn.num_batches_tracked'].dtype == torch.int64 and decoded['bn.num_batches_tracked'] == 7
    assert same(decoded, golden_archive().decode())


# ---- from a state dict


def test_records_that_do_not_fit_the_state_dict_are_refused():
    weight = torch.rand(6, 8)
    record = encode(WeightView('fc.weight', (6, 8), aliases=('tied.weight',)), weight)

    def archive_of(state_dict):
        return Archive.from_state_dict(state_dict, [record], dataset_meta={}, source=Source('', ''), settings={})

    refused(lambda: archive_of({'fc.weight': weight}), "'tied.weight'", 'no such key')
    refused(lambda: archive_of({'fc.weight': weight.T, 'tied.weight': weight}), "'fc.weight'", '(6, 8)', '(8, 6)')
    refused(lambda: archive_of({'fc.weight': weight, 'tied.weight': weight.half()}), "'tied.weight'", 'float16')
    refused(lambda: archive_of({'fc.weight': weight, 'x': 3, 'tied.weight': weight}), "'x'", 'int')


def test_a_representation_of_another_shape_is_refused():
    encoded = encode(WeightView('fc.weight', (6, 8)), torch.rand(6, 8)).encoded
    refused(lambda: WeightRecord(WeightView('fc.weight', (8, 6)), encoded), "'fc.weight'", '(8, 6)', '(6, 8)')


def test_settings_that_json_cannot_hold_are_refused(archive):
    broken = dataclasses.replace(archive, settings={'ratio': float('nan')})
    refused(broken.to_bytes, 'settings', 'nan')


# ---- config and file


def test_a_model_with_the_same_shapes_is_accepted(archive):
    archive.check_against({key: tensor.shape for key, tensor in Detector().state_dict().items()})


def test_another_model_is_refused_in_one_sentence(data):
    archive = from_bytes(data, 'model.riem')
    shapes = dict(archive.shapes)
    del shapes['norm.bias']
    shapes['stem.weight'] = (16, 3, 3, 3)
    shapes.update({f'roi_head.{index}': (4,) for index in range(20)})
    message = refused(lambda: archive.check_against(shapes), 'model.riem', 'config and file do not belong together')
    assert '20 missing: roi_head.0, roi_head.1' in message and 'roi_head.19' not in message
    assert '1 unexpected: norm.bias' in message
    assert '1 with another shape: stem.weight (expected (16, 3, 3, 3), found (8, 3, 3, 3))' in message


# ---- damaged files


def test_every_flipped_byte_is_refused(data):
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 + position % 255
        with pytest.raises(RiemError):
            from_bytes(bytes(damaged))


def test_every_truncation_is_refused(data):
    for length in range(len(data)):
        with pytest.raises(RiemError):
            from_bytes(data[:length])
    refused(lambda: from_bytes(data + b'\0'), f'expected {len(data)} bytes')


def test_errors_name_the_file_and_the_key(tmp_path, data):
    path = tmp_path / 'model.riem'
    blobs = unpack(io.BytesIO(data), len(data), 'x')
    for name, key in (
        ('streams', 'stem.weight'),
        ('dense16', 'dense16'),
        ('dense32', 'dense32'),
        ('raw', 'raw'),
        ('vectors', 'vectors'),
    ):
        at = data.index(blobs[name])
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused(lambda: read(path), str(path), key, 'expected SHA-256', 'found')


def test_things_that_are_no_riem_file_are_refused(tmp_path):
    refused(lambda: read(tmp_path), str(tmp_path), 'folder')
    refused(lambda: read(tmp_path / 'missing.riem'), 'missing.riem', 'No such file')
    refused(lambda: read('model\0.riem'), 'null')
    refused(lambda: read(os.devnull), os.devnull, 'no regular file')
    (tmp_path / 'empty.riem').write_bytes(b'')
    refused(lambda: read(tmp_path / 'empty.riem'), 'empty.riem', '0 bytes')
    torch.save({'a': torch.zeros(2)}, tmp_path / 'renamed.riem')
    refused(lambda: read(tmp_path / 'renamed.riem'), 'renamed.riem', 'zip archive')
    torch.save({'a': torch.zeros(2)}, tmp_path / 'old.riem', _use_new_zipfile_serialization=False)
    refused(lambda: read(tmp_path / 'old.riem'), 'old.riem', 'pickle')


def test_a_weight_that_decodes_to_other_values_is_refused(archive):
    records = [dataclasses.replace(record, decoded_sha256=bytes(32)) for record in archive.weights]
    other = from_bytes(dataclasses.replace(archive, weights=tuple(records)).to_bytes(), 'model.riem')
    refused(other.decode, 'model.riem', "'stem.weight'", 'expected SHA-256 AAAA', 'found')
    refused(other.verify, 'model.riem', "'stem.weight'")


# ---- hostile files: every hash is right, the contents are not


def both(data):
    """Read and decode; the outcome of a hostile file is a RiemError or an archive like any other."""
    try:
        from_bytes(data, 'model.riem').decode()
    except RiemError as error:
        message = str(error)
        assert message.startswith('model.riem: ') and '\n' not in message
        message.encode()
        return False
    return True


def test_an_unchanged_manifest_passes_the_hostile_harness(data):
    assert with_manifest(data, lambda manifest: None) == data
    assert both(data)


def shift_stream(manifest):
    manifest['weights']['n_bytes'][0] += 1
    manifest['weights']['n_bytes'][1] -= 1


@pytest.mark.parametrize(
    'change',
    [
        shift_stream,
        lambda manifest: manifest['weights']['n_bytes'].__setitem__(0, 0),
        lambda manifest: manifest['weights']['n_bytes'].__setitem__(0, 2**40),
        lambda manifest: manifest['weights']['symbols'].__setitem__(0, 1),
        lambda manifest: manifest['weights']['representation'].__setitem__(0, 'pickle'),
        lambda manifest: manifest['weights']['settings'].__setitem__(0, {}),
        lambda manifest: manifest['weights']['settings'][0].update(rank=3),
        lambda manifest: manifest['weights']['settings'][0].update(rank=10**18),
        lambda manifest: manifest['weights']['settings'][0].update(rank=-1),
        lambda manifest: manifest['weights']['settings'][0].update(rank=True),
        lambda manifest: manifest['weights']['settings'][0].update(more=1),
        lambda manifest: manifest['weights']['shape'].__setitem__(0, [8, 3, 3, 4]),
        lambda manifest: manifest['weights']['shape'].__setitem__(0, [2**15, 2**15]),
        lambda manifest: manifest['dense']['shape'].__setitem__(0, [9]),
        lambda manifest: manifest['dense']['shape'].__setitem__(0, [2**30]),
        lambda manifest: manifest['dense']['storage'].__setitem__(0, 'single'),
        lambda manifest: manifest['blobs'].pop('dense16'),
        lambda manifest: manifest['blobs'].update(raw='A' * 43),
        lambda manifest: manifest['derived']['recipe'].__setitem__(0, 'eval'),
        lambda manifest: manifest['derived']['params'].__setitem__(0, [1]),
        lambda manifest: manifest['derived']['shape'].__setitem__(0, [2**25]),
    ],
)
def test_a_lie_in_the_manifest_is_refused(data, change):
    hostile = with_manifest(data, change)
    assert not both(hostile)


def test_a_layout_that_moves_values_is_refused(data):
    hostile = with_manifest(data, lambda manifest: manifest['weights']['groups'].__setitem__(1, 1))
    assert not both(hostile)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.sampled_from([2**31, 2**62, 2**64, -(2**63), 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(['', '\ud800', 'half', 'raw', 'float64', 'bfloat16', 'int64', 'sigmoid', 'in_first', 'constant']),
    st.lists(st.integers(-1, 2**33), max_size=4),
    st.just({}),
)


def places(value, path=()):
    """Paths of every value inside a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def mutate(draw, manifest):
    *path, last = draw(st.sampled_from([path for path in places(manifest) if path]))
    parent = manifest
    for key in path:
        parent = parent[key]
    action = draw(st.sampled_from(['replace', 'replace', 'replace', 'remove', 'double', 'swap', 'edit']))
    if action == 'remove':
        del parent[last]
    elif action == 'double' and isinstance(parent, list):
        parent.insert(last, parent[last])
    elif action == 'swap' and isinstance(parent, list):
        other = draw(st.integers(0, len(parent) - 1))
        parent[last], parent[other] = parent[other], parent[last]
    elif action == 'edit' and isinstance(parent[last], str):
        letters = draw(st.permutations(parent[last])) if len(parent[last]) < 40 else parent[last][::-1]
        parent[last] = ''.join(letters)
    elif action == 'edit' and type(parent[last]) is int:
        parent[last] += draw(st.integers(-2, 2))
    else:
        parent[last] = draw(HOSTILE)


@pytest.mark.parametrize('kinds', [(BILINEAR,), EVERY], ids=['bilinear', 'all'])
def test_random_lies_in_the_manifest_never_raise_anything_but_riem_error(kinds):
    original = make_archive(kinds).to_bytes()

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(source):
        def change(manifest):
            for _ in range(source.draw(st.integers(1, 3))):
                mutate(source.draw, manifest)

        both(with_manifest(original, change))

    run()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(position=st.integers(0, 10**6), replacement=st.binary(max_size=4), width=st.integers(0, 6))
def test_random_edits_of_the_manifest_text_never_raise_anything_but_riem_error(data, position, replacement, width):
    blobs = unpack(io.BytesIO(data), len(data), 'x')
    text = zlib.decompress(blobs['manifest'])
    position %= len(text)
    text = text[:position] + replacement + text[position + width :]
    both(pack({**blobs, 'manifest': zlib.compress(text)}))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(['streams', 'dense16', 'dense32', 'raw', 'vectors']),
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
)
def test_hostile_payloads_with_right_hashes_never_raise_anything_but_riem_error(data, name, position, value):
    blobs = unpack(io.BytesIO(data), len(data), 'x')
    changed = bytearray(blobs[name])
    changed[position % len(changed)] = value
    archive = from_bytes(data)
    start = 0
    digests = b''
    for record in archive.weights:
        length = len(record.encoded.to_payload())
        payload = bytes(changed[start : start + length]) if name == 'streams' else record.encoded.to_payload()
        digests += digest(payload)
        start += length

    def rehash(manifest):
        if name == 'streams':
            manifest['weights']['stream'] = base64.b64encode(digests).decode().rstrip('=')
        else:
            manifest['blobs'][name] = base64.b64encode(digest(bytes(changed))).decode().rstrip('=')

    hostile = with_manifest(pack({**blobs, name: bytes(changed)}), rehash)
    both(hostile)


# ---- writing


def test_the_size_on_disk_is_what_write_returns(tmp_path, archive, data):
    path = tmp_path / 'model.riem'
    assert write(path, archive) == len(data) == path.stat().st_size
    assert path.read_bytes() == data
    assert same(read(path).decode(), archive.decode())
    assert os.listdir(tmp_path) == ['model.riem']


def test_a_tool_that_knows_only_safetensors_opens_the_file(tmp_path, archive):
    path = tmp_path / 'model.riem'
    write(str(path), archive)
    with safetensors.safe_open(path, 'pt') as file:
        assert file.metadata()['format'] == 'riem'
        assert set(file.keys()) == {'dense16', 'dense32', 'raw', 'vectors', 'streams', 'manifest'}
        json.loads(zlib.decompress(file.get_tensor('manifest').numpy().tobytes()))


def test_an_existing_file_is_replaced_only_by_force(tmp_path, archive, data):
    path = tmp_path / 'model.riem'
    path.write_bytes(b'old')
    refused(lambda: write(path, archive), str(path), 'force=True')
    assert path.read_bytes() == b'old'
    write(path, archive, force=True)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ['model.riem']


def test_places_that_cannot_be_written_are_refused(tmp_path, archive):
    (tmp_path / 'file').write_bytes(b'')
    refused(lambda: write(tmp_path, archive, force=True), str(tmp_path), 'folder')
    refused(lambda: write(tmp_path / 'missing' / 'model.riem', archive), 'model.riem', 'No such file')
    refused(lambda: write(tmp_path / 'file' / 'model.riem', archive), 'model.riem', 'Not a directory')
    (tmp_path / 'link.riem').symlink_to(tmp_path / 'nowhere')
    refused(lambda: write(tmp_path / 'link.riem', archive), 'link.riem', 'force=True')
    assert sorted(os.listdir(tmp_path)) == ['file', 'link.riem']


def test_an_archive_that_does_not_verify_leaves_the_old_file(tmp_path, archive):
    path = tmp_path / 'model.riem'
    path.write_bytes(b'old')
    records = [dataclasses.replace(record, decoded_sha256=bytes(32)) for record in archive.weights]
    broken = dataclasses.replace(archive, weights=tuple(records))
    refused(lambda: write(path, broken, force=True), str(path), "'stem.weight'")
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['model.riem']


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    """A user who presses Ctrl-C while the written file is verified."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bilinear, 'from_payload', interrupt)
    path = tmp_path / 'model.riem'
    path.write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt):
        write(path, make_archive(), force=True)
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['model.riem']
