"""tools/maintain/site_hooks.py: links of the repository as links of the site."""

from __future__ import annotations

import importlib.util
import logging

import pytest


@pytest.fixture(scope='module')
def hooks(tools):
    spec = importlib.util.spec_from_file_location('site_hooks', tools / 'maintain' / 'site_hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('page', 'link', 'expected'),
    [
        ('index.md', '[README](../README.md)', '[README](overview.md)'),
        ('overview.md', '![a curve](docs/benchmarks/picture.png)', '![a curve](benchmarks/picture.png)'),
        ('overview.md', '[install](docs/install.md#docker)', '[install](install.md#docker)'),
        ('the_demo.md', '[table](../docs/benchmarks.md)', '[table](benchmarks.md)'),
        ('experiments/images.md', '[page](../benchmarks.md)', '[page](../benchmarks.md)'),
        ('zoo.md', '[steps](../configs/swin)', 'steps (`configs/swin`)'),
        ('zoo.md', '[configs/swin](../configs/swin)', '`configs/swin`'),
        ('overview.md', '[mmdet](https://example.org/a.md)', '[mmdet](https://example.org/a.md)'),
        ('configs.md', '[1](#reasons)', '[1](#reasons)'),
    ],
)
def test_a_link_of_the_repository_leads_to_the_same_place_on_the_site(hooks, page, link, expected):
    assert hooks.LINK.sub(lambda found: hooks.site_link(page, *found.groups()), link) == expected


def test_a_link_to_no_file_is_a_warning_that_names_page_and_link(hooks, caplog):
    with caplog.at_level(logging.WARNING):
        hooks.site_link('zoo.md', '', 'x', '../configs/none.py')
    assert 'docs/zoo.md' in caplog.text
    assert '../configs/none.py' in caplog.text
