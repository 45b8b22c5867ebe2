"""Keeps, when a run is tested, what answers new questions as the test's were answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from bayeslora.callbacks.decision import Decision
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.posterior import PosteriorCallback
from bayeslora.callbacks.predictions import method_of
from bayeslora.callbacks.run_folder import keeps
from bayeslora.callbacks.temperature import Temperature
from bayeslora.datamodules.multiple_choice import MultipleChoiceDataModule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.serving.kept import Kept, save


class KeepForServing(L.Callback):
    """Writes ``serving/`` into the run folder when a test ends, for :class:`~bayeslora.serving.predictor.Predictor`.

    What is kept is the whole path of the test's predictions: the module with the weights that were tested, the
    posterior that a callback predicted with, the temperature, the decision rule, and how questions are asked. A module
    or datamodule of another kind keeps nothing.

    Example:
        >>> import lightning as L
        >>> from bayeslora import KeepForServing
        >>> trainer = L.Trainer(callbacks=[KeepForServing()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._method = ""

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what the path is called while everybody is on it."""
        self._method = method_of(pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, MultipleChoiceModule) or not isinstance(data, MultipleChoiceDataModule):
            return
        if not keeps(trainer):
            return
        root = Path(trainer.default_root_dir)
        save(self._kept(trainer, pl_module, data), root, pl_module.model.adapter_config, _on_disk(trainer, root))
        rank_zero_info(f"what answers new questions is in {root / 'serving'}")

    def _kept(self, trainer: L.Trainer, pl_module: MultipleChoiceModule, data: MultipleChoiceDataModule) -> Kept:
        arguments, weights = pl_module.as_served()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        served = [c.served for c in callbacks if isinstance(c, PosteriorCallback) and c.served is not None]
        prediction, posterior = served[0] if served else (None, None)
        temperatures = [c.temperature for c in callbacks if isinstance(c, Temperature) and c.temperature is not None]
        rules = [c.rule for c in callbacks if isinstance(c, Decision)]
        return Kept(
            method=self._method,
            module=type(pl_module).__name__,
            arguments=arguments,
            weights=weights,
            base=pl_module.model.base_fingerprint,
            prompting=data.prompting(data.benchmark.name),
            precision=str(trainer.precision),
            batch_size=max(1, data.eval_batch_size // data.permutations),
            prediction=prediction,
            posterior=posterior,
            temperature=temperatures[0] if temperatures else 1.0,
            rule=rules[0] if rules else None,
            checkpoint=str(trainer.ckpt_path) if trainer.ckpt_path else None,
        )


def _on_disk(trainer: L.Trainer, root: Path) -> Path | None:
    """Where the posterior that predicted lies already: Laplace's may be of many gigabytes."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Laplace) and callback.served is not None and callback.saved:
            return root / "posterior"
    return None
