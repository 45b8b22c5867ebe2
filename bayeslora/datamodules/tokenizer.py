"""The tokenizer of a backbone, and the tokens of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bayeslora.errors import UsageError
from bayeslora.models.pretrained import cannot_load, resolve_pretrained


def load_tokenizer(tokenizer: Any, revision: str | None = None) -> Any:
    """A Hugging Face tokenizer from its name or folder; one that is loaded already is taken as it is.

    Args:
        tokenizer: A tokenizer, or the name or folder of one.
        revision: Branch, tag or commit on the hub; None takes the newest.

    Raises:
        UsageError: no such tokenizer.
    """
    if not isinstance(tokenizer, str):
        return tokenizer
    from transformers import AutoTokenizer

    name = resolve_pretrained(tokenizer)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        raise cannot_load("tokenizer", name, error) from error


def token_ids(tokenizer: Any, texts: Sequence[str], control: bool = False) -> list[list[int]]:
    """Token ids of texts, without any special token in front or behind.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: The texts.
        control: Whether a control token that is written out in a text (``</s>``) is one, as a chat template means it;
            otherwise it is text like any other.
    """
    if not texts:
        return []
    return tokenizer(list(texts), **as_written(control))["input_ids"]


def as_written(control: bool) -> dict[str, bool]:
    """Options of a tokenizer that take a text as it is written, control tokens as ``control`` says."""
    return {"add_special_tokens": False, "verbose": False, "split_special_tokens": not control}


def control_token(tokenizer: Any, text: str) -> str | None:
    """The first control token of a tokenizer that is written out in a text.

    Args:
        tokenizer: A tokenizer, or the name or folder of one.
        text: The text that may hold a control token.
    """
    return next((token for token in tokenizer.all_special_tokens if token in text), None)


def leading_specials(tokenizer: Any) -> list[int]:
    """The special tokens the tokenizer puts in front of a text (a BOS, or nothing)."""
    body = token_ids(tokenizer, ["a"])[0]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(body) + 1):
        if whole[start : start + len(body)] == body:
            return whole[:start]
    return []


class LabelTokens:
    """Finds the token of each label and remembers it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        rule: ``context``, ``first`` or ``last``, see :class:`Protocol`.
        separator: Between prompt and label.
        control: See :func:`token_ids`.
    """

    def __init__(self, tokenizer: Any, rule: str, separator: str, control: bool = False) -> None:
        self.tokenizer, self.rule, self.separator, self.control = tokenizer, rule, separator, control
        self.known: dict[str, int] = {}

    def find(self, labels: Sequence[str], prompt: str) -> list[int]:
        """One token for each label, all distinct.

        Args:
            labels: The labels, as text.
            prompt: The text that the label follows, which decides how the label is cut into tokens.

        Raises:
            UsageError: a label that is not one token, or two labels that share theirs.
        """
        for label in labels:
            if label not in self.known:
                self.known[label] = self._find(label, prompt)
        ids = [self.known[label] for label in labels]
        if len(set(ids)) < len(ids):
            shown = ", ".join(f"{label!r} became {self._show([i])}" for label, i in zip(labels, ids, strict=True))
            raise UsageError(f"labels must be distinct tokens, but {shown}; use another protocol or tokenizer")
        return ids

    def check(self, prompts: Sequence[str], bodies: Sequence[list[int]], labels: Sequence[str]) -> None:
        """Check that each prompt, followed by one of its labels, is its own tokens and then that label's token.

        Args:
            prompts: Prompts as text.
            bodies: Their tokens.
            labels: One label for each.

        Raises:
            UsageError: the prompt and what its label became.
        """
        if self.rule != "context":
            return
        followed = self._ids([p + self.separator + x for p, x in zip(prompts, labels, strict=True)])
        for prompt, body, whole, label in zip(prompts, bodies, followed, labels, strict=True):
            if whole != [*body, self.known[label]]:
                self._refuse(label, body, whole, prompt)

    def _find(self, label: str, prompt: str) -> int:
        if self.rule != "context":
            pieces = self._ids([label])[0]
            return pieces[0 if self.rule == "first" else -1]
        body, whole = self._ids([prompt, prompt + self.separator + label])
        if whole[:-1] != body:
            self._refuse(label, body, whole, prompt)
        return whole[-1]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return token_ids(self.tokenizer, texts, self.control)

    def _refuse(self, label: str, body: list[int], whole: list[int], prompt: str) -> None:
        same = next(
            (i for i, (a, b) in enumerate(zip(body, whole, strict=False)) if a != b), min(len(body), len(whole))
        )
        after = (prompt + self.separator)[-12:]
        raise UsageError(
            f"label {label!r} after {after!r} became {self._show(whole[same:])}; it must be one token, the same behind "
            "every prompt, and leave the prompt's own tokens as they are; use another tokenizer, or a protocol of your "
            "own with an end (end: stop), which takes words of several tokens"
        )

    def _show(self, ids: Sequence[int]) -> str:
        return " + ".join(repr(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))) or "no token"
