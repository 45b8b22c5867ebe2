"""Options by the names they had before ``Optimisation`` mean the same as by today's."""

from pathlib import Path

import pytest
import yaml

from bayeslora import LoRAModule, Optimisation, UsageError
from bayeslora.cli import main
from bayeslora.commands.old_names import current_names


def _printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    quiet = ["--data=SyntheticDataModule", "--trainer.accelerator=cpu"]
    with pytest.raises(SystemExit):
        main(["fit", *args, *quiet, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimisation"]


def test_old_and_new_names_mix_in_the_order_they_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("model: {class_path: LoRAModule, init_args: {learning_rate: 0.5, warmup: 0.25}}\n")
    new.write_text("model: {class_path: LoRAModule, init_args: {optimisation: {learning_rate: 0.1}}}\n")
    plain = {"weight_decay": 0.0, "decay": True}
    assert _printed(capsys, "-c", str(old), "-c", str(new)) == {"learning_rate": 0.1, "warmup": 0.25, **plain}
    assert _printed(capsys, "-c", str(new), "-c", str(old)) == {"learning_rate": 0.5, "warmup": 0.25, **plain}
    wanted = {"learning_rate": 0.2, "warmup": 0.25, **plain}
    assert _printed(capsys, f"--config={old}", "--model.learning_rate=0.2") == wanted
    assert "learning_rate: 0.5" in old.read_text()


def test_a_file_is_read_as_it_is_where_nothing_is_old(tmp_path: Path) -> None:
    file = tmp_path / "swag.yaml"
    file.write_text("trainer: {callbacks: [{class_path: SWAG, init_args: {schedule: {warmup: 0.1}}}]}\n")
    args = ["fit", "-c", str(file), "--trainer.max_epochs", "3", "--config=/no/such/file.yaml"]
    with current_names(args) as found:
        assert found == args


def test_flat_names_in_python() -> None:
    with pytest.warns(DeprecationWarning, match=r"Optimisation\(learning_rate=0.01\)"):
        module = LoRAModule(learning_rate=0.01)
    assert module.optimisation == Optimisation(learning_rate=0.01)
    assert module.hparams["optimisation"]["learning_rate"] == 0.01
    assert "learning_rate" not in module.hparams
    with pytest.raises(UsageError, match="within it"):
        LoRAModule(learning_rate=0.01, optimisation=Optimisation())
    with pytest.raises(UsageError, match="no argument 'rate'"):
        LoRAModule(rate=0.01)


def test_what_means_nothing_any_more_is_left_out(tmp_path: Path) -> None:
    """A member's lock has no end in time; a run folder of before may ask for one."""
    file = tmp_path / "fit-config.yaml"
    options = "init_args: {store: null, lease_seconds: 600.0}"
    file.write_text(f"trainer: {{callbacks: [{{class_path: bayeslora.callbacks.Ensemble, {options}}}]}}\n")
    with pytest.warns(FutureWarning, match="lease_seconds of Ensemble"), current_names(["-c", str(file)]) as found:
        config = yaml.safe_load(Path(found[1]).read_text())
    assert config["trainer"]["callbacks"][0]["init_args"] == {"store": None}
