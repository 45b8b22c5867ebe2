"""The file of a grid: what it says, what it finds, and what it refuses in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bayeslora.errors import UsageError
from bayeslora.grid.cells import cell_of, cells, training_cell
from bayeslora.grid.specification import Grid, read_grid


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder of configurations, laid out as the shipped ones, with a place for grids."""
    for name in ("method/mle", "method/blob", "method/temperature", "data/arc", "data/boolq", "papers/own/extra"):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return tmp_path


def written(library: Path, **changes: Any) -> Path:
    content = {"datasets": ["arc", "boolq"], "methods": {"mle": None, "blob": None, "temperature": {"of": "mle"}}}
    file = library / "papers" / "own" / "table.yaml"
    file.write_text(
        yaml.safe_dump(
            {key: value for key, value in {**content, **changes}.items() if value is not None}, sort_keys=False
        )
    )
    return file


def grid(library: Path, **changes: Any) -> Grid:
    return read_grid(written(library, **changes))


def test_names_are_shipped_files_or_files_beside_the_grid(library: Path) -> None:
    found = grid(library, common={"configs": ["extra", "data/arc.yaml"]})
    assert [file.name for file in found.common.files] == ["extra.yaml", "arc.yaml"]
    assert found.methods["blob"].files == (library / "method" / "blob.yaml",)
    assert found.datasets["boolq"].files == (library / "data" / "boolq.yaml",)
    assert found.out.is_absolute()


def test_a_method_on_top_of_another_has_its_configuration_and_then_its_own(library: Path) -> None:
    rows = {"mle": None, "t": {"of": "mle", "configs": ["method/temperature"]}, "tt": {"of": "t", "configs": []}}
    found = grid(library, methods=rows)
    assert [part.name for part in found.parts("tt", "arc")] == ["common", "arc", "mle", "t", "tt"]
    assert found.training("tt") == "mle"
    cell = cell_of(found, "arc/tt/3")
    assert training_cell(found, cell) == cell_of(found, "arc/mle/3")


def test_cells_are_all_combinations_trainings_first(library: Path) -> None:
    rows = {"temperature": {"of": "mle"}, "mle": None, "blob": None}
    keys = [cell.key for cell in cells(grid(library, seeds=[3, 1], methods=rows))]
    assert len(keys) == 12
    assert keys[:3] == ["arc/mle/3", "arc/mle/1", "arc/blob/3"]
    assert keys.index("arc/mle/1") < keys.index("arc/temperature/3")


def test_some_rows_take_their_trainings_along(library: Path) -> None:
    found = grid(library, reference="blob").narrowed(["temperature"], ["boolq"], [7])
    assert list(found.methods) == ["mle", "temperature"]
    assert (list(found.datasets), found.seeds, found.reference) == (["boolq"], (7,), "mle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["mle", "bolb"]}, "method bolb has no configuration .*; shipped are method/blob, method/mle"),
        ({"datasets": ["arc", "arcc"]}, "dataset arcc has no configuration .*; shipped are data/arc, data/boolq"),
        ({"methods": ["mle", "MLE"]}, "two methods are called 'mle' and 'MLE', which is one folder"),
        ({"datasets": ["arc", "arc"]}, "two datasets are called 'arc' and 'arc'"),
        ({"methods": {"mle": {"of": "map"}}}, "'of' of method mle is 'map'; allowed"),
        ({"methods": {"mle": {"of": "blob"}, "blob": {"of": "mle"}}}, "mle, blob are on top of one another"),
        ({"methods": {"mle": {"checkpoint": "first"}}}, "checkpoint of method mle is 'first'; allowed: last, best"),
        ({"methods": {"a/b": None}}, "name of a method is 'a/b'"),
        ({"methods": {"mle": {"config": ["x"]}}}, "key of method mle is 'config'; allowed: configs, options"),
        ({"methods": {"mle": {"configs": "x"}}}, "configs of method mle is 'x'; allowed: a list"),
        ({"methods": {"mle": {"options": [1]}}}, "options of method mle is .*; allowed: a mapping"),
        ({"methods": []}, "methods is missing"),
        ({"seeds": [1, 1]}, "seeds is .*; allowed: different whole numbers"),
        ({"seeds": ["a"]}, "seeds is .*; allowed: different whole numbers"),
        ({"threads": 0}, "threads is 0; allowed: 1 or more"),
        ({"reference": "base"}, "reference is 'base'; allowed: mle, blob, temperature"),
        ({"sedes": [1]}, "key of the grid is 'sedes'"),
    ],
)
def test_what_is_refused(library: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        grid(library, **changes)
    assert "\n" not in str(refused.value)


def test_a_key_that_is_there_twice_is_refused(library: Path) -> None:
    file = library / "twice.yaml"
    file.write_text("methods: [mle]\ndatasets: [arc]\nmethods: [blob]\n")
    with pytest.raises(UsageError, match=r"twice.yaml, line 1: the key 'methods' is there twice; keep one"):
        read_grid(file)


def test_rows_and_keys_that_are_not_there(library: Path) -> None:
    found = grid(library)
    with pytest.raises(UsageError, match="method is 'tfb'; allowed: mle, blob, temperature"):
        found.narrowed(["tfb"], [], [])
    for key in ("arc/tfb/0", "arc/mle", "nope/mle/0", "arc/mle/-1"):
        with pytest.raises(UsageError, match="DATASET/METHOD/SEED"):
            cell_of(found, key)
    with pytest.raises(UsageError, match="there is no file"):
        read_grid(library / "none.yaml")
