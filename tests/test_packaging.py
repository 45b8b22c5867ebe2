"""A wheel of the sdist runs in a bare environment, and workflows run what .ci/run runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from bayeslora import __version__, configs

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made of the sdist made of a copy of the sources, so that nothing beside them can get in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "bayeslora", source / "bayeslora", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_holds_what_the_package_reads_and_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        about = message_from_bytes(archive.read(f"bayeslora-{__version__}.dist-info/METADATA"))
    package = ROOT / "bayeslora"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {file for file in files if "__pycache__" not in file} <= held
    assert about["Author"] == "the bayeslora contributors"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Keywords"]
    assert {f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12")} <= set(
        about.get_all("Classifier") or []
    )


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that sees the dependencies, but neither these sources nor their installation."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(install, check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*args: str) -> str:
        done = subprocess.run(args, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = str(python.with_name("bayeslora"))
    where = "import bayeslora; print(bayeslora.__file__)"
    assert call(str(python), "-c", where).startswith(str(site))
    assert len(call(command, "configs").splitlines()) == len(configs.names())
    few = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    for stage in ("fit", "test"):
        call(command, stage, "-c", "quickstart", "--trainer.limit_test_batches=1", *few)
    assert (elsewhere / "runs" / "quickstart" / "test" / "metrics.json").is_file()


def test_the_workflow_runs_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in script if line and not line.startswith(("#", "set ", "cd "))]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    assert commands
    assert [step["run"] for step in job["steps"] if "run" in step] == commands
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]


def test_commands_of_workflows_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text())["jobs"].values():
            for command in (step["run"] for step in job["steps"] if "run" in step):
                tool, target = command.split()
                assert tool == "make"
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), command


def test_commits_are_checked_as_lint_checks_them() -> None:
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    for hook in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]:
        assert hook["entry"].replace(".venv/bin", "$(BIN)") in lint[1]


def test_the_citation_and_the_container_name_this_version_and_what_exists() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    container = (ROOT / "Dockerfile").read_text()
    for copied in re.findall(r"^COPY (.+) \S+$", container, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())
    assert set(re.findall(r"-c (\S+)", container)) <= set(configs.names())
    (extras,) = re.findall(r'"\.\[(.+)\]"', container)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
