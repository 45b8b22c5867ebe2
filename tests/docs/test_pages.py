"""Every page is true: its code runs, its commands parse, its links lead somewhere."""

import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import bayeslora as bl
from bayeslora import configs
from bayeslora.cli import main
from bayeslora.commands.parsers import PARSERS
from bayeslora.grid.specification import read_grid
from tests.helpers.pages import PAGES, ROOT, blocks, commands, rows

NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NUMBER = r"\d+\.\d+"
LIGHTNING = ("fit", "test", "validate", "laplace", "tfb")
ELSEWHERE = {  # pages whose code has a test of its own, which looks at what comes out too
    "README.md": "tests/test_readme.py",
    "docs/serving.md": "tests/test_readme.py",
}
ELSEWHERE |= {
    f"docs/{name}.md": f"tests/docs/test_{name}_page.py"
    for name in ("decisions", "laplace", "prompts", "python", "swag")
}


def classifier(folder: Path, name: str) -> dict[str, Any]:
    """A text classifier's folder, a place to write to, and tokenised texts."""
    sets = {"train_set": 24, "val_set": 16, "calibration_set": 40, "test_set": 12}
    return {"name": name, "folder": str(folder), **{key: rows(n) for key, n in sets.items()}}


def adapter(folder: Path, name: str) -> dict[str, Any]:
    """The embedded base, an adapter for it, and a file of questions."""
    module = bl.LoRAModule()
    module.configure_model()
    model = module.model
    bl.save_posterior(module.posterior(), folder / "adapter", model.adapter_config, model.base_fingerprint)
    line = '{"id": "%d", "question": "Which is larger?", "options": ["a mouse", "a house"], "label": %d}\n'
    (folder / "mine.jsonl").write_text("".join(line % (n, n % 2) for n in range(6)))
    return {"base": "embedded", "adapter": str(folder / "adapter"), "questions": str(folder / "mine.jsonl")}


GIVEN: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "docs/guides/transformers_trainer.md": classifier,
    "docs/guides/peft_adapter.md": adapter,
}


@pytest.mark.parametrize("page", [name for name, page in NAMES.items() if blocks(page, "python")])
def test_its_code_runs(page: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page in one namespace, after what the page says is given."""
    if page in ELSEWHERE:
        assert Path(page).stem in (ROOT / ELSEWHERE[page]).read_text()
        return
    namespace = GIVEN[page](tmp_path, name) if page in GIVEN else {}
    monkeypatch.chdir(tmp_path)
    for block in blocks(NAMES[page], "python"):
        if not block.not_run:
            exec(compile(block.text, page, "exec"), namespace)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in which Lightning's commands end when their configuration is known to be right."""
    import bayeslora.commands.lightning as lightning_cli

    for hook in ("before_instantiate_classes", "instantiate_classes", "_run_subcommand", "say_what_was_written"):
        monkeypatch.setattr(lightning_cli.CommandLine, hook, lambda self, *args: None)
    for run in ("quickstart", "intents"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        shutil.copy(configs.find("quickstart") or "", tmp_path / "runs" / run / "fit-config.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [name for name, page in NAMES.items() if any(commands(page))])
def test_its_commands_are_understood(page: str, parsed: Path) -> None:
    for command in commands(NAMES[page]):
        check(command)


def check(command: list[str]) -> None:
    """A command's program, options and files are there; this project's own are read by their parsers."""
    program, *words = (re.sub(r"^\$[A-Z_]+$", "0", word) for word in command)  # a variable that a scheduler sets
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets, command
    elif program == "pip":
        assert all(extra in EXTRAS for extra in re.findall(r"bayeslora\[(.+)\]", " ".join(words))), command
    elif program == "python":
        file = f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0]
        source = (ROOT / file).read_text()
        assert all(f'"{option}"' in source for option in words if re.match(r"--[a-z]", option)), command
    elif program == "bayeslora":
        understood(words)


def understood(words: list[str]) -> None:
    """Runs a command where nothing is trained yet: what it cannot find is refused, what it cannot read is a failure."""
    if words[0] == "benchmark":
        words = [*words, "--dry-run"]
    if words[0] == "ensemble":
        words = ["fit", *PARSERS["ensemble"]().parse_known_args(words[1:])[1]]
    if words[-2:] == ["--ckpt_path", "all"]:
        words[-1] = "last"  # all there are, and here is none
    status = main(words)
    assert status in ((0,) if words[0] in LIGHTNING else (0, 2)), words


def test_links_lead_somewhere() -> None:
    for name, page in NAMES.items():
        for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{name}: {link}"


def test_configurations_are_yaml_and_the_grid_is_one(tmp_path: Path) -> None:
    for page in PAGES:
        for block in blocks(page, "yaml"):
            assert isinstance(yaml.safe_load(block.text), dict), page
    (block,) = blocks(NAMES["docs/benchmark.md"], "yaml")
    (tmp_path / "grid.yaml").write_text(block.text)
    (tmp_path / "my_method.yaml").write_text("trainer:\n  max_epochs: 1\n")
    assert list(read_grid(tmp_path / "grid.yaml").methods) == ["base", "mle", "temperature", "mine"]


def test_the_page_about_metrics_names_every_number() -> None:
    from bayeslora.metrics import Answers
    from bayeslora.metrics.evaluate import evaluate

    predictive = bl.Predictive.from_logits(torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(0)))
    answers = Answers.from_predictive(predictive, torch.arange(30) % 4)
    kept = {"logits": torch.zeros(30, 3, 4), "logsumexp": torch.full((30, 3), 2.0)}
    answers = replace(answers, true_probs=answers.probs, **kept)
    found = evaluate({"a": answers, "b": answers}, method="mle", seed=0)
    names = set(found["datasets"]["a"]) | set(found["ood"]["b"]["total"])
    said = set(re.findall(r"`(\w+)`", NAMES["docs/metrics.md"].read_text()))
    assert not names - said - {"interval_95"}


def test_the_advice_rests_on_numbers_of_the_study() -> None:
    table = re.findall(r"^\| .*(?: ± ).* \|$", NAMES["docs/start/which_method.md"].read_text(), re.MULTILINE)
    pages = ("README", "budgets_stopped", "long_training", "budgets")
    study = "".join(NAMES[f"docs/study/{name}.md"].read_text() for name in pages)
    quoted = [(float(a), float(b)) for row in table for a, b in re.findall(rf"({NUMBER}) ± ({NUMBER})", row)]
    known = {(float(a), float(b)) for a, b in re.findall(rf"({NUMBER}) ±\s?({NUMBER})", study)}
    assert len(quoted) == 25
    for value, half in quoted:
        assert {(value, half), (round(value / 100, 3), round(half / 100, 3))} & known, (value, half)
