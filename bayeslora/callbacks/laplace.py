"""Laplace: fits a Gaussian around the weights that a run has found, and predicts with it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from bayeslora.callbacks.attached import LabelFn
from bayeslora.callbacks.fit_data import (
    RemembersFit,
    require_validation,
    training_batches,
    undealt,
    validation_batches,
    warn_unless_each_once,
)
from bayeslora.callbacks.fit_key import depends_on, fit_key, tensors_digest
from bayeslora.callbacks.laplace_network import check_module, initial_weights, is_stack, member_network, network_of
from bayeslora.callbacks.laplace_prediction import LaplacePrediction
from bayeslora.callbacks.posterior import PosteriorCallback, usable_members, weight_sets
from bayeslora.callbacks.run_folder import keeps
from bayeslora.curvature.fit import FORMAT, STRUCTURES, Task, check_space, check_structure, rows_bytes
from bayeslora.curvature.link import LINKS
from bayeslora.curvature.ranks import Ranks
from bayeslora.curvature.structures import TOKEN_STRUCTURES
from bayeslora.errors import UsageError, require_choice
from bayeslora.files import write_json
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.prediction_path import LogitsFn, Predict
from bayeslora.lightning_modules.progress import tracked
from bayeslora.lightning_modules.refusals import refuse_several_tokens, refuse_shards
from bayeslora.models.in_place import evaluation_mode
from bayeslora.posteriors.laplace.fit import CENTRES, MEANS, NEEDS_ROWS, Fit, Prior
from bayeslora.posteriors.laplace.selection import NO_VALIDATION, Choice
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.state import load_posterior, save_posterior
from bayeslora.types import GaussianPosterior, Posterior

AUTO, WEIGHT_SAMPLES = "auto", "weight_samples"
MEMORY = "memory"
_NOTICEABLE = 0.1  # share of a variance or of a precision from which on a loss is said
_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Laplace(PosteriorCallback, RemembersFit):
    r"""Laplace's approximation around a finished fine-tuning (MacKay, 1992).

    On LoRA: Yang et al., 2024, arXiv:2308.13111.

    Attach it to any LightningModule. When training ends, while the module is still on its device, or before a test of
    weights for which there is none yet, the Gauss-Newton matrix G of the training questions at the weights
    :math:`\theta` is fitted (the processes of a distributed run share the questions),

    .. math:: q(w) = N\left(\theta,\; \Sigma\right), \qquad \Sigma = c\,(G + \Lambda)^{-1}, \qquad
        f(x) \sim N\left(f_\theta(x),\; J \Sigma J^T\right),

    the prior's precisions :math:`\Lambda` are chosen, and predictions are those of the network linearised at
    :math:`\theta`. With ``mean="refit"`` the Gaussian is around :math:`\theta + v`, the optimum that the linearised
    network has under that prior (:mod:`bayeslora.posteriors.laplace.refit`), G is taken there, and J v is added to the
    logits. Every member of an ensemble has a Gaussian of its own, in a mixture. Every stage leaves its result
    in ``<run folder>/laplace/<key>/``, where a run that was killed goes on and another prior is chosen without the
    model; the key tells weights, data and options from others.

    Args:
        structure: ``full`` (exact), ``ekfac``, ``kfac``, ``diag`` and others, see
            :data:`~bayeslora.curvature.fit.STRUCTURES`; ``auto`` is full while it fits ``max_jacobian_bytes``,
            else ekfac.
        precision: Of the prior: ``evidence``, ``validation`` or a number, see
            :class:`~bayeslora.posteriors.laplace.fit.Prior`.
        mean: Where the Gaussian is centred: at the ``trained`` weights, or by a ``refit`` at the optimum of the
            linearised network; needs structure ``full``.
        prior_mean: Where the prior is centred: ``zero``, the ``initial`` weights or the ``trained`` ones.
        groups: Which parameters have a precision of their own: ``one``, ``factor``, ``depth`` or ``cell``.
        subset_of_weights: What is uncertain: ``all``, ``A``, ``B``, ``early``, ``late`` or ``last``.
        scale: Factor c on the covariance, or ``validation``.
        temperature: What logits are divided by, or ``validation``.
        predict: ``linearised`` (quadrature), ``probit``, ``mc`` (``samples`` draws of the logits), or
            ``weight_samples``; None leaves prediction to others.
        samples: Number S of draws for ``mc``, ``weight_samples`` and each member of an ensemble.
        dtype: Of the Jacobians that are kept.
        max_jacobian_bytes: Most bytes of Jacobians, and of the directions of the posterior.
        prune: Questions whose softmax has a covariance of a smaller trace than this share of the mean are left out,
            see :func:`~bayeslora.curvature.rows.collect`; a refit needs and keeps all of them.
        directory: Where stages are kept; None for the run folder, ``memory`` for nowhere.
        seed: Seeds the draws; None takes the module's ``seed``, or 0.
        logits_fn: For modules that are not of this package: ``(module, batch)`` to logits ``[B, C]``.
        label_fn: Likewise: batch to labels ``[B]``.
        train_batches: Likewise: the training batches, each question once, and all of them in every process of a
            distributed run; None takes the trainer's.
        val_batches: Likewise: the validation batches.
        sites: The former name of ``subset_of_weights``; refused.

    Raises:
        UsageError: options that are not allowed.

    Example:
        >>> import lightning as L
        >>> from bayeslora import Laplace
        >>> trainer = L.Trainer(callbacks=[Laplace("kfac", precision="evidence")], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        structure: str = AUTO,
        precision: float | str = "evidence",
        *,
        mean: str = "trained",
        prior_mean: str = "zero",
        groups: str = "one",
        subset_of_weights: str = "all",
        scale: float | str = 1.0,
        temperature: float | str = 1.0,
        predict: str | None = "linearised",
        samples: int = 100,
        dtype: str = "bfloat16",
        max_jacobian_bytes: float = 20e9,
        prune: float = 1e-6,
        directory: str | Path | None = None,
        seed: int | None = None,
        logits_fn: LogitsFn | None = None,
        label_fn: LabelFn | None = None,
        train_batches: Iterable[Any] | None = None,
        val_batches: Iterable[Any] | None = None,
        sites: str | None = None,
    ) -> None:
        if sites is not None:
            raise UsageError(f"Laplace's sites is called subset_of_weights now; give subset_of_weights={sites!r}")
        if predict == "samples":
            raise UsageError(
                "Laplace does not sample weights: its Gaussian is that of the linearised network, and samples through "
                f"the network itself answer by chance; allowed: {', '.join(LINKS)}, or {WEIGHT_SAMPLES} all the same"
            )
        if predict not in (None, WEIGHT_SAMPLES, *LINKS):
            allowed = f"{', '.join(LINKS)}, {WEIGHT_SAMPLES}, or none"
            raise UsageError(f"Laplace's predict is {predict!r}; allowed: {allowed}")
        if structure != AUTO:
            check_structure(structure)
        wanted = {"dtype": (dtype, _DTYPES), "mean": (mean, MEANS), "prior_mean": (prior_mean, CENTRES)}
        for name, (value, choices) in wanted.items():
            require_choice(f"Laplace's {name}", value, choices)
        if mean == "refit" and structure not in (AUTO, "full"):
            raise UsageError(f"Laplace's mean='refit' {NEEDS_ROWS}; here is structure={structure!r}")
        how = "samples" if predict == WEIGHT_SAMPLES else predict and "linearised"
        super().__init__(samples, how, False, seed, logits_fn)
        self.structure, self.link = structure, predict
        self.prior = Prior(precision, prior_mean, groups, subset_of_weights, scale, temperature, mean)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.max_jacobian_bytes, self.directory = float(max_jacobian_bytes), directory
        self.prune = 0.0 if mean == "refit" else prune
        self.label_fn, self.train_batches, self.val_batches = label_fn, train_batches, val_batches
        self.fits: list[Fit] = []
        self.report: dict[str, Any] = {}
        self._posterior: Posterior | None = None
        self._said: set[str] = set()  # fits that were printed
        self._temperatures: list[float] = []
        self.saved = False  # whether the posterior of the last test is in the run's posterior/

    @property
    def posterior(self) -> Posterior | None:
        """The posterior that was fitted last; None before."""
        return self._posterior

    @property
    def label(self) -> str:
        """What the prediction path and tables call the method."""
        kind = self.report.get("structure", self.structure)
        parts = [
            "MultiLaplace" if isinstance(self._posterior, Mixture) else "Laplace",
            kind if kind not in ("full", AUTO) else "",
            self.prior.subset_of_weights if self.prior.subset_of_weights != "all" else "",
        ]
        return "_".join(filter(None, [*parts, "" if self.link in ("linearised", None) else self.link]))

    # --- fitting -------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that shard weights, and labels that a structure cannot take, before anything is trained.

        Raises:
            UsageError: such a strategy, another posterior callback, or labels of several tokens with Kronecker factors
                token by token.
        """
        super().setup(trainer, pl_module, stage)
        refuse_shards(trainer, "Laplace")
        if self.structure in TOKEN_STRUCTURES:
            refuse_several_tokens(trainer, f"Laplace's structure {self.structure}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first step, look whether there will be a curvature to fit to the module, and a prior to choose.

        Raises:
            UsageError: layers or a structure that are not for modules of another kind, no validation questions, or
                questions of which nobody knows how processes share them.
        """
        super().on_train_start(trainer, pl_module)
        check_module(pl_module, self.structure, self.logits_fn, self.label_fn)
        if self._needs_validation:
            given = self.val_batches if self.train_batches is None else (self.val_batches or ())
            require_validation(trainer, pl_module, NO_VALIDATION, given)
        if trainer.world_size > 1:
            self._batches(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit around the weights that training ended with, while they are on their device.

        Whatever becomes of the fit, the last checkpoint is on disk before it starts.
        """
        for checkpoint in trainer.checkpoint_callbacks:
            checkpoint.on_train_end(trainer, pl_module)
        self.fit_to(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit around the weights at hand, from what is on disk where it is theirs, and claim the prediction path."""
        if self.predict is not None:
            weight_sets(pl_module)  # the bare base has none, and says so
            self.fit_to(trainer, pl_module)
            with Ranks().together():
                self.saved = keeps(trainer) and _save(trainer, pl_module, self.required_posterior())
            self.saved = Ranks().gather(self.saved)[0]
        super().on_test_start(trainer, pl_module)

    on_predict_start = on_test_start

    @torch.inference_mode(False)  # tests run in inference mode, whose tensors no gradient may flow through
    @torch.no_grad()
    def fit_to(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fit the curvature at the module's current weights, and choose the prior.

        Args:
            trainer: The trainer of the run.
            pl_module: The module that the trainer runs.

        Raises:
            UsageError: nothing to fit, too small a disk, or a choice that cannot be made.
            RunError: numbers that are not finite.
        """
        places = usable_members(pl_module) if is_stack(pl_module) else (None,)
        found = [self._fit_one(trainer, pl_module, place) for place in places]
        posteriors, choices, reports, self.fits = map(list, zip(*found, strict=True))
        self._posterior = Mixture(posteriors) if is_stack(pl_module) else posteriors[0]
        self._temperatures = [choice.temperature for choice in choices]
        self.report = {**reports[0], "members": reports} if is_stack(pl_module) else reports[0]

    def _fit_one(
        self, trainer: L.Trainer, pl_module: L.LightningModule, place: int | None
    ) -> tuple[GaussianPosterior, Choice, dict[str, Any], Fit]:
        """Fit to one network: the module's, or that of the member at a place of a stack."""
        with evaluation_mode(pl_module), member_network(pl_module, place), trainer.precision_plugin.forward_context():
            task = self._task(trainer, pl_module, place)
            with task.ranks.together():
                structure = self._structure(task)
            fit = STRUCTURES[structure](task)
        with task.stage("select"):
            posterior, choice, report = fit.choose(self.prior)
        report = {"structure": structure, **report, "stages": task.stages}
        if task.folder is not None and task.ranks.rank == 0:
            write_json(task.folder / "report.json", report)
        if task.key not in self._said and task.ranks.rank == 0:
            self._said.add(task.key)
            print(_line(report))
        return posterior, choice, report, fit

    def _structure(self, task: Task) -> str:
        """The structure, with ``auto`` resolved by size; printed where the decomposition takes long."""
        batches = [task.train, *filter(None, [task.validation])]
        questions = [sum(len(batch) for batch in split) for split in batches] if task.network.model else [0]
        contrasts = (
            max((b.answer_mask.shape[1] - 1 for s in batches for b in s), default=1) if task.network.model else 1
        )
        needed = rows_bytes(task, sum(questions), contrasts)
        fits = rows_bytes(task, questions[0], contrasts) <= self.max_jacobian_bytes
        structure = ("full" if fits else "ekfac") if self.structure == AUTO else self.structure
        if structure == "ekfac" and self.prior.posterior_mean == "refit":
            raise UsageError(
                f"Laplace's mean='refit' {NEEDS_ROWS}; they take {needed / 1e9:.3g} GB, max_jacobian_bytes is "
                f"{self.max_jacobian_bytes:.3g}: raise it, take fewer questions, or mean='trained'"
            )
        check_space(task, needed if structure == "full" else needed - rows_bytes(task, questions[0], contrasts))
        return structure

    def _task(self, trainer: L.Trainer, pl_module: L.LightningModule, place: int | None) -> Task:
        network = network_of(pl_module, self.logits_fn, self.label_fn)
        train, validation = self._batches(trainer, pl_module)
        if self._needs_validation and validation is None:
            raise UsageError(NO_VALIDATION)
        options = [self.structure, str(self.dtype), self.prune, self.max_jacobian_bytes, FORMAT]
        if network.model is not None and network.model.initial:
            options.append(tensors_digest([network.model.initial]))
        key = fit_key(network.parameters, options, depends_on(trainer, pl_module, (train, validation)))
        memory = self.directory == MEMORY or network.model is None or trainer.fast_dev_run  # type: ignore[attr-defined]
        root = Path(trainer.default_root_dir) / "laplace" if self.directory is None else Path(self.directory)
        return Task(
            network=network,
            train=train,
            validation=validation,
            folder=None if memory else root / key,
            key=key,
            initial=initial_weights(pl_module, network, place),
            dtype=self.dtype,
            prune=self.prune,
            max_bytes=self.max_jacobian_bytes,
            watch=partial(tracked, trainer),
        )

    @property
    def _needs_validation(self) -> bool:
        return "validation" in (self.prior.precision, self.prior.scale, self.prior.temperature)

    def _batches(self, trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[Iterable[Any], Iterable[Any] | None]:
        """Training and validation batches: those given, the DataModule's, or those that ``fit`` was given."""
        train = training_batches(trainer, pl_module, self.train_batches)
        if train is None:
            raise UsageError(
                "Laplace has no training batches to fit to; give it train_batches=[...], or call trainer.fit first"
            )
        warn_unless_each_once(train, "to have each question count once, give Laplace train_batches")
        if self.train_batches is not None:
            return train, self.val_batches
        validation = validation_batches(trainer, pl_module, self.val_batches)
        if trainer.world_size == 1:
            return train, validation
        return undealt(train), validation if self.val_batches is not None else undealt(validation)

    # --- prediction ----------------------------------------------------------------------------------------------

    def prediction(self, pl_module: L.LightningModule, posterior: Posterior) -> Any:
        """How this callback predicts with a posterior, as plain values."""
        if self.link == WEIGHT_SAMPLES:
            return super().prediction(pl_module, posterior)
        seed, temperatures = self.seed_of(pl_module), tuple(self._temperatures)
        return LaplacePrediction(self.label, self.link or "linearised", self.samples, seed, temperatures)

    def _predictor(self, pl_module: L.LightningModule, posterior: Posterior) -> Predict:
        if self.link == WEIGHT_SAMPLES:
            return super()._predictor(pl_module, posterior)
        return self.prediction(pl_module, posterior).predictor(pl_module, posterior, self.logits_fn, self.label_fn)


def _save(trainer: L.Trainer, pl_module: L.LightningModule, posterior: Posterior) -> bool:
    """Put the posterior into the run folder, where nothing or a plain or Laplace posterior of the same weights is.

    Returns:
        Whether it is there.
    """
    folder = Path(trainer.default_root_dir) / "posterior"
    if not isinstance(pl_module, MultipleChoiceModule) or (folder.exists() and not _same_weights(folder, posterior)):
        return False
    save_posterior(posterior, folder, pl_module.model.adapter_config, pl_module.model.base_fingerprint)
    return True


def _same_weights(folder: Path, posterior: Posterior) -> bool:
    found = load_posterior(folder)
    families = {part.family for part in getattr(found, "components", [found])}
    if not all(family == "point" or family.startswith("laplace") for family in families):
        return False
    mean, own = found.mean(), posterior.mean()
    return mean.keys() == own.keys() and all(torch.equal(value, own[name].to(value)) for name, value in mean.items())


def _line(report: dict[str, Any]) -> str:
    """The report in one line."""
    precision = ", ".join(f"{name} {value:.4g}" for name, value in report["precision"].items())
    seconds = sum(stage["seconds"] for stage in report["stages"].values())
    low, high = report["eigenvalues"]
    refit = report.get("refit")
    parts = (
        [f", refitted in {refit['steps']} steps to a gradient norm of {refit['gradient_norm']:.0e}"] if refit else []
    )
    smallest = min(report["precision"].values())
    if report["dropped_norm"] > _NOTICEABLE * smallest:
        parts.append(
            f"; the {report['dropped']} certain questions may hold curvature up to {report['dropped_norm']:.1e}, which "
            "that precision does not hide: give a smaller prune"
        )
    if report.get("rounding", 0.0) > _NOTICEABLE:
        parts.append(
            f"; rounding raises the smallest variances by about {100 * report['rounding']:.0f} %, give dtype='float32'"
        )
    return (
        f"laplace {report['structure']}: {report['questions']} questions ({report['dropped']} certain ones left out), "
        f"m {report.get('m', '-')}, precision {precision}, gamma {sum(report['gamma'].values()):.1f}, eigenvalues "
        f"{low:.1e} to {high:.1e}, {seconds:.1f} s{''.join(parts)}"
    )
