"""Hostile checkpoints: pickles that would run code, take the memory or never end, in every format of `torch.save`.

Imported by fuzz_checkpoints.py; it runs nothing itself.
"""

from __future__ import annotations

import io
import json
import lzma
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

Case = tuple[str, str, bytes]
"""What is tried, in which form, and the bytes of the file."""
PROTOCOLS = (0, 1, 2, 3, 4, 5)
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001

CALLS = {
    'os system': ('touch MARKER',),
    'posix system': ('touch MARKER',),
    'nt system': ('touch MARKER',),
    'os popen': ('touch MARKER',),
    'os mkdir': ('MARKER',),
    'subprocess Popen': (('touch', 'MARKER'),),
    'subprocess check_output': (('touch', 'MARKER'),),
    'builtins eval': ("open('MARKER', 'w')",),
    'builtins exec': ("open('MARKER', 'w')",),
    '__builtin__ eval': ("open('MARKER', 'w')",),
    'builtins open': ('MARKER', 'w'),
    'io open': ('MARKER', 'w'),
    'io FileIO': ('MARKER', 'w'),
    '_io FileIO': ('MARKER', 'w'),
    'pathlib Path.touch': ('MARKER',),
    'builtins compile': ("open('MARKER', 'w')", 'x', 'exec'),
    'builtins __import__': ('os',),
    'builtins getattr': ('x', 'join'),
    'builtins setattr': ('x', 'y', 1),
    'builtins map': (1, 2),
    'builtins bytearray': (3_000_000_000,),
    'builtins range': (10**15,),
    'builtins print': ('x',),
    'builtins globals': (),
    'builtins object': (),
    'builtins type': ('X', (), {}),
    'importlib import_module': ('antigravity',),
    'runpy run_path': ('MARKER.py',),
    'shutil rmtree': ('MARKER',),
    'pty spawn': ('touch MARKER',),
    'timeit timeit': ("open('MARKER', 'w')",),
    'cProfile run': ("open('MARKER', 'w')",),
    'pdb run': ("open('MARKER', 'w')",),
    'code interact': (),
    'types FunctionType': (1, {}),
    'types CodeType': (),
    'functools partial': (1,),
    'operator attrgetter': ('x',),
    'operator methodcaller': ('x',),
    'copyreg _reconstructor': (1, 2, 3),
    'pickle loads': (b'N.',),
    '_pickle loads': (b'N.',),
    'marshal loads': (b'N',),
    'ctypes CDLL': ('MARKER',),
    'socket create_connection': (('127.0.0.1', 9),),
    'webbrowser open': ('http://127.0.0.1:9/',),
    'logging.config listen': (),
    'torch load': ('MARKER',),
    'torch.hub load': ('MARKER', 'x'),
    'torch.jit load': ('MARKER',),
    'torch.serialization os.system': ('touch MARKER',),
    'torch._utils _import_dotted_name': ('os.system',),
    'torch._utils _rebuild_wrapper_subclass': (1, 2),
    'torch.storage _load_from_bytes': (b'x',),
    'torch.fx.graph_module reduce_graph_module': ({}, ''),
    'torch.nn.modules.linear Linear': (2, 2),
    'torch.utils.data.datapipes.utils.common StreamWrapper': (1,),
    'numpy load': ('MARKER',),
    'numpy.testing._private.utils runstring': ("open('MARKER', 'w')", {}),
    'numpy.core._multiarray_umath _reconstruct': (1, 2, 3),
    'mmengine.config.config Config.fromfile': ('MARKER',),
    'mmengine.logging.logger MMLogger': ('x', 'x', 'MARKER'),
    'mmengine.logging.history_buffer HistoryBuffer._set_default_statistics': (1,),
    'mmengine.registry.registry Registry': ('x',),
    '_codecs encode': ('x' * 50, 'hex_codec'),
    '_codecs decode': (b'x', 'zlib_codec'),
    'codecs open': ('MARKER', 'w'),
    '__main__ Trojan': (),
    'mmriem.core.atomic write_whole': ('MARKER', 'x'),
}
"""What a pickle would call, and with what."""

