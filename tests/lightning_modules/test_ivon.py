"""IVON on LoRA: its Gaussian on a quadratic, its limits, and the whole way through an ordinary Trainer."""

import doctest
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from bayeslora import Backbone, IVONModule, LoRA, LoRAModule, Optimisation, UsageError
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.datamodules import JSONLDataModule
from bayeslora.lightning_modules import ivon
from bayeslora.posteriors.mean_field import MeanField
from bayeslora.types import AnswerBatch, Samples
from tests.helpers.runs import assert_equal, trainer

pytest.importorskip("ivon")
SITES = LoRA(r=4, target_modules=["q_proj", "v_proj"])
RATE = Optimisation(learning_rate=0.3, warmup=0.0)


def batches(data: Path) -> JSONLDataModule:
    return JSONLDataModule(path=str(data), labels=40, batch_size=8, seed=1)


def arguments(**changes: object) -> dict:
    return {"backbone": Backbone("embedded"), "lora": SITES, "optimisation": RATE, "ess": 1e4, "seed": 1, **changes}


def module(**changes: object) -> IVONModule:
    return IVONModule(**arguments(**changes))


def weights(own: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in own.trainable().items()}


class Watch(L.Callback):
    """Gradients and weights before every optimiser step, and IVON's averages after it."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.momenta: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: IVONModule, optimizer: object) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.trainable().values()]).clone())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: IVONModule, *_: object) -> None:
        if len(self.gradients) > len(self.momenta):
            self.momenta.append(trainer.optimizers[0].param_groups[0]["momentum"].clone())


# --- what it computes ------------------------------------------------------------------------------------------------


class Quadratic(IVONModule):
    """Loss 1/2 h (theta - 0.2)^2 for every entry, with h of 3 in A and 0.5 in B."""

    def nll(self, batch: AnswerBatch, samples: Samples) -> torch.Tensor:
        return torch.stack(
            [h / 2 * (w - 0.2).square().sum() for h, w in ((curvature(n), w) for n, w in samples.weights.items())]
        ).sum()


def curvature(name: str) -> float:
    return 3.0 if ".lora_A." in name else 0.5


def test_on_a_quadratic_it_ends_at_the_exact_posterior(data: Path, tmp_path: Path) -> None:
    """Mean h c / (h + delta), variance 1 / (lambda (h + delta)): exact for a quadratic loss and a Gaussian prior."""
    ess, delta = 50.0, 0.25
    own = Quadratic(
        **arguments(
            ess=ess,
            optimisation=Optimisation(learning_rate=0.05, weight_decay=delta, warmup=0.0),
            hess_init=1.0,
            beta2=0.98,
            clip_radius=float("inf"),
        )
    )
    trainer(tmp_path, max_epochs=120, limit_val_batches=0).fit(own, datamodule=batches(data))
    found = own.posterior()
    assert isinstance(found, MeanField)
    for kind in (".lora_A.", ".lora_B."):
        h = curvature(kind)
        mean = torch.cat([value.flatten() for name, value in found.mean().items() if kind in name])
        std = torch.cat([value.flatten() for name, value in found.std().items() if kind in name])
        assert mean.mean().item() == pytest.approx(0.2 * h / (h + delta), rel=0.02)
        precision = (1 / std.square()).mean().item()  # IVON's rule raises h by O(1 - beta2): here 2 %
        assert precision == pytest.approx(ess * (h + delta), rel=0.03)


def test_without_noise_and_curvature_it_is_gradient_descent_on_lora(data: Path, tmp_path: Path) -> None:
    class Descent(LoRAModule):
        def configure_optimizers(self) -> object:
            return self.scheduled(torch.optim.SGD(self.trainable().values(), lr=self.learning_rate))

    plain = Descent(Backbone("embedded"), SITES, optimisation=RATE, seed=1)
    trainer(tmp_path / "a").fit(plain, datamodule=batches(data))
    flat = {"ess": 1e20, "hess_init": 1.0, "beta1": 0.0, "beta2": 1.0, "clip_radius": float("inf")}
    own = module(**flat)
    start = weights(plain)
    trainer(tmp_path / "b").fit(own, datamodule=batches(data))
    for name, value in start.items():
        torch.testing.assert_close(own.trainable()[name].detach(), value, atol=1e-6, rtol=1e-4)


def test_ess_is_the_number_of_training_questions_unless_given(data: Path, tmp_path: Path) -> None:
    for given, expected in ((None, 32), (500.0, 500.0)):
        own, run = module(ess=given), trainer(tmp_path, max_steps=1)
        run.fit(own, datamodule=batches(data))
        assert run.optimizers[0].param_groups[0]["ess"] == expected == (given or own.training_size)


class Draws(L.Callback):
    """What a step's draw is, in the middle of training."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: IVONModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step != 2:
            return
        state, before = torch.get_rng_state(), weights(pl_module)
        first, again = pl_module.training_noise(), pl_module.training_noise()
        assert_equal(dict(first.weights), dict(again.weights))
        assert_equal(weights(pl_module), before)
        assert torch.equal(torch.get_rng_state(), state)
        std = pl_module.posterior().std()
        self.z = torch.cat([((first.weights[n][0] - before[n]) / std[n]).detach().flatten() for n in before])


