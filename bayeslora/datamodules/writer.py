"""Prompts as they are sent: on their own, behind worked examples, or in a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from bayeslora.datamodules.protocols import Prompt, Protocol
from bayeslora.datamodules.question import Question
from bayeslora.datamodules.tokenizer import control_token
from bayeslora.errors import UsageError

Turn = dict[str, str]
DATE = "26 Jul 2024"  # for templates that would otherwise write today's into every prompt


class PromptWriter:
    """A protocol's prompts behind worked examples.

    Args:
        protocol: Writes the prompts.
        task: The benchmark's name among the protocol's tasks.
        examples: Questions to show with their answers; of these, the first ``shots`` other than the one that is asked,
            in whatever order of its options.
        shots: How many examples to show.

    Attributes:
        separator: What stands between a prompt and its label.
        bare: Whether the tokenizer is still to put its own special tokens in front.
        stop: What ends an answer, as text; None where it is the tokenizer's end-of-sequence token.
    """

    bare = True
    stop: str | None = None

    def __init__(self, protocol: Protocol, task: str, examples: Sequence[Question] = (), shots: int = 0) -> None:
        self.protocol, self.task, self.examples, self.shots = protocol, task, examples, shots
        self.separator = protocol.separator

    def write(self, question: Question, shots: int | None = None) -> Prompt:
        """The text up to the answer slot, with ``shots`` examples (all by default).

        Args:
            question: The question.
            shots: How many worked examples stand in front; None for all there are.
        """
        body = self.protocol.prompt(self.task, question)
        worked = f"{self.protocol.system}\n\n" if self.protocol.system else ""
        worked += "".join(f"{asked}{self.separator}{label}\n\n" for asked, label in self._worked(question, shots))
        return body.moved_into(worked + body.text, len(worked))

    def _worked(self, question: Question, shots: int | None) -> list[tuple[str, str]]:
        """Prompt and label of each example."""
        own = question.in_any_order
        others = [example for example in self.examples if example.in_any_order != own]
        chosen = others[: self.shots if shots is None else shots]
        labels = [self.protocol.labels(self.task, example)[example.label] for example in chosen]
        return [(self.protocol.prompt(self.task, e).text, label) for e, label in zip(chosen, labels, strict=True)]


class ChatWriter(PromptWriter):
    """A protocol's prompts as a user's turns, the labels as the assistant's, in the tokenizer's own chat template.

    The template is asked for the whole exchange with two different answers; what they share is the prompt. So
    whatever the template puts in front of an answer (an empty thought, a space) stands there as in training.

    Args:
        protocol: Writes the prompts.
        task: The benchmark's name among the protocol's tasks.
        examples: See :class:`PromptWriter`.
        shots: How many examples to show, each as an exchange of its own.
        tokenizer: A Hugging Face tokenizer.

    Raises:
        UsageError: the tokenizer has no chat template, or one that has no place for the protocol's system instruction.
    """

    bare = False

    def __init__(self, protocol: Protocol, task: str, examples: Sequence[Question], shots: int, tokenizer: Any) -> None:
        super().__init__(protocol, task, examples, shots)
        if not tokenizer.chat_template:
            name = tokenizer.name_or_path
            raise UsageError(f"chat is true, but the tokenizer {name!r} has no chat template; set chat to false")
        self.tokenizer = tokenizer
        self.system = [{"role": "system", "content": protocol.system}] if protocol.system else []
        probe = self._until_answer([_user("?")])
        if protocol.system.strip() not in probe:
            raise UsageError(
                f"the chat template of {tokenizer.name_or_path!r} leaves the protocol's system instruction out; write "
                "it into the template of the protocol"
            )
        self.separator = probe[len(probe.rstrip(" ")) :]
        self.stop = self._ending(len(probe))

    def write(self, question: Question, shots: int | None = None) -> Prompt:
        """The text up to the assistant's answer."""
        body = self.protocol.prompt(self.task, question)
        worked = self._worked(question, shots)
        for text in (body.text, *(asked for asked, _ in worked)):
            if found := control_token(self.tokenizer, text):
                raise UsageError(
                    f"question {question.id!r}, or an example in front of it, holds the control token {found!r}, which "
                    "cannot be told from those of the chat template; take it out, or set chat to false"
                )
        turns = [turn for asked, label in worked for turn in (_user(asked), _assistant(label))]
        text = self._until_answer([*turns, _user(body.text)]).removesuffix(self.separator)
        return body.moved_into(text, text.rfind(body.text))

    def _ending(self, start: int) -> str:
        """What ends an answer that stands at ``start``: up to the first control token, or all that follows."""
        ending = self._rendered([_user("?"), _assistant("A")])[start + 1 :]
        ends = [place + len(token) for token in self.tokenizer.all_special_tokens if (place := ending.find(token)) >= 0]
        return ending[: min(ends, default=len(ending))]

    def _until_answer(self, turns: list[Turn]) -> str:
        one, other = (self._rendered([*turns, _assistant(x)]) for x in ("A", "B"))
        return one[: next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)]

    def _rendered(self, turns: list[Turn]) -> str:
        """The system turn and some others as the template writes them."""
        turns = [*self.system, *turns]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, date_string=DATE))
        except TemplateError as error:
            raise UsageError(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses {', '.join(t['role'] for t in turns)} "
                f"({error}); where it has no system turn, write the instruction into the protocol's template"
            ) from error


def _user(text: str) -> Turn:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}
