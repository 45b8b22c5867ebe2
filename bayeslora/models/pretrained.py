"""Names of pretrained models and tokenizers that the package itself answers to."""

from pathlib import Path

EMBEDDED = "embedded"


def resolve_pretrained(name: str) -> str:
    """The folder of the package's tiny base for ``embedded``, any other name as it is."""
    if name == EMBEDDED:
        return str(Path(__file__).parent.parent / "assets" / "tiny")
    return name
