"""Configurations by name: shipped ones are found from anywhere, files win, and a slip of the pen is named."""

from pathlib import Path

import pytest

from bayeslora import configs as shipped
from bayeslora.cli import main
from bayeslora.errors import UsageError


@pytest.mark.parametrize("given", ["base/mistral_7b", "configs/base/mistral_7b.yaml", "base/mistral_7b.yaml"])
def test_a_name_is_found_from_any_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.to_file(given) == str(shipped.CONFIGS / "base" / "mistral_7b.yaml")


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("seed_everything: 7\n")
    args = ["fit", "-c", "quickstart", "--config=method/swag", "--config", "data/synthetic", "--model", "method/swag"]
    assert shipped.with_files(args) == [
        *["fit", "-c", "quickstart", f"--config={shipped.CONFIGS}/method/swag.yaml"],
        *["--config", f"{shipped.CONFIGS}/data/synthetic.yaml", "--model", "method/swag"],  # after -c alone
    ]


def test_yaml_in_the_argument_itself_is_left_to_the_parser() -> None:
    assert shipped.to_file("{seed_everything: 1}") == "{seed_everything: 1}"


def test_a_slip_is_refused_with_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"metod/swag is no file and no .*did you mean method/swag\?"):
        shipped.with_files(["fit", "-c", "metod/swag"])
    with pytest.raises(UsageError, match=r"mine\.yaml is no file and no shipped configuration .*them\)$"):
        shipped.to_file("mine.yaml")


def test_every_shipped_file_has_a_name_and_a_line_that_says_what_it_is(capsys: pytest.CaptureFixture) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped.names()
    assert len(lines) == len(list(shipped.CONFIGS.rglob("*.yaml")))
    assert all(len(line.split()) > 1 for line in lines), lines


def test_copies_keep_their_place_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "quickstart", "method/swag"]) == 0
    assert capsys.readouterr().out.split() == [
        "written:",
        "configs/quickstart.yaml",
        "written:",
        "configs/method/swag.yaml",
    ]
    copy = tmp_path / "configs" / "method" / "swag.yaml"
    assert copy.read_text() == (shipped.CONFIGS / "method" / "swag.yaml").read_text()
    copy.write_text("mine: 1\n")
    assert main(["configs", "method/blob", "method/swag"]) == 2
    assert "configs/method/swag.yaml is there already" in capsys.readouterr().err
    assert copy.read_text() == "mine: 1\n"
    assert not (copy.parent / "blob.yaml").exists()  # all or none
    assert shipped.to_file("configs/method/swag.yaml") == "configs/method/swag.yaml"  # the copy
    assert main(["configs", "nonsense"]) == 2
    assert "no configuration is called nonsense" in capsys.readouterr().err
    assert main(["configs", "--to", "elsewhere"]) == 2
