"""The story's commands name what there is, and its sentences say what its numbers say."""

import json
import re
from pathlib import Path

from bayeslora.decisions.selective_risk import fewest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "story.md").read_text()
PROSE = " ".join(PAGE.split())


def test_what_the_commands_name_is_there() -> None:
    named = re.findall(r"-c ((?:base|method|data)/\w+)", PAGE)
    assert len(named) == 4
    assert all((ROOT / "bayeslora" / "configs" / f"{name}.yaml").is_file() for name in named)
    assert all((ROOT / name).is_file() for name in re.findall(r"benchmarks/\w+\.py", PAGE))
    assert all((ROOT / "docs" / name).is_file() for name in re.findall(r"\]\((\w+\.md)\)", PAGE))


def test_the_sentences_follow_from_the_numbers() -> None:
    new, elsewhere = (json.loads(line) for line in re.findall(r'^    (\{"messages".*\})$', PAGE, re.MULTILINE))
    error = 100 * new["wrong"] / new["answered"]
    assert f"{new['answered']} are routed, {new['wrong']} of them wrongly: {error:.1f} %" in PROSE
    left = new["messages"] - new["answered"]
    missed = new["wrong if all were answered"] - new["wrong"]
    every = new["wrong if all were answered"]
    assert f"{left} that a person sees hold {missed} of the {every} errors" in PROSE
    share = 100 * elsewhere["answered"] / elsewhere["messages"]
    assert f"{elsewhere['answered']} of the {elsewhere['messages']:,} ({share:.0f} %)" in PROSE
    assert f"at least {fewest(0.05, 0.1 / 3)} *answered*" in PROSE