ABUSES = {
    'torch._utils _rebuild_tensor_v2': [(), (1, 2, 3, 4), (None, 0, (2**40,), (1,), False, None)],
    'torch._utils _rebuild_tensor_v3': [(), (1, 2, 3, 4, 5, 6, 7)],
    'torch._utils _rebuild_parameter': [(), (1, True, 2), ((), None, None)],
    'torch._utils _rebuild_qtensor': [(), (1,) * 7],
    'torch._utils _rebuild_sparse_tensor': [(), ('torch.sparse_coo', ()), ('torch.sparse_coo', (1, 2, 3))],
    'torch._tensor _rebuild_from_type_v2': [(), (1, 2, (), {})],
    'collections OrderedDict': [((1, 2, 3),), ('abc',), (((1,),),), ((([], 1),),)],
    'collections Counter': [('aaaa',), ({'a': [1]},)],
    'builtins set': [(5,), ([[1]],), ('abc',), ([(1, [2])],)],
    'builtins complex': [('1e999999999',), ('9' * 100_000,), (1, 2, 3)],
    'builtins bytes': [(10**10,), ('x',), (-1,)],
    'builtins getattr': [('x', '__class__'), (1, 'real'), ((), '__len__')],
    '_codecs encode': [('x', 'punycode'), ('x', 'hex_codec'), ('x', 'zlib_codec'), (5, 'latin1'), ('\u20ac', 'latin1')],
    'torch Size': [([2**70],), ('x',), ([1] * 100_000,), ([-1],), (5,)],
    'torch device': [('x',), (5,), ('cuda', 99), ('meta',), ('cpu', 'x')],
    'numpy dtype': [('O8',), ('V10',), ('f8', False, True), (5,), ('S99999',), (None,)],
    'numpy.core.multiarray _reconstruct': [(), (1, 2, 3)],
    'numpy._core.multiarray scalar': [(), (1, b'x'), ('f8', b'x')],
    'mmengine.logging.history_buffer HistoryBuffer': [(), (1, 2, 3)],
    'mmengine.config.config ConfigDict': [(5,), ('ab',), ({'a': 1},), ([([], 1)],)],
    'torch.serialization _get_layout': [(), (1, 2)],
}
"""Names that a checkpoint may have, with arguments that none has."""


# Instructions.


def value(tree: Any) -> bytes:
    """Instructions that push a plain value."""
    return pickle.dumps(tree, 2)[2:-1].replace(b'q\x00', b'')


def named(full: str) -> bytes:
    module, _, name = full.partition(' ')
    return f'c{module}\n{name}\n'.encode()


def stack_named(full: str) -> bytes:
    module, _, name = full.partition(' ')
    return (
        b'X'
        + struct.pack('<I', len(module))
        + module.encode()
        + b'X'
        + struct.pack('<I', len(name))
        + name.encode()
        + b'\x93'
    )


def pushed(arguments: tuple) -> bytes:
    return b''.join(map(value, arguments))


def calls(full: str, arguments: tuple) -> Iterator[tuple[str, bytes]]:
    """Every way to call a name."""
    module, _, name = full.partition(' ')
    packed = b'(' + pushed(arguments) + b't'
    yield 'REDUCE', named(full) + packed + b'R'
    yield 'STACK_GLOBAL', stack_named(full) + packed + b'R'
    yield 'INST', b'(' + pushed(arguments) + f'i{module}\n{name}\n'.encode()
    yield 'OBJ', b'(' + named(full) + pushed(arguments) + b'o'
    yield 'NEWOBJ', named(full) + packed + b'\x81'
    yield 'NEWOBJ_EX', named(full) + packed + b'}\x92'
    yield 'BUILD', named(full) + value({'__setstate__': 1}) + b'b'
    yield 'a key', b'}' + named(full) + packed + b'RNs'
    yield 'memo', named(full) + b'q\x05' + b'0' + b'h\x05' + packed + b'R'
    yield 'in a state', b'ccollections\nOrderedDict\n)R' + value('get') + named(full) + packed + b'R\x86}\x8c\x01xNsb'


def nested(opening: bytes, closing: bytes, levels: int) -> bytes:
    return opening * levels + b'N' + closing * levels


def colliding(count: int) -> bytes:
    """A dictionary of complex numbers that all have one hash."""
    pairs = (
        b'cbuiltins\ncomplex\nG' + struct.pack('>d', -1000003.0 * k) + b'G' + struct.pack('>d', k) + b'\x86RN'
        for k in range(1, count)
    )
    return b'}(' + b''.join(pairs) + b'u'


