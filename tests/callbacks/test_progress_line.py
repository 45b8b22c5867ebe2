"""The command line's progress: one line, no wider than the terminal, whatever is going on."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from rich.console import Console
from torch.utils.data import IterableDataset

from bayeslora.callbacks.progress_line import ProgressLine
from bayeslora.lightning_modules.prediction_path import prediction_path
from tests.helpers.classifier import QUIET, Classifier, loader, logits_of


class Talkative(Classifier):
    """Logs more figures than a line has room for."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log_dict({"train/loss": loss, **{f"figure_{i}": loss for i in range(9)}}, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/nll", 1.0, prog_bar=True)


def shown(root: Path, width: int = 80, fit: Any = None, terminal: bool = True, **options: Any) -> str:
    """What a terminal was sent, without colours."""
    file = io.StringIO()
    line = ProgressLine(Console(file=file, force_terminal=terminal, width=width, color_system=None))
    options = {**QUIET, "enable_progress_bar": True, "enable_checkpointing": False, "max_epochs": 12} | options
    trainer = L.Trainer(default_root_dir=root, callbacks=[line], **options)
    module = Talkative()
    prediction_path(module, logits_of)
    trainer.fit(module, *(fit or (loader(), loader(2))))
    trainer.test(module, loader(5), verbose=False)
    trainer.validate(module, loader(5), verbose=False)
    return file.getvalue()


def frames(text: str) -> list[str]:
    return [frame for frame in re.split(r"\r|\n|\x1b\[[0-9;?]*[A-Za-z]", text) if frame.strip()]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_is_one_line_and_fits(width: int, tmp_path: Path) -> None:
    text = shown(tmp_path, width)
    assert max(map(len, frames(text))) <= width
    assert "\x1b[1A" not in text  # the cursor never goes up: there is nothing above the line to replace
    assert text.count("\n") == 3  # fit, test and validate leave a line each; validations of a fit leave none
    assert "epoch 12/12" in text
    assert "test" in text


def test_it_says_how_far_and_what_is_left(tmp_path: Path) -> None:
    last = [frame for frame in frames(shown(tmp_path)) if frame.startswith("epoch 12/12 ")][-1]
    assert re.search(r"3/3 +0:00:00 left +loss \d.* val NLL \d", last)


def test_data_without_a_length_and_several_loaders(tmp_path: Path) -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Any:
            return iter(loader())

    text = shown(tmp_path, fit=(Endless(), [loader(), loader(2)]), max_epochs=2)
    assert "left" not in text
    assert "epoch 2/2" in text


def test_a_file_is_sent_nothing(tmp_path: Path) -> None:
    assert shown(tmp_path, terminal=False) == ""
