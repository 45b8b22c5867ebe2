"""The README is true: its commands exist and run, its code runs, its links lead somewhere."""

import json
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from bayeslora import configs as shipped
from bayeslora.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_make_targets_exist() -> None:
    targets = {command[1] for command in commands() if command[0] == "make"}
    assert targets == {"quickstart", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_configurations_and_links_exist() -> None:
    named = [after for command in commands() for part, after in pairwise(command) if part == "-c"]
    assert named
    assert set(named) <= set(shipped.names())
    methods = re.findall(r"`(method/\w+)`", README)
    assert methods
    assert set(methods) <= set(shipped.names())
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_commands_of_the_command_line_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import bayeslora.commands.lightning as lightning_cli

    ran = []
    monkeypatch.setattr(lightning_cli.CommandLine, "_run_subcommand", lambda self, stage: ran.append(stage))
    monkeypatch.setattr(lightning_cli, "resolve", lambda checkpoint, root: "last.ckpt")
    monkeypatch.chdir(ROOT)
    for command in commands():
        if command[0] == "bayeslora" and command[1] in ("fit", "test"):
            on_cpu = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
            assert main([*command[1:], *on_cpu]) == 0
    assert ran == ["fit", "test"] * 2


def test_its_numbers_are_those_of_the_study() -> None:
    table = README.partition("## Which method when")[2].partition("## Methods")[0]
    numbers = set(re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", table))
    pages = (ROOT / "docs" / "study" / f"{name}.md" for name in ("README", "long_training"))
    study = " ".join(" ".join(page.read_text() for page in pages).split())
    assert len(numbers) >= 6
    assert {number for number in numbers if number not in study} == set()


def test_the_code_attaches_to_a_foreign_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), _foreign())
    metrics = json.loads((tmp_path / "runs" / "mine" / "test" / "metrics.json").read_text())
    assert metrics["datasets"]["test"]["n"] == 60
    assert "temperature" in metrics["method"]


def _foreign() -> dict:
    """An ordinary module and its data, as a reader of the README would have them."""
    import lightning as L
    from torch.utils.data import DataLoader, TensorDataset

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(5, 3)

        def training_step(self, batch: list, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def test_step(self, batch: list, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.1)

    class Data(L.LightningDataModule):
        def loader(self, seed: int) -> DataLoader:
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(60, 5, generator=generator)
            y = torch.multinomial(x[:, :3].softmax(-1), 1, generator=generator).squeeze(-1)
            return DataLoader(TensorDataset(x, y), batch_size=16)

        def train_dataloader(self) -> DataLoader:
            return self.loader(0)

        def val_dataloader(self) -> DataLoader:
            return self.loader(1)

        def test_dataloader(self) -> DataLoader:
            return self.loader(2)

    return {"module": Module(), "data": Data()}


@pytest.mark.slow
def test_quickstart_shows_overconfidence_and_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make quickstart` runs after installing: overconfident as a large model is on few questions."""
    here, tmp_path = tmp_path, tmp_path / "runs" / "quickstart"
    config = ["-c", "quickstart", f"--trainer.default_root_dir={tmp_path}"]
    config += ["--trainer.enable_progress_bar=false"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"bayeslora {stage} -c quickstart" in makefile for stage in ("fit", "test"))
    assert main(["fit", *config]) == 0
    assert main(["test", *config]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    found = metrics["datasets"]["synthetic"]
    assert found["n"] >= 5000
    assert found["mean_confidence"] - found["expected_accuracy"] >= 0.15
    assert found["expected_accuracy"] > 0.3  # four options: above chance
    assert _training_accuracy(tmp_path) > 0.95
    pictures = {"reliability.png", "risk_coverage.png", "uncertainty_right_wrong.png", "uncertainty_datasets.png"}
    assert pictures <= {file.name for file in (tmp_path / "test").iterdir()}
    monkeypatch.chdir(here)
    for page, code in (("README.md", blocks("python")[1]), ("docs/serving.md", _serving_page())):
        asked: dict = {"run_folder": tmp_path}
        exec(compile(code, page, "exec"), asked)
        assert asked["answer"].text in ("a mouse", "a house")


def _serving_page() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    return code


def _training_accuracy(root: Path) -> float:
    from bayeslora import LoRAModule
    from bayeslora.datamodules import SyntheticDataModule

    module = LoRAModule.load_from_checkpoint(root / "checkpoints" / "last.ckpt", weights_only=True)
    data = yaml.safe_load((root / "fit-config.yaml").read_text())["data"]["init_args"]
    datamodule = SyntheticDataModule(labels=data["labels"], seed=0)
    with torch.no_grad():
        right = [module.answer_logits(b)[0].argmax(-1) == b.label for b in datamodule.train_eval_dataloader()]
    return torch.cat(right).float().mean().item()


def test_the_project_speaks_of_itself_alone() -> None:
    """No machine's paths in what is published."""
    home = str(ROOT.parent) + os.sep
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        assert home not in file.read_text(), file
