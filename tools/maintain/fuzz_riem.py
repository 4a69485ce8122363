"""Damaged and hostile `.riem` files by the thousand: each is refused in one sentence, or loads finite values.

    python tools/maintain/fuzz_riem.py --count 100000 --seed 0
    python tools/maintain/fuzz_riem.py --seed 0 --only 4711 --keep folder

A mutant is one of the small files of riem_samples.py with bytes changed somewhere, which its hashes tell, or changed
inside, and whose hashes, lengths and counts are put right again, that of the decoded weights included, so that
only what the values mean can be wrong. Half are read with the shapes of the model, as `mmriem.load` does. Findings are
other exceptions than RiemError, messages of several lines, values that are not finite, more than 2 seconds of
computing, more than 256 MiB of memory, crashes and hangs; they make the exit status 1. Number and seed make a mutant
again.
"""

from __future__ import annotations

import argparse
import base64
import copy
import hashlib
import io
import json
import random
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from riem_samples import samples
from torch import Tensor
from trials import FINDING, Result, Trial, run_trials

from mmriem.core.errors import RiemError
from mmriem.core.file import frame
from mmriem.core.file.dense import DTYPES, STORAGES, VECTOR_STORAGES, DenseLayout
from mmriem.core.file.derived import RECIPES
from mmriem.core.file.manifest import BLOBS
from mmriem.core.file.reading import from_bytes
from mmriem.core.representations.registry import get_representation, representation_names
from mmriem.core.weights.views import LAYOUTS, WeightView

NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 9, 16, 31, 32, 64, 255, 256, 511, 1023, 4096, 65535, 65536, 2**20, 2**24, 2**28, 2**31 - 1),
    *(2**31, 2**32, 2**48 - 1, 2**48, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -1, -2, -(2**31), -(2**63), 0.0, -0.0),
    *(0.5, 1e-45, 1e-30, 1e30, 3e38, 1e300, float('inf'), float('-inf'), float('nan'), True, False),
)
WORDS = (
    *(
        '',
        'a',
        '.',
        '0:',
        '1:',
        '99:x',
        'w',
        'd',
        'r',
        'x' * 600,
        'y' * 5000,
        '\u00e9',
        '\ud800',
        '\0',
        '[/x]',
        '0',
        '=' * 44,
    ),
    *(*representation_names(), *LAYOUTS, *DTYPES, *STORAGES, *VECTOR_STORAGES, *RECIPES),
)
SPELLINGS = (b'\0', b'\xff' * 4, b'\0\0\x80\x7f', b'\0\0\xc0\x7f', b'\0\x7c', b'\0\x7e', b'\xff\xff\xff\x7f', bytes(32))
"""Infinity, NaN and the largest numbers among them."""
MOST_RESIZED = 1 << 20
"""Bytes to which a part of a mutant is made at most, to have the length that its manifest says."""
MOST_REPEATED, MOST_WEIGHTS = 2000, 200
"""Times that an entry of the manifest is repeated at most, and one of a compressed weight."""


@dataclass
class Parts:
    """A file taken apart: its manifest as JSON, and its other tensors."""

    manifest: dict[str, Any]
    blobs: dict[str, bytes]

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """Of a whole file."""
        blobs = frame.unpack(io.BytesIO(data), len(data), 'sample')
        return cls(json.loads(zlib.decompress(blobs.pop('manifest'))), blobs)

    def text(self) -> bytes:
        """The manifest in its one spelling."""
        return json.dumps(self.manifest, separators=(',', ':'), sort_keys=True).encode('ascii')

    def to_bytes(self) -> bytes:
        """The file."""
        return packed(self.text(), self.blobs)


def packed(manifest: bytes, blobs: dict[str, bytes]) -> bytes:
    """A file whose frame and hash of the manifest are right."""
    return frame.pack({**blobs, 'manifest': zlib.compress(manifest, 1)})


# Changes of bytes.


