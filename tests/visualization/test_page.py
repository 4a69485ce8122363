import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mmriem.visualization import ladder_page, report_page


def weight(name, shape, bits, distortion=None, metric='inputs', representation='lattice'):
    numel = 1
    for size in shape:
        numel *= size
    return dict(
        name=name,
        shape=list(shape),
        representation=representation,
        metric=metric,
        bits=bits,
        bits_per_weight=bits / numel,
        snr_db=None if representation == 'dense' else 7.5,
        distortion=distortion,
        seconds=0.25,
    )


@pytest.fixture
def report():
    weights = [
        weight('backbone.conv.weight', (8, 4, 3, 3), 576, distortion=3e-4),
        weight('backbone.table', (40, 10), 800, metric='identity'),
        weight('head.weight', (16, 8), 512, distortion=1e-4),
        weight('head.small', (2, 2), 64, metric='identity', representation='dense'),
    ]
    totals = dict(bytes=400, bytes_fp32=4000, bits_per_weight=3.9, predicted_error=0.02, wall_seconds=12.3)
    source = dict(config='net.py', checkpoint='net.pth', sha256='ab' * 32)
    return dict(file='net.riem', source=source, settings={'bits': 4.0}, weights=weights, totals=totals)


VOID = ('meta', 'rect', 'line', 'circle', 'polyline', 'img', 'input', 'br')


