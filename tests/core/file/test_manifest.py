"""The manifest: what goes in comes out, in few bytes, and nothing malformed gets through."""

import json
import math
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.errors import RiemError
from mmriem.core.file.dense import DTYPES, DenseLayout
from mmriem.core.file.derived import DerivedRecord
from mmriem.core.file.frame import pack
from mmriem.core.file.limits import MOST_JSON_BYTES, limits_for
from mmriem.core.file.manifest import MAX_JSON_DEPTH, Manifest, Source, WeightEntry, compress_manifest, plain_json
from mmriem.core.file.manifest_reader import MAX_KEY_CHARS, MAX_KEYS, expand_manifest
from mmriem.core.file.reading import from_bytes
from mmriem.core.weights.views import WeightView

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def example(**changes):
    fields = {
        'keys': ('stem.conv.weight', 'stem.bn.weight', 'stem.bn.count', 'stem.conv2.weight', 'fc.weight'),
        'weights': (
            WeightEntry(
                WeightView('stem.conv.weight', (8, 4, 3, 3), aliases=('stem.conv2.weight',)),
                'bilinear', {'rank': 2}, 100, 50, b'\1' * 32, b'\2' * 32,
            ),
            WeightEntry(
                WeightView('fc.weight', (8, 6), 'in_first', 2, dtype=torch.float16),
                'sigmoid', {'dq': 3}, 10, 7, b'\3' * 32, b'\4' * 32,
            ),
        ),
        'dense': (DenseLayout('stem.bn.weight', (8,), 'float32', 'half'),),
        'derived': (DerivedRecord('stem.bn.count', (), 'int64', 'constant', (12,)),),
        'blobs': {'dense16': b'\5' * 32},
        'dataset_meta': {'classes': ['cat', 'dog']},
        'settings': {'ratio': 0.1},
        'source': Source('epoch_12.pth', 'ab' * 32),
        'producer': '0.1.0',
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def as_json(manifest):
    return json.loads(zlib.decompress(compress_manifest(manifest)))


def expand(value):
    """The manifest of a JSON value in its canonical spelling."""
    text = json.dumps(value, separators=(',', ':'), sort_keys=True)
    return expand_manifest(zlib.compress(text.encode()), 'model.riem')


def refused(value, *expected):
    with pytest.raises(RiemError) as raised:
        expand(value)
    message = str(raised.value)
    assert message.startswith('model.riem: ') and '\n' not in message and len(message) < 1000
    for text in expected:
        assert text in message


def test_round_trip():
    assert expand_manifest(compress_manifest(example()), 'model.riem') == example()


KEY = st.text('ab.0:', min_size=1, max_size=8)
SHAPE = st.lists(st.integers(1, 50), min_size=2, max_size=4).map(tuple)
DIGEST = st.binary(min_size=32, max_size=32)


@st.composite
def manifests(draw):
    keys = draw(st.lists(KEY, unique=True, max_size=12))
    weights, dense, derived, first = [], [], [], []
    for key in keys:
        kind = draw(st.sampled_from('wdra' if first else 'wdr'))
        if kind == 'w':
            weights.append([key, draw(SHAPE), draw(st.sampled_from(['float32', 'float16'])), ()])
            first.append(weights[-1])
        elif kind == 'd':
            dense.append([key, draw(SHAPE), draw(st.sampled_from(['float32', 'bfloat16'])), ()])
            first.append(dense[-1])
        elif kind == 'r':
            derived.append(DerivedRecord(key, draw(SHAPE), draw(st.sampled_from(list(DTYPES))), 'constant', (1, 2.5)))
        else:
            entry = draw(st.sampled_from(first))
            entry[-1] = (*entry[-1], key)
    small = st.integers(0, 2**40)
    return Manifest(
        keys=tuple(keys),
        weights=tuple(
            WeightEntry(
                WeightView(name, shape, aliases=aliases, dtype=DTYPES[dtype]),
                draw(st.text()),
                draw(st.dictionaries(st.text(), JSON, max_size=2)),
                draw(small),
                draw(small),
                draw(DIGEST),
                draw(DIGEST),
            )
            for name, shape, dtype, aliases in weights
        ),
        dense=tuple(
            DenseLayout(name, shape, dtype, draw(st.sampled_from(['half', 'single'])), aliases)
            for name, shape, dtype, aliases in dense
        ),
        derived=tuple(derived),
        blobs=draw(st.dictionaries(st.sampled_from(['dense16', 'dense32', 'raw', 'vectors']), DIGEST)),
        dataset_meta=draw(st.dictionaries(st.text(), JSON, max_size=2)),
        settings=draw(st.dictionaries(st.text(), JSON, max_size=2)),
        source=Source(draw(st.text()), draw(st.text())),
        producer=draw(st.text()),
    )


@settings(max_examples=150, deadline=None)
@given(manifests())
def test_any_manifest_makes_the_round_trip(manifest):
    compressed = compress_manifest(manifest)
    expanded = expand_manifest(compressed, 'model.riem')
    assert expanded == manifest
    assert compress_manifest(expanded) == compressed


def test_keys_are_coded_by_what_they_share_with_the_key_before():
    keys = ('a.b.weight', 'a.b.bias', 'a.b', 'a.bb', '', 'a..c', 'a..d')
    dense = tuple(DenseLayout(key, (2,), 'float32', 'half') for key in keys)
    manifest = example(keys=keys, weights=(), dense=dense, derived=())
    assert as_json(manifest)['keys'] == ['0:a.b.weight', '2:bias', '1:b', '1:bb', '0:', '0:a..c', '2:d']
    assert expand_manifest(compress_manifest(manifest), 'x').keys == keys


def test_a_record_costs_few_bytes_beside_its_hashes():
    """104 convolutions with batch norms as in YOLOX-nano: 64 bytes of hashes per weight, and little else."""
    generator = np.random.default_rng(0)
    keys, weights, dense, derived = [], [], [], []
    for stage in range(4):
        for block in range(26):
            name = f'backbone.stage{stage + 1}.{block // 2}.conv{block % 2 + 1}'
            channels = 16 * 2**stage
            view = WeightView(f'{name}.conv.weight', (channels, channels, 3, 3))
            length = int(generator.integers(100, 4000))
            rank = {'rank': int(generator.integers(1, 20)), 'state_bits': 5}
            weights.append(
                WeightEntry(view, 'bilinear', rank, 2 * length, length, generator.bytes(32), generator.bytes(32))
            )
            norms = [f'{name}.bn.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var')]
            dense += [DenseLayout(norm, (channels,), 'float32', 'half') for norm in norms]
            derived.append(DerivedRecord(f'{name}.bn.num_batches_tracked', (), 'int64', 'constant', (0,)))
            keys += [view.name, *norms, derived[-1].name]
    size = len(
        compress_manifest(example(keys=tuple(keys), weights=tuple(weights), dense=tuple(dense), derived=tuple(derived)))
    )
    hashes = 64 * len(weights)
    assert (size - hashes) / len(weights) < 20


