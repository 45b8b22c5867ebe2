"""Every shipped configuration is parsed and instantiated, alone or as the overlay it is; nothing is downloaded."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import bayeslora.commands.lightning as lightning_cli
from bayeslora import BLoBModule, CLoRAModule, IVONModule, ScalaBLModule
from bayeslora.cli import main
from bayeslora.commands.resolved import resolve
from bayeslora.errors import UsageError
from bayeslora.grid.fields import counting_fields
from bayeslora.grid.specification import read_grid
from bayeslora.results.comparison.published import read_published

ROOT = Path(__file__).parent.parent / "bayeslora" / "configs"
OWN = {
    "intents": {"question": "where is my money", "options": ["refund", "billing"], "label": 0},
    "posts": {"context": "No adverts.", "question": "Buy now!", "options": ["allowed", "forbidden"], "label": 1},
    "judge": {"question": "Say hello.", "options": ["Hello!", "Go away."], "label": 0},
}
BASE, DATA = ROOT / "base" / "embedded.yaml", ROOT / "data" / "synthetic.yaml"


def combinations() -> list[tuple[str, ...]]:
    """base x data x method, each file once beside the embedded default, whole configurations, and papers' recipes."""
    bases = [(str(file), str(DATA)) for file in sorted((ROOT / "base").glob("*.yaml"))]
    data = [(str(BASE), str(file)) for file in sorted((ROOT / "data").glob("*.yaml"))]
    methods = [(str(BASE), str(DATA), str(file)) for file in sorted((ROOT / "method").glob("*.yaml"))]
    whole = [(str(ROOT / "quickstart.yaml"),), *(files for folder in papers() for files in of_paper(folder))]
    return [*bases, *data, *methods, *whole]


def papers() -> list[Path]:
    return sorted(path for path in (ROOT / "papers").iterdir() if path.is_dir())


def tables() -> list[Path]:
    """The files of grids: they name methods, and configurations of runs do not."""
    return [file for file in sorted((ROOT / "papers").rglob("*.yaml")) if "methods" in yaml.safe_load(file.read_text())]


def of_paper(folder: Path) -> list[tuple[str, ...]]:
    """Every file alone; where there is a recipe, its tasks on top of it, and a variant on top of every task."""
    files = {file.stem: str(file) for file in sorted(folder.glob("*.yaml")) if file not in tables()}
    recipe = files.pop("recipe", None)
    if recipe is None:
        return [(file,) for file in files.values()]
    variants = [files.pop(stem) for stem in list(files) if stem.startswith("with_")]
    return [(recipe, task, *variant) for task in files.values() for variant in [(), *((v,) for v in variants)]]