class Rectangles(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.titles = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == 'rect':
            self.found.append({key: float(dict(attributes)[key]) for key in ('x', 'y', 'width', 'height')})
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == 'title':
            self.titles.append(data)


def test_areas_are_bytes(report):
    page = Rectangles(report_page(report))
    bars = [bar for bar in page.found if bar['y'] < 225]
    areas = [bar['width'] * bar['height'] for bar in bars]
    bits = [each['bits'] for each in report['weights']]
    assert [area / areas[0] for area in areas] == pytest.approx([x / bits[0] for x in bits], rel=0.02)
    for left, right in zip(bars, bars[1:]):
        assert right['x'] == pytest.approx(left['x'] + left['width'], abs=0.02)


def test_distortion_of_what_was_measured(report):
    page = Rectangles(report_page(report))
    below = [bar for bar in page.found if bar['y'] > 225]
    assert len(below) == 2
    assert below[0]['height'] == pytest.approx(3 * below[1]['height'], rel=0.01)
    assert any('75.0 % of the distortion' in title for title in page.titles)


def test_every_weight_and_the_remarks(report):
    page = report_page(report)
    for each in report['weights']:
        assert f'<td class=text>{each["name"]}</td>' in page
    assert 'averagely sensitive: <code>backbone.table</code>' in page
    assert 'or left out, 8 bytes: <code>head.small</code>' in page
    assert '10.0x' in page and '400 bytes' in page


@pytest.mark.parametrize('after, told', [(0.15, 'stay trained'), (0.3, 'are what they were before')])
def test_how_tuning_went(report, after, told):
    assert 'trained' not in report_page(report)
    report['totals']['tuning'] = dict(before=0.25, after=after, kept=after < 0.25)
    page = report_page(report)
    assert f'went from 0.25 to {after}' in page and told in page
    Rectangles(page)


def test_without_a_metric(report):
    for each in report['weights']:
        each.update(metric='identity', distortion=None)
    report['totals']['predicted_error'] = None
    page = report_page(report)
    assert 'averagely sensitive' not in page
    assert len(Rectangles(page).found) == 4


HOSTILE = [
    '<script>alert(1)</script>',
    '<img src=x onerror=alert(1)>',
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '</title></style></pre></code><h1>',
    '&lt;b&gt; & &amp; <!-- --> ]]> <![CDATA[',
    "bob's {{ }} $HOME %s {name} \\",
]


class Texts(HTMLParser):
    """The tags of a page, what it says, and all attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.attributes = set(), [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes.update(key for key, _ in attributes)

    def handle_comment(self, data):
        raise AssertionError(data)

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize('name', HOSTILE)
def test_names_are_text(report, name):
    """Whatever a checkpoint, a config and a user name things, the page has the same tags and says these names."""
    report['evaluate'] = 'mmriem test'
    plain = Texts(report_page(report))
    for each in report['weights']:
        each.update(dict.fromkeys(('name', 'representation', 'metric'), name))
    report['weights'][1]['metric'], report['weights'][1]['representation'] = 'identity', 'lattice'
    report['weights'][3]['representation'] = 'dense'
    report.update(file=name, source=dict.fromkeys(('config', 'checkpoint', name), name), evaluate=name)
    report['settings'] = {name: name, 'include': [name]}
    report['notes'] = [f'see {name}']
    page = report_page(report)
    Rectangles(page)
    found = Texts(page)
    assert found.tags == plain.tags and found.attributes == plain.attributes
    said = ''.join(found.words)
    assert said.count(name) >= 4 * 3 + 7 and f'{name.partition(".")[0]}: ' in said


def test_a_name_that_is_no_unicode_can_be_written(report, tmp_path):
    report['file'] = 'a\udcff.riem'  # what Python makes of the byte 255 in the name of a file
    (tmp_path / 'page.html').write_text(report_page(report), encoding='utf-8')
    assert 'a\\udcff.riem' in (tmp_path / 'page.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('bits_per_weight', [0.0, 0.3, 6.0, 61.0, 64.0, 700.0])
def test_any_rate_has_an_axis(report, bits_per_weight):
    report['weights'] = [weight('head.double', (2, 2), 4 * bits_per_weight, representation='dense')]
    Rectangles(report_page(report))


def test_nothing_from_elsewhere(report):
    assert not re.search(r'https?://|src=|@import', report_page(report))


@pytest.mark.parametrize(
    ('said', 'words'),
    [
        ({'kind': 'synthetic', 'steps': 40, 'count': 41}, '2 of the 41 images that the network was run on. Made from'),
        ({'kind': 'procedural', 'count': 2}, '2 of the 2 images that the network was run on. Drawn'),
        ({'kind': 'folder', 'count': 8}, 'Of the folder'),
    ],
)
def test_a_contact_sheet_shows_the_images_and_tells_what_they_are(report, said, words):
    page = report_page({**report, 'settings': {'images': said}}, [np.zeros((8, 8, 3), np.uint8)] * 2)
    assert words in page and page.count('<img ') == 1 and 'src="data:image/jpeg;base64,' in page


def test_without_images_there_is_no_contact_sheet(report):
    assert '<img' not in report_page(report) and '<h2>Images' not in report_page(report)


@pytest.mark.parametrize(
    ('settings', 'why'),
    [
        ({'min_numel': 512}, 'of fewer than 512 elements'),
        ({'exclude': ['head.*']}, 'left out by --include or --exclude'),
        ({'include': ['backbone.*']}, 'left out by --include or --exclude'),
        ({'states': 'as trained'}, 'that have no states in the trained model'),
    ],
)
def test_why_a_weight_stays_dense(report, settings, why):
    assert f'1 {why}' in report_page({**report, 'settings': settings})


def test_what_was_measured(report):
    agreement = dict(
        kind='detections',
        said='on 8 images all is well',
        objects=7,
        AP=0.5,
        AP50=0.75,
        by_size=dict(small=0.25, medium=None, large=1.0),
        by_class=[dict(objects=7, AP=0.5, AP50=0.75) | {'class': '<cat>'}],
    )
    evaluation = dict(before={'coco/bbox_mAP': 0.5, 'seconds': 3.0}, after={'coco/bbox_mAP': 0.125})
    worst = [('<1>.png', np.zeros((4, 6, 3), np.uint8))]
    page = report_page({**report, 'agreement': agreement, 'evaluation': evaluation, 'verdict': 'good'}, worst=worst)
    Rectangles(page)
    said = ''.join(Texts(page).words)
    assert 'On 8 images all is well.' in said and '<cat>' in said and '<1>.png' in said
    assert '<tr><td>coco/bbox_mAP</td><td>0.5</td><td>0.125</td></tr>' in page
    assert '<td>small objects</td><td></td><td>25.0 %</td>' in page
    assert '50.0 %' in page and '<b>good</b>' in page and page.count('<img ') == 1


def test_the_page_of_a_ladder():
    rows = [
        dict(
            bits=bits,
            bytes=1000 * bits,
            bytes_fp32=32000,
            bytes_fp16=16000,
            file=f'<n>-{bits}bit.riem',
            predicted_error=0.3 / bits,
            verdict='good',
            expected='expect little',
            agreement=0.9,
        )
        for bits in (4, 2)
    ]
    page = ladder_page('a & b', [*rows, dict(bits=0.1, refused='too small')], rows[1])
    Rectangles(page)
    said = ''.join(Texts(page).words)
    assert 'Take <n>-2bit.riem: expect little.' in said and '1/16.0' in said and 'refused' in said
    assert 'href="&lt;n&gt;-4bit.html"' in page and page.count('<circle') == 4
    lone = ladder_page('a', [rows[0]], None)
    assert 'None of these sizes is good' in lone and '<circle' not in lone
