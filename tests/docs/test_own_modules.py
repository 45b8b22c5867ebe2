"""The table of modules that were tried is true: every row is trained, given each method, and tested."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayeslora as bl

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "your_own_module.md").read_text()
METHODS = ["Temperature", "SWAG", "Laplace"]
SAID = r"(works.*?|refused.*?)"
ROWS = re.findall(rf"^\| (.+?) \| {SAID} \| {SAID} \| {SAID} \|$", PAGE, re.MULTILINE)


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def frozen() -> nn.Sequential:
    network = linear()
    network[0].requires_grad_(False)
    return network


def with_peft() -> nn.Module:
    import peft

    return peft.get_peft_model(linear(), peft.LoraConfig(r=2, target_modules=["0", "2"]))


def tied() -> nn.Sequential:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second, nn.Linear(6, 3))


NETWORKS = {
    "frozen backbone": frozen,
    "peft inside": with_peft,
    "LayerNorm, trained": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
    "BatchNorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "convolutions, trained": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    ),
    "tied weights": tied,
    "`torch.compile`": lambda: torch.compile(linear(), backend="eager"),
}
OPTIONS = {'`precision="bf16-mixed"`': {"precision": "bf16-mixed"}}


class Module(L.LightningModule):
    def __init__(self, row: str) -> None:
        super().__init__()
        self.net = NETWORKS.get(row, linear)()
        self.automatic_optimization = "manual" not in row

    def loss(self, batch: Any) -> Tensor:
        x, y = batch.values() if isinstance(batch, dict) else batch
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimiser in self.optimizers():
                optimiser.step()
                optimiser.zero_grad()
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 1e-2)
        return [torch.optim.SGD(self.net[0].parameters(), 1e-2), torch.optim.Adam(self.net[2].parameters(), 1e-2)]


def loader(row: str, seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)
    if "dictionaries" in row:
        return DataLoader([{"x": row, "labels": label} for row, label in zip(x, y, strict=True)], batch_size=16)
    return DataLoader(TensorDataset(x, y), batch_size=16)


def trained_and_tested(row: str, method: str, folder: Path) -> None:
    def logits(module: Module, batch: Any) -> Tensor:
        return module.net(batch["x"] if isinstance(batch, dict) else batch[0])

    def labels(batch: Any) -> Tensor:
        return batch["labels"] if isinstance(batch, dict) else batch[1]

    functions: dict[str, Any] = {"logits_fn": logits, "label_fn": labels}
    settings: dict[str, Any] = {"SWAG": {"start": 1, "rank": 2, "samples": 2}}.get(method, {})
    train, val, test = (loader(row, seed) for seed in range(3))
    several = "several" in row
    callbacks = [getattr(bl, method)(**settings, **functions), *([EarlyStopping("val_loss")] if "Early" in row else [])]
    names = {"datasets": ("test", "other")} if several else {}
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[*callbacks, bl.Predictions(**functions, **names)],
        **quiet,
        **OPTIONS.get(row, {}),
    )
    module = Module(row)
    trainer.fit(module, train, [val, loader(row, 3)] if several else val)
    trainer.test(module, [test, loader(row, 4)] if several else test, verbose=False)
    assert (folder / "test" / "predictions.parquet").is_file()


def test_every_kind_of_module_has_its_row() -> None:
    named = {row for row, *_ in ROWS}
    assert len(ROWS) == 13
    assert set(NETWORKS) | set(OPTIONS) <= named


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", [row for row, *_ in ROWS])
def test_what_the_table_says_of_it(row: str, method: str, tmp_path: Path) -> None:
    said = dict(zip(METHODS, next(cells for name, *cells in ROWS if name == row), strict=True))[method]
    if said.startswith("works"):
        trained_and_tested(row, method, tmp_path)
    else:
        with pytest.raises(bl.UsageError, match=r"[Ff]reeze"):
            trained_and_tested(row, method, tmp_path)
