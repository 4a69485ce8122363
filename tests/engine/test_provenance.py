"""What a report says of how its file came about."""

import pytest

from mmriem.engine.provenance import made, rule


@pytest.mark.parametrize(
    ('settings', 'totals', 'words'),
    [
        ({'states': 'as trained', 'bits': 2.0}, {}, 'as they are'),
        ({'size': 5_000_000}, {}, '--size 5000000'),
        ({'ratio': 0.05}, {}, '--ratio 0.05'),
        ({}, {'ratio': 1 / 30, 'predicted_error': 0.025, 'tuning': None}, 'keeps the predicted error at 0.025'),
        ({}, {'ratio': 1 / 17, 'predicted_error': 0.04, 'tuning': None}, '1/17 of fp32, as a predicted error'),
        ({}, {'ratio': 1 / 10, 'predicted_error': 0.05, 'tuning': None}, 'keeps the predicted error at 0.05, as 1/17'),
        ({}, {'ratio': 1 / 10, 'predicted_error': 0.08, 'tuning': {'kept': True}}, 'predicted error at 0.08'),
    ],
)
def test_the_rule_that_decided_the_size(settings, totals, words):
    assert words in rule(settings, totals)


def test_version_date_command_and_environment():
    told = made({'settings': {'bits': 1.0}, 'totals': {}})
    assert set(told) == {'mmriem', 'date', 'command', 'size', 'environment'}
    assert 'torch ' in told['environment'] and told['size'] == 'asked for: --bits 1'
