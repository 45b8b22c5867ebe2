"""TFB: finds, without training, how much noise a fine-tuned adapter bears, and predicts with that noise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from bayeslora.callbacks.fit_data import RemembersFit, training_batches, validation_batches
from bayeslora.callbacks.fit_key import depends_on, fit_key
from bayeslora.callbacks.posterior import PosteriorCallback, bank_predictor, weight_sets
from bayeslora.callbacks.run_folder import keeps
from bayeslora.callbacks.tfb_search import Anchors, Tried
from bayeslora.errors import UsageError, require_choice
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import LogitsFn
from bayeslora.models.in_place import evaluation_mode
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.posteriors.tfb import TFBPosterior, largest_accepted

SOURCES = ("train", "validation")
_FILE = "posterior.json"


class TFB(PosteriorCallback, RemembersFit):
    r"""Training-free Bayesianisation of a LoRA adapter (Shi et al., 2024, arXiv:2412.05723).

    The noise is :class:`~bayeslora.posteriors.tfb.TFBPosterior`'s: isotropic in the column space of every update. Its
    one scale :math:`\sigma` is the largest for which the averaged prediction of the samples still says what the adapter
    itself says of some anchor questions, whose labels are not looked at:

    .. math:: |\ell(\sigma) - \ell(0)| \le \text{tolerance} \cdot \ell(0), \qquad
        \ell(\sigma) = -\frac{1}{n} \sum_i \log \frac{1}{S} \sum_s p_s(\hat y_i \mid x_i), \quad
        \hat y_i = \arg\max_c p(c \mid x_i)

    by bisection, with the same S draws of :math:`\epsilon` for every :math:`\sigma` and in the prediction. It is found
    when training ends, or before the first test: on whatever adapter the module has then. A fit that is kept in
    ``posterior/`` is used again if the adapter, the data and the options are the same.

    With ``per_layer`` every layer has a scale of its own: the largest that layer bears alone under an equal share of
    the tolerance, then all of them times the largest common factor under the whole of it.

    Args:
        tolerance: Relative change of the loss that is accepted; 0.003 as published.
        anchors: Number of anchor questions, rounded up to whole batches.
        source: Where they come from: ``train`` as published, or ``validation``.
        bounds: Where :math:`\sigma` is expected. It is smaller where nothing in between is accepted, never larger.
        iterations: Halvings of that interval.
        per_layer: A scale for every layer.
        samples: Number S of weight samples.
        predict: ``samples`` or ``linearised``.
        dropout: Give every sample a dropout draw of its own as well.
        seed: Seeds the samples; None takes the module's ``seed``, or 0.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        loader: Batches of anchor questions, where the trainer has no DataModule of this package.

    Raises:
        UsageError: options that are not allowed.

    Example:
        >>> import lightning as L
        >>> from bayeslora import TFB
        >>> trainer = L.Trainer(callbacks=[TFB(samples=10)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        tolerance: float = 0.003,
        anchors: int = 500,
        source: str = "train",
        bounds: tuple[float, float] = (0.001, 0.015),
        iterations: int = 5,
        per_layer: bool = False,
        samples: int = 10,
        predict: str = "samples",
        dropout: bool = False,
        seed: int | None = None,
        logits_fn: LogitsFn | None = None,
        loader: Iterable[Any] | None = None,
    ) -> None:
        if predict is None:
            raise UsageError("TFB's predict is none; allowed: samples, linearised")
        super().__init__(samples, predict, dropout, seed, logits_fn)
        require_choice("TFB's source", source, SOURCES)
        if not tolerance > 0 or anchors < 1 or iterations < 0 or not 0 < bounds[0] < bounds[1]:
            raise UsageError(
                f"TFB's tolerance is {tolerance}, anchors {anchors}, iterations {iterations}, bounds {tuple(bounds)}; "
                "allowed: above 0, 1 or more, 0 or more, two rising numbers above 0"
            )
        self.tolerance, self.anchors, self.source = tolerance, anchors, source
        self.bounds, self.iterations, self.per_layer, self.loader = bounds, iterations, per_layer, loader
        self._posterior: TFBPosterior | None = None

    @property
    def posterior(self) -> TFBPosterior | None:
        """The posterior that was found."""
        return self._posterior

    # --- when --------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what was found for an adapter that training will change."""
        self._posterior = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the noise that the trained adapter bears."""
        self._posterior = self._find(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the fit that is kept for this adapter, or find the noise now; claim the prediction path.

        Raises:
            UsageError: a bare base, no LoRA, or no anchor questions.
            RunError: no noise is accepted.
        """
        self._posterior = self._kept(trainer, pl_module) or self._find_and_keep(trainer, pl_module)
        super().on_test_start(trainer, pl_module)

    on_predict_start = on_test_start

    def _kept(self, trainer: L.Trainer, pl_module: L.LightningModule) -> TFBPosterior | None:
        """A posterior that was found with these options, on these data, for the adapter as it is now."""
        options, mean = self._options(trainer, pl_module), _adapter(pl_module)
        folder = Path(trainer.default_root_dir) / "posterior"
        stored = [load_posterior(place) for place in (folder, folder / "tfb") if (place / _FILE).exists()]
        for found in [self._posterior, *stored]:
            if isinstance(found, TFBPosterior) and found.record.get("options") == options and _same(found.mean(), mean):
                return found
        return None

    def _find_and_keep(self, trainer: L.Trainer, pl_module: L.LightningModule) -> TFBPosterior:
        """Find the noise; keep it beside what training has left in ``posterior/``."""
        found = self._find(trainer, pl_module)
        if isinstance(pl_module, MultipleChoiceModule) and keeps(trainer):
            folder, model = Path(trainer.default_root_dir) / "posterior" / "tfb", pl_module.model
            save_posterior(found, folder, model.adapter_config, model.base_fingerprint)
        return found

    def _options(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What sigma depends on beside the adapter, as plain values."""
        names = ("tolerance", "anchors", "source", "iterations", "per_layer", "samples", "predict", "dropout")
        where = depends_on(trainer, pl_module, [self._batches(trainer, pl_module)])
        return {
            **where,
            **{name: getattr(self, name) for name in names},
            "bounds": list(self.bounds),
            "seed": self.seed_of(pl_module),
        }

    # --- the search --------------------------------------------------------------------------------------------------

    def _find(self, trainer: L.Trainer, pl_module: L.LightningModule) -> TFBPosterior:
        # Eval mode is for modules of others: ours have no noise that is not asked for. Sigma is that of the test's
        # precision.
        with evaluation_mode(pl_module), torch.no_grad(), trainer.precision_plugin.forward_context():
            return self._search(trainer, pl_module)

    def _search(self, trainer: L.Trainer, pl_module: L.LightningModule) -> TFBPosterior:
        start, options = TFBPosterior.around(_adapter(pl_module)), self._options(trainer, pl_module)
        anchors = Anchors(trainer, pl_module, self._batches(trainer, pl_module))
        bank = {name: value[None] for name, value in start.mean().items()}
        anchors.label(bank_predictor(pl_module, bank, self.logits_fn))
        plain, tried = anchors.plain_loss, Tried(trainer, pl_module, fit_key(start.mean(), options))
        if trainer.is_global_zero:
            self._say(anchors.count, len(_layers(start)))

        def change(sigma: float | Mapping[str, float]) -> float:
            """What a scale changes the loss by; one that was tried before is looked up."""
            return tried.get(sigma, lambda: measured(sigma))

        def measured(sigma: float | Mapping[str, float]) -> float:
            """How far the loss under samples of a scale is from the adapter's own, as a share of the latter."""
            loss = anchors.loss(self._predictor(pl_module, start.scaled(sigma)), f"TFB, pass {tried.passes + 1}")
            return abs(loss - plain) / plain if plain > 0 else float(loss > 0) * float("inf")

        sigma: float | dict[str, float]
        if self.per_layer:
            sigma = self._by_layer(start, change)
        else:
            sigma = largest_accepted(lambda s: change(s) <= self.tolerance, *self.bounds, self.iterations)
            if sigma == self.bounds[1]:
                rank_zero_warn(
                    f"TFB accepts its upper bound, sigma {sigma}: the adapter does little, or the tolerance is wide; "
                    "give higher bounds"
                )
        record = {
            "options": options,
            "n_anchors": anchors.count,
            "loss": plain,
            "change": change(sigma),
        }
        return start.scaled(sigma, record)

    def _say(self, questions: int, layers: int) -> None:
        """How long the search will be, before it begins."""
        searches = layers + 1 if self.per_layer else 1
        passes = searches * (self.iterations + 2)
        print(
            f"TFB searches sigma in about {passes} passes over {questions} questions with {self.samples} samples each; "
            "what has been tried is kept, should it be stopped"
        )

    def _by_layer(self, start: TFBPosterior, change: Any) -> dict[str, float]:
        """Every layer's largest scale under a share of the tolerance, times the largest factor under all of it."""
        layers = _layers(start)
        share, each = self.tolerance / len(layers), dict[str, float]()

        def alone(names: list[str]) -> float:
            """The largest scale of one layer's weights that is accepted while all others are points."""
            return largest_accepted(
                lambda sigma: change(dict.fromkeys(names, sigma)) <= share, *self.bounds, self.iterations
            )

        for names in layers.values():
            each |= dict.fromkeys(names, alone(names))

        def times(factor: float) -> dict[str, float]:
            """Every layer's scale times a factor."""
            return {name: factor * value for name, value in each.items()}

        return times(largest_accepted(lambda f: change(times(f)) <= self.tolerance, 0.5, 2.0, self.iterations))

    def _batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Any]:
        """Anchor questions, batch by batch."""
        if self.loader is not None:
            return list(self.loader)
        find = training_batches if self.source == "train" else validation_batches
        loader = find(trainer, pl_module)
        if loader is None:
            raise UsageError(f"TFB finds no anchor questions ({self.source}); give it loader=[...], batches of them")
        size = getattr(trainer.datamodule, "eval_batch_size", None)  # type: ignore[attr-defined]
        if size is None:
            return list(islice(loader, self.anchors))  # batches of unknown size: at most as many as questions
        wanted = math.ceil(self.anchors / trainer.world_size / size)
        every = max(1, len(loader) // wanted)  # they are ordered by length: take them from all along it
        return list(islice(loader, 0, wanted * every, every))


def _layers(start: TFBPosterior) -> dict[str, list[str]]:
    """The names of the updates, layer by layer."""
    layers: dict[str, list[str]] = {}
    for name in start.sigma:
        layer = re.search(r"\.\d+\.", name)
        layers.setdefault(layer[0] if layer else name, []).append(name)
    return layers


def _adapter(pl_module: L.LightningModule) -> dict[str, Tensor]:
    sets = weight_sets(pl_module)
    if len(sets) > 1:
        raise UsageError(
            f"TFB works on one adapter, {type(pl_module).__name__} trains {len(sets)}; use one of its folders"
        )
    return sets[0]


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    if first.keys() != second.keys():
        return False
    return all(torch.equal(value, second[name].detach().to(value.device)) for name, value in first.items())