@pytest.mark.parametrize(
    'field',
    [
        'aliases',
        'blobs',
        'dataset_meta',
        'dense',
        'derived',
        'keys',
        'kinds',
        'producer',
        'settings',
        'source',
        'weights',
    ],
)
@pytest.mark.parametrize('value', [None, True, -1, 1.5, '', 'text', [], [None], {}, {'a': 1}])
def test_a_field_of_another_type_is_refused_or_means_the_same(field, value):
    manifest = as_json(example())
    if value == manifest[field] or (field in ('dataset_meta', 'settings') and isinstance(value, dict)):
        return
    if field == 'producer' and isinstance(value, str):
        return
    if field == 'blobs' and value == {}:  # the frame tells which tensors there are
        return
    refused({**manifest, field: value})


def test_a_missing_field_and_an_additional_one_are_refused():
    manifest = as_json(example())
    for field in manifest:
        refused({key: value for key, value in manifest.items() if key != field}, field)
    refused({**manifest, 'more': 1}, 'canonical')
    refused({**manifest, 'weights': {**manifest['weights'], 'more': []}}, 'canonical')


@pytest.mark.parametrize(
    ('table', 'field', 'value'),
    [
        ('weights', 'shape', [[8, 4, 3, 3]]),
        ('weights', 'shape', [[8, 4, 3, 3], [8, -6]]),
        ('weights', 'shape', [[8, 4, 3, 3], [8, 6.0]]),
        ('weights', 'shape', [[8, 4, 3, 3], [8, True]]),
        ('weights', 'shape', [[8, 4, 3, 3], [8]]),
        ('weights', 'shape', [[8, 4, 3, 3], [8, 0]]),
        ('weights', 'shape', [[8, 4, 3, 3], [2**31, 6]]),
        ('weights', 'shape', [[8, 4, 3, 3], [2**30, 2**30]]),
        ('weights', 'shape', [[8, 4, 3, 3], [2**17, 2**16]]),
        ('weights', 'shape', [[8, 4, 3, 3], [2] * 9]),
        ('weights', 'groups', [1, 3]),
        ('weights', 'groups', [2, 2]),
        ('weights', 'layout', ['out_first', 'sideways']),
        ('weights', 'dtype', ['float32', 'int64']),
        ('weights', 'dtype', ['float32', 'float31']),
        ('weights', 'n_bytes', [50, -7]),
        ('weights', 'n_bytes', [50, 2**60]),
        ('weights', 'symbols', ['100', 10]),
        ('weights', 'settings', [{}, []]),
        ('weights', 'settings', [{}, {'rank': 10**30}]),
        ('weights', 'representation', ['bilinear', 3]),
        ('weights', 'stream', ''),
        ('weights', 'stream', '*' * 86),
        ('weights', 'stream', 'é' * 86),
        ('weights', 'decoded', 'A' * 43),
        ('dense', 'shape', [[2**31]]),
        ('dense', 'dtype', ['int64']),
        ('dense', 'storage', ['zip']),
        ('derived', 'params', [['1']]),
        ('derived', 'params', [[[1]]]),
        ('derived', 'params', [[10**30]]),
        ('derived', 'shape', [[2**31 - 1, 3]]),
        ('derived', 'recipe', [None]),
        ('blobs', 'dense16', 'A' * 44),
        ('blobs', 'dense16', None),
    ],
)  # fmt: skip
def test_a_bad_column_is_refused(table, field, value):
    manifest = as_json(example())
    manifest[table][field] = value
    refused(manifest)


