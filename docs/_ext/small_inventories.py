"""Intersphinx without a network: of other projects' inventories the few entries that the reference names.

``inventories/*.txt`` hold them as text: the address of the project's documentation in the first line, then lines of an
inventory (``NAME DOMAIN:ROLE PRIORITY PAGE#ANCHOR TITLE``; ``$`` is the name, and so is the title ``-``).
Whole inventories would need a network at every build, or megabytes here; and a build whose warnings are errors must not
depend on four other sites. What is named and not listed is an error that says so: add its line.
"""

import zlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def write_inventories(app: Sphinx, config: Config) -> None:
    """Pack the texts as inventories and tell intersphinx of them."""
    out = Path(app.doctreedir) / "inventories"
    out.mkdir(parents=True, exist_ok=True)
    for text in sorted(Path(app.srcdir, "inventories").glob("*.txt")):
        address, *entries = text.read_text().splitlines()
        head = f"# Sphinx inventory version 2\n# Project: {text.stem}\n# Version:\n# The rest is compressed by zlib.\n"
        packed = out / f"{text.stem}.inv"
        packed.write_bytes(head.encode() + zlib.compress("".join(f"{entry}\n" for entry in entries).encode()))
        config.intersphinx_mapping[text.stem] = (address, str(packed))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register, before intersphinx looks at its mapping."""
    app.connect("config-inited", write_inventories, priority=1)
    return {"parallel_read_safe": True}
