"""The world of the synthetic benchmark: its words, its topics, and the exact answer law of a question.

A topic k is a law over the V = 160 words of its realm,

    p(w | k) = g_k(w) / sum_v g_k(v),    g_k(w) = 1 + a [w in F_k] + b [w in T_k],

where the 40 words F_k are common to the four topics of a family and the 20 words T_k are the topic's own. Both sets are
drawn at random from the realm, so topics overlap. The *known* realm has 6 families (24 topics); the *foreign* realm has
4 other families (16 topics) over 160 words of which 80 are shared with the known one. The words are made up: what they
go with can be learnt from labels only, by a tiny model and a large one alike.

A question shows n words x = (w_1..w_n) and C = 4 options (k_1..k_C). Its answer law is exact, and there are two kinds:

    topic:   p*(y | x) = prod_i p(w_i | k_y) / sum_c prod_i p(w_i | k_c)          (Bayes' rule, uniform over options)
    parity:  p*(y | x) = (1 - e) [y = sum_i index(w_i) mod C] + e / C             (every word matters, order does not)

Everything is integer weights and the standard library's generator, so the same questions come out everywhere.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

FAMILY_WEIGHT = 12  # a: how much more often a family's words occur than the rest
TOPIC_WEIGHT = 16  # b: likewise for a topic's own words
PARITY_NOISE = 0.04  # e: chance that a parity question's answer is drawn at random

_SEED = 20_240
_FAMILY_WORDS, _TOPIC_WORDS = 40, 20
_ONSETS, _VOWELS, _CODAS = "bdfgklmn", "aeiou", ("ra", "sho", "ti", "ve", "zum", "py")
_NAMES = {
    "known": (
        ("music", "painting", "theatre", "poetry"),
        ("law", "trade", "banking", "taxes"),
        ("weather", "rivers", "forests", "oceans"),
        ("cooking", "baking", "farming", "fishing"),
        ("sailing", "railways", "aviation", "cycling"),
        ("physics", "geometry", "chemistry", "logic"),
    ),
    "foreign": (
        ("medicine", "anatomy", "surgery", "nursing"),
        ("archery", "boxing", "tennis", "chess"),
        ("history", "heraldry", "genealogy", "archives"),
        ("mining", "masonry", "plumbing", "welding"),
    ),
}  # fmt: skip


@cache
def words(realm: str) -> tuple[str, ...]:
    """The 160 words of the realm ``known`` or ``foreign``; the two share 80."""
    every = [onset + vowel + coda for onset in _ONSETS for vowel in _VOWELS for coda in _CODAS]
    random.Random(_SEED).shuffle(every)
    return tuple(every[:160] if realm == "known" else every[80:])


@dataclass(frozen=True)
class Topic:
    """One topic: its name and its law over words.

    Attributes:
        name: What an option says.
        weights: g_k(w) for every word of the realm, in the order of :func:`words`.
        log_probs: log p(w | k) in nats, likewise.
        own_words: T_k, as indices into :func:`words`.
    """

    name: str
    weights: tuple[int, ...]
    log_probs: tuple[float, ...]
    own_words: frozenset[int]


@cache
def families(realm: str) -> tuple[tuple[Topic, ...], ...]:
    """The topics of a realm, four to a family."""
    rng = random.Random(f"{_SEED} {realm}")
    return tuple(_family(names, len(words(realm)), rng) for names in _NAMES[realm])


def _family(names: tuple[str, ...], n_words: int, rng: random.Random) -> tuple[Topic, ...]:
    common = set(rng.sample(range(n_words), _FAMILY_WORDS))
    topics = []
    for name in names:
        own = frozenset(rng.sample(range(n_words), _TOPIC_WORDS))
        weights = tuple(1 + FAMILY_WEIGHT * (w in common) + TOPIC_WEIGHT * (w in own) for w in range(n_words))
        topics.append(Topic(name, weights, tuple(math.log(weight / sum(weights)) for weight in weights), own))
    return tuple(topics)


def topic_posterior(document: list[int], options: list[Topic]) -> tuple[float, ...]:
    """p*(y | x) of a topic question ``[C]``: Bayes' rule over the options, each as likely as the next beforehand.

    Args:
        document: The words, as indices into the vocabulary.
        options: The topics that are offered.
    """
    scores = [sum(topic.log_probs[w] for w in document) for topic in options]
    masses = [math.exp(score - max(scores)) for score in scores]
    return tuple(mass / sum(masses) for mass in masses)


def parity_posterior(document: list[int], n_options: int) -> tuple[float, ...]:
    """p*(y | x) of a parity question ``[C]``: the sum of the words' indices modulo C, but for a little noise.

    Args:
        document: The words, as indices into the vocabulary.
        n_options: Number C of options.
    """
    answer = sum(document) % n_options
    return tuple((1 - PARITY_NOISE) * (y == answer) + PARITY_NOISE / n_options for y in range(n_options))
