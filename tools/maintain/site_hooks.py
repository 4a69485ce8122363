"""Hooks of MkDocs for the site of the docs, named in mkdocs.yml.

Pages link to each other as files of the repository do, so that they also work where the repository is read. For the
site some files outside `docs/` become pages, and a link to any other one becomes its path as text.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {
    'README.md': 'overview.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'demo/README.md': 'the_demo.md',
}
"""Files outside `docs/` that are pages of the site, by their path in the repository."""
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)')
LOG = logging.getLogger('mkdocs.plugins.site')


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside `docs/`."""
    from mkdocs.structure.files import File  # which tests of the rest do without

    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make the links of a page those of the site."""
    uri = page.file.src_uri
    return LINK.sub(lambda link: site_link(uri, *link.groups()), markdown)


def site_link(uri: str, mark: str, text: str, target: str) -> str:
    """A link of the repository as one of the site.

    Args:
        uri: the page that it stands on.
        mark: `!` of an image, or nothing.
        text: what is shown.
        target: an address, or a path relative to the page's file in the repository.

    A path that does not exist is told as a warning, which ends a strict build.
    """
    path, _, anchor = target.partition('#')
    if not path or re.match(r'[a-z]+:', target):
        return f'{mark}[{text}]({target})'
    source = SOURCES.get(uri, f'docs/{uri}')
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / found).exists():
        LOG.warning('%s: expected a file of the repository, found the link %s', source, target)
    there = PAGES.get(found, found.removeprefix('docs/') if found.startswith('docs/') else None)
    if there is None:
        return f'`{found}`' if text in (found, posixpath.basename(found)) else f'{text} (`{found}`)'
    relative = posixpath.relpath(there, posixpath.dirname(uri) or '.')
    return f'{mark}[{text}]({relative}{"#" + anchor if anchor else ""})'
