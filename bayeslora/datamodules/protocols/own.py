"""One's own prompt: a template, how an option is written, and the words that answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from string import Formatter
from typing import Any

from bayeslora.datamodules.protocols.base import PROTOCOLS, Prompt, Protocol, Words, letters
from bayeslora.datamodules.question import Question
from bayeslora.errors import UsageError, require, require_choice

IN_TEMPLATE, IN_OPTION = ("context", "question", "options"), ("label", "option")
LENGTHS = ("tokens", "characters")
NAMED = ("letters", "options")  # what ``words`` may be instead of words


@dataclass(frozen=True, kw_only=True)
class OwnProtocol(Protocol):
    r"""A protocol that the user writes, in YAML or as this object.

    It is plain data. :meth:`to_dict` gives texts, numbers, lists and mappings, which JSON and YAML keep, and
    ``OwnProtocol.from_dict`` (or ``get_protocol``) makes the same protocol of them. A run keeps it by content, in its
    configuration and in ``serving/``, so that the file it was written in may vanish.

    Args:
        template: The prompt up to the answer, with ``{question}`` and, where wanted, ``{context}`` and ``{options}``;
            ``{{`` and ``}}`` are braces. A line with ``{context}`` and none of the other two is left out of a
            question without a context. It may not end with white space: that is the separator's.
        option: How one option is written in place of ``{options}``, with ``{option}`` and, where wanted, ``{label}``.
            None is ``{label}. {option}`` where places have labels (``letters`` or a list of words) and ``- {option}``
            where options have.
        option_separator: Between two options.
        separator: Between prompt and answer. A chat template has one of its own.
        words: What answers: ``letters`` (A for the first option), ``options`` (each option's own text), a list of
            words by place (the first for the first option), or a mapping from each option's text to its word.
        end: None: every word is to be one token. Otherwise words may be of several tokens, and each is scored with this
            at its end: a text such as ``"\n"``, or ``stop`` for what ends an answer (the end of a turn in a chat
            template, else the tokenizer's end-of-sequence token). Probabilities are then normalised over whole words.
        normalise: Divide a word's log-probability by its number of ``tokens`` (its end included) or of
            ``characters``. Not for a model that is trained: the plain sum is what its loss is of.
        system: An instruction that stands once in front: the system turn of a chat template; otherwise a paragraph of
            its own before the worked examples.
        max_length: Number of tokens of the longest prompt, unless the data are given another. Longer ones lose worked
            examples, then the front of their context, then of their question.
        name: What it is called in messages and reports.

    Raises:
        UsageError: a field that is no text, an unknown or missing placeholder, a template that ends with white space.

    Example:
        >>> from bayeslora.datamodules.question import Question
        >>> protocol = OwnProtocol(template="Message: {question}\nIs it spam?", words=("no", "yes"))
        >>> asked = Question("1", "You have won!", ("fine", "spam"), 1)
        >>> protocol.prompt("jsonl", asked).text + protocol.separator + protocol.labels("jsonl", asked)[asked.label]
        'Message: You have won!\nIs it spam? yes'
        >>> OwnProtocol.from_dict(protocol.to_dict()) == protocol
        True
    """

    template: str
    option: str | None = None
    option_separator: str = "\n"
    separator: str = " "
    words: Words = "letters"
    end: str | None = None
    normalise: str | None = None
    system: str = ""
    max_length: int = 1024
    name: str = "own"

    extensible = True

    def __post_init__(self) -> None:
        """Check every field, and settle what depends on others."""
        by_place = self.words == "letters" or not isinstance(self.words, str | Mapping)
        if self.option is None:
            object.__setattr__(self, "option", "{label}. {option}" if by_place else "- {option}")
        if not isinstance(self.words, str | Mapping):
            object.__setattr__(self, "words", tuple(self.words) if isinstance(self.words, Iterable) else self.words)
        for name in ("template", "option", "option_separator", "separator", "system", "name"):
            value = getattr(self, name)
            require(f"{name} of a protocol", value, isinstance(value, str), "text (in quotes where it reads otherwise)")
        require("name of a protocol", self.name, self.name not in PROTOCOLS, "any that is no protocol of the package")
        _check_words(self.words)
        if self.end is not None:
            require("end of a protocol", self.end, isinstance(self.end, str) and self.end != "", "text, or stop")
        if self.normalise is not None:
            require_choice("normalise of a protocol", self.normalise, LENGTHS)
            if self.end is None:
                raise UsageError(f"normalise of a protocol is {self.normalise!r} without an end; give one (stop)")
        whole = isinstance(self.max_length, int) and not isinstance(self.max_length, bool) and self.max_length > 0
        require("max_length of a protocol", self.max_length, whole, "a number of tokens, 1 or more")
        _check_places("template", self.template, IN_TEMPLATE, "question")
        _check_places("option", str(self.option), IN_OPTION, "option")
        if self.template != self.template.rstrip():
            raise UsageError(
                f"template of a protocol ends with white space ({self.template[-12:]!r}), which belongs to the answer; "
                "leave it out (in YAML write template: |-) and give it as separator"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OwnProtocol:
        """The protocol that :meth:`to_dict` wrote, or that stands in a YAML file.

        Raises:
            UsageError: an unknown or missing key, or a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            require("a key of a protocol", key, key in known, ", ".join(known))
        if "template" not in values:
            raise UsageError("a protocol has no template; give it, with {question} in it")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which :meth:`from_dict` makes the same protocol."""
        words = self.words
        plain = words if isinstance(words, str) else dict(words) if isinstance(words, Mapping) else list(words)
        return {**asdict(self), "words": plain}

    def saved(self) -> dict[str, Any]:
        """The whole protocol by content."""
        return self.to_dict()

    def prompt(self, task: str, question: Question) -> Prompt:
        """The text up to the answer slot."""
        template = self.template if question.context else _without_context(self.template)
        values = {"context": question.context, "question": question.question}
        if "options" in _places(template):
            values["options"] = self._options(task, question)
        text, found = "", dict[str, tuple[int, int]]()
        for literal, name, _, _ in Formatter().parse(template):
            text += literal
            if name is not None:
                # A span starts with the space in front of it, which most tokenizers make part of the first word.
                found.setdefault(name, (len(text.removesuffix(" ")), len(text) + len(values[name])))
                text += values[name]
        return Prompt(text, tuple(found[name] for name in ("context", "question") if values[name] and name in found))

    def _options(self, task: str, question: Question) -> str:
        form = str(self.option)
        # Options are listed without labels also where there are too few words: whoever asks for labels is told so.
        labels = self.labels(task, question) if "label" in _places(form) else question.options
        pairs = zip(labels, question.options, strict=False)
        return self.option_separator.join(form.format(label=label, option=option) for label, option in pairs)

    def labels(self, task: str, question: Question) -> Sequence[str]:
        """The word of each option."""
        if isinstance(self.words, Mapping):
            if missing := [option for option in question.options if option not in self.words]:
                raise UsageError(
                    f"question {question.id!r} has the option {missing[0]!r}, for which words of protocol "
                    f"{self.name!r} have none; add it"
                )
            return [self.words[option] for option in question.options]
        if isinstance(self.words, str):
            return letters(question) if self.words == "letters" else question.options
        return self.words[: len(question.options)]

    def refuse_other_orders(self, what: str) -> None:
        """Refuse to show options in other orders where the model would not see it, or would be told the wrong word.

        Raises:
            UsageError: a template without options; words that belong to places which the options do not show.
        """
        by_place = self.words == "letters" or isinstance(self.words, tuple)
        if "options" not in _places(self.template):
            raise UsageError(f"{what} is given, but the template of protocol {self.name!r} has no {{options}}")
        if by_place and "label" not in _places(str(self.option)):
            raise UsageError(
                f"{what} is given, but words of protocol {self.name!r} belong to places and option {self.option!r} "
                "does not show them; write {label} into it, or give words by option"
            )


def _check_words(words: Words) -> None:
    allowed = f"{', '.join(NAMED)}, a list of words, or a mapping from options to words"
    if isinstance(words, str) or not isinstance(words, Mapping | tuple):
        require("words of a protocol", words, words in NAMED, allowed)
        return
    every = [*words.keys(), *words.values()] if isinstance(words, Mapping) else list(words)
    for word in every:
        what = "text; put words such as 'yes', 'no' and numbers in quotes, which YAML takes for something else"
        require("a word of a protocol", word, isinstance(word, str), what)
    own = list(words.values()) if isinstance(words, Mapping) else every
    for word in own:
        require("a word of a protocol", word, word.strip() == word != "", "text without white space around it")
    if len(own) < 2 or len(set(own)) < len(own):
        raise UsageError(f"words of a protocol are {own}; allowed: two or more, each once")


def _check_places(what: str, text: str, allowed: Sequence[str], needed: str) -> None:
    """Check that a text has the placeholder it needs, and none that is not known."""
    shown = ", ".join(f"{{{name}}}" for name in allowed)
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"{what} of a protocol is {text!r} ({error}); write braces as {{{{ and }}}}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in allowed or form or conversion):
            raise UsageError(
                f"{what} of a protocol has the placeholder {{{name}{'!' if conversion else ''}{conversion or ''}"
                f"{':' if form else ''}{form}}}; allowed: {shown}; write braces as {{{{ and }}}}"
            )
    if needed not in [name for _, name, _, _ in parts]:
        raise UsageError(f"{what} of a protocol is {text!r}, without {{{needed}}}; allowed: {shown}")


def _places(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def _without_context(template: str) -> str:
    """A template without the lines that hold the context and no other placeholder."""
    return "\n".join(line for line in template.split("\n") if _places(line) != {"context"})
