"""Sends pictures to a logger, whichever of Lightning's it is: Weights & Biases, TensorBoard, MLflow and their like."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

FOLDER = "test"  # in front of a picture's name, where the logger keeps names


def send_figures(logger: Logger, files: Iterable[Path], step: int) -> None:
    """Send pictures to a logger by the way that it has for them; one without any, such as a CSV file, is left alone.

    Args:
        logger: With ``log_image`` (Weights & Biases), an ``experiment`` that has ``add_image`` (TensorBoard), or one
            that has ``log_artifact`` beside the logger's ``run_id`` (MLflow).
        files: PNG files; a picture's name is ``test/`` and its file's name without the ending.
        step: The step they belong to.
    """
    own: Any = logger
    if hasattr(own, "log_image"):
        for file in files:
            own.log_image(key=f"{FOLDER}/{file.stem}", images=[str(file)], step=step)
    elif hasattr(own.experiment, "add_image"):
        from matplotlib.image import imread

        for file in files:
            own.experiment.add_image(f"{FOLDER}/{file.stem}", imread(file), step, dataformats="HWC")
    elif hasattr(own.experiment, "log_artifact") and hasattr(own, "run_id"):
        for file in files:
            own.experiment.log_artifact(own.run_id, str(file), FOLDER)
