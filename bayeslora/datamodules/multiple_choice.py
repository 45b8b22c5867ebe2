"""The DataModule all benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lightning

from bayeslora.datamodules.encode import Encoded, LabelTokenEncoder
from bayeslora.datamodules.head import HeadEncoder
from bayeslora.datamodules.loader import AnswerLoader, Rows
from bayeslora.datamodules.protocols import Protocol, get_protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.registry import get_benchmark
from bayeslora.datamodules.sampler import EvalBatches, TrainBatches
from bayeslora.datamodules.source import Benchmark
from bayeslora.datamodules.splits import fingerprint, load_split, load_training, shared_questions
from bayeslora.datamodules.tokenizer import load_tokenizer
from bayeslora.errors import UsageError

READOUTS = ("label_token", "head")
TRAIN, VALIDATION = "train", "validation"


class MultipleChoiceDataModule(lightning.LightningDataModule):
    """Questions with options, from a benchmark, under a protocol, as batches.

    The order of training is a pure function of (seed, epoch); epoch and position in it are part of a checkpoint, so
    that a run resumed inside an epoch sees exactly what was left of it.

    Args:
        benchmark: Where the questions come from.
        data_dir: Folder with JSONL files laid out as on the hub; None asks the hub or its local cache.
        protocol: Prompt, splits, option filter, label tokens, truncation and loss support together.
        labels: Label budget, training and validation together, a fifth of it validation; None takes the splits whole.
        ood: Names of further datasets to test on, such as ``mmlu:law``.
        batch_size: Questions in a training batch, per process.
        eval_batch_size: Questions in a batch for validation and testing; None takes ``batch_size``.
        max_length: Longest row in tokens; None takes the protocol's, or the tokenizer's where that is smaller.
        seed: Of order, splits and draws. The test set does not depend on it.
        tokenizer: Name or folder of a tokenizer, or one that is loaded; ``embedded`` is the one in the package.
        revision: Of the tokenizer, on the hub.
        readout: ``label_token`` (causal models: one row a question) or ``head`` (encoders: one row an option).
        num_workers: Worker processes of each loader.
    """

    # A rank may be left without test questions; it then has nothing to do.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        benchmark: Benchmark,
        data_dir: str | None = None,
        protocol: str = "default",
        labels: int | None = None,
        ood: list[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        tokenizer: Any = "embedded",
        revision: str | None = None,
        readout: str = "label_token",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if readout not in READOUTS:
            raise UsageError(f"readout is {readout!r}; allowed: {', '.join(READOUTS)}")
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; allowed: 1 or more")
        self.benchmark, self.data_dir, self.labels, self.seed = benchmark, data_dir, labels, seed
        self.protocol: Protocol = get_protocol(protocol)
        self.protocol.check_task(benchmark.task)
        self.ood = {name: get_benchmark(name) for name in ood or []}
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.tokenizer_name, self.revision, self.readout = tokenizer, revision, readout
        self.requested_length, self.num_workers = max_length, num_workers
        self._questions: dict[str, list[Question]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._resume: tuple[int, int] | None = None

    def prepare_data(self) -> None:
        """Bring what is not there from the hub into the local cache."""
        if self.data_dir is None:
            for benchmark in (self.benchmark, *self.ood.values()):
                benchmark.download()

    def setup(self, stage: str) -> None:
        """Read the questions a stage needs; what has been read is kept."""
        for name in (TRAIN, VALIDATION) if stage in ("fit", "validate") else self.test_names:
            self.questions(name)

    # ---- questions

    @property
    def test_names(self) -> list[str]:
        """The test sets in the order of their loaders: in distribution first, then ``ood`` as given."""
        return [self.benchmark.name, *self.ood]

    def questions(self, name: str) -> list[Question]:
        """The questions of ``train``, ``validation`` or a test set; ``example_id`` in a batch is a row of this list."""
        if name not in self._questions:
            if name in (TRAIN, VALIDATION):
                both = load_training(self.benchmark, self.protocol, self.data_dir, self.labels, self.seed)
                self._questions[TRAIN], self._questions[VALIDATION] = both
            else:
                benchmark = self._test_benchmark(name)
                split = self.protocol.splits(benchmark).test
                self._questions[name] = load_split(benchmark, split, self.protocol, self.data_dir)
        return self._questions[name]

    def _test_benchmark(self, name: str) -> Benchmark:
        if name not in self.test_names:
            raise UsageError(f"dataset is {name!r}; here are {', '.join([TRAIN, VALIDATION, *self.test_names])}")
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
    def num_options(self) -> int:
        """The most options any question has."""
        return max(len(q.options) for name in (TRAIN, VALIDATION, *self.test_names) for q in self.questions(name))

    @property
    def num_labels(self) -> int | None:
        """Number of classes where sentences or pairs of them are classified, else None."""
        return len(self.train_questions[0].options) if self.benchmark.pairs else None

    @property
    def support(self) -> str:
        """What the protocol's training loss normalises over."""
        return self.protocol.support

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over the benchmark's training, validation and test questions as they are used."""
        return fingerprint(self.questions(name) for name in (TRAIN, VALIDATION, self.benchmark.name))

    def report(self) -> dict[str, Any]:
        """Counts: questions of each set, prompts that were cut, questions that stand in train and in test."""
        names = [TRAIN, VALIDATION, *self.test_names]
        shared = shared_questions(self.train_questions, self.questions(self.benchmark.name))
        return {
            "n_train": len(self.train_questions),
            "n_val": len(self.val_questions),
            "n_test": {name: len(self.questions(name)) for name in self.test_names},
            "cut": {name: sum(encoded.cut for encoded in self.encoded(name)) for name in names},
            "in_train_and_test": shared,
        }

    # ---- tokens

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return load_tokenizer(self.tokenizer_name, self.revision)

    @cached_property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.requested_length or min(self.protocol.max_length, self.tokenizer.model_max_length)

    def _encoder(self, name: str) -> LabelTokenEncoder | HeadEncoder:
        benchmark = self.benchmark if name in (TRAIN, VALIDATION) else self._test_benchmark(name)
        if self.readout == "head":
            return HeadEncoder(self.tokenizer, self.max_length, benchmark.pairs)
        return LabelTokenEncoder(self.protocol, benchmark.task, self.tokenizer, self.max_length)

    def encoded(self, name: str) -> list[Encoded]:
        """The questions of a set as tokens."""
        if name not in self._encoded:
            self._encoded[name] = self._encoder(name).encode(self.questions(name))
        return self._encoded[name]

    # ---- loaders

    def train_dataloader(self) -> AnswerLoader:
        """Training batches; the first pass after a checkpoint was loaded starts at its position."""
        encoded = self.encoded(TRAIN)
        rank, world = self._ranks()
        sampler = TrainBatches(
            _lengths(encoded), self.batch_size, self.seed, self.protocol.order, self.protocol.drop_last, rank, world
        )
        resume, self._resume = self._resume, None
        return self._loader(TRAIN, encoded, sampler, resume)

    def train_eval_dataloader(self) -> AnswerLoader:
        """The training questions once each in the order of an evaluation, for curvature and the like."""
        return self._eval_loader(TRAIN)

    def val_dataloader(self) -> AnswerLoader:
        """Validation batches."""
        return self._eval_loader(VALIDATION)

    def test_dataloader(self) -> list[AnswerLoader]:
        """One loader for each of ``test_names``."""
        return [self._eval_loader(name) for name in self.test_names]

    def predict_dataloader(self) -> list[AnswerLoader]:
        """One loader for each of ``test_names``."""
        return self.test_dataloader()

    def _eval_loader(self, name: str) -> AnswerLoader:
        encoded = self.encoded(name)
        rank, world = self._ranks()
        how, drop = self.protocol.order, self.protocol.drop_last
        return self._loader(name, encoded, EvalBatches(_lengths(encoded), self.eval_batch_size, how, drop, rank, world))

    def _loader(
        self,
        name: str,
        encoded: Sequence[Encoded],
        sampler: TrainBatches | EvalBatches,
        resume: tuple[int, int] | None = None,
    ) -> AnswerLoader:
        rows = Rows(encoded)
        side = "left" if self.readout == "label_token" else self.tokenizer.padding_side
        pad_id = self.tokenizer.pad_token_id or 0
        return AnswerLoader(rows, sampler, name, side, pad_id, self.num_workers, resume)

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of batches taken in it, and what the order depends on."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        batches: Any = loop.epoch_loop.batch_progress.current
        epoch, taken = max(0, epochs.started - 1), batches.processed
        if taken >= loop.max_batches:
            epoch, taken = epoch + 1, 0
        return {"epoch": epoch, "position": taken, "order": self._order_depends_on()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue training where a checkpoint stopped; other stages need nothing of it.

        Raises:
            UsageError: training data or order are not those of the checkpoint.
        """
        if self.trainer is None or self.trainer.state.fn != "fit" or not state_dict:
            return
        for name, value in self._order_depends_on().items():
            if state_dict["order"][name] != value:
                raise UsageError(
                    f"cannot resume: {name} is {value!r} and was {state_dict['order'][name]!r} in the checkpoint; give "
                    "the same data arguments, or start a new run"
                )
        self._resume = (state_dict["epoch"], state_dict["position"])

    def _order_depends_on(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol.name,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "processes": self._ranks()[1],
            "training questions": len(self.train_questions),
            "fingerprint": self.fingerprint,
        }


def _lengths(encoded: Sequence[Encoded]) -> list[int]:
    return [item.length for item in encoded]