def test_a_draw_is_the_posteriors_and_leaves_weights_and_generators_alone(data: Path, tmp_path: Path) -> None:
    watch = Draws()
    trainer(tmp_path, max_epochs=1, callbacks=[watch]).fit(module(), datamodule=batches(data))
    assert len(watch.z) > 2000
    assert watch.z.mean().abs() < 4 / len(watch.z) ** 0.5
    assert watch.z.std().item() == pytest.approx(1, abs=4 / (2 * len(watch.z)) ** 0.5)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulated"])
def test_ivon_is_shown_the_gradients_that_the_trainer_has(data: Path, tmp_path: Path, options: dict) -> None:
    """With beta1 = 0 its momentum is the gradient: of all micro-batches of a step, and clipped as the trainer clips."""
    for clip in (None, 0.05):
        watch = Watch()
        run = trainer(tmp_path, max_epochs=1, callbacks=[watch], gradient_clip_val=clip, **options)
        run.fit(module(beta1=0.0), datamodule=batches(data))
        assert len(watch.momenta) == run.global_step == (2 if options else 4)
        for gradient, momentum in zip(watch.gradients, watch.momenta, strict=True):
            factor = 1.0 if clip is None else min(1.0, clip / gradient.norm().item())
            torch.testing.assert_close(momentum, factor * gradient, rtol=1e-4, atol=1e-7)
            assert clip is None or gradient.norm() > clip


def test_micro_batches_of_a_step_share_its_draw(data: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Noted(IVONModule):
        def nll(self, batch: AnswerBatch, samples: Samples) -> torch.Tensor:
            seen.append(next(iter(samples.weights.values())).detach().clone())
            return super().nll(batch, samples)

    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(Noted(**arguments()), datamodule=batches(data))
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])


# --- through the trainer ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[IVONModule, L.Trainer]:
    root = tmp_path_factory.mktemp("trained")
    own, run = module(samples=4, ess=200.0), trainer(root, callbacks=[RunFolder()], max_epochs=4)
    run.fit(own, datamodule=batches(data))
    run.save_checkpoint(root / "end.ckpt")
    return own, run


def test_a_finished_run_brings_its_law_back_and_leaves_its_steps(trained: tuple[IVONModule, L.Trainer]) -> None:
    own, run = trained
    folder = Path(run.default_root_dir) / "posterior"
    found = module(backbone=Backbone("embedded", adapter=str(folder)))
    found.configure_model()
    assert_equal(found.posterior().state_dict(), own.posterior().state_dict())
    assert own.posterior().std().keys() == own.trainable().keys()
    checkpoint = torch.load(Path(run.default_root_dir) / "end.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["current_step"] == run.global_step == 16


def test_samples_need_a_posterior(trained: tuple[IVONModule, L.Trainer], data: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with pytest.raises(UsageError, match="no posterior to sample from yet"):
        run.test(module(), datamodule=batches(data))
    run.test(module(samples=0), datamodule=batches(data), verbose=False)
    whole = torch.load(Path(trained[1].default_root_dir) / "end.ckpt", weights_only=True)
    del whole["optimizer_states"]
    torch.save(whole, tmp_path / "weights.ckpt")
    with pytest.raises(UsageError, match="holds no state of IVON"):
        run.test(module(), datamodule=batches(data), ckpt_path=tmp_path / "weights.ckpt", weights_only=True)


def test_training_without_the_package_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ivon", None)
    with pytest.raises(UsageError, match=r"pip install 'bayeslora\[ivon\]'"):
        trainer(tmp_path).fit(module(), datamodule=batches(data))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ess": 0.0}, "ess is 0"),
        ({"hess_init": 0.0}, "hess_init is 0"),
        ({"beta1": 1.0}, "beta1 is 1"),
        ({"beta2": 1.1}, "beta2 is 1.1"),
        ({"clip_radius": -1.0}, "clip_radius is -1"),
        ({"samples": -1}, "samples is -1"),
        ({"predict": "flipout"}, "weights, linearised"),
    ],
)
def test_bad_arguments(changes: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        module(**changes)


def test_names() -> None:
    assert [module(**a).method for a in ({}, {"samples": 0}, {"predict": "linearised"})] == [
        "ivon_10",
        "ivon_mean",
        "ivon_linearised",
    ]


def test_example() -> None:
    assert doctest.testmod(ivon).attempted > 0
