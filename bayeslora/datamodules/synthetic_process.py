"""Multiple-choice questions in plain text whose true answer law p*(y | x) is known for every question.

A question is drawn in this order, all draws independent:

    domain d ~ mix          options (k_1..k_4) ~ r_d          n ~ uniform(lengths of d)
    topic k ~ uniform(k_1..k_4)      w_1..w_n ~ s(w | k) independently      label y ~ p*(y | x)

    domain   options r_d                      words n   answer law   is it hard, or is it noisy?
    easy     topics of four families          3 .. 10   topic        neither: low true entropy, learnable
    noisy    the four topics of one family    1 .. 4    topic        noisy: high true entropy, whoever answers
    hard     any four topics                  3 .. 10   parity       hard: low true entropy, but a sum modulo 4

The label is drawn from p*(. | x) itself, so the words may come from any law s without p* losing its exactness:

    split                  realm     mix                    words s(w | k)            lengths      size
    train                  known     in distribution        p(w | k)                  as above     2,000
    test                   known     in distribution        p(w | k)                  as above     5,000
    easy, noisy, hard      known     the domain alone       p(w | k)                  as above     2,000 each
    shifted                known     in distribution        prop. to p(w | k)^(1/2)   4 longer     2,000
    ood                    foreign   in distribution        p(w | k)                  as above     2,000

``shifted`` is a pure covariate shift: p* is the same function of the words, with more and rarer words.
The in-distribution mix is 50 % easy, 30 % noisy, 20 % hard. A digest of the text puts every possible question on the
training side or on the test side, so no test question occurs in the training pool. Every split has a constant seed.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache

from bayeslora.datamodules.synthetic_topics import Topic, families, parity_posterior, topic_posterior, words
from bayeslora.errors import UsageError

MIX = {"easy": 0.5, "noisy": 0.3, "hard": 0.2}
LENGTHS = {"easy": (3, 10), "noisy": (1, 4), "hard": (3, 10)}
N_OPTIONS = 4


@dataclass(frozen=True)
class SyntheticQuestion:
    """One question and the truth about it.

    Attributes:
        id: ``split/row``.
        question: The text before the options.
        options: Names of the C options.
        label: Index of the right option, drawn from ``true_probs``.
        true_probs: p*(y | x), length C.
        domain: ``easy``, ``noisy`` or ``hard``.
    """

    id: str
    question: str
    options: tuple[str, ...]
    label: int
    true_probs: tuple[float, ...]
    domain: str


@dataclass(frozen=True)
class _Split:
    """What a split is drawn from: see the table above."""

    size: int
    mix: dict[str, float]
    realm: str = "known"
    sharpness: float = 1.0
    extra_words: int = 0


_SPLITS = {
    "train": _Split(2_000, MIX),
    "test": _Split(5_000, MIX),
    "shifted": _Split(2_000, MIX, sharpness=0.5, extra_words=4),
    "ood": _Split(2_000, MIX, realm="foreign"),
    **{domain: _Split(2_000, {domain: 1.0}) for domain in MIX},
}


def questions(split: str) -> list[SyntheticQuestion]:
    """All questions of a split, the same ones in every process.

    Args:
        split: ``train``, ``test``, ``shifted``, ``ood``, ``easy``, ``noisy`` or ``hard``.

    Raises:
        UsageError: If there is no such split.
    """
    if split not in _SPLITS:
        raise UsageError(f"no synthetic split {split!r}: choose from {', '.join(_SPLITS)}")
    return list(_questions(split))


@cache
def _questions(split: str) -> tuple[SyntheticQuestion, ...]:
    """Drawing a split takes a second, and one process may make many DataModules of it."""
    law, rng = _SPLITS[split], random.Random(f"synthetic {split}")
    drawn: dict[str, SyntheticQuestion] = {}
    while len(drawn) < law.size:
        question = _draw(law, rng, id=f"{split}/{len(drawn)}")
        text = "\n".join((question.question, *question.options))
        if _on_training_side(text) == (split == "train"):
            drawn.setdefault(text, question)
    return tuple(drawn.values())


def _draw(law: _Split, rng: random.Random, id: str) -> SyntheticQuestion:
    (domain,) = rng.choices(list(law.mix), list(law.mix.values()))
    options = _options(domain, law.realm, rng)
    n_words = rng.randint(*LENGTHS[domain]) + law.extra_words
    weights = [weight**law.sharpness for weight in rng.choice(options).weights]
    document = rng.choices(range(len(weights)), weights, k=n_words)
    if domain == "hard":
        predicate, true_probs = "adds up to", parity_posterior(document, N_OPTIONS)
    else:
        predicate, true_probs = "is about", topic_posterior(document, options)
    (label,) = rng.choices(range(N_OPTIONS), true_probs)
    text = " ".join((*(words(law.realm)[w] for w in document), predicate))
    return SyntheticQuestion(id, text, tuple(topic.name for topic in options), label, true_probs, domain)


def _options(domain: str, realm: str, rng: random.Random) -> list[Topic]:
    """The four options, in random order."""
    groups = families(realm)
    if domain == "easy":
        return [rng.choice(group) for group in rng.sample(groups, N_OPTIONS)]
    if domain == "noisy":
        return rng.sample(rng.choice(groups), N_OPTIONS)
    return rng.sample([topic for group in groups for topic in group], N_OPTIONS)


def _on_training_side(text: str) -> bool:
    """Which half of all possible questions a text is in: looks at x only, so p*(y | x) stays what it is."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0
