"""The model that data meet: what they take from it, and what the two must agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bayeslora.datamodules.encode import Encoded
from bayeslora.datamodules.protocols.base import Protocol
from bayeslora.datamodules.source import Benchmark
from bayeslora.datamodules.tokenizer import load_tokenizer
from bayeslora.errors import UsageError
from bayeslora.models.limits import Limits, limits_of
from bayeslora.models.loading import Backbone
from bayeslora.models.masks import check_segments
from bayeslora.models.pretrained import resolve_pretrained

LABEL_TOKEN, HEAD = "label_token", "head"
_ATTENTION = "sdpa"  # which transformers takes unless it is told otherwise; the model looks again
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class ModelSide:
    """What data need to know of a model of this package.

    Attributes:
        pretrained: Name or folder of the base.
        revision: Of the base on the hub.
        readout: ``label_token`` or ``head``.
        num_labels: Number of classes of a sequence classifier; None where options are rows.
        support: What its loss normalises over; None where that is the protocol's.
    """

    pretrained: str
    revision: str | None
    readout: str
    num_labels: int | None
    support: str | None = None

    @classmethod
    def of(cls, trainer: Any) -> ModelSide | None:
        """The model that a trainer has been given; None where there is no trainer, or a model of another kind."""
        module = getattr(trainer, "lightning_module", None)
        backbone = getattr(module, "backbone", None)
        if not isinstance(backbone, Backbone):
            return None
        return replace(cls.of_backbone(backbone), support=getattr(module, "support", None))

    @classmethod
    def of_backbone(cls, backbone: Backbone) -> ModelSide:
        """The model that a backbone is."""
        return cls(backbone.pretrained, backbone.revision, backbone.readout, backbone.num_labels)

    @property
    def limits(self) -> Limits:
        """How many token ids and positions the base has learned."""
        return limits_of(self.pretrained, self.revision)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Check that a tokenizer that was given has the vocabulary of the model's own, where the model has one.

        Raises:
            UsageError: it has another.
        """
        own = self._own_tokenizer()
        if own is not None and own.get_vocab() != tokenizer.get_vocab():
            raise UsageError(
                f"the data's tokenizer ({tokenizer.name_or_path!r}, {len(tokenizer)} tokens) is not that of the model "
                f"{self.pretrained!r} ({len(own)} tokens); leave tokenizer out, and the data take the model's"
            )

    def _own_tokenizer(self) -> Any:
        folder = Path(resolve_pretrained(self.pretrained))
        if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
            return None
        try:
            return load_tokenizer(self.pretrained, self.revision)
        except UsageError:
            return None  # the hub's name of a model without a tokenizer

    def check_readout(self, given: str | None) -> None:
        """Check that the read-out that the data were given, if any, is the model's.

        Raises:
            UsageError: it is another.
        """
        if given not in (None, self.readout):
            raise UsageError(
                f"the data's readout is {given!r}, the model's {self.readout!r}; leave the data's out, and it is the "
                "model's"
            )

    def check_classes(self, num_labels: int | None, benchmark: Benchmark, ood: Mapping[str, Benchmark]) -> None:
        """Check that a head has as many outputs as the data have classes, and let further test sets have the same.

        Args:
            num_labels: Number of classes of the data; None where options are compared.
            benchmark: What is trained on.
            ood: The further test sets by name.

        Raises:
            UsageError: it has not, or a test set is not of the benchmark's kind.
        """
        if self.num_labels != num_labels:
            kind = "options to compare, not classes" if num_labels is None else f"{num_labels} classes"
            raise UsageError(
                f"backbone.num_labels is {self.num_labels}, but the data have {kind}; give backbone.num_labels "
                f"{'null (None)' if num_labels is None else num_labels}"
            )
        for name, other in ood.items():
            other.take_classes(benchmark)
            if other.pairs != benchmark.pairs:
                kinds = ("options to compare", "sentences to classify")
                raise UsageError(
                    f"ood has {name}, which has {kinds[other.pairs]}, and the head answers {kinds[benchmark.pairs]}; "
                    "leave it out"
                )

    def check_words(self, protocol: Protocol) -> None:
        """Check that the model and its loss take words of several tokens, where a protocol has such.

        Raises:
            UsageError: the kind of model attends to whole rows alone, or the loss is over the vocabulary and the
                words' scores are no probabilities.
        """
        if protocol.end is None:
            return
        check_segments(self.limits.kind, _ATTENTION, None)
        if protocol.normalise is not None and self.support == "full_vocab":
            raise UsageError(
                f"support is full_vocab, but label scores divided by {protocol.normalise} are no probabilities; use "
                "options, or normalise null"
            )

    def check_rows(self, name: str, encoded: Sequence[Encoded]) -> None:
        """Check that the model has learned every token and every position of some questions.

        Args:
            name: What the questions are called in a message.
            encoded: The questions.

        Raises:
            UsageError: a token or a position beyond, or a row whose labels of several tokens are out of reach.
        """
        whole = max((item.length for item in encoded if item.labels is not None), default=None)
        if whole is not None:
            check_segments(self.limits.kind, _ATTENTION, self.limits.window, whole)
        rows = [row for item in encoded for row in item.rows]
        rows += [list(ids) for item in encoded if item.labels is not None for ids in item.labels.ids]
        largest = max((token for row in rows for token in row), default=0)
        if largest >= self.limits.tokens:
            raise UsageError(
                f"{name} has the token {largest}, the model {self.pretrained!r} knows tokens 0 to "
                f"{self.limits.tokens - 1}; give the tokenizer that belongs to it"
            )
        longest, positions = max((item.positions for item in encoded), default=0), self.limits.positions
        if positions is not None and longest > positions:
            raise UsageError(
                f"a question of {name} has {longest} tokens, the model {self.pretrained!r} has learned {positions} "
                f"positions; give max_length {positions} or less"
            )
