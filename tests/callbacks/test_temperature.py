"""Temperature scaling: the optimum, its file, any method, any module."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bayeslora.callbacks import temperature
from bayeslora.callbacks.temperature import HIGHEST, LOWEST, Temperature, fit_temperature
from bayeslora.curvature.ranks import Ranks
from bayeslora.errors import UsageError
from bayeslora.lightning_modules.prediction_path import prediction_path
from bayeslora.types import Predictive
from tests.helpers.ddp import on_processes


def overconfident(n: int = 4000, factor: float = 3.0, members: int = 1) -> tuple[list[Predictive], list[torch.Tensor]]:
    """Labels drawn from softmax(f), predictions softmax(factor f)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    stacked = (factor * logits).expand(members, -1, -1)
    return [Predictive.from_logits(part) for part in stacked.split(1000, dim=1)], list(labels.split(1000))


@pytest.mark.parametrize("members", [1, 3])
def test_temperature_finds_the_factor(members: int) -> None:
    predictives, labels = overconfident(members=members)
    temperature = fit_temperature(predictives, labels)
    assert temperature == pytest.approx(3.0, rel=0.06)

    def nll(t: float) -> float:
        return torch.cat([p.tempered(t).nll(y) for p, y in zip(predictives, labels, strict=True)]).mean().item()

    assert nll(temperature) <= min(nll(temperature * 0.99), nll(temperature * 1.01))


@pytest.mark.parametrize(("labels", "expected"), [([0, 1], 0.05), ([1, 0], 20.0)])
def test_without_an_optimum_a_bound_is_used_and_said(labels: list[int], expected: float) -> None:
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0]]])
    with pytest.warns(UserWarning, match="no optimum"):
        assert fit_temperature([Predictive.from_logits(logits)], [torch.tensor(labels)]) == expected


