"""Links out of ``docs/`` stay right in the repository; on the site they lead to the page that includes the file."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

# File of the repository to page of the site.
PAGES = {
    "benchmarks/RESULTS.md": "project/results.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "project/security.md",
}
_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")


def lead_inside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give links to a file that a page includes that page's address instead."""
    docs = Path(app.srcdir)
    folder = (docs / docname).parent

    def lead(link: re.Match[str]) -> str:
        """The address that a link has on the site."""
        file = Path(os.path.normpath(folder / link[0]))
        page = PAGES.get(os.path.relpath(file, docs.parent))
        return os.path.relpath(docs / page, folder) if page else link[0]

    source[0] = _LINK.sub(lead, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register."""
    app.connect("source-read", lead_inside)
    return {"parallel_read_safe": True}
