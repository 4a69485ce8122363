import json
import re
from pathlib import Path

import pytest

from mmriem.engine.expectation import (
    HOPELESS,
    LEVELS,
    expected_by_agreement,
    expected_loss,
    kept_range,
    notes,
)

ROOT = Path(__file__).parents[2]


def test_more_error_is_never_told_as_less_loss():
    errors = [0.0, *(most for most, _ in LEVELS), 1.01 * HOPELESS]
    told = [expected_loss(error).partition(' (')[0] for error in errors]
    assert len(set(told[1:])) == len(LEVELS) + 1 and told[0] == told[1]
    assert [most for most, _ in LEVELS] == sorted(most for most, _ in LEVELS) and LEVELS[-1][0] == HOPELESS
    assert told[-1] == 'expect that it finds next to nothing'
    assert 'evaluate the file' not in expected_loss(0.01) and 'evaluate the file' in expected_loss(HOPELESS)


def test_no_prediction_is_told_as_none():
    report = {'settings': {}, 'weights': [], 'totals': {'predicted_error': None}}
    assert notes(report) == [expected_loss(None)]
    assert 'not predicted' in expected_loss(None)


@pytest.mark.parametrize('sizes', [(), (4000, 800)])
def test_weights_without_states_of_a_trained_model_are_counted(sizes):
    weights = [dict(name='a', representation='lattice', shape=[64, 64], bits=4096)]
    weights += [dict(name='b', representation='dense', shape=[50, 50], bits=8 * size) for size in sizes]
    weights += [dict(name='c', representation='dense', shape=[4, 4], bits=256)]  # too small for states anyway
    told = notes({'settings': {'states': 'as trained'}, 'weights': weights, 'totals': {'bytes': 9000}})
    assert len(told) == (2 if sizes else 1)
    if sizes:
        assert told[1].startswith('2 weights that have no states stay dense and take 4,800 of the 9,000 bytes: --bits')


def report(*metrics):
    weights = [dict(name=f'w{n}', representation='lattice', metric=metric) for n, metric in enumerate(metrics)]
    dense = dict(name='rest', representation='dense', metric='identity')
    return dict(settings={}, totals=dict(predicted_error=0.05), weights=[*weights, dense])


@pytest.mark.parametrize(
    ('metrics', 'told'),
    [
        (['inputs', 'gradients'], None),
        (['identity', 'identity'], None),  # none was to be measured
        (['inputs', 'identity'], '1 of 2 weights were not reached when the detector predicted, .* sensitive: w1'),
        (['inputs', *['identity'] * 5], '5 of 6 weights .* sensitive: w1, w2, w3 and 2 more'),
    ],
)
def test_weights_that_no_gradient_reached_are_told(metrics, told):
    expected, *others = notes(report(*metrics))
    assert expected.startswith('expect no loss to be seen')
    assert len(others) == (told is not None)
    assert all(re.search(told, other) for other in others)


def test_measured_detectors_kept_what_their_agreement_says():
    rows = json.loads((ROOT / 'docs' / 'agreement' / 'rows.json').read_text())
    detectors = [row for row in rows if row['real AP50'] is not None]
    assert len(detectors) >= 8
    for row in detectors:
        least, most = kept_range(row['real AP'] / 100)
        assert least - 0.005 <= row['kept'] <= most + 0.005, row  # half a percent is noise of the test sets


@pytest.mark.parametrize(
    ('figures', 'words'),
    [
        (dict(kind='detections', images={'kind': 'folder'}, AP=0.9), ['keep 90 to 98 % of its mAP']),
        (dict(kind='detections', images={'kind': 'folder'}, AP=None), []),
        (dict(kind='detections', images={'kind': 'procedural'}, AP=0.9), []),
        (dict(kind='classes', images={'kind': 'folder'}, top1=0.9), []),
        (None, []),
    ],
)
def test_what_an_agreement_says(figures, words):
    told = expected_by_agreement(figures)
    assert len(told) == len(words) and all(word in sentence for word, sentence in zip(words, told))
