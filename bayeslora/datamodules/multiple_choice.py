"""The DataModule all benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lightning

from bayeslora.datamodules.arguments import check_arguments
from bayeslora.datamodules.encode import Encoded
from bayeslora.datamodules.loader import AnswerLoader
from bayeslora.datamodules.model_side import HEAD, LABEL_TOKEN, ModelSide
from bayeslora.datamodules.position import order_depends_on, position, refuse_changes
from bayeslora.datamodules.prompting import Prompting, allowed_length, common_options
from bayeslora.datamodules.protocols import Protocol, get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import get_benchmark
from bayeslora.datamodules.rows import Rows, ShuffledOptions
from bayeslora.datamodules.sampler import EvalBatches, TrainBatches, permutation
from bayeslora.datamodules.source import Benchmark
from bayeslora.datamodules.splits import (
    CALIBRATION,
    fingerprint,
    full_batches,
    load_parts,
    load_split,
    shared_questions,
)
from bayeslora.datamodules.tokenizer import load_tokenizer
from bayeslora.errors import UsageError
from bayeslora.models.pretrained import EMBEDDED

TRAIN, VALIDATION = "train", "validation"
PARTS = (TRAIN, VALIDATION, CALIBRATION)


class MultipleChoiceDataModule(lightning.LightningDataModule):
    """Questions with options, from a benchmark, under a protocol, as batches.

    The order of training is a pure function of (seed, epoch); epoch and position in it are part of a checkpoint, so
    that a run resumed inside an epoch sees exactly what was left of it.

    Args:
        benchmark: Where the questions come from.
        data_dir: Folder with JSONL files laid out as on the hub; None asks the hub or its local cache.
        protocol: Prompt, splits, option filter, label tokens, truncation and loss support together: a name, or one's
            own prompt and label words as a YAML file (``my.yaml``), its content, or an
            :class:`~bayeslora.datamodules.protocols.own.OwnProtocol`.
        labels: Label budget, training and validation together, a fifth of it validation; None takes the splits whole.
        calibration: Labelled questions that nothing is fitted or chosen on, so that a threshold's promise may rest on
            them: a share of the budget below 1, a number of questions out of it from 1 on, or the name of a split. None
            takes the split ``calibration`` where there is one, else none.
        ood: Names of further datasets to test on, such as ``mmlu:law``.
        batch_size: Questions in a training batch, per process.
        eval_batch_size: Questions in a batch for validation and testing; None takes ``batch_size``.
        max_test: Tests on this many questions of each test set, drawn at random but the same for every seed; None: all.
        max_length: Longest row in tokens; None takes the protocol's, or the tokenizer's where that is smaller.
        seed: Decides the order of the training questions, which of them validate or calibrate, and worked examples;
            the questions of the test sets do not depend on it.
        tokenizer: Name or folder of a tokenizer, or one that is loaded. None takes the one of the model that the data
            meet in a trainer; without a model, ``embedded``, the one in the package.
        revision: Of the tokenizer, on the hub.
        readout: ``label_token`` (causal models: one row a question) or ``head`` (encoders: one row an option). None
            takes the model's; without a model, ``label_token``.
        shuffle_options: Show the options of a training question in another order in each epoch.
        permutations: Number of orders of the options over which a prediction is averaged; 1 is the source's alone.
        shots: Number of training questions shown with their answers in front of each question.
        chat: Put prompts into the tokenizer's chat template.
        num_workers: Worker processes of each loader.

    Attributes:
        members: The members of an ensemble whose training orders are wanted; with more than one, a training batch is
            a list of batches, one for each.

    Example:
        >>> from bayeslora import MultipleChoiceDataModule
        >>> from bayeslora.datamodules.synthetic import Synthetic
        >>> data = MultipleChoiceDataModule(Synthetic(), labels=20)
        >>> data.setup("fit")
        >>> len(data.train_questions)
        16
    """

    def __init__(
        self,
        benchmark: Benchmark,
        data_dir: str | None = None,
        protocol: Any = "default",
        labels: int | None = None,
        calibration: float | str | None = None,
        ood: list[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        max_test: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        tokenizer: Any = None,
        revision: str | None = None,
        readout: str | None = None,
        shuffle_options: bool = False,
        permutations: int = 1,
        shots: int = 0,
        chat: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        # With very few questions a process may be left without any; it then has nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.benchmark, self.data_dir, self.labels, self.calibration = benchmark, data_dir, labels, calibration
        self.protocol: Protocol = get_protocol(protocol)
        self.ood = {name: get_benchmark(name) for name in ood or []}
        self._tested = self._test_sets = [benchmark.name, *self.ood]
        if len(set(self.test_names)) < 1 + len(ood or []):
            raise UsageError(f"ood is {ood}; allowed: each test set once, and not {benchmark.name!r} itself")
        self.batch_size, self.eval_batch_size = batch_size, batch_size if eval_batch_size is None else eval_batch_size
        self.tokenizer_name, self.revision, self.given_readout = tokenizer, revision, readout
        self.model_side: ModelSide | None = None  # once they have met
        self.shuffle_options, self.permutations, self.shots, self.chat = shuffle_options, permutations, shots, chat
        self.requested_length, self.max_test, self.num_workers, self.seed = max_length, max_test, num_workers, seed
        self.members: Sequence[int] = (0,)
        check_arguments(self)
        self._questions: dict[str, list[Question]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._in_use: dict[str, bool] = {}  # the sets of the stages so far, in order
        self._resume: tuple[int, int] | None = None

    def prepare_data(self) -> None:
        """Bring what is not there from the hub into the local cache."""
        if self.data_dir is None:
            for benchmark in (self.benchmark, *self.ood.values()):
                benchmark.download()

    def setup(self, stage: str) -> None:
        """Read the questions a stage needs; what has been read is kept.

        Raises:
            UsageError: nothing to train on, a test set whose answers are not known and which can only be predicted, or
                a model that does not take these data.
        """
        self._meet()
        self.members = self.members if ModelSide.of(self.trainer) is None else (0,)  # an ensemble asks for its own next
        for name in (TRAIN, VALIDATION) if stage in ("fit", "validate") else self.test_names:
            questions = self.questions(name)
            self._in_use[name] = True
            if not questions and name == TRAIN:
                raise UsageError(f"{self.benchmark.name} is a test set alone: there is nothing to train on")
            unknown = sum(not question.labelled for question in questions)
            if unknown and stage == "test":
                raise UsageError(
                    f"{unknown} of {len(questions)} questions of {name} have no label: there is nothing to test on; "
                    "`predict` answers questions without labels"
                )
            if self.model_side is not None:
                self.model_side.check_rows(name, self.encoded(name))

    def _meet(self) -> None:
        """Take from the model what was not given, and check what was."""
        model = ModelSide.of(self.trainer)
        if model is None or model == self.model_side:
            return
        model.check_readout(self.given_readout)
        model.check_words(self.protocol)
        if self.tokenizer_name not in (None, model.pretrained):
            model.check_tokenizer(self.tokenizer)
        self.model_side = model
        self._encoded = {}
        for name in ("max_length", *(["tokenizer"] if self.tokenizer_name is None else [])):
            self.__dict__.pop(name, None)
        check_arguments(self)
        if model.readout == HEAD:
            model.check_classes(self.num_labels, self.benchmark, self.ood)

    # ---- questions

    @property
    def test_names(self) -> list[str]:
        """The test sets in the order of their loaders, in distribution first, then ``ood`` as given."""
        return self._tested

    def test_on_validation(self) -> None:
        """Let a test predict the validation questions, and no test set."""
        self._tested = [VALIDATION]

    def questions(self, name: str) -> list[Question]:
        """The questions of ``train``, ``validation``, ``calibration`` or a test set.

        ``example_id`` in a batch is a row of this list.
        """
        if name not in self._questions:
            benchmark = self._benchmark(name)
            if name in PARTS:
                found = load_parts(
                    benchmark, self.protocol, self.data_dir, self.labels, self.seed, calibration=self.calibration
                )
                self._questions |= {TRAIN: found.train, VALIDATION: self._evaluated(found.validation)}
                self._questions[CALIBRATION] = found.calibration
            else:
                split = self.protocol.splits(benchmark).test
                whole = load_split(benchmark, split, self.protocol, self.data_dir)
                self._questions[name] = self._evaluated(self._drawn(whole))
        return self._questions[name]

    def _drawn(self, questions: list[Question]) -> list[Question]:
        """At most ``max_test`` of a test set's questions, in their order."""
        return [questions[row] for row in sorted(permutation(len(questions), "max_test")[: self.max_test])]

    def _evaluated(self, questions: list[Question]) -> list[Question]:
        """The questions the protocol evaluates: all, or as many as fill batches."""
        return full_batches(questions, self.eval_batch_size, self.protocol) if self.protocol.drop_last else questions

    def _benchmark(self, name: str) -> Benchmark:
        here = [*PARTS, *self._test_sets]
        if name not in here:
            raise UsageError(f"dataset is {name!r}; here are {', '.join(here)}")
        return self.ood.get(name, self.benchmark)

    @property
    def train_questions(self) -> list[Question]:
        """What is trained on."""
        return self.questions(TRAIN)

    @property
    def val_questions(self) -> list[Question]:
        """What is validated on."""
        return self.questions(VALIDATION)

    @property
    def calibration_questions(self) -> list[Question]:
        """What a decision rule is fitted on; none where no part was set aside."""
        return self.questions(CALIBRATION)

    @property
    def num_labels(self) -> int | None:
        """Number of classes where sentences or pairs of them are classified, else None."""
        return len(self.questions(self.benchmark.name)[0].options) if self.benchmark.pairs else None

    @property
    def support(self) -> str:
        """What the protocol's training loss normalises over."""
        return self.protocol.support

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over the benchmark's training, validation, calibration and test questions as they are used."""
        apart = [CALIBRATION] if self.calibration_questions else []
        return fingerprint(self.questions(name) for name in (TRAIN, VALIDATION, *apart, self.benchmark.name))

    def report(self) -> dict[str, Any]:
        """Counts, prompts that lost tokens (in the sets so far), training questions that are elsewhere too."""
        sets = {name: self.questions(name) for name in (*PARTS, *self.test_names)}
        return {
            "protocol": self.protocol.name,
            "n_train": len(sets[TRAIN]),
            "n_val": len(sets[VALIDATION]),
            "n_calibration": len(sets[CALIBRATION]),
            "n_test": {name: len(sets[name]) for name in self.test_names},
            "left_out_of_test": {name: self._left_out(name) for name in self.test_names},
            "cut": {name: sum(item.cut for item in self.encoded(name)) for name in self._in_use},
            "in_train_and_test": shared_questions(sets[TRAIN], sets[self.benchmark.name]),
            "in_train_and_calibration": shared_questions(sets[TRAIN], sets[CALIBRATION]),
        }

    def _left_out(self, name: str) -> int:
        """How many published test questions the protocol does not use."""
        benchmark, used = self._benchmark(name), len(self.questions(name))
        return benchmark.sizes.get(self.protocol.splits(benchmark).test, used) - used

    # ---- tokens

    @property
    def readout(self) -> str:
        """How the model answers, as given, or as the model that the data have met does."""
        return self.given_readout or (LABEL_TOKEN if self.model_side is None else self.model_side.readout)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that was given, or the model's."""
        if self.tokenizer_name is None and self.model_side is not None:
            return load_tokenizer(self.model_side.pretrained, self.model_side.revision)
        return load_tokenizer(self.tokenizer_name or EMBEDDED, self.revision)

    @cached_property
    def max_length(self) -> int:
        """Longest row in tokens, as asked for, or what protocol, tokenizer and model's positions allow."""
        if self.requested_length is not None:
            return self.requested_length
        positions = None if self.model_side is None else self.model_side.limits.positions
        return allowed_length(self.protocol, self.tokenizer, positions)

    def encoded(self, name: str) -> list[Encoded]:
        """The questions of a set as tokens, their options in the source's order."""
        if name not in self._encoded:
            self._encoded[name] = self._encoder(name).encode(self.questions(name))
        return self._encoded[name]

    def _encoder(self, name: str) -> Any:
        return self.prompting(name).encoder(self.tokenizer)

    def prompting(self, name: str) -> Prompting:
        """How the questions of a set are asked: all that makes their tokens but the questions themselves."""
        benchmark = self._benchmark(name)
        tokenizer, revision = self.tokenizer_name or EMBEDDED, self.revision
        if self.tokenizer_name is None and self.model_side is not None:
            tokenizer, revision = self.model_side.pretrained, self.model_side.revision
        # One example more than are shown, since a training question is not shown in front of itself.
        chosen = permutation(len(self.train_questions), self.seed, "examples")[: self.shots + 1] if self.shots else []
        return Prompting(
            task=benchmark.task,
            protocol=self.protocol.saved(),
            tokenizer=tokenizer if isinstance(tokenizer, str) else str(tokenizer.name_or_path),
            revision=revision,
            readout=self.readout,
            max_length=self.max_length,
            pairs=benchmark.pairs,
            chat=self.chat,
            shots=self.shots,
            examples=tuple(self.train_questions[row] for row in chosen),
            permutations=self.permutations,
            options=common_options(self._questions.get(name, [])),
        )

    # ---- loaders

    def train_dataloader(self) -> AnswerLoader | list[AnswerLoader]:
        """Training batches; the first pass after a checkpoint was loaded starts at its position."""
        rows = Rows([[item] for item in self.encoded(TRAIN)])
        if self.shuffle_options:
            rows = ShuffledOptions(rows.encoded, self.train_questions, self._encoder(TRAIN), self.seed)
        resume, self._resume = self._resume, None
        loaders = [self._loader(TRAIN, rows, self._train_batches(rows, member), resume) for member in self.members]
        return loaders if len(loaders) > 1 else loaders[0]

    def train_eval_dataloader(self) -> AnswerLoader:
        """The training questions once each, as for an evaluation: for curvature, statistics and the like."""
        return self._eval_loader(TRAIN)

    def val_dataloader(self) -> AnswerLoader:
        """Validation batches."""
        return self._eval_loader(VALIDATION)

    def val_as_tested_dataloader(self) -> AnswerLoader:
        """Validation batches in as many orders of the options as a test set's, as what is fitted behind needs them."""
        return self._eval_loader(VALIDATION, self.permutations)

    def calibration_dataloader(self) -> AnswerLoader:
        """Batches of the calibration part, in as many orders of the options as a test set's."""
        return self._eval_loader(CALIBRATION, self.permutations)

    def test_dataloader(self) -> list[AnswerLoader]:
        """One loader for each of ``test_names``."""
        return [self._eval_loader(name, self.permutations) for name in self.test_names]

    def predict_dataloader(self) -> list[AnswerLoader]:
        """One loader for each of ``test_names``."""
        return self.test_dataloader()

    def _train_batches(self, rows: Rows, member: int) -> TrainBatches:
        how, drop = self.protocol.order, self.protocol.drop_last
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            how = "sequential"  # the same questions in every epoch
        return TrainBatches(rows.lengths, self.batch_size, self.seed, how, drop, *self._ranks(), member=member)

    def _eval_loader(self, name: str, permutations: int = 1) -> AnswerLoader:
        if permutations == 1:
            rows = Rows([[item] for item in self.encoded(name)])
        else:
            rows = self.prompting(name).rows(self.questions(name), self.tokenizer)
        size = max(1, self.eval_batch_size // permutations)
        return self._loader(name, rows, EvalBatches(rows.lengths, size, self.protocol.order, *self._ranks()))

    def _loader(
        self, name: str, rows: Rows, sampler: TrainBatches | EvalBatches, resume: tuple[int, int] | None = None
    ) -> AnswerLoader:
        side = self.prompting(name).padding_side(self.tokenizer)
        return AnswerLoader(rows, sampler, name, side, self.tokenizer.pad_token_id or 0, self.num_workers, resume)

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of batches taken in it, and what the order depends on."""
        if self.trainer is None:
            return {}
        epoch, taken = position(self.trainer)
        return {"epoch": epoch, "position": taken, "order": order_depends_on(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training where a checkpoint stopped; other stages need nothing of it.

        Raises:
            UsageError: training data or order are not those of the checkpoint.
        """
        if self.trainer is not None and self.trainer.state.fn == "fit" and state_dict:
            refuse_changes(state_dict["order"], order_depends_on(self))
            self._resume = (state_dict["epoch"], state_dict["position"])