class Foreign(L.LightningModule):
    """A module that knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)
        self.seen: list[float] = []

    def test_step(self, batch: list, batch_idx: int) -> None:
        path = prediction_path(self)
        after, before = (p.probs.max(-1).values.mean() for p in (path(batch), path.untransformed(batch)))
        self.seen.append(float(after - before))

    def val_dataloader(self) -> DataLoader:
        return loader(1)

    def test_dataloader(self) -> DataLoader:
        return loader(2)


def loader(seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (64,), generator=generator)), batch_size=16)


def test_a_foreign_module_is_scaled_and_the_fit_is_kept(tmp_path: Path) -> None:
    module = Foreign()
    torch.nn.init.normal_(module.net.weight, std=3.0, generator=torch.Generator().manual_seed(0))
    callback = Temperature(logits_fn=lambda m, batch: m.net(batch[0]), label_fn=lambda batch: batch[1])
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[callback],
    )
    trainer.test(module, verbose=False)
    record = json.loads((tmp_path / "posterior" / "temperature.json").read_text())
    assert record["temperature"] == callback.temperature > 1
    assert record["nll_after"] < record["nll_before"]
    assert record["n"] == 64
    assert all(change < 0 for change in module.seen)  # noise labels: less confident everywhere
    assert prediction_path(module).owners == []
    stamp = (tmp_path / "posterior" / "temperature.json").stat().st_mtime_ns
    trainer.test(module, verbose=False)
    assert (tmp_path / "posterior" / "temperature.json").stat().st_mtime_ns == stamp


def test_only_one_posterior_may_predict() -> None:
    module = Foreign()
    path = prediction_path(module, lambda m, batch: m.net(batch[0]))
    path.claim("First", path.untransformed)
    with pytest.raises(UsageError, match="Second and First"):
        path.claim("Second", path.untransformed)
    path.release("First")
    path.claim("Second", path.untransformed)


def test_a_module_without_logits_is_refused() -> None:
    with pytest.raises(UsageError, match="logits_fn"):
        prediction_path(L.LightningModule())


def test_the_bound_with_the_smaller_loss_is_used() -> None:
    """The optimum is at T = 35, beyond what is allowed: the nearer bound has an NLL of 0.081, the other 32.2."""
    predictives = [Predictive.from_logits(torch.tensor([161.0, 0.0]).expand(1, 200, 2))]
    labels = [torch.tensor([0] * 198 + [1] * 2)]
    with pytest.warns(UserWarning, match="no optimum"):
        assert fit_temperature(predictives, labels) == HIGHEST
    nll = {t: predictives[0].tempered(t).nll(labels[0]).mean().item() for t in (LOWEST, HIGHEST)}
    assert nll[HIGHEST] == pytest.approx(0.081, abs=5e-4)
    assert nll[LOWEST] == pytest.approx(32.2, abs=0.05)


def _trainer(root: Path, *callbacks: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=1,
        enable_checkpointing=False,
        callbacks=[*callbacks],
        **quiet,
    )


class Plain(L.LightningModule):
    """A module without loaders of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def training_step(self, batch: list, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def test_step(self, batch: list, batch_idx: int, dataloader_idx: int = 0) -> None:
        prediction_path(self)(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("validation", [lambda: loader(1), lambda: [loader(1), loader(3)]])
def test_the_loaders_that_fit_was_given_are_remembered(validation: object, tmp_path: Path) -> None:
    """One's own module with loaders passed to ``fit``, one of them or several; the test has several as well."""
    module, loaders = Plain(), validation()  # type: ignore[operator]
    callback = Temperature(logits_fn=lambda m, batch: m.net(batch[0]), label_fn=lambda batch: batch[1])
    trainer = _trainer(tmp_path, callback)
    trainer.fit(module, loader(0), loaders)
    trainer.test(module, [loader(2), loader(4)], verbose=False)
    record = json.loads((tmp_path / "posterior" / "temperature.json").read_text())
    assert record["n"] == 64 * (len(loaders) if isinstance(loaders, list) else 1)


def test_batches_can_be_given_and_an_ordinary_datamodule_serves(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        def val_dataloader(self) -> DataLoader:
            return loader(1)

        def test_dataloader(self) -> DataLoader:
            return loader(2)

    functions = {"logits_fn": lambda m, batch: m.net(batch[0]), "label_fn": lambda batch: batch[1]}
    module, own = Plain(), Temperature(**functions)
    _trainer(tmp_path / "data", own).test(module, datamodule=Data(), verbose=False)
    given = Temperature(**functions, val_batches=list(loader(1)))
    _trainer(tmp_path / "given", given).test(module, loader(2), verbose=False)
    assert given.temperature == own.temperature
    with pytest.raises(UsageError, match="val_batches"):
        _trainer(tmp_path / "none", Temperature(**functions)).test(module, loader(2), verbose=False)


def test_a_temperature_is_found_on_the_questions_of_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(temperature.Ranks, "gather", lambda self, own: [own, own])
    monkeypatch.setattr(temperature, "fit_temperature", lambda found, *_: asked.append(len(found)) or 1.0)
    functions: dict = {"logits_fn": lambda module, batch: module.net(batch[0]), "label_fn": lambda batch: batch[1]}
    _trainer(tmp_path, Temperature(**functions)).test(Foreign(), loader(2), verbose=False)
    assert asked == [2 * len(Foreign().val_dataloader())]


def _temperatures(together: bool) -> list[float]:
    """What each process finds from its share of 95 questions."""
    if together:
        torch.distributed.init_process_group("gloo")
    ranks, generator = Ranks(), torch.Generator().manual_seed(0)
    logits = torch.randn(95, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / 2).softmax(-1), 1, generator=generator).squeeze(-1)
    mine = slice(ranks.rank, None, ranks.world)
    pairs = ranks.gather((Predictive.from_logits(logits[None, mine]), labels[mine]))
    return ranks.gather(fit_temperature(*map(list, zip(*pairs, strict=True))))


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_find_the_temperature_of_one(world: int) -> None:
    (alone,) = _temperatures(together=False)
    assert on_processes(world, _temperatures, True) == pytest.approx([alone] * world, rel=1e-9)