def changed(data: bytes, draw: random.Random) -> bytes:
    """With some bytes changed, cut off, taken out, put in, or repeated."""
    if not data:
        return draw.choice(SPELLINGS)
    place, length = draw.randrange(len(data)), 1 << draw.randrange(7)
    way = draw.randrange(8)
    if way < 3:
        flipped = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 16))):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if way == 3:
        spelling = draw.choice(SPELLINGS)
        place = (place if draw.randrange(2) else place % 32) // 4 * 4  # numbers are there
        return (data[:place] + spelling + data[place + len(spelling) :])[: len(data)]
    if way == 4:
        return data[:place]
    if way == 5:
        return data[:place] + draw.randbytes(length) + data[place + draw.choice((0, length)) :]
    if way == 6:
        return data[:place] + data[place + length :]
    return data[:place] + data[place : place + length] * draw.choice((2, 3, 50)) + data[place + length :]


def bytes_of_file(parts: Parts, draw: random.Random) -> bytes:
    """Bytes anywhere."""
    whole = parts.to_bytes()
    while (data := changed(whole, draw)) == whole:
        pass
    return data


def two_files(parts: Parts, draw: random.Random) -> bytes:
    """The start of one and the end of another, or tensors of another."""
    other = Parts.of(samples_of()[draw.choice(list(samples_of()))])
    if draw.randrange(2):
        one, two = parts.to_bytes(), other.to_bytes()
        place = draw.randrange(min(len(one), len(two)))
        return one[:place] + two[place:]
    name = draw.choice(sorted({*parts.blobs, *other.blobs}))
    parts.blobs[name] = other.blobs.get(name, b'')
    return (repaired(parts) if draw.randrange(2) else parts).to_bytes()


def stream(parts: Parts, draw: random.Random) -> bytes:
    """The stream of a weight."""
    payloads = split(parts)
    if payloads:
        number = draw.randrange(len(payloads))
        payloads[number] = changed(payloads[number], draw)
    return repaired(parts, payloads).to_bytes()


def values(parts: Parts, draw: random.Random) -> bytes:
    """The values of a dense tensor, or the entropy-coded vectors."""
    names = [name for name in parts.blobs if name != 'streams' and parts.blobs[name]]
    if names:
        name = draw.choice(names)
        parts.blobs[name] = changed(parts.blobs[name], draw)
    return repaired(parts, resize=bool(draw.randrange(2))).to_bytes()


def text(parts: Parts, draw: random.Random) -> bytes:
    """Characters of the manifest."""
    return packed(changed(parts.text(), draw), parts.blobs)


# Changes of the manifest.


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all values below a node of JSON."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(node: Any, path: tuple) -> Any:
    for key in path:
        node = node[key]
    return node


