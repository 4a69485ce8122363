"""The frame: a real safetensors file, and every byte of its header accounted for."""

import io
import json
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.errors import RiemError, brief
from mmriem.core.file.frame import MAX_HEADER_BYTES, TENSORS, pack, unpack

BLOBS = {
    'dense32': bytes(range(8)),
    'dense16': bytes(range(6)),
    'raw': b'\1',
    'vectors': bytes(range(5)),
    'streams': b'payload',
    'manifest': b'{}',
}


def parse(data):
    return unpack(io.BytesIO(data), len(data), 'model.riem')


def with_header(change):
    """The file of BLOBS, its header changed as parsed JSON."""
    data = pack(BLOBS)
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return len(text).to_bytes(8, 'little') + text + data[8 + length :]


def refused(data, *expected):
    with pytest.raises(RiemError) as raised:
        parse(data)
    message = str(raised.value)
    assert message.startswith('model.riem: ') and '\n' not in message and len(message) < 500
    for text in expected:
        assert text in message
    return message


def test_safetensors_reads_the_file():
    tensors = safetensors.torch.load(pack(BLOBS))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        'dense32': torch.float32,
        'dense16': torch.float16,
        'raw': torch.uint8,
        'vectors': torch.uint8,
        'streams': torch.uint8,
        'manifest': torch.uint8,
    }
    assert {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} == BLOBS


def test_metadata_names_format_and_version(tmp_path):
    path = tmp_path / 'model.riem'
    path.write_bytes(pack(BLOBS))
    with safetensors.safe_open(path, 'pt') as file:
        metadata = file.metadata()
    assert metadata['format'] == 'riem' and metadata['format_version'] == '1'


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({name: st.binary(max_size=20) for name in TENSORS}))
def test_unpack_inverts_pack(blobs):
    blobs = {name: blob * TENSORS[name][1] for name, blob in blobs.items()}
    blobs['manifest'] += b'!'
    data = pack(blobs)
    assert parse(data) == blobs
    assert set(safetensors.torch.load(data)) == {name for name, blob in blobs.items() if blob}


def test_every_flipped_bit_of_header_and_manifest_is_refused():
    data = pack({'manifest': b'some manifest'})
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            refused(bytes(damaged))


def test_every_truncation_and_any_trailing_byte_is_refused():
    data = pack(BLOBS)
    for length in range(len(data)):
        refused(data[:length])
    refused(data + b'\0', f'expected {len(data)} bytes', f'found {len(data) + 1}')


def test_other_files_are_refused_by_what_they_are():
    archive = io.BytesIO()
    torch.save({'weight': torch.zeros(100)}, archive)
    refused(archive.getvalue(), 'zip archive', 'PyTorch')
    with zipfile.ZipFile(archive := io.BytesIO(), 'w') as zipped:
        zipped.writestr('name', 'text')
    refused(archive.getvalue(), 'zip archive')
    refused(pickle.dumps({'weight': list(range(100))}), 'pickle')
    refused(b'', 'only 0 bytes')
    refused(b'\x80\x02', 'only 2 bytes')
    refused(b'backbone = dict(type="ResNet")\n' * 10, 'header')
    refused(safetensors.torch.save({'weight': torch.zeros(3)}), 'header of a .riem file')
    refused(safetensors.torch.save({'weight': torch.zeros(3)}, {'format': 'pt'}), "format 'riem'", "'pt'")


@pytest.mark.parametrize('length', [MAX_HEADER_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_bound_is_refused_before_it_is_read(length):
    refused(length.to_bytes(8, 'little') + b' ' * (MAX_HEADER_BYTES + 100), str(length))


@pytest.mark.parametrize('version', ['2', '', 1, None, 'x' * 2000, '\ud800'])
def test_another_format_version_is_refused(version):
    message = refused(with_header(lambda header: header['__metadata__'].update(format_version=version)))
    assert "format version '1'" in message
    message.encode()


@pytest.mark.parametrize(
    'change',
    [
        lambda header: header.pop('manifest'),
        lambda header: header.pop('streams'),
        lambda header: header.update(more={'dtype': 'U8', 'shape': [0], 'data_offsets': [24, 24]}),
        lambda header: header['streams'].update(data_offsets=[15, 21]),
        lambda header: header['streams'].update(data_offsets=[14, 22]),
        lambda header: header['streams'].update(data_offsets=[22, 15]),
        lambda header: header['streams'].update(data_offsets=[-7, 0]),
        lambda header: header['streams'].update(data_offsets=[15, 2**70]),
        lambda header: header['streams'].update(data_offsets=[15.0, 22.0]),
        lambda header: header['streams'].update(data_offsets=[15]),
        lambda header: header['streams'].update(data_offsets='15'),
        lambda header: header['streams'].update(shape=[8]),
        lambda header: header['streams'].update(dtype='I8'),
        lambda header: header.update(streams=None),
        lambda header: header['raw'].update(data_offsets=[14, 14], shape=[0]),
        lambda header: header['__metadata__'].update(note='more'),
        lambda header: header['__metadata__'].pop('manifest_sha256'),
        lambda header: header['__metadata__'].update(manifest_sha256=7),
        lambda header: header['__metadata__'].update(manifest_sha256='A' * 44),
        lambda header: header.update(__metadata__=[]),
        lambda header: header.update(__metadata__=None),
    ],
)
def test_a_header_in_any_other_words_is_refused(change):
    refused(with_header(change))


@pytest.mark.parametrize(
    'text', [b'[]', b'null', b'{', b'\xff\xfe', b'[' * 4000, b'{"__metadata__":' * 250, b'9' * 4096]
)
def test_headers_that_are_no_objects_are_refused(text):
    refused(len(text).to_bytes(8, 'little') + text + bytes(100))


def test_an_empty_tensor_has_no_second_spelling():
    def add_empty(header):
        tail = header.pop('manifest')
        header['streams'] = {'dtype': 'U8', 'shape': [0], 'data_offsets': [0, 0]}
        header['manifest'] = tail

    data = pack({'manifest': b'{}'})
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + length])
    add_empty(header)
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    refused(len(text).to_bytes(8, 'little') + text + b'{}')


def test_brief_bears_anything():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, 'x' * 10**6, 10**4000, {'a': list(range(10**5))}):
        assert len(brief(value)) < 500