def bombs() -> Iterator[tuple[str, bytes]]:
    """Instructions of small files with large wishes."""
    for levels in (99, 101, 700, 5_000, 200_000):
        yield f'lists, {levels} deep', nested(b']', b'a', levels)
        yield f'tuples, {levels} deep', nested(b'', b'\x85', levels)
        yield f'dictionaries, {levels} deep', b'}\x8c\x01a' * levels + b'N' + b's' * levels
        yield f'marks, {levels}', b'(' * levels + b'N' + b't' * levels
        yield f'states, {levels} deep', nested(b'ccollections\nOrderedDict\n)R', b'', levels)
    for levels in (20, 40, 200):
        yield f'lists shared by lists, {levels}', b']' + b'q\x00](h\x00h\x00e' * levels
        yield f'tuples shared by tuples, {levels}', b')' + b'2\x86' * levels
        yield f'dictionaries shared, {levels}', b'}' + b'q\x00}(K\x01h\x00K\x02h\x00u' * levels
    for claim in (1 << 20, 1 << 31, 1 << 40, 1 << 62):
        yield f'bytearray of {claim}', b'\x96' + struct.pack('<Q', claim) + b'x'
        yield f'bytes of {claim}', b'\x8e' + struct.pack('<Q', claim) + b'x'
        yield f'text of {claim}', b'\x8d' + struct.pack('<Q', claim) + b'x'
        yield f'frame of {claim}', b'\x95' + struct.pack('<Q', claim) + b'N'
    yield 'an integer of 100 kB', b'\x8b' + struct.pack('<i', 100_000) + b'\x7f' * 100_000
    yield 'an integer below none', b'\x8b' + struct.pack('<i', -5)
    yield 'digits', b'I' + b'9' * 200_000 + b'\n'
    yield 'long digits', b'L' + b'9' * 200_000 + b'L\n'
    yield 'a long float', b'F' + b'9' * 200_000 + b'\n'
    yield 'a number of a memo', b'Nr\xff\xff\xff\xff'
    yield 'a memo that is not there', b'j\xff\xff\xff\xff'
    yield 'a memo below none', b'Np-1\n'
    yield 'pops', b'N' + b'0' * 100_000
    yield 'doubles', b'N' + b'2' * 100_000 + b't'
    yield 'a long key', b'}' + b'(' + b'N' * 100_000 + b'tNs'
    yield 'keys of one hash', colliding(20_000)
    yield 'keys of many sorts', value({None: 1, 1: 2, 2.5: 3, b'x': 4, (1, 'a'): 5})
    yield 'a key of lists', b'}](K\x01e\x85Ns'
    yield 'itself in a list', b']q\x002a'
    yield 'itself in a dictionary', b'}q\x00K\x01h\x00s'
    yield 'itself in a tuple', b']q\x00h\x00\x85a'
    yield 'a persistent text', b'P/etc/passwd\n'
    yield 'a persistent value', value('x') + b'Q'
    yield 'a persistent list', b']Q'
    yield (
        'a storage that is none',
        b'(' + value('storage') + named('torch FloatStorage') + pushed(('0', 'cpu', 1 << 40)) + b'tQ',
    )
    yield 'a storage of text', b'(' + pushed(('storage', 'x', '0', 'cpu', 4)) + b'tQ'
    yield 'an extension', b'\x82\x01'
    yield 'another buffer', b'\x97'
    yield 'no such instruction', b'\xff'
    yield (
        'many copies',
        b'('
        + b'ccollections\nOrderedDict\n('
        + value([(n, n) for n in range(300)])
        + b'q\x09tR'
        + (b'ccollections\nOrderedDict\n(h\x09tR' * 3000)
        + b't',
    )
    for codec in ('hex_codec', 'punycode', 'latin1', 'utf-32', 'idna', 'unicode_escape'):
        chain = value('x' * 500)
        for _ in range(20):
            chain = named('_codecs encode') + chain + value(codec) + b'\x86R'
        yield f'a chain of {codec}', chain


# Formats.