@pytest.mark.parametrize(
    'keys',
    [
        ['0:a', '0:a', '0:b', '0:c', '0:d'],
        ['0:a.b', '1:b', '0:c', '0:d', '0:e'],
        ['1:a', '0:b', '0:c', '0:d', '0:e'],
        ['-1:a', '0:b', '0:c', '0:d', '0:e'],
        ['9999999999:a', '0:b', '0:c', '0:d', '0:e'],
        ['a', '0:b', '0:c', '0:d', '0:e'],
        [':a', '0:b', '0:c', '0:d', '0:e'],
        ['²:a', '0:b', '0:c', '0:d', '0:e'],
        ['0:a.b', '0:a.c', '0:c', '0:d', '0:e'],
        ['00:a', '0:b', '0:c', '0:d', '0:e'],
        ['0:' + 'a' * (MAX_KEY_CHARS + 1), '0:b', '0:c', '0:d', '0:e'],
        ['0:\ud800', '0:b', '0:c', '0:d', '0:e'],
    ],
)
def test_bad_keys_are_refused(keys):
    refused({**as_json(example()), 'keys': keys})


def test_many_keys_and_keys_that_grow_are_refused():
    text = json.dumps({**as_json(example()), 'keys': ['0:a'] * (MAX_KEYS + 1)}).encode()
    with pytest.raises(RiemError, match=str(MAX_KEYS)):
        expand_manifest(zlib.compress(text), 'x', limits_for(len(text)))
    growing = [f'{min(index, 999)}:aaaa.b' for index in range(2000)]
    refused({**as_json(example()), 'keys': growing}, str(MAX_KEY_CHARS))


def test_short_texts_that_stand_for_long_keys_are_refused():
    parts = '.'.join(['a'] * 250)
    keys = [f'0:{parts}.z', *(f'250:{number}' for number in range(30_000))]
    refused({**as_json(example()), 'keys': keys}, 'expected keys of at most', 'characters together')


def test_aliases_of_one_tensor_take_time_in_proportion_to_their_number():
    def expanded(count):
        keys = tuple(f'k{number}' for number in range(count))
        view = WeightView(keys[0], (8, 4), aliases=keys[1:])
        weight = WeightEntry(view, 'bilinear', {'rank': 2}, 100, 50, b'\1' * 32, b'\2' * 32)
        compressed = compress_manifest(example(keys=keys, weights=(weight,), dense=(), derived=(), blobs={}))
        calls = []
        sys.setprofile(lambda frame, event, argument: calls.append(event))
        try:
            assert expand_manifest(compressed, 'x', limits_for(10**6)).weights == (weight,)
        finally:
            sys.setprofile(None)
        return len(calls)

    tracemalloc.start()
    try:
        calls, more = expanded(500), expanded(5000)
        assert tracemalloc.get_traced_memory()[1] < 5000 * 5000  # a tuple for each alias would take four times that
    finally:
        tracemalloc.stop()
    assert more < 11 * calls


@pytest.mark.parametrize('kinds', ['wdraww', 'wdr', 'wdrxw', 'ddraw', 'wdrww', 'awrdw', 'wdraa', [*'wdraw']])
def test_bad_kinds_are_refused(kinds):
    refused({**as_json(example()), 'kinds': kinds})


