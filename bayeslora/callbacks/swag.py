"""SWAG: collects snapshots of the weights while a run trains, and predicts with the Gaussian they make."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from bayeslora.callbacks.attached import LabelFn, labels_of
from bayeslora.callbacks.posterior import (
    PosteriorCallback,
    active_members,
    bank_predictor,
    trainable_of,
    usable_members,
    weight_sets,
)
from bayeslora.callbacks.schedule import Schedule
from bayeslora.callbacks.swag_plan import collection_start
from bayeslora.errors import UsageError, require_choice
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import LogitsFn, Predict
from bayeslora.lightning_modules.refusals import refuse_shards
from bayeslora.models.in_place import write_weights
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.swag import MODES, PRESETS, Layout, Moments, check_options
from bayeslora.types import Posterior

UNITS = ("epoch", "step")
CHECKPOINTS = "checkpoints"
DEVICES = ("cpu", "same")
_LABELS = {"full": "SWAG", "diag": "SWAG_diag", "swa": "SWA", CHECKPOINTS: "checkpoint_ensemble"}


class SWAG(PosteriorCallback):
    r"""Stochastic weight averaging with a Gaussian (Maddox et al., 2019, arXiv:1902.02476).

    On LoRA: Onal et al., 2024, arXiv:2405.03425.

    Attach it to any LightningModule in any Trainer: it follows the trainable parameters and leaves training as it is,
    unless a ``schedule`` is asked for. With n snapshots :math:`w_i`, their mean m, variance v and the last K deviations
    D from the running mean,

    .. math:: q(w) = N\left(m,\; s \left( \mathrm{diag}(v) + \frac{D^T D}{K - 1} \right)\right).

    In ``unit: epoch`` a snapshot is taken after the last step of every ``every``-th epoch from epoch ``start`` (counted
    from 0), before that epoch's validation; in ``unit: step`` after optimiser step ``start`` and every ``every`` after
    it. On validation batches the mean is evaluated beside the current weights and logged as ``val_swa/nll`` and
    ``val_swa/accuracy``. The moments are part of every checkpoint; ``posterior`` gives the Gaussian as it stands.

    Args:
        start: Where collection starts: a number of epochs or steps, or a fraction of the run (0.5: from the middle).
        every: Epochs or steps between snapshots.
        unit: ``epoch`` or ``step``.
        mode: ``full``, ``diag``, ``swa`` (the mean alone), or ``checkpoints``: the last K snapshots as an ensemble.
        preset: ``maddox`` (scale 0.5, K 20, S 30; scale 1 for ``diag``) or ``release`` (scale 1, K 5, S 15): what holds
            for rank, scale, divisor and samples where they are not given.
        rank: Number K of deviations kept.
        scale: Factor s on the covariance.
        divisor: What the low-rank part is divided by: ``kmax`` (K - 1) or ``rows`` (rows collected - 1).
        samples: Number S of weight samples.
        predict: ``samples`` or ``linearised``; None collects only and leaves prediction, and ``posterior/``, to others.
        dropout: Give every sample a dropout draw of its own as well.
        schedule: Replaces the module's learning rate schedule; None leaves it.
        start_from_best: Go back to the weights of the best checkpoint when collection starts, as the release does; the
            optimiser's state stays.
        device: Where the moments are held: ``cpu``, or the ``same`` as the parameters.
        seed: Seeds the samples; None takes the module's ``seed``, or 0.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``. Needed to
            predict and to validate the mean, not to collect.
        label_fn: Likewise: batch to labels ``[B]``, to validate the mean.

    Raises:
        UsageError: options that are not allowed.

    Example:
        >>> import lightning as L
        >>> from bayeslora import SWAG
        >>> trainer = L.Trainer(callbacks=[SWAG(start=0.5, rank=10, samples=20)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        start: int | float = 0.5,
        every: int = 1,
        unit: str = "epoch",
        mode: str = "full",
        preset: str = "maddox",
        rank: int | None = None,
        scale: float | None = None,
        divisor: str | None = None,
        samples: int | None = None,
        predict: str | None = "samples",
        dropout: bool = False,
        schedule: Schedule | None = None,
        start_from_best: bool = False,
        device: str = "cpu",
        seed: int | None = None,
        logits_fn: LogitsFn | None = None,
        label_fn: LabelFn | None = None,
    ) -> None:
        require_choice("SWAG's preset", preset, PRESETS)
        require_choice("SWAG's mode", mode, (*MODES, CHECKPOINTS))
        require_choice("SWAG's unit", unit, UNITS)
        require_choice("SWAG's device", device, DEVICES)
        if start < 0 or (isinstance(start, float) and start >= 1) or every < 1:
            raise UsageError(
                f"SWAG's start is {start} and every {every}; allowed: a whole number of {unit}s from 0 or a fraction "
                "below 1, and every from 1"
            )
        published = PRESETS[preset]
        super().__init__(published.samples if samples is None else samples, predict, dropout, seed, logits_fn)
        self.start, self.every, self.unit, self.mode = start, every, unit, mode
        self.rank = published.rank if rank is None else rank
        usual = published.diag_scale if mode == "diag" else published.scale
        self.scale, self.divisor = usual if scale is None else scale, divisor or published.divisor
        check_options("full" if mode == CHECKPOINTS else mode, self.scale, self.divisor, self.rank)
        self.schedule, self.start_from_best, self.device, self.label_fn = schedule, start_from_best, device, label_fn
        self.members: list[Moments] = []
        self._usable: tuple[int, ...] = ()  # the members that have not failed
        self._first = 0  # the resolved start, in units
        self._first_before: int | None = None  # that of the run whose checkpoint this one goes on from
        self._seen = 0  # optimiser steps at the last look
        self._went_back = False
        self._validate_mean: Predict | None = None

    # --- what was collected --------------------------------------------------------------------------------------

    @property
    def moments(self) -> Moments | None:
        """The moments of the one network that is trained; None before training, and where members are stacked."""
        return self.members[0] if len(self.members) == 1 else None

    @property
    def _least(self) -> int:
        """Snapshots without which there is no posterior."""
        return 1 if self.mode == "swa" else 2

    @property
    def posterior(self) -> Posterior | None:
        """What the snapshots so far make; None where they are too few, or prediction is left to others."""
        enough = [self.members[index].count >= self._least for index in self._usable] or [False]
        return self.required_posterior() if all(enough) and self.predict is not None else None

    def required_posterior(self) -> Posterior:
        """The posterior to predict with: that of the network trained, or of every member that has not failed.

        Raises:
            UsageError: too few snapshots.
        """
        collected = [self.members[index] for index in self._usable] or [Moments(Layout({}), self.rank)]
        parts = [self._posterior_of(moments) for moments in collected]
        if len(parts) == 1:
            return parts[0]
        return Mixture([one for part in parts for one in (part.components if isinstance(part, Mixture) else [part])])

    def _posterior_of(self, moments: Moments) -> Posterior:
        if self.mode == CHECKPOINTS:
            return moments.checkpoints()
        return moments.posterior(self.mode, self.scale, self.divisor)

    @property
    def label(self) -> str:
        """What the prediction path and tables call the method."""
        name = "Multi" * (len(self.members) > 1) + _LABELS[self.mode]
        parts = [name, "dropout" * self.dropout, "linearised" * (self.predict == "linearised")]
        return "_".join(filter(None, parts))

    def _draws(self, posterior: Posterior) -> int:
        """One draw of every checkpoint and of the mean, which have no others; S of the Gaussian."""
        if self.dropout or self.mode not in ("swa", CHECKPOINTS):
            return super()._draws(posterior)
        return len(getattr(posterior, "components", [posterior]))

    # --- collection ----------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that shard weights; forget the snapshots of an earlier training.

        Raises:
            UsageError: FSDP, DeepSpeed or model parallelism, or another posterior callback.
        """
        super().setup(trainer, pl_module, stage)
        refuse_shards(trainer, "SWAG")
        if stage == "fit" and trainer.global_step == 0:
            self.members, self._usable, self._went_back, self._first_before = [], (), False, None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out where collection starts and set up moments and schedule.

        Raises:
            UsageError: a start after the last step, or moments restored from a checkpoint that do not fit.
        """
        networks = weight_sets(pl_module)
        self._first = collection_start(trainer, self.start, self.every, self.unit, self.schedule)
        self._check_plan()
        self.members = self.members or [Moments(Layout.of(parameters), self.rank) for parameters in networks]
        if len(self.members) != len(networks):
            raise UsageError(
                f"the snapshots are of {len(self.members)} networks, the model trains {len(networks)}; give the "
                "members as they were when the checkpoint was written"
            )
        self._usable = usable_members(pl_module)
        for moments, parameters in zip(self.members, networks, strict=True):
            moments.check(parameters, "the model")
            if self.device == "same":
                moments.to(next(iter(parameters.values())).device)

    def _check_plan(self) -> None:
        """Refuse to mix snapshots of two plans: a fraction of a run is another epoch of a longer one."""
        before = self._first_before
        if before is not None and before != self._first and any(moments.count for moments in self.members):
            raise UsageError(
                f"SWAG's snapshots in the checkpoint were collected from {self.unit} {before} on, start {self.start} "
                f"is {self.unit} {self._first} of this run; give the run its length of before, or a checkpoint from "
                "before the first snapshot"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the steps that were taken before, which a resumed run begins with."""
        self._seen = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go back to the best weights before the first step that is collected from, where asked for."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.start_from_best or self._went_back:
            return
        if (trainer.current_epoch if self.unit == "epoch" else trainer.global_step + 1) >= self._first:
            write_weights(trainable_of(pl_module), _best_weights(trainer))
            self._went_back = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot where one is due.

        Raises:
            RunError: a weight that is not finite.
        """
        before, self._seen = self._seen, trainer.global_step
        if self.unit == "step":
            due = any(self.should_collect(step_idx=index) for index in range(before, self._seen))
        else:
            due = trainer.is_last_batch and self.should_collect(epoch_idx=trainer.current_epoch)
        self._usable = usable_members(pl_module)
        if due:
            networks = weight_sets(pl_module)
            for index in active_members(pl_module):
                self.members[index].update(networks[index])

    def should_collect(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether a snapshot is due. Override it for a rule of your own; Lightning's ``should_update`` is its like.

        Asked once after every optimiser step in ``unit: step``, once after the last step of every epoch otherwise.

        Args:
            step_idx: Index of the optimiser step just taken, from 0; None in ``unit: epoch``.
            epoch_idx: Index of the epoch whose last step was just taken, from 0; None in ``unit: step``.

        Returns:
            By default, True at epochs ``start``, ``start + every`` and so on, or after ``start``, ``start + every`` and
            so on optimiser steps (after ``every`` where ``start`` is 0).
        """
        if step_idx is not None:
            after = step_idx + 1 - (self._first or self.every)
        else:
            assert epoch_idx is not None
            after = epoch_idx - self._first
        return after >= 0 and after % self.every == 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where training ended, by early stopping for instance, before there were snapshots to predict with."""
        few = [(self.members[index].count, index) for index in self._usable if self.members[index].count < self._least]
        if few and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            whose = f" of member {pl_module.member_ids[few[0][1]]}" if len(self.members) > 1 else ""  # type: ignore[index]
            rank_zero_warn(
                f"SWAG has {few[0][0]} snapshots{whose}, mode {self.mode} needs {self._least}: training ended in epoch "
                f"{trainer.current_epoch} after {trainer.global_step} steps, collection was to start at {self.unit} "
                f"{self._first}; give an earlier start, or let the run go on"
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Claim the prediction path; a trial that had no time for snapshots is tested with the weights as they are."""
        if trainer.fast_dev_run and self.predict is not None and self.posterior is None:  # type: ignore[attr-defined]
            rank_zero_warn("SWAG has too few snapshots in this trial (fast_dev_run): the last weights are tested")
            return
        super().on_test_start(trainer, pl_module)

    on_predict_start = on_test_start

    # --- validation of the mean ----------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the mean as it stands, where there is one and the module's logits and labels can be had."""
        own = isinstance(pl_module, MultipleChoiceModule)
        known = own or (self.logits_fn is not None and self.label_fn is not None)
        collected = [self.members[index] for index in self._usable]
        if known and not trainer.sanity_checking and collected and all(moments.count for moments in collected):
            means = [moments.layout.split(moments.mean) for moments in collected]
            bank = {name: torch.stack([mean[name] for mean in means]) for name in means[0]}
            self._validate_mean = bank_predictor(pl_module, bank, self.logits_fn)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the mean on the batch that the current weights were evaluated on."""
        if self._validate_mean is None:
            return
        with trainer.precision_plugin.forward_context():  # hooks run outside of it, steps inside
            predictive = self._validate_mean(batch)
        label = (self.label_fn or labels_of)(batch)
        accuracy = (predictive.probs.argmax(-1) == label).float().mean()
        for name, value in (("nll", predictive.nll(label).float().mean()), ("accuracy", accuracy)):
            pl_module.log(f"val_swa/{name}", value, batch_size=len(label), sync_dist=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let go of the mean."""
        self._validate_mean = None

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Tells the states of several SWAG callbacks apart, by what they collect."""
        return self._generate_state_key(start=self.start, every=self.every, unit=self.unit, rank=self.rank)

    def state_dict(self) -> dict[str, Any]:
        """The moments and where collection stands."""
        moments = [moments.state_dict() for moments in self.members]
        return {"moments": moments, "usable": list(self._usable), "went_back": self._went_back, "first": self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the moments of a checkpoint."""
        self.members = [Moments.from_state_dict(state) for state in state_dict["moments"]]
        self._usable = tuple(state_dict["usable"])
        self._went_back = state_dict["went_back"]
        self._first_before = state_dict.get("first")  # states of version 0.1.0 have none

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose snapshots were collected otherwise.

        Raises:
            UsageError: SWAG's states are there, but none of this callback's.
        """
        kept = [key for key in checkpoint.get("callbacks", {}) if key.startswith(f"{type(self).__qualname__}{{")]
        if kept and self.state_key not in kept:
            raise UsageError(
                f"the checkpoint holds {', '.join(kept)}, this callback is {self.state_key}; give start, every, unit "
                "and rank as they were in training"
            )


def _best_weights(trainer: L.Trainer) -> dict[str, Tensor]:
    """The trainable parameters of the best checkpoint so far."""
    monitors = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    path = next((c.best_model_path for c in monitors if c.best_model_path), None)
    if path is None:
        raise UsageError(
            "start_from_best finds no best checkpoint; add ModelCheckpoint(monitor=...) and validate before SWAG starts"
        )
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    return {name: state[name] for name in trainable_of(trainer.lightning_module)}
