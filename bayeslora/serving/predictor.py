"""Asks a finished run new questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

import bayeslora.lightning_modules as methods
from bayeslora.callbacks.posterior import weight_sets
from bayeslora.datamodules.batch import collate
from bayeslora.datamodules.encode import Encoded
from bayeslora.datamodules.model_side import ModelSide
from bayeslora.datamodules.option_order import merge_orders
from bayeslora.datamodules.question import Question, from_choices, from_options, from_sentences, has_sentences
from bayeslora.datamodules.tokenizer import load_tokenizer
from bayeslora.decisions.rule import DecisionRule
from bayeslora.errors import RunError, UsageError, in_one_line
from bayeslora.lightning_modules.bare_base import BareBase
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.metrics.answers import Answers
from bayeslora.models.loading import Backbone
from bayeslora.posteriors.state import check_same_parameters
from bayeslora.results.answer_file import Row, answer_rows
from bayeslora.serving.adapter import kept_of_adapter
from bayeslora.serving.answer import Answer
from bayeslora.serving.hub import fetch, push
from bayeslora.serving.kept import Kept, load
from bayeslora.types import Posterior

_SAME = ("id", "choice", "confidence", "total", "aleatoric", "epistemic", "abstain", "reason")  # in row and answer
Given = Question | Mapping[str, Any] | str


@dataclass(frozen=True)
class Prepared:
    """A question that can be asked: it was checked and turned into tokens.

    Attributes:
        question: The question.
        encodings: Its tokens, with its options in one or more orders.
    """

    question: Question
    encodings: Sequence[Encoded]


class Predictor:
    """Answers questions as a run's own test answered its own, whatever the run's method.

    Everything comes from the run folder's ``serving/``: no training data are read, and nothing is fitted. A question
    gets the same answer alone and in any batch, up to the arithmetic of the batch's shape (5e-6 in float32).

    Args:
        kept: What a test has kept.
        device: ``cpu``, ``cuda`` or another torch device; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: a base model that is not there, or is not the run's; a device that is not there.

    Example:
        >>> run = test_a_run()
        >>> predictor = Predictor.from_run(run)
        >>> answer = predictor({"question": "Which is larger?", "options": ["a mouse", "a house"]})
        >>> len(answer.probs), 0 <= answer.epistemic <= answer.total
        (2, True)
    """

    def __init__(self, kept: Kept, device: str = "auto") -> None:
        self.kept, self.device = kept, _device(device)
        self.run: Path | None = None  # the folder it comes from
        self.prompting = kept.prompting
        self.tokenizer = load_tokenizer(kept.prompting.tokenizer, kept.prompting.revision)
        self.module = _module(kept, self.device)
        self._model_side = ModelSide.of_backbone(self.module.backbone)
        mixed = kept.precision in ("16-mixed", "bf16-mixed")
        self._precision: Precision = MixedPrecision(kept.precision, self.device.type) if mixed else Precision()  # type: ignore[arg-type]
        with torch.no_grad(), self._precision.forward_context():
            if kept.prediction is not None:
                assert kept.posterior is not None
                check_same_parameters(kept.posterior.mean(), weight_sets(self.module)[0], "the posterior")
                predict = kept.prediction.predictor(self.module, kept.posterior)
                self.module.prediction.claim(kept.prediction.label, predict)
            self.module.on_test_start()
        if kept.temperature != 1.0:
            self.module.prediction.append("Temperature", lambda found: found.tempered(kept.temperature))

    @classmethod
    def from_run(cls, run: Path | str, device: str = "auto") -> Predictor:
        """The predictor of a run that was tested.

        Args:
            run: The run folder.
            device: See the class.

        Raises:
            UsageError: the run was not tested, is damaged, or its base model is not there or is another.
        """
        found = cls(load(run), device)
        found.run = Path(run)
        return found

    @classmethod
    def from_hub(cls, repo: str, *, revision: str | None = None, device: str = "auto", **options: Any) -> Predictor:
        """The predictor of a run that :meth:`push_to_hub` has uploaded. Tensors and JSON alone are read.

        Args:
            repo: ``owner/name``.
            revision: A branch, a tag, or better a commit, whose content nobody can change.
            device: See the class.
            options: ``token`` for private repositories, ``cache_dir``, ``local_files_only``.

        Raises:
            UsageError: no such repository, or no run in it.
        """
        return cls(load(fetch(repo, revision, **options)), device)

    @classmethod
    def from_adapter(
        cls,
        base: str | Backbone,
        adapter: str | Path,
        *,
        posterior: str | Path | Posterior | None = None,
        device: str = "auto",
        **settings: Any,
    ) -> Predictor:
        """The predictor of a peft adapter that was trained anywhere.

        Args:
            base: The base model the adapter belongs to, by its id on the hub or its folder; or a backbone, which says
                how it is loaded as well.
            adapter: The adapter: its folder, or its id on the hub (``owner/name``, ``owner/name@revision``).
            posterior: What is predicted with in the place of the adapter's weights: a posterior, or where one is
                (``posterior/`` of a run). SWAG, TFB, BLoB, ScalaBL and mixtures predict with ``samples`` sets of
                weights, Laplace with the network linearised at its mean. None takes the adapter's weights.
            device: See the class.
            settings: ``samples`` (10 of each component), ``seed`` (0), ``temperature`` (1), and how questions are
                asked: ``protocol`` (``default``), ``task``, ``options`` (those of every question), ``chat``
                (whether in the tokenizer's chat template), ``tokenizer`` (the base's), ``max_length`` in tokens,
                ``batch_size``.

        Raises:
            UsageError: an adapter or a posterior that is not there, is damaged, or does not fit the base.

        Example:
            >>> run = test_a_run()
            >>> predictor = Predictor.from_adapter("embedded", run / "posterior", options=["yes", "no"])
            >>> len(predictor("Is a mouse larger than a house?").probs)
            2
        """
        return cls(kept_of_adapter(base, adapter, posterior, **settings), device)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what answers questions to the Hugging Face hub, with a model card.

        The repository holds ``serving/`` as :meth:`from_hub` reads it, the mean as an adapter for plain peft, the
        metrics and the calibration figure of the run's test, and a card that says how to use it. Nothing else of a run
        is uploaded: no predictions, no questions but the worked examples of a few-shot prompt, no configuration and no
        place of this machine.

        Args:
            repo_id: ``owner/name``; made where there is none.
            options: ``private`` (True: nobody but the owner sees a repository that is made), ``base`` (the id on the
                hub of a base that is a folder here), ``license``, ``commit_message``, ``token``, ``branch``,
                ``create_pr``.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            UsageError: a base or a tokenizer that is a folder here, or what the hub refuses.
        """
        return push(self.kept, self.module, self.run, repo_id, **options)

    @property
    def rule(self) -> DecisionRule | None:
        """The run's decision rule; None where it has none."""
        return self.kept.rule

    # --- questions -----------------------------------------------------------------------------------------------

    def question(self, given: Given, options: Sequence[str] | None = None, fallback_id: str = "") -> Question:
        """A question from what the caller has.

        Args:
            given: A question, a mapping with ``question`` and ``options`` (or ``choices`` as on the Hugging Face hub),
                one with ``sentence`` (or ``sentence1`` and ``sentence2``) where the run classifies those, or the text
                alone.
            options: What to choose from, where the text alone is given; None takes those of every question of the run.
            fallback_id: The name of a question that has none.

        Raises:
            UsageError: it is none: no text, fewer than two options, or two that are the same.
        """
        if isinstance(given, Question):
            found = given
        else:
            row: dict[str, Any] = {"question": given} if isinstance(given, str) else dict(given)
            known = options or self.prompting.options
            row = {name: value for name, value in row.items() if value is not None}  # a column without a value here
            if has_sentences(row) and self.prompting.pairs:
                found = _in_one_line(from_sentences, row, self.prompting.options, fallback_id)
            else:
                if "options" not in row and "choices" not in row and known is not None:
                    row["options"] = list(known)
                found = _question(row, fallback_id)
        if len(set(found.options)) < len(found.options):
            raise UsageError(f"question {found.id!r} has the same option twice: {list(found.options)}")
        if self.prompting.pairs and found.options != self.prompting.options:
            raise UsageError(
                f"question {found.id!r} has other classes than the run: {list(self.prompting.options or [])}"
            )
        return found

    def prepare(self, questions: Sequence[Question]) -> list[Prepared]:
        """Check questions and turn them into tokens.

        Raises:
            UsageError: one that is too long, or whose options the run's protocol has no labels for.
        """
        rows = self.prompting.rows(questions, self.tokenizer).encoded
        for question, encodings in zip(questions, rows, strict=True):
            self._model_side.check_rows(f"question {question.id!r}", encodings)
        return [Prepared(*pair) for pair in zip(questions, rows, strict=True)]

    # --- answers -------------------------------------------------------------------------------------------------

    @overload
    def __call__(self, given: Given, options: Sequence[str] | None = None) -> Answer: ...
    @overload
    def __call__(self, given: list[Given], options: Sequence[str] | None = None) -> list[Answer]: ...
    def __call__(self, given: Given | list[Given], options: Sequence[str] | None = None) -> Answer | list[Answer]:
        """Answer a question, or several.

        Args:
            given: See :meth:`question`; or a list of such.
            options: See :meth:`question`.

        Returns:
            The answer; a list of answers, in their order, where a list is given.

        Raises:
            UsageError: what is given is no question that this run can be asked.
        """
        alone = not isinstance(given, list)
        several: list[Given] = given if isinstance(given, list) else [given]
        questions = [self.question(one, options, str(place)) for place, one in enumerate(several)]
        found = self.answer(self.prepare(questions))
        return found[0] if alone else found

    def answer(self, prepared: Sequence[Prepared]) -> list[Answer]:
        """Answers to questions that were prepared, in their order."""
        rows = self.rows(prepared, [{}] * len(prepared))
        return [_answer(row, one.encodings) for row, one in zip(rows, prepared, strict=True)]

    def rows(self, prepared: Sequence[Prepared], inputs: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Answers as rows of a file of answers, see :mod:`bayeslora.results.answer_file`.

        Args:
            prepared: The questions.
            inputs: Further columns of each, which are kept.
        """
        if not prepared:
            return []
        found = self.predict(prepared)
        decided = None if self.rule is None else self.rule(found)
        return answer_rows(found, [one.question.options for one in prepared], inputs, decided)

    def predict(self, prepared: Sequence[Prepared]) -> Answers:
        """Predictions for questions that were prepared, in their order, as metrics and files of answers take them."""
        order = sorted(range(len(prepared)), key=lambda place: prepared[place].encodings[0].length)
        batches = [order[i : i + self.kept.batch_size] for i in range(0, len(order), self.kept.batch_size)]
        parts = [self._batch([prepared[place] for place in batch]) for batch in batches]
        back = torch.tensor(order).argsort()
        found = Answers.concatenate(parts)[back]
        questions = [one.question for one in prepared]
        keys = torch.tensor([question.key for question in questions])
        return replace(found, example_id=[question.id for question in questions], key=keys)

    def _batch(self, prepared: Sequence[Prepared]) -> Answers:
        items = [(place, one.encodings) for place, one in enumerate(prepared)]
        side = self.prompting.padding_side(self.tokenizer)
        batch = collate(items, "questions", side, self.tokenizer.pad_token_id or 0).to(self.device)
        with torch.no_grad(), self._precision.forward_context():
            predictive = self.module.prediction(batch)
        batch, predictive = merge_orders(batch, predictive)
        if predictive.log_mean.isnan().any():
            raise RunError(
                "the probabilities of a question are NaN: the base model's arithmetic overflows; its dtype "
                "and the run's precision say how it computes"
            )
        return Answers.from_predictive(predictive, torch.tensor([one.question.label for one in prepared]))


def _answer(row: Row, encodings: Sequence[Encoded]) -> Answer:
    return Answer(
        options=tuple(row["options"]),
        probs=tuple(row["probabilities"]),
        prediction_set=None if row["set"] is None else tuple(row["set"]),
        cut=any(encoding.cut for encoding in encodings),
        **{name: row[name] for name in _SAME},
    )


def _question(row: Mapping[str, Any], fallback_id: str) -> Question:
    name = row.get("id", fallback_id)
    if not any(key in row for key in ("question", "question_stem")):
        raise UsageError(f"question {name!r} has no text; give it as 'question'")
    if "options" not in row and "choices" not in row:
        raise UsageError(f"question {name!r} has no options; give them as 'options', a list of texts")
    return _in_one_line(from_options if "options" in row else from_choices, row, fallback_id)


def _in_one_line(make: Callable[..., Question], *args: Any) -> Question:
    """A question, or what is wrong with it as an error of the user's."""
    try:
        return make(*args)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(str(error)) from error


def _device(name: str) -> torch.device:
    """A device by its name; a GPU where there is one for ``auto``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no name of a device, or none of its kind on this machine
        raise UsageError(f"device {name} cannot be used here ({in_one_line(error)}); give auto or cpu") from error
    return torch.device(name)


def _module(kept: Kept, device: torch.device) -> MultipleChoiceModule:
    """The run's module with its weights, on a device and ready to predict.

    Raises:
        UsageError: a class that is not of this package, or another base than the run's.
    """
    known = {name: getattr(methods, name) for name in methods.__all__} | {BareBase.__name__: BareBase}
    if kept.module not in known:
        raise UsageError(
            f"the run's module is {kept.module}, which is not of this package; allowed: {', '.join(sorted(known))}"
        )
    module: MultipleChoiceModule = known[kept.module](**kept.arguments)
    module.load_on = device
    module.configure_model()
    base = module.model.base_fingerprint
    if kept.base and base != kept.base:  # an adapter from elsewhere does not say which base was its own
        raise UsageError(
            f"the base model {module.backbone.pretrained} is not the one that the run was made with (fingerprint "
            f"{base}, the run's {kept.base}); restore it"
        )
    if kept.weights:
        module.load_state_dict(kept.weights)
    return module.to(device).eval()
