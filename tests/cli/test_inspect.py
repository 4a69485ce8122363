"""`mmriem inspect` and `mmriem convert-back`."""

import json
import math

import pytest
import torch

from mmriem import cli
from mmriem.core.file import reading


def test_everything_of_a_file(riem_file, capsys):
    cli.main(['inspect', str(riem_file)])
    printed = capsys.readouterr().out
    archive = reading.read(riem_file)
    assert printed.startswith(f'{riem_file}: {riem_file.stat().st_size:,} bytes, format 1, written by mmriem ')
    assert archive.source.sha256 in printed and 'classes: 2, square, bar' in printed
    for record in archive.weights:
        (line,) = (line for line in printed.splitlines() if line.split()[:1] == [record.view.name])
        shape, kind, bits, size, digest = line.split()[1:]
        assert shape == 'x'.join(map(str, record.view.shape)) and kind == 'bilinear'
        assert int(size.replace(',', '')) == record.encoded.payload_bits() // 8
        assert float(bits) == pytest.approx(record.encoded.payload_bits() / math.prod(record.view.shape), abs=0.006)
        assert record.decoded_sha256.hex().startswith(digest)


def test_json_for_programs(riem_file, capsys):
    cli.main(['inspect', str(riem_file), '--json'])
    told = json.loads(capsys.readouterr().out)
    archive = reading.read(riem_file)
    names = [each['name'] for part in ('weights', 'dense', 'derived') for each in told[part]]
    names += [name for each in told['weights'] for name in each['aliases']]
    assert set(names) <= set(archive.keys) and len(told['weights']) == len(archive.weights)
    assert told['bytes'] == riem_file.stat().st_size and told['dataset_meta']['classes'] == ['square', 'bar']


def test_what_would_steer_a_terminal_is_shown_by_its_number(tmp_path, capsys):
    import mmriem

    net = torch.nn.Sequential(torch.nn.Linear(32, 32))
    told = {'classes': ['dog\x1b[31m', 'a\nb']}
    mmriem.save(mmriem.compress(net, bits=8.0, metric='identity', threads=1, dataset_meta=told), tmp_path / 'n.riem')
    cli.main(['inspect', str(tmp_path / 'n.riem')])
    assert 'dog\\x1b[31m, a\\x0ab' in (printed := capsys.readouterr().out) and '\x1b' not in printed


@pytest.mark.parametrize('name', ['inspect', 'convert-back'])
def test_files_that_are_none(name, runner_checkpoint, tmp_path):
    for path in (tmp_path / 'absent.riem', tmp_path, runner_checkpoint):
        with pytest.raises(SystemExit) as end:
            cli.main([name, str(path), *(['--to', str(tmp_path / 'x.pth')] if name == 'convert-back' else [])])
        assert end.value.code.startswith(f'error: {path}: expected') and 'Errno' not in end.value.code
    assert not (tmp_path / 'x.pth').exists()


def test_back_to_a_stock_checkpoint(riem_file, tmp_path, monkeypatch):
    own = tmp_path / 'own.riem'
    own.write_bytes(riem_file.read_bytes())
    cli.main(['convert-back', str(own)])
    content = torch.load(tmp_path / 'own.pth', weights_only=True)
    expected = reading.read(riem_file).decode()
    assert list(content['state_dict']) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in content['state_dict'].items())
    assert content['meta']['dataset_meta']['classes'] == ('square', 'bar')
    with pytest.raises(SystemExit, match='exists already'):
        cli.main(['convert-back', str(own)])
    with pytest.raises(SystemExit, match=r'expected a name that ends in \.pth'):
        cli.main(['convert-back', str(own), '--to', str(tmp_path / 'x.onnx')])
