"""What is pinned is what is asked for, has hashes, and is listed with its licence."""

import re

import pytest

from tools.licences import PAGE, ROOT, direct, pins, row

PINS = pins()


def test_every_dependency_is_pinned_within_its_range() -> None:
    for name, asked in direct().items():
        assert name in PINS, f"pin {name} in constraints.txt"
        for where, requirement in asked:
            assert PINS[name] in requirement.specifier, f"{name}=={PINS[name]} is not {requirement} ({where})"


def test_every_pin_has_hashes() -> None:
    """All but torch, whose variants have files of their own; made by ``make hashes``."""
    lines = (ROOT / "constraints-hashed.txt").read_text().replace("\\\n", " ").splitlines()
    found = {}
    for line in (line for line in lines if line.strip() and not line.startswith("#")):
        name, version, hashes = re.fullmatch(r"([\w.-]+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line).groups()  # type: ignore[union-attr]
        assert hashes
        found[name] = version
    assert found == {name: version for name, version in PINS.items() if name != "torch"}, "run: make hashes"


def test_every_pin_is_on_the_page_of_licences() -> None:
    head, *listed = re.findall(r"^\| ([\w-]+) \| (\S+) \| [^|]+ \|", PAGE.read_text(), re.MULTILINE)
    assert head == ("package", "version")
    assert dict(listed) == PINS, "run: python tools/licences.py --write"


@pytest.mark.parametrize("name", sorted(direct()))
def test_the_page_says_what_a_dependency_says_of_its_licence(name: str) -> None:
    line = row(name, PINS[name], direct())
    if line is None:
        pytest.skip(f"{name} is not installed")
    assert line in PAGE.read_text().splitlines(), "run: python tools/licences.py --write"


def test_nothing_that_is_always_installed_is_under_the_gpl() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if re.search(r"\bL?GPL|General Public", line) and "|" in line
    ]
    assert any(line.startswith("| ivon-opt |") and line.endswith("| ivon |") for line in rows)
    assert not [line for line in rows if line.endswith("| always |")]
