"""What a method said about the questions of one dataset, and what was right: the input of every metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayeslora.types import Predictive

UNKNOWN = -1  # the label of a question whose answer is not known
_CHUNK = 256  # questions at a time where a Gaussian is integrated: its nodes take 8192 * C doubles a question
_ROUNDING = 1e-12
_SMALLEST = 5e-324  # the smallest probability above zero


@dataclass(frozen=True)
class Answers:
    """Predictions for N questions of one dataset, on the CPU.

    Questions may have different numbers of options; C is the largest, absent options come last.

    Attributes:
        probs: Averaged probabilities, float64 ``[N, C]``; zero at absent options.
        label: Index of the right option, int64 ``[N]``; ``UNKNOWN`` where it is not known.
        options: Number of options, int64 ``[N]``.
        members: Probabilities of S equally weighted members, float64 ``[N, S, C]``, unless it is a Gaussian.
        logit_mean: Mean of the contrast logits ``[N, C-1]``, where the prediction is a Gaussian over them.
        logit_cov: Their covariance ``[N, C-1, C-1]``, likewise.
        true_probs: The true p(y|x), float64 ``[N, C]``, where it is known.
        logits: Member logits ``[N, S, C]``, where they were kept; minus infinity at absent options.
        logsumexp: Log-sum-exp over the vocabulary ``[N, S]``, likewise.
        kept_aleatoric: Expected entropy of a member ``[N]``, where it was kept in place of the members.
        key: A number made of each question's content, int64 ``[N]``, where it was kept.
        example_id: The source's name of each question, N strings.
    """

    probs: Tensor
    label: Tensor
    options: Tensor
    members: Tensor | None = None
    logit_mean: Tensor | None = None
    logit_cov: Tensor | None = None
    true_probs: Tensor | None = None
    logits: Tensor | None = None
    logsumexp: Tensor | None = None
    kept_aleatoric: Tensor | None = None
    key: Tensor | None = None
    example_id: Sequence[str] = ()

    @classmethod
    def from_predictive(cls, predictive: Predictive, label: Tensor | None = None) -> Answers:
        """The answers of a batch of predictions.

        Args:
            predictive: What was predicted for B questions.
            label: Right options ``[B]``; None where they are not known.

        Raises:
            ValueError: If members have unequal weights (only a Gaussian may be weighted: it is stored by its moments),
                or an absent option stands before a present one.
        """
        log_mean = predictive.log_mean.detach()
        present = ~log_mean.isneginf()
        options = present.sum(-1)
        if not torch.equal(present, torch.arange(present.shape[1], device=present.device) < options[:, None]):
            raise ValueError("absent options (log-probability minus infinity) must come after all present ones")
        gaussian, weights = predictive.gaussian, predictive.weights
        if gaussian is None and not torch.allclose(weights, weights.mean()):
            raise ValueError("members of a prediction that is not a Gaussian must have equal weights")
        unknown = torch.full((len(log_mean),), UNKNOWN)
        return cls(
            probs=log_mean.exp().double().cpu(),
            label=unknown if label is None else label.detach().long().cpu(),
            options=options.cpu(),
            members=None if gaussian is not None else _questions_first(predictive.log_probs.exp()),
            logit_mean=None if gaussian is None else gaussian.mean.detach().double().cpu(),
            logit_cov=None if gaussian is None else gaussian.cov.detach().double().cpu(),
            logits=_questions_first(predictive.logits),
            logsumexp=_questions_first(predictive.logsumexp),
        )

    def __len__(self) -> int:
        """Number of questions N."""
        return len(self.probs)

    @property
    def n_members(self) -> int | None:
        """Number S of members; None for a Gaussian."""
        return None if self.members is None else self.members.shape[1]

    @property
    def total(self) -> Tensor:
        r"""Total uncertainty :math:`H(\bar p)` ``[N]`` in nats."""
        return torch.special.entr(self.probs).sum(-1)

    @cached_property
    def aleatoric(self) -> Tensor:
        """Expected entropy of a member ``[N]`` in nats."""
        if self.kept_aleatoric is not None:
            return self.kept_aleatoric
        return torch.cat([predictive.aleatoric for predictive in self._predictives()])

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of answer and member ``[N]`` in nats, total less aleatoric.

        What is below the rounding of the two counts as zero, so that members that agree tie instead of being ranked by
        rounding errors.
        """
        difference = self.total - self.aleatoric
        return torch.where(difference > _ROUNDING, difference, 0.0)

    def _predictives(self) -> Iterator[Predictive]:
        if self.logit_mean is not None and self.logit_cov is not None:
            for mean, cov in zip(self.logit_mean.split(_CHUNK), self.logit_cov.split(_CHUNK), strict=True):
                yield Predictive.from_gaussian(mean, cov)
        elif self.members is not None:
            log_probs = self._log_members().transpose(0, 1)
            yield Predictive(log_probs, torch.full((len(log_probs),), 1 / len(log_probs), dtype=torch.float64))
        else:
            raise ValueError("there are neither members nor a Gaussian, so uncertainty cannot be split")

    def _log_members(self) -> Tensor:
        """Members' log-probabilities ``[N, S, C]``, minus infinity at absent options alone.

        Logits that are more than 745 apart leave a probability of zero: it is taken from the logits where they were
        kept, else as the smallest number there is, since an option that exists is never impossible.
        """
        if self.logits is not None:
            return self.logits.log_softmax(-1)
        assert self.members is not None
        absent = torch.arange(self.members.shape[-1]) >= self.options[:, None]
        log_probs = self.members.clamp(min=_SMALLEST).log()
        return log_probs.masked_fill(absent[:, None, :], -torch.inf)

    def tempered(self, temperature: float) -> Answers:
        """The same questions with every member's, or the Gaussian's, logits divided by a temperature.

        Kept logits and log-sum-exp belong to temperature 1 and are left out.
        """
        parts = [Answers.from_predictive(predictive.tempered(temperature)) for predictive in self._predictives()]
        joined = replace(Answers.concatenate(parts), logits=None, logsumexp=None)
        return replace(joined, label=self.label, true_probs=self.true_probs, key=self.key, example_id=self.example_id)

    def __getitem__(self, index: Tensor) -> Answers:
        """The questions of an index ``[n]``, in its order."""
        taken = {name: value[index] for name, value in self.tensors().items()}
        ids = [self.example_id[i] for i in index.tolist()] if self.example_id else ()
        return Answers(**taken, example_id=ids)

    @staticmethod
    def concatenate(parts: Sequence[Answers]) -> Answers:
        """All questions of the parts, which must agree on what they hold and on the number of members."""
        width = max(part.probs.shape[1] for part in parts)
        wide = [part._widened(width).tensors() for part in parts]
        joined = {name: torch.cat([tensors[name] for tensors in wide]) for name in wide[0]}
        return Answers(**joined, example_id=[name for part in parts for name in part.example_id])

    def tensors(self) -> dict[str, Tensor]:
        """What is held, by attribute."""
        return {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}

    def _widened(self, width: int) -> Answers:
        extra = width - self.probs.shape[1]
        last, last_two, absent = (0, extra), (0, extra, 0, extra), -torch.inf
        padding = {
            "probs": (last, 0.0),
            "members": (last, 0.0),
            "true_probs": (last, 0.0),
            "logits": (last, absent),
            "logit_mean": (last, absent),
            "logit_cov": (last_two, 0.0),
        }
        held = self.tensors()
        wide = {name: pad(held[name], size, value=fill) for name, (size, fill) in padding.items() if name in held}
        return Answers(**(held | wide), example_id=self.example_id)


def _questions_first(members: Tensor | None) -> Tensor | None:
    return None if members is None else members.detach().transpose(0, 1).double().contiguous().cpu()
