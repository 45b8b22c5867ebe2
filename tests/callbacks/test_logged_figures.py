"""Pictures reach a logger by the way that it has for them."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from matplotlib.figure import Figure

from bayeslora.callbacks.logged_figures import send_figures


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "reliability.png"
    Figure(figsize=(1, 0.5), dpi=100).savefig(file)
    return file


def test_weights_and_biases(picture: Path) -> None:
    logger: Any = SimpleNamespace(log_image=Mock())
    send_figures(logger, [picture], 7)
    logger.log_image.assert_called_once_with(key="test/reliability", images=[str(picture)], step=7)
    inspect.signature(WandbLogger.log_image).bind(None, **logger.log_image.call_args.kwargs)


def test_tensorboard(picture: Path) -> None:
    logger: Any = SimpleNamespace(experiment=SimpleNamespace(add_image=Mock()))
    send_figures(logger, [picture], 7)
    (name, image, step), options = logger.experiment.add_image.call_args
    assert (name, step, options) == ("test/reliability", 7, {"dataformats": "HWC"})
    assert image.shape == (50, 100, 4)


def test_mlflow(picture: Path) -> None:
    logger: Any = SimpleNamespace(experiment=SimpleNamespace(log_artifact=Mock()), run_id="run")
    send_figures(logger, [picture], 7)
    logger.experiment.log_artifact.assert_called_once_with("run", str(picture), "test")


def test_a_logger_without_pictures_is_left_alone(picture: Path) -> None:
    send_figures(CSVLogger(picture.parent), [picture], 7)
