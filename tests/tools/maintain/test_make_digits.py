"""tools/maintain/make_digits.py: what it prints, and how it fails."""


def test_makes_the_set_once(call, tools, tmp_path):
    first = call(tools / 'maintain' / 'make_digits.py', tmp_path / 'set', '--train', 2, '--val', 1)
    assert first.returncode == 0, first.stderr
    assert '2 training and 1 validation images, written' in first.stdout
    assert len(list((tmp_path / 'set/images').rglob('*.png'))) == 3
    second = call(tools / 'maintain' / 'make_digits.py', tmp_path / 'set', '--train', 2, '--val', 1)
    assert 'already there' in second.stdout
    other = call(tools / 'maintain' / 'make_digits.py', tmp_path / 'set', '--train', 2, '--val', 1, '--seed', 5)
    assert other.returncode == 1
    assert other.stderr.startswith('error: ') and '--force' in other.stderr and 'Traceback' not in other.stderr