def another(value: Any, draw: random.Random) -> Any:
    """A value in the place of one."""
    if isinstance(value, (int, float)) and draw.randrange(4):
        near = value + draw.choice((-1, 1)), 2 * value, -value, value * 1000, value // 2 if value else 1
        return draw.choice((*near, draw.choice(NUMBERS), draw.choice(NUMBERS)))
    if isinstance(value, str) and draw.randrange(4):
        return draw.choice((draw.choice(WORDS), value + draw.choice(WORDS), value[: len(value) // 2]))
    return draw.choice((None, [], {}, [[]], {'': 0}, draw.choice(NUMBERS), draw.choice(WORDS)))


def value(parts: Parts, draw: random.Random) -> bytes:
    """Values of the manifest."""
    for _ in range(draw.choice((1, 1, 2))):
        *path, key = draw.choice(list(places(parts.manifest)))
        holder = at(parts.manifest, tuple(path))
        holder[key] = another(holder[key], draw)
    return (repaired(parts) if draw.randrange(2) else parts).to_bytes()


def structure(parts: Parts, draw: random.Random) -> bytes:
    """Values of the manifest taken out, put in, doubled, swapped, put into one another."""
    found = list(places(parts.manifest))
    path, other = draw.choice(found), draw.choice(found)
    holder, key, way = at(parts.manifest, path[:-1]), path[-1], draw.randrange(5)
    if way == 0:
        del holder[key]
    elif way == 1:
        holder[key] = copy.deepcopy(at(parts.manifest, other))
    elif isinstance(holder, dict):
        holder[draw.choice(WORDS)] = holder[key]
    elif way == 2:
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 3:
        draw.shuffle(holder)
    else:
        holder.extend(holder[key : key + 1] * int(MOST_REPEATED ** draw.random()))
    return (repaired(parts) if draw.randrange(2) else parts).to_bytes()


def sizes(parts: Parts, draw: random.Random) -> bytes:
    """Shapes, settings and parameters, and all that follows from them."""
    columns = (
        ('weights', 'shape'),
        ('weights', 'settings'),
        ('dense', 'shape'),
        ('derived', 'shape'),
        ('derived', 'params'),
    )
    numbers = [
        (*column, *path)
        for column in columns
        for path in places(at(parts.manifest, column))
        if isinstance(at(parts.manifest, (*column, *path)), (int, float))
    ]
    for _ in range(draw.choice((1, 1, 2, 3)) if numbers else 0):
        *path, key = draw.choice(numbers)
        holder = at(parts.manifest, tuple(path))
        if isinstance(holder, list) and draw.randrange(2):
            draw.shuffle(holder)
        else:
            holder[key] = size(holder[key], draw)
    return repaired(parts).to_bytes()


def size(value: float, draw: random.Random) -> Any:
    """Another number in the place of one, of which a file may well say that it is a size."""
    near = value + draw.choice((-1, 1)), 2 * value, 3 * value, value // 2, 1, draw.randrange(1, 40)
    return draw.choice((*near, 1 << draw.randrange(31), draw.choice(NUMBERS)))


def more(parts: Parts, draw: random.Random) -> bytes:
    """An entry many times, under other keys."""
    manifest, kinds = parts.manifest, parts.manifest['kinds']
    place = draw.randrange(len(kinds))
    times = int((MOST_WEIGHTS if kinds[place] == 'w' else MOST_REPEATED) ** draw.random())
    column = {'w': 'weights', 'd': 'dense', 'r': 'derived'}.get(kinds[place])
    nest = '.x' * draw.randrange(9)
    manifest['keys'] += [f'0:more{number}{nest}' for number in range(times)]
    manifest['kinds'] += kinds[place] * times
    if column is None:
        manifest['aliases'] += [manifest['aliases'][kinds[:place].count('a')]] * times
        return parts.to_bytes()
    number, payloads = kinds[:place].count(kinds[place]), split(parts)
    for values in manifest[column].values():
        if isinstance(values, list):
            values += [copy.deepcopy(values[number]) for _ in range(times)]
    if column == 'weights':
        payloads += [payloads[number]] * times
    return repaired(parts, payloads).to_bytes()


# Right again.


def split(parts: Parts) -> list[bytes]:
    """The streams of the weights."""
    ends = list(accumulate(parts.manifest['weights']['n_bytes'], initial=0))
    return [parts.blobs.get('streams', b'')[start:end] for start, end in zip(ends, ends[1:])]


def resized(data: bytes, size: int) -> bytes:
    """Cut, or repeated, to a size."""
    if size == len(data) or not 0 <= size <= MOST_RESIZED:
        return data
    return (data * (size // max(len(data), 1) + 1) if data else bytes(size))[:size]


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def encoded(digests: list[bytes]) -> str:
    return base64.b64encode(b''.join(digests)).decode('ascii').rstrip('=')


def repaired(parts: Parts, payloads: list[bytes] | None = None, resize: bool = True) -> Parts:
    """Counts, lengths and hashes made to fit what the manifest says otherwise, as far as it can be read."""
    with suppress(Exception):
        repair_weights(parts, split(parts) if payloads is None else payloads, resize)
    with suppress(Exception):
        repair_dense(parts, resize)
    with suppress(Exception):
        found = {name: blob for name, blob in parts.blobs.items() if blob and name != 'streams'}
        parts.manifest['blobs'] = {name: encoded([digest(blob)]) for name, blob in found.items()}
    with suppress(Exception):
        weights = from_bytes(parts.to_bytes()).weights
        decoded = [digest(record._weight().numpy().astype('<f4').tobytes()) for record in weights]
        parts.manifest['weights']['decoded'] = encoded(decoded)
    return parts


def repair_weights(parts: Parts, payloads: list[bytes], resize: bool) -> None:
    weights = parts.manifest['weights']
    for number, payload in enumerate(payloads):
        with suppress(Exception):
            view = WeightView('w', *(weights[name][number] for name in ('shape', 'layout', 'groups')))
            codec = get_representation(weights['representation'][number]).codec
            demand = codec.record_demand(view.matrix_shape, weights['settings'][number])
            weights['symbols'][number : number + 1] = [demand.symbols]
            if resize and demand.least == demand.most:
                payloads[number] = resized(payload, demand.least)
    weights['n_bytes'] = [len(payload) for payload in payloads]
    weights['stream'] = encoded([digest(payload) for payload in payloads])
    weights['decoded'] = encoded([bytes(32)] * len(payloads))  # until it is known
    parts.blobs['streams'] = b''.join(payloads)


def repair_dense(parts: Parts, resize: bool) -> None:
    dense = parts.manifest['dense']
    lengths = dict.fromkeys(STORAGES, 0)
    for shape, dtype, storage in zip(dense['shape'], dense['dtype'], dense['storage']):
        if storage in STORAGES:
            lengths[storage] += DenseLayout('d', tuple(shape), dtype, storage).n_bytes
    for storage, length in lengths.items() if resize else ():
        parts.blobs[BLOBS[storage]] = resized(parts.blobs.get(BLOBS[storage], b''), length)


Way = Callable[[Parts, random.Random], bytes]
WAYS: dict[str, tuple[str, Way]] = {
    'bytes': ('bytes of the file', bytes_of_file),
    'files': ('parts of two files', two_files),
    'stream': ('the stream of a weight, hashes right', stream),
    'values': ('dense values or vectors, hashes right', values),
    'text': ('characters of the manifest, its hash right', text),
    'value': ('values of the manifest', value),
    'structure': ('structure of the manifest', structure),
    'sizes': ('shapes and settings, all else right', sizes),
    'more': ('an entry many times, all else right', more),
}
SHARES = {'stream': 6, 'values': 4, 'sizes': 6, 'value': 5, 'structure': 3, 'text': 3, 'bytes': 4, 'files': 2}
"""Of the mutants; 1 where it is not said."""


@cache
def samples_of() -> dict[str, bytes]:
    return samples()


def mutant(number: int, seed: int) -> tuple[str, bytes, str]:
    """What was done, the bytes, and the name of the sample."""
    draw = random.Random(f'{seed} {number}')
    name = draw.choice(list(samples_of()))
    way = draw.choices(list(WAYS), [SHARES.get(way, 1) for way in WAYS])[0]
    title, make = WAYS[way]
    return title, make(Parts.of(samples_of()[name]), draw), name


@cache
def shapes_of(sample: str) -> dict[str, tuple[int, ...]]:
    return from_bytes(samples_of()[sample]).shapes


def is_sound(tensor: Tensor) -> bool:
    """Finite, or a mask of attention."""
    if bool(tensor.isfinite().all()):
        return True
    return tensor.dim() > 1 and bool(((tensor == 0) | (tensor == -torch.inf)).all())


def judge(number: int, made: tuple[str, bytes, str]) -> Result:
    """Read one mutant."""
    way, data, sample = made
    shapes = shapes_of(sample) if number % 2 else None
    try:
        tensors = from_bytes(data, 'mutant.riem', shapes).decode()
    except RiemError as error:
        said = str(error)
        if 'enough memory' in said:
            return Result(number, way, f'{FINDING}out of memory', said)
        if '\n' in said or len(said) > 2000:
            return Result(number, way, f'{FINDING}not one sentence', said[:500])
        return Result(number, way, 'refused', said)
    except Exception:
        return Result(number, way, f'{FINDING}another exception', traceback.format_exc()[-1500:])
    wrong = [key for key, tensor in tensors.items() if not is_sound(tensor)]
    if wrong:
        return Result(number, way, f'{FINDING}not finite', f'{sample}: {", ".join(wrong[:3])}')
    return Result(number, way, 'loaded, finite')


def main() -> int:
    """Try all, and print the table."""
    parser = argparse.ArgumentParser(description='Damaged and hostile .riem files by the thousand')
    parser.add_argument('--count', type=int, default=100_000, help='mutants')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument('--only', type=int, nargs='+', help='numbers of the mutants')
    parser.add_argument('--keep', type=Path, help='folder that the mutants are written to')
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)

    def make(number: int) -> tuple[str, bytes, str]:
        made = mutant(number, args.seed)
        if args.keep is not None:
            (args.keep / f'{number}.riem').write_bytes(made[1])
        return made

    start, numbers = time.perf_counter(), args.only or range(args.count)
    tally = run_trials(Trial(make, judge), numbers, args.processes)
    print(tally.table())
    print(f'{tally.total:,} files, seed {args.seed}, {len(tally.findings)} findings')
    print(f'{time.perf_counter() - start:.0f} s', file=sys.stderr)
    return 1 if tally.findings else 0


if __name__ == '__main__':
    sys.exit(main())
