"""tools/measure/finetune_table.py on a tiny detector."""

import json

RUNS = """
runs = [
    dict(
        name='tiny', config={config!r}, checkpoint={checkpoint!r}, bits=6,
        riem=dict(representation='lattice', integers='straight_through'),
        options={{'optim_wrapper.optimizer.lr': 1e-3}},
    )
]
"""


def test_a_run_and_its_row(call_here, tools, tiny_config, runner_checkpoint, tmp_path):
    """What is there is not done again."""
    (tmp_path / 'runs.py').write_text(RUNS.format(config=str(tiny_config), checkpoint=str(runner_checkpoint)))
    assert call_here(tools / 'measure' / 'finetune_table.py', tmp_path / 'runs.py', '--out', tmp_path / 'out') is None
    row = json.loads((tmp_path / 'out' / 'rows.json').read_text())['tiny']
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert f'| tiny | 6 | integers | 1 | {row["bytes"][0]:,} to {row["bytes"][1]:,} |' in table
    assert abs(row['bytes'][1] / row['bytes'][0] - 1) < 0.1 and len(row['mAP']) == 3
    written = (tmp_path / 'out' / 'tiny' / 'tuned.riem').stat().st_mtime_ns
    assert call_here(tools / 'measure' / 'finetune_table.py', tmp_path / 'runs.py', '--out', tmp_path / 'out') is None
    assert (tmp_path / 'out' / 'tiny' / 'tuned.riem').stat().st_mtime_ns == written
    error = call_here(tools / 'measure' / 'finetune_table.py', tmp_path / 'runs.py', '--only', 'small')
    assert error == 'error: --only: expected names among tiny, found small'
