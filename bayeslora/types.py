"""The contracts every part rests on: what is fed to a model, what it answers, what a method predicts and stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bayeslora.quadrature import normal_draws

CONTRACT_VERSION = 1  # of the files that hold these types: predictions.parquet, metrics.json, posterior.json, run.json


@dataclass(frozen=True)
class WholeLabels:
    r"""Labels of several tokens, packed behind the prompts of B rows: a label's tokens see the prompt and each other.

    A label's score is :math:`\sum_j w_j \log p(t_j \mid prompt, t_1 .. t_{j-1})` over its tokens, its end included.

    Attributes:
        segments: Zero at a prompt's tokens and at padding, c + 1 at those of label c ``[B, T]``.
        offsets: Zero likewise, 1, 2, .. at the tokens of each label: how far behind the prompt's end ``[B, T]``.
        ids: The tokens of every label ``[B, C, L]``.
        places: Where each is predicted, counted from the row's end, which is 1 ``[B, C, L]``.
        weights: What its log-probability is multiplied by, zero where there is no token ``[B, C, L]``.
        reach: The largest place.
        normalised: Whether scores are divided by lengths, so that they are no log-probabilities.
    """

    segments: Tensor
    offsets: Tensor
    ids: Tensor
    places: Tensor
    weights: Tensor
    reach: int
    normalised: bool = False

    def map(self, function: Callable[[Tensor], Tensor]) -> WholeLabels:
        """The same with every tensor replaced by what ``function`` makes of it."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {name: function(t) for name, t in held.items() if isinstance(t, Tensor)}
        return replace(self, **mapped)

    def select(self, rows: Tensor) -> WholeLabels:
        """Those of some rows, by their numbers."""
        return self.map(lambda tensor: tensor[rows])


@dataclass(frozen=True)
class AnswerBatch:
    """B multiple-choice questions as R rows of tokens.

    R equals B where a causal model answers with a label token, and is the sum of the option counts where an encoder
    scores each option as a row of its own. Causal rows are padded on the left, encoder rows as their tokenizer says.

    Attributes:
        input_ids: Token ids ``[R, T]``.
        attention_mask: One at real tokens, zero at padding ``[R, T]``.
        example_of_row: Which of the B questions a row belongs to ``[R]``.
        option_of_row: Which option of its question a row holds ``[R]``; zero where a row holds the whole question.
        answer_ids: Vocabulary id of each option's label token, the first of several, ``[B, C]``; zero where there is no
            such option.
        answer_mask: Whether the option exists, bool ``[B, C]``.
        label: Index of the right option ``[B]``.
        example_id: Row number of the question within its dataset, int64 ``[B]``.
        dataset: Name of the dataset all B questions come from.
        token_type_ids: Segment ids ``[R, T]`` for encoders that want them.
        option_order: Where a prediction is to be averaged over orders of the options, the source's index of the option
            at each place ``[B, C]``; the orders of one question follow one another and share its ``example_id``.
        whole_labels: The labels where they are of several tokens, packed behind the prompts.

    Example:
        >>> import torch
        >>> from bayeslora import AnswerBatch
        >>> rows = torch.arange(2)
        >>> batch = AnswerBatch(
        ...     input_ids=torch.ones(2, 5, dtype=torch.long),
        ...     attention_mask=torch.ones(2, 5, dtype=torch.long),
        ...     example_of_row=rows,
        ...     option_of_row=torch.zeros(2, dtype=torch.long),
        ...     answer_ids=torch.tensor([[7, 8], [7, 8]]),
        ...     answer_mask=torch.ones(2, 2, dtype=torch.bool),
        ...     label=torch.tensor([0, 1]),
        ...     example_id=rows,
        ...     dataset="mine",
        ... )
        >>> len(batch)
        2
    """

    input_ids: Tensor
    attention_mask: Tensor
    example_of_row: Tensor
    option_of_row: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    label: Tensor
    example_id: Tensor
    dataset: str
    token_type_ids: Tensor | None = None
    option_order: Tensor | None = None
    whole_labels: WholeLabels | None = None

    def __len__(self) -> int:
        """Number of questions B."""
        return len(self.label)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> AnswerBatch:
        """The same batch on another device. What lies in page-locked memory is sent without waiting for the device.

        Args:
            device: Where to put it.
            non_blocking: Whether the copy may go on while the program does.
        """
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking or tensor.is_pinned()))

    def pin_memory(self) -> AnswerBatch:
        """The same batch in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> AnswerBatch:
        """The same batch with every tensor replaced by what ``function`` makes of it."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {name: function(t) for name, t in held.items() if isinstance(t, Tensor)}
        whole = None if self.whole_labels is None else self.whole_labels.map(function)
        return replace(self, **mapped, whole_labels=whole)

    @property
    def prompt_mask(self) -> Tensor:
        """One at the real tokens of prompts, zero at padding and at labels ``[R, T]``."""
        return (
            self.attention_mask
            if self.whole_labels is None
            else self.attention_mask * (self.whole_labels.segments == 0)
        )


