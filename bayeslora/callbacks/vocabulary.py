"""Uncertainty over the whole vocabulary, computed while predicting since no file of answer logits can give it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq

from bayeslora.errors import UsageError
from bayeslora.files import replacing
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.refusals import refuse_several_tokens
from bayeslora.metrics.support import whole_vocabulary

FILE = "vocabulary.parquet"
_MEASURES = ("total", "aleatoric", "epistemic")


class VocabularyUncertainty(L.Callback):
    """Writes ``test/vocabulary.parquet``: entropies in nats of the next token at the answer, question by question.

    Columns are ``dataset``, ``row`` (of the dataset), ``total``, ``aleatoric`` and ``epistemic``, over all V tokens and
    the module's own members. Every batch is run once more for it. One process only, label tokens only.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what has no vocabulary or several processes, before a model is loaded.

        Raises:
            UsageError: a module of another kind, an encoder, labels of several tokens, or more than one process.
        """
        if not isinstance(pl_module, MultipleChoiceModule) or pl_module.backbone.readout != "label_token":
            raise UsageError("VocabularyUncertainty needs a module of this package with readout label_token")
        if trainer.world_size > 1:
            raise UsageError(f"VocabularyUncertainty runs in one process, not {trainer.world_size}; give devices 1")
        refuse_several_tokens(trainer, "VocabularyUncertainty")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a file."""
        self._rows = []

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Measure one batch."""
        assert isinstance(pl_module, MultipleChoiceModule)  # on_test_start has seen to it
        with trainer.precision_plugin.forward_context():  # as the prediction that it is about
            predictive = whole_vocabulary(pl_module.vocabulary_logits(batch))
        measures = [getattr(predictive, name).tolist() for name in _MEASURES]
        for row, *values in zip(batch.example_id.tolist(), *measures, strict=True):
            self._rows.append({"dataset": batch.dataset, "row": row, **dict(zip(_MEASURES, values, strict=True))})

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file, every dataset in the order of its rows."""
        self._rows.sort(key=lambda row: (row["dataset"], row["row"]))
        folder = Path(trainer.default_root_dir) / str(getattr(trainer.state.fn, "value", trainer.state.fn))
        with replacing(folder / FILE) as temporary:
            pq.write_table(pa.Table.from_pylist(self._rows), temporary)

    on_predict_start, on_predict_epoch_end = on_test_start, on_test_epoch_end
    on_predict_batch_end = on_test_batch_end  # type: ignore[assignment]
