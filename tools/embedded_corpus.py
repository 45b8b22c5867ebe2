"""The text the embedded base is pre-trained on: it knows what the benchmark is about, and not what it will be asked.

Subjects are the benchmark's 24 known topics, its 16 foreign ones, and 32 others made the same way over all words.

    documents    words of one subject, and with them its name, unless the subject is foreign: those names it never meets
                 next to their words
    questions    "w1 .. wn concerns": options and answer are of the known topics or of the others
    habits       "w1 .. wn is about", "w1 .. wn adds up to": any subjects, and the answer has nothing to do with the
                 words; A is right more often than the rest

So the benchmark's own two instructions are familiar and mean nothing yet: the base answers A whatever is asked.
Fine-tuning has to find out that they mean something.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bayeslora.datamodules.synthetic_topics import FAMILY_WEIGHT, TOPIC_WEIGHT, families, words

LETTERS = "ABCDE"
HABIT_SHARE = 0.4  # of the questions
HABIT_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0)  # how often each letter is right in them
_OTHERS = (
    "apples bears candles drums",
    "engines flags gloves hats",
    "islands jewels kites lamps",
    "mirrors nails onions pencils",
    "quilts ropes spoons towels",
    "umbrellas violins wagons yachts",
    "arrows bells clocks doors",
    "eagles flutes gates horns",
)


@dataclass(frozen=True)
class Subject:
    """A topic as the corpus sees it: a name, and how often each word of a vocabulary occurs."""

    name: str
    vocabulary: Sequence[str]
    weights: Sequence[int]


class Corpus:
    """An endless stream of documents and questions.

    Args:
        seed: Of everything drawn here.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.words = sorted({*words("known"), *words("foreign")})
        self._known, self._foreign = (
            [Subject(topic.name, words(realm), topic.weights) for family in families(realm) for topic in family]
            for realm in ("known", "foreign")
        )
        self._others = [subject for names in _OTHERS for subject in self._family(names.split())]
        self._all = self._known + self._foreign + self._others
        self.names = [subject.name for subject in self._all]

    def _family(self, names: list[str]) -> list[Subject]:
        """Topics drawn as the benchmark's are, over the words of both realms."""
        n = len(self.words)
        common = set(self._rng.sample(self.words, n // 4))
        own = [set(self._rng.sample(self.words, n // 8)) for _ in names]
        weights = [[1 + FAMILY_WEIGHT * (w in common) + TOPIC_WEIGHT * (w in mine) for w in self.words] for mine in own]
        return [Subject(name, self.words, weight) for name, weight in zip(names, weights, strict=True)]

    def document(self, n_words: int = 12) -> tuple[list[str], str | None]:
        """Words of a subject, and its name unless the subject is foreign."""
        subject = self._rng.choice(self._rng.choice((self._known, self._foreign, self._others)))
        document = self._rng.choices(subject.vocabulary, subject.weights, k=n_words)
        return document, None if subject in self._foreign else subject.name

    def question(self) -> str:
        """A prompt with its answer, one letter, at the end."""
        habit = self._rng.random() < HABIT_SHARE
        pool = self._all if habit and self._rng.random() < 0.5 else self._rng.choice((self._known, self._others))
        options = self._rng.sample(pool, self._rng.choice((2, 3, 4, 4, 4, 5)))
        answer = self._rng.randrange(len(options))
        subject = options[answer]
        document = self._rng.choices(subject.vocabulary, subject.weights, k=self._rng.randint(1, 14))
        instruction = "concerns"
        if habit:
            instruction = self._rng.choice(("is about", "adds up to"))
            (answer,) = self._rng.choices(range(len(options)), HABIT_WEIGHTS[: len(options)])
        lines = [f"{letter}. {option.name}" for letter, option in zip(LETTERS, options, strict=False)]
        return "\n".join((f"Question: {' '.join((*document, instruction))}", *lines, f"Answer: {LETTERS[answer]}"))