@dataclass(frozen=True)
class AnswerOutput:
    """Answer logits, in float32.

    Attributes:
        logits: ``[B, C]``, or ``[S, B, C]`` for S samples; minus infinity at absent options and nowhere else. Of labels
            of several tokens, their log-probabilities.
        logsumexp: Log-sum-exp over the whole vocabulary ``[B]`` or ``[S, B]``, where it was asked for: zero for labels
            of several tokens, which are events among all continuations; None where these are divided by lengths.
        vocab_logits: Logits of the whole vocabulary at the answer position ``[B, V]`` or ``[S, B, V]``, likewise.
    """

    logits: Tensor
    logsumexp: Tensor | None = None
    vocab_logits: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """S functions to evaluate together: S sets of weights, S draws of noise, or both.

    Attributes:
        weights: Parameter name (without the adapter's name) to its S values ``[S, *shape]``.
        draws: Ids of the noise draws, int64 ``[S]`` on the CPU; there is noise iff this is given.
        seed: Names the stream of noise the draws are taken from.
        perturbations: Weight name to S values ``[S, *shape]`` that are added to it with signs of their own for every
            token (flipout); needs ``draws``, which the signs belong to.
        coherent: A draw is one function: its noise is the same for all questions, rows and positions. Otherwise every
            question and position has noise of its own.
        dropout: Whether LoRA's dropout is among the noise.

    Example:
        >>> import torch
        >>> from bayeslora import Samples
        >>> samples = Samples(draws=torch.arange(10), seed=1)  # ten draws of LoRA's dropout
        >>> len(samples), len(samples[:4])
        (10, 4)
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    draws: Tensor | None = None
    seed: int = 0
    perturbations: Mapping[str, Tensor] = field(default_factory=dict)
    coherent: bool = False
    dropout: bool = True

    def __post_init__(self) -> None:
        """Check that everything has the same number S of samples."""
        if self.perturbations and self.draws is None:
            raise ValueError("perturbations need draws, whose ids their signs are keyed by")
        sizes = {len(value) for value in (*self.weights.values(), *self.perturbations.values())}
        sizes |= set() if self.draws is None else {len(self.draws)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"samples must agree on one number S > 0; given {sorted(sizes)}")

    def __len__(self) -> int:
        """Number of samples S."""
        return len(self.draws) if self.draws is not None else len(next(iter(self.weights.values())))

    def __getitem__(self, index: slice) -> Samples:
        """The samples of a slice."""
        weights, perturbations = (
            {name: value[index] for name, value in values.items()} for values in (self.weights, self.perturbations)
        )
        draws = None if self.draws is None else self.draws[index]
        return replace(self, weights=weights, draws=draws, perturbations=perturbations)


@dataclass(frozen=True)
class Gaussian:
    r"""A normal law over contrast logits :math:`f_c - f_0`, c = 1 .. C-1, for each of B questions.

    Attributes:
        mean: ``[B, C-1]``; minus infinity at absent options.
        cov: ``[B, C-1, C-1]``, symmetric positive semi-definite; zero rows and columns at absent options.
    """

    mean: Tensor
    cov: Tensor

    def draws(self) -> tuple[Tensor, Tensor]:
        """Deterministic draws of the logits ``[S, B, C]`` and their weights, see :func:`normal_draws`."""
        contrasts, weights = normal_draws(self.mean, self.cov)
        return torch.nn.functional.pad(contrasts, (1, 0)), weights


@dataclass(frozen=True)
class Predictive:
    r"""What a method predicts for B questions: a weighted set of S class distributions.

    Members of an ensemble, weight samples and dropout draws are equally weighted members; a Gaussian over logits is
    represented by the nodes that integrate it. Probabilities are averaged, never logits:
    :math:`\bar p = \sum_s w_s p_s`. Entropies are in nats.

    Attributes:
        log_probs: Member log-probabilities, float64 ``[S, B, C]``; minus infinity at absent options.
        weights: Weight of each member, float64 ``[S]``, summing to one; ``[S, B]`` where questions of a batch have
            weights of their own (Gaussians over different numbers of options).
        logits: Member logits ``[S, B, C]`` where the members have them.
        logsumexp: Log-sum-exp over the vocabulary ``[S, B]`` where it was kept.
        gaussian: The law over logits, where the prediction is one.

    Example:
        >>> import torch
        >>> from bayeslora import Predictive
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])  # two members that disagree about one question
        >>> predictive = Predictive.from_logits(logits)
        >>> predictive.probs.tolist()
        [[0.5, 0.5]]
        >>> bool(predictive.epistemic > 0)
        True
    """

    log_probs: Tensor
    weights: Tensor
    logits: Tensor | None = None
    logsumexp: Tensor | None = None
    gaussian: Gaussian | None = None

    @classmethod
    def from_logits(cls, logits: Tensor, logsumexp: Tensor | None = None) -> Predictive:
        """Equally weighted members from their logits ``[S, B, C]`` (and log-sum-exp ``[S, B]``).

        Args:
            logits: Logits ``[S, B, C]``; minus infinity at absent options.
            logsumexp: Log-sum-exp over the vocabulary ``[S, B]``, where it is known.
        """
        weights = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64, device=logits.device)
        return cls(logits.double().log_softmax(-1), weights, logits, logsumexp)

    @classmethod
    def from_gaussian(cls, mean: Tensor, cov: Tensor) -> Predictive:
        """The prediction under a normal law over contrast logits: mean ``[B, C-1]``, cov ``[B, C-1, C-1]``.

        Args:
            mean: Means of the contrasts ``[B, C-1]``; minus infinity at absent options.
            cov: Covariances of the contrasts ``[B, C-1, C-1]``.
        """
        gaussian = Gaussian(mean, cov)
        draws, weights = gaussian.draws()
        return cls(draws.log_softmax(-1), weights, gaussian=gaussian)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Predictive:
        """The same prediction on another device.

        Args:
            device: Where to put it.
            non_blocking: Whether the copy may go on while the program does.
        """
        return self.map(partial(torch.Tensor.to, device=device, non_blocking=non_blocking))

    def map(self, function: Callable[[Tensor], Tensor]) -> Predictive:
        """The same prediction with every tensor replaced by what ``function`` makes of it."""
        law = self.gaussian
        law = None if law is None else Gaussian(function(law.mean), function(law.cov))
        logits, logsumexp = (None if t is None else function(t) for t in (self.logits, self.logsumexp))
        return Predictive(function(self.log_probs), function(self.weights), logits, logsumexp, law)

    @property
    def log_mean(self) -> Tensor:
        """Log of the averaged probabilities ``[B, C]``."""
        return (self.log_probs + self._by_question.log()[:, :, None]).logsumexp(0)

    @property
    def _by_question(self) -> Tensor:
        """The weights, ``[S, B]`` or ``[S, 1]``."""
        return self.weights.view(len(self.weights), -1)

    @property
    def probs(self) -> Tensor:
        """Averaged probabilities ``[B, C]``."""
        return self.log_mean.exp()

    @property
    def total(self) -> Tensor:
        r"""Total uncertainty :math:`H(\bar p)` ``[B]``."""
        return _entropy(self.log_mean)

    @property
    def aleatoric(self) -> Tensor:
        r"""Expected entropy :math:`\sum_s w_s H(p_s)` ``[B]``."""
        return (self._by_question * _entropy(self.log_probs)).sum(0)

    @property
    def epistemic(self) -> Tensor:
        r"""Mutual information :math:`\sum_s w_s KL(p_s \| \bar p) = H(\bar p) - E[H]` ``[B]``, never negative."""
        gap = torch.where(self.log_probs.isinf(), 0.0, self.log_probs - self.log_mean)
        divergence = (self.log_probs.exp() * gap).sum(-1)
        return (self._by_question * divergence).sum(0).clamp(min=0)

    def nll(self, label: Tensor) -> Tensor:
        r"""Negative log-likelihood :math:`-\log \bar p_y` ``[B]`` of the labels ``[B]``."""
        chosen = self.log_probs.gather(-1, label.expand(len(self.weights), -1)[:, :, None]).squeeze(-1)
        return -(chosen + self._by_question.log()).logsumexp(0)

    def tempered(self, temperature: float | Tensor) -> Predictive:
        """Every member at a temperature T: logits over T, renormalised, then averaged (a Gaussian: mean/T, cov/T^2).

        The log-sum-exp over the vocabulary has no counterpart at another temperature and is dropped.
        """
        absent = self.log_probs.isinf()
        scaled = self.log_probs.masked_fill(absent, 0.0) / temperature  # minus infinity would make T's gradient NaN
        log_probs = scaled.masked_fill(absent, -torch.inf).log_softmax(-1)
        logits = None if self.logits is None else self.logits / temperature
        law = self.gaussian
        law = None if law is None else Gaussian(law.mean / temperature, law.cov / temperature**2)
        return Predictive(log_probs, self.weights, logits, None, law)


def _entropy(log_probs: Tensor) -> Tensor:
    return -torch.where(log_probs.isinf(), 0.0, log_probs.exp() * log_probs).sum(-1)


@runtime_checkable
class Posterior(Protocol):
    """A law over trainable parameters: frozen state and pure functions.

    Names are peft's without the adapter's name, ``named_parameters()`` names for modules that are not peft's.
    """

    family: str

    def mean(self) -> dict[str, Tensor]:
        """The posterior mean of every parameter, name to ``[*shape]``."""
        ...

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``n`` joint draws of all parameters, name to ``[n, *shape]``.

        Args:
            n: How many draws.
            generator: Source of the noise, on the CPU; the same state gives the same draws.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types from which the family's ``from_state_dict`` rebuilds the posterior bit for bit.

        A mixture is rebuilt by ``from_components`` instead: its components keep their own.
        """
        ...


@runtime_checkable
class GaussianPosterior(Posterior, Protocol):
    """A Gaussian posterior, which linearised prediction can use without sampling."""

    def logit_covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """Covariance ``[B, C-1, C-1]`` of the contrast logits from their Jacobian, name to ``[B, C-1, *shape]``."""
        ...