@pytest.mark.parametrize('aliases', [[], [3], [4], [2], [-1], [0, 0], [0.0], [2**60]])
def test_an_alias_of_anything_but_an_earlier_stored_tensor_is_refused(aliases):
    refused({**as_json(example()), 'aliases': aliases})


def test_many_tensors_that_are_too_much_together_are_refused():
    keys = tuple(f'k{index}' for index in range(200))
    derived = tuple(DerivedRecord(key, (2**24,), 'int64', 'constant', (0,)) for key in keys)
    compressed = compress_manifest(example(keys=keys, weights=(), dense=(), derived=derived, blobs={}))
    assert expand_manifest(compressed, 'x').decoded_bytes == 26843545600
    with pytest.raises(RiemError, match=r'^x: expected .* decoded bytes, found 26843545600'):
        from_bytes(pack({'manifest': compressed}), 'x')


@pytest.mark.parametrize(
    'compressed',
    [
        b'',
        b'{}',
        zlib.compress(b'{}')[:-1],
        zlib.compress(b'{}') + b'\0',
        zlib.compress(bytes(2 * MOST_JSON_BYTES), 9),
        zlib.compress(b''),
        zlib.compress(b'[]'),
        zlib.compress(b'\xff'),
        zlib.compress(b'{"a":NaN}'),
        zlib.compress(b'[' * 10**6),
        zlib.compress(b'{"a":' * 10**5),
        zlib.compress(b'9' * 10**5),
    ],
    ids=range(12),
)
def test_compressed_nonsense_is_refused(compressed):
    with pytest.raises(RiemError, match='x: '):
        expand_manifest(compressed, 'x')


@pytest.mark.parametrize(
    'respell',
    [
        lambda text: text.replace(b',', b', ', 1),
        lambda text: text + b' ',
        lambda text: text.replace(b'"ratio":0.1', b'"ratio":1e-1'),
        lambda text: text.replace(b'"ratio":0.1', b'"ratio":0.2,"ratio":0.1'),
        lambda text: text.replace(b'"ratio":0.1', b'"ratio":NaN'),
        lambda text: text.replace(b'"ratio":0.1', b'"ratio":1e999'),
        lambda text: text.replace(b'cat', b'\\u0063at'),
    ],
)
def test_another_spelling_of_the_same_manifest_is_refused(respell):
    text = zlib.decompress(compress_manifest(example()))
    assert respell(text) != text
    with pytest.raises(RiemError, match='x: '):
        expand_manifest(zlib.compress(respell(text)), 'x')


@pytest.mark.parametrize(
    'changes',
    [
        {'keys': ('stem.conv.weight',)},
        {'keys': (*example().keys, 'more')},
        {'derived': ()},
        {'derived': (*example().derived, *example().derived)},
        {'dense': (DenseLayout('stem.conv.weight', (8,), 'float32', 'half'),)},
    ],
)
def test_keys_and_records_must_cover_one_another(changes):
    with pytest.raises(RiemError, match='key '):
        compress_manifest(example(**changes))


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_plain_json_keeps_what_json_keeps(value):
    assert plain_json(value, 'x') == json.loads(json.dumps(value))


def test_plain_json_converts_tuples_and_numpy_values():
    value = {'classes': ('a', 'b'), 'palette': np.array([[1, 2], [3, 4]], np.uint8), 'iou': np.float64(0.5)}
    assert plain_json(value, 'x') == {'classes': ['a', 'b'], 'palette': [[1, 2], [3, 4]], 'iou': 0.5}


@pytest.mark.parametrize(
    'value',
    [
        math.nan,
        math.inf,
        2**63,
        b'',
        {1: 'a'},
        {1},
        torch.zeros(2),
        '\ud800',
        {'\udfff': 1},
        np.array([math.nan]),
    ],
    ids=range(10),
)
def test_plain_json_refuses_the_rest(value):
    with pytest.raises(RiemError, match=r'settings: expected .* found '):
        plain_json([value], 'settings')


def test_plain_json_bounds_the_depth():
    value = 0
    for _ in range(MAX_JSON_DEPTH):
        value = [value]
    assert plain_json(value, 'x') == value
    with pytest.raises(RiemError):
        plain_json([value], 'x')


def test_bytes_after_the_compressed_manifest_and_a_missing_checksum_are_refused():
    compressed = compress_manifest(example())
    for damaged, found in ((compressed + b'\0', '1 bytes'), (compressed * 2, f'{len(compressed)} bytes')):
        with pytest.raises(RiemError, match=f'x: expected nothing after the manifest, found {found}'):
            expand_manifest(damaged, 'x')
    for damaged in (compressed[:-1], compressed[:-4]):
        with pytest.raises(RiemError, match=r'x: .* cut off'):
            expand_manifest(damaged, 'x')
