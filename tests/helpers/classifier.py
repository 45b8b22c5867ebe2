"""A module that knows nothing of this package, its data, and the options of a quiet trainer."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.lightning_modules.prediction_path import prediction_path

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(L.LightningModule):
    """A module that knows nothing of this package; its first layer is frozen."""

    def __init__(self, poison_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 3))
        self.poison_at, self.predicted, self.labels = poison_at, [], []
        self.rates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.rates.append(self.optimizers().optimizer.param_groups[0]["lr"])
        if self.poison_at == self.global_step:
            with torch.no_grad():
                self.net[2].bias.fill_(torch.nan)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/nll", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.predicted.append(prediction_path(self)(batch).log_probs)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net[2].parameters(), lr=0.1)


def logits_of(module: Classifier, batch: list[Tensor]) -> Tensor:
    return module.net(batch[0])


def loader(batches: int = 3) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4 * batches, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(-1) > 0).long()), 4)
