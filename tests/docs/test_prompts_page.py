"""The page about prompts is true: its protocols are read and ask, its code runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bayeslora.configs import CONFIGS
from bayeslora.datamodules.protocols import OwnProtocol, get_protocol
from bayeslora.datamodules.question import Question

PAGE = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text()
PROTOCOLS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ASKED = Question("1", "Buy now!", ("allowed", "forbidden"), 1, "No advertising.")
PROMPTS = {
    "moderation": ("Rule: No advertising.\nPost: Buy now!\nDoes the post break the rule?", ["no", "yes"]),
    "intents": ("Message: Buy now!\nIntent:", ["allowed", "forbidden"]),
    "judge": ("Task: Buy now!\n\nAnswer A:\nallowed\n\nAnswer B:\nforbidden\n\nThe better answer is", ["A", "B"]),
}


@pytest.mark.parametrize("text", PROTOCOLS)
def test_its_protocols_ask(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(text)
    protocol = get_protocol(str(tmp_path / "my.yaml"))
    shipped = yaml.safe_load((CONFIGS / "data" / f"own_{protocol.name}.yaml").read_text())
    assert get_protocol(shipped["data"]["init_args"]["protocol"]) == protocol
    prompt, words = PROMPTS[protocol.name]
    assert protocol.prompt("jsonl", ASKED).text == prompt
    assert list(protocol.labels("jsonl", ASKED)) == words


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(PROTOCOLS) == len(PROMPTS)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block, scope)
    assert capsys.readouterr().out == "Message: Where is my money?\nIntent:\n"
    assert OwnProtocol.from_dict(scope["protocol"].to_dict()) == scope["protocol"]


def test_its_table_names_every_key() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert keys | {"name"} == set(OwnProtocol(template="{question}").to_dict())