def name(files: tuple[str, ...]) -> str:
    if files[-1] == str(DATA):
        return str(Path(files[0]).relative_to(ROOT))
    return " ".join(str(Path(file).relative_to(ROOT)) for file in files if file not in (str(BASE), str(DATA)))


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that configurations of one's own questions name, of the lines in their headers."""
    monkeypatch.chdir(tmp_path)
    for folder, row in OWN.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for split in ("train", "test"):
            lines = [json.dumps({**row, "question": f"{row['question']} {split} {i}"}) + "\n" for i in range(10)]
            (tmp_path / "data" / folder / f"{split}.jsonl").write_text("".join(lines))


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("files", combinations(), ids=name)
def test_configuration_is_instantiated(files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(lightning_cli.CommandLine, "_run_subcommand", lambda self, stage: ran.append(self))
    options = ["--trainer.accelerator=cpu", "--trainer.devices=1", f"--trainer.default_root_dir={tmp_path}"]
    args = ["fit", *[part for file in files for part in ("-c", file)], *options]
    assert main(args) == 0
    line = ran[0]
    wanted = yaml.safe_load(Path(files[0]).read_text())["model"]["init_args"]["backbone"]["pretrained"]
    assert line.model.backbone.pretrained == wanted
    assert line.datamodule.tokenizer_name == wanted  # linked
    assert line.model.seed == line.datamodule.seed == line.config.fit.seed_everything


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("name", sorted((ROOT / "data").glob("own_*.yaml")), ids=lambda file: file.stem)
def test_ones_own_questions_become_batches(name: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line in its header is a line of the file, and its words are asked for."""
    text = " ".join(line.lstrip("# ") for line in name.read_text().splitlines() if line.startswith("#"))
    assert any(json.dumps(row) in text for row in OWN.values())
    ran = []
    monkeypatch.setattr(lightning_cli.CommandLine, "_run_subcommand", lambda self, stage: ran.append(self))
    options = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "-c", str(BASE), "-c", str(name), *options]) == 0
    data = ran[0].datamodule
    if name.stem == "own_moderation":  # the embedded vocabulary has no token for its words, and is told the way out
        with pytest.raises(UsageError, match=r"label 'no' after .*\(end: stop\)"):
            data.encoded("train")
        data.protocol = replace(data.protocol, end="stop")
    data.setup("fit")
    assert len(data.questions("train")) + len(data.questions("validation")) == 10
    assert next(iter(data.train_dataloader())).label.tolist() != []


@pytest.mark.parametrize("file", tables(), ids=lambda file: str(file.relative_to(ROOT / "papers")))
def test_a_grid_lists_its_cells(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        assert main(["benchmark", "-c", str(file), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    grid = read_grid(file)
    shown = capsys.readouterr().out
    for key in (
        f"{dataset}/{method}/{seed}" for dataset in grid.datasets for method in grid.methods for seed in grid.seeds
    ):
        assert f" {key} " in shown
    assert not (tmp_path / "out").exists()
    if grid.published is not None:
        numbers = read_published(grid.published, {})
        assert {number.dataset.partition("/")[0] for number in numbers} <= {*grid.datasets}
        assert {number.method for number in numbers} <= {*grid.methods}


def commands() -> list[tuple[str, ...]]:
    """The arguments of every ``bayeslora fit`` and ``test`` that a configuration's header gives."""
    found = []
    for file in sorted(ROOT.rglob("*.yaml")):
        comments = "".join(line[1:] for line in file.read_text().splitlines(True) if line.startswith("#"))
        lines = re.findall(r"^ +bayeslora ((?:fit|test) .*)$", comments.replace("\\\n", " "), re.MULTILINE)
        found += [tuple(shlex.split(line)) for line in lines]
    return found


@pytest.mark.usefixtures("own_files")
@pytest.mark.parametrize("args", commands(), ids=" ".join)
def test_commands_in_headers_parse(args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, checkpoints = [], []
    monkeypatch.setattr(lightning_cli.CommandLine, "_run_subcommand", lambda self, stage: ran.append(self))
    monkeypatch.setattr(lightning_cli, "resolve", lambda checkpoint, root: checkpoints.append(checkpoint))
    assert main([*args, "--trainer.accelerator=cpu", "--trainer.devices=1"]) == 0
    line, root = ran[0], Path(ran[0].trainer.default_root_dir)
    overlays = {Path(arg).stem for arg in args if arg.startswith("method/")}
    if overlays & {"blob_mean", "c_lora_mean"}:
        assert line.model.samples == 0
        assert Path(checkpoints[0]).parents[1] != root  # another run's checkpoint, whose results stay
    elif isinstance(line.model, BLoBModule | CLoRAModule | ScalaBLModule | IVONModule):
        assert line.model.samples == 10
    if "papers" in root.parts and hasattr(line.model, "context"):
        assert (line.model.context == "free") == ("c_lora_fe" in overlays) == root.name.endswith("-fe")


@pytest.mark.parametrize("method", ["blob", "c_lora"])
def test_papers_give_commands_for_their_rows_and_ood_sets(method: str) -> None:
    for file in {*(ROOT / "papers" / method).glob("*.yaml")} - {*tables()}:
        own = [args for args in commands() if f"papers/{method}/{file.stem}" in args]
        rows = [{Path(arg).stem for arg in args if arg.startswith("method/")} for args in own]
        assert rows == [set(), {f"{method}_mean"}, *([{"c_lora_fe"}] if method == "c_lora" else [])]
        ood = yaml.safe_load(file.read_text())["data"]["init_args"].get("ood")
        wanted = ["arc_challenge", "arc_easy", "mmlu:college_chemistry", "mmlu:college_physics"]
        assert ood == (wanted if file.stem == "obqa" else None)


def test_every_folder_is_covered() -> None:
    covered = {Path(file) for files in combinations() for file in files}
    assert covered == set(ROOT.rglob("*.yaml")) - set(tables())


def tables_with_marks() -> list[Any]:
    """The tables; that of all methods, whose overlays are instantiated above as well, takes too long for every run."""
    marks = {"all_methods": pytest.mark.slow}
    return [pytest.param(file, marks=marks.get(file.stem, ()), id=str(file.relative_to(ROOT))) for file in tables()]


@pytest.mark.parametrize("file", tables_with_marks())
def test_every_row_of_a_table_resolves_and_counts(file: Path) -> None:
    """On the table's first dataset; whether others are read is what their own files' tests say."""
    grid = read_grid(file)
    dataset = next(iter(grid.datasets))
    fields = {name: counting_fields(resolve(grid.parts(name, dataset))[0]) for name in grid.methods}
    found = [(fields[name], method.checkpoint) for name, method in grid.methods.items()]
    assert not [row for row in found if found.count(row) > 1], "two rows are one"


def test_overlays_change_only_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(lightning_cli.CommandLine, "_run_subcommand", lambda self, stage: ran.append(self))
    overlays = [ROOT / "base" / "qwen3_0.6b.yaml", DATA, ROOT / "method" / "mc_dropout.yaml"]
    overlays += [ROOT / "method" / "temperature.yaml"]
    options = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *[part for file in overlays for part in ("-c", str(file))], *options]) == 0
    model, callbacks = ran[0].model, ran[0].trainer.callbacks
    assert (model.lora.dropout, model.samples) == (0.1, 10)
    assert model.lora.target_modules == ["q_proj", "v_proj"]
    assert model.backbone.pretrained == "Qwen/Qwen3-0.6B"
    assert [type(c).__name__ for c in callbacks].count("Temperature") == 1