def zipped(data: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """As `torch.save` has it: data.pkl and further records in an archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/byteorder', b'little')
        for name, content in {'version': b'3\n', **more}.items():
            archive.writestr(f'archive/{name}', content)
    return stream.getvalue()


def sequence(data: bytes, keys: Any = (), heading: Any = None) -> bytes:
    """As `torch.save` had it: pickles one after the other."""
    sizes = {'protocol_version': VERSION, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
    first = [MAGIC, VERSION, sizes if heading is None else heading]
    return b''.join(pickle.dumps(part, 2) for part in first) + data + pickle.dumps(list(keys), 2)


def inside(instructions: bytes, protocol: int = 2) -> bytes:
    """A pickle of a checkpoint whose `meta` is what the instructions push."""
    start = b'' if protocol < 2 else b'\x80' + bytes([protocol])
    return start + b'}' + value('meta') + instructions + b's.'


def forms(instructions: bytes, number: int) -> Iterator[tuple[str, bytes]]:
    """Two of the three forms of a file, in turn."""
    protocol = PROTOCOLS[number % len(PROTOCOLS)]
    every = [
        ('archive', lambda: zipped(inside(instructions, protocol))),
        ('sequence', lambda: sequence(inside(instructions, protocol))),
        ('pickle', lambda: inside(instructions, max(protocol, 2))),
    ]
    for name, make in (every[number % 3], every[(number + 1) % 3]):
        yield name, make()


def saved(tree: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(tree, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def sound() -> dict[str, Any]:
    """A checkpoint of a small network."""
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict((f'layer{n}.weight', torch.randn(9, 7, generator=generator)) for n in range(4))
    meta = {
        'epoch': 3,
        'dataset_meta': {'classes': ('a', 'b'), 'palette': [(1, 2, 3), (4, 5, 6)]},
        'n': np.float64(2.5),
    }
    return {'state_dict': state, 'meta': meta}


def trees() -> Iterator[tuple[str, Any]]:
    """What `torch.save` writes, but no network needs."""
    tensor = torch.arange(6.0).reshape(2, 3)
    cyclic: dict[str, Any] = {}
    cyclic['own'] = cyclic
    deep: Any = 'x'
    for _ in range(700):
        deep = [deep]
    wide: Any = ['cat'] * 1000
    for _ in range(5):
        wide = [wide] * 40
    strange = OrderedDict(a=tensor)
    strange.get = strange.values = strange.keys = 5
    for name, key in (
        ('a number', 7),
        ('bytes', b'w'),
        ('nothing', None),
        ('a tuple', (1, 'w')),
        ('a long text', 'w' * 100_000),
        ('a surrogate', '\ud800'),
        ('markup', '[/x][v1]'),
        ('lines', 'a\nb\r\x1b[31m\0'),
        ('no text', ''),
    ):
        yield f'as name {name}', {'state_dict': {key: tensor}}
        yield f'as name {name}, beside others', {'state_dict': {'w': tensor, key: 1}}
    for name, entry in (
        ('a list', [tensor]),
        ('nothing', None),
        ('a number', 1.5),
        ('a dictionary', {'w': tensor}),
        ('a sparse tensor', tensor.to_sparse()),
        ('a complex tensor', tensor.to(torch.complex64)),
        ('a quantised tensor', torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
        ('a tensor without values', tensor.to('meta')),
        ('NaN', tensor * float('nan')),
        ('a repeated tensor', torch.zeros(1).expand(1 << 30)),
        ('float8', tensor.to(torch.float8_e4m3fn)),
    ):
        yield f'as entry {name}', {'state_dict': {'w': entry}}
        yield f'as entry {name}, beside others', {'state_dict': {'a': tensor, 'w': entry}}
    for name, meta in (
        ('cyclic', cyclic),
        ('deep', deep),
        ('wide', wide),
        ('a tensor', tensor),
        ('a number', 5),
        ('bytes', b'x' * 1000),
        ('names', {1: 2, 'classes': {('a', 1): 3}}),
    ):
        yield f'description {name}', {'state_dict': {'w': tensor}, 'meta': {'dataset_meta': meta}}
        yield (
            f'description {name} of mmdet 2',
            {'state_dict': {'w': tensor}, 'meta': {'CLASSES': meta, 'PALETTE': meta}},
        )
        yield f'meta {name}', {'state_dict': {'w': tensor}, 'meta': meta}
    yield 'a dictionary with attributes', {'state_dict': strange}
    for metadata in (5, [1], {'': 3}, {'': {'version': 'x'}}, {1: {}}):
        state = OrderedDict(w=tensor)
        state._metadata = metadata
        yield f'_metadata {metadata}', {'state_dict': state}
    for place in (
        None,
        5,
        'x',
        [],
        (),
        tensor,
        {'state_dict': 5, 'model': 'x'},
        {'model': []},
        {'state_dict': {}},
        {5: 6},
    ):
        yield f'at the top {str(place)[:30]}', place


def archives() -> Iterator[tuple[str, bytes]]:
    """Zip archives and other containers that are not what they seem."""
    good = inside(b'N')
    yield 'a zip bomb as data.pkl', zipped(inside(value('x' * (1 << 26))), zipfile.ZIP_DEFLATED)
    yield 'a zip bomb as record', zipped(good, zipfile.ZIP_DEFLATED, **{'data/0': bytes(1 << 26)})
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f'compressed with {method}', zipped(inside(value('x' * (1 << 20))), method)
    yield 'another byte order', zipped(good).replace(b'little', b'bigger')
    yield 'a long byte order', zipped(good, byteorder2=b'x').replace(b'archive/byteorder2', b'archive/byteorder\0')
    yield 'a TorchScript', zipped(good, **{'constants.pkl': good})
    yield 'many records', zipped(good, **{f'data/{n}': b'' for n in range(20_000)})
    yield 'no data.pkl', zipped(good).replace(b'data.pkl', b'date.pkl')
    yield 'a name above', zipped(good).replace(b'archive/', b'../../x/')
    yield 'an empty pickle', zipped(b'')
    yield 'no end', zipped(good[:-1])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        for folder in 'ab':
            archive.writestr(f'{folder}/data.pkl', good)
    yield 'two pickles', stream.getvalue()
    data, draw = bytearray(zipped(good)), random.Random(0)
    for number in range(20):
        flipped = bytearray(data)
        for _ in range(3):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield f'flipped bits {number}', bytes(flipped)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as tar:
        for name in ('sys_info', 'pickle', 'storages', 'tensors'):
            info = tarfile.TarInfo(name)
            info.size = len(good)
            tar.addfile(info, io.BytesIO(good))
    yield 'a tar archive', stream.getvalue()
    yield 'lzma', lzma.compress(good)
    yield 'zlib', zlib.compress(good)
    for kind in ('save', 'savez_compressed'):
        stream = io.BytesIO()
        getattr(np, kind)(stream, np.zeros(10))
        yield f'numpy {kind}', stream.getvalue()
    for heading in (5, {}, {'little_endian': False}, {'little_endian': []}, [1]):
        yield f'sequence with heading {heading}', sequence(good, heading=heading)
    for keys in (['0'], [1], ['0'] * 100_000, ['../x']):
        yield f'sequence with keys {str(keys)[:20]}', sequence(good, keys)
    tensors = {
        'gap': {'w': {'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]}},
        'overflow': {'w': {'dtype': 'F32', 'shape': [2**62, 8], 'data_offsets': [0, 4]}},
        'dtype': {'w': {'dtype': 'X9', 'shape': [1], 'data_offsets': [0, 4]}},
        'list': [1, 2],
        'names': {'': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}},
    }
    for name, header in tensors.items():
        text = json.dumps(header).encode()
        yield f'safetensors, {name}', struct.pack('<Q', len(text)) + text + bytes(8)
    yield 'safetensors, a long header', struct.pack('<Q', 1 << 62) + b'{'
    yield 'safetensors, depth', struct.pack('<Q', 200_001) + b'{"a":' * 40_000 + b'}'
    for text in (b'', b'\0' * 1000, b'\x80', b'\x80\x02', b'PK\x03\x04', b'version https://git-lfs', b'<html>'):
        yield f'the file {text[:12]!r}', text


def cases() -> Iterator[Case]:
    """All of them, always the same."""
    number = 0
    for full, arguments in CALLS.items():
        for way, instructions in calls(full, arguments):
            for form, data in list(forms(instructions, number))[: 1 + (number % 5 == 0)]:
                yield f'a call, {way}', f'{full}, {form}', data
            number += 1
    for full, several in ABUSES.items():
        for arguments in several:
            for way, instructions in list(calls(full, arguments))[:: 4 if number % 2 else 5]:
                yield (
                    'a known name, other arguments',
                    f'{full} {str(arguments)[:40]} {way}',
                    zipped(inside(instructions)),
                )
            number += 1
    for name, instructions in bombs():
        for form, data in forms(instructions, number):
            yield 'instructions', f'{name}, {form}', data
        number += 1
    for name, tree in trees():
        for form in (True, False):
            try:
                data = saved(tree, form)
            except (RecursionError, UnicodeError, pickle.PicklingError, NotImplementedError, RuntimeError, TypeError):
                continue  # torch.save itself cannot
            yield 'an odd tree', f'{name}, {"archive" if form else "sequence"}', data
    for name, data in archives():
        yield 'an odd container', name, data
    for form in (True, False):
        data = saved(sound(), form)
        for share in range(1, 20):
            yield 'cut off', f'{share}/20, {"archive" if form else "sequence"}', data[: len(data) * share // 20]
        yield 'sound', 'archive' if form else 'sequence', data
