"""The synthetic benchmark against an independent reading of its definition."""

import hashlib
import math
import subprocess
import sys
from collections import Counter
from functools import cache
from statistics import fmean

import pytest

from bayeslora.datamodules import synthetic_process
from bayeslora.datamodules.synthetic_process import SyntheticQuestion
from bayeslora.datamodules.synthetic_topics import families, words
from bayeslora.errors import UsageError

SPLITS = ("train", "test", "shifted", "ood", "easy", "noisy", "hard")


@cache
def questions(split: str) -> list[SyntheticQuestion]:
    return synthetic_process.questions(split)


def fingerprint() -> str:
    """A digest of every split: text, options, labels and true probabilities to nine digits."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for q in questions(split):
            digest.update(repr((q.id, q.question, q.options, q.label, [round(p, 9) for p in q.true_probs])).encode())
    return digest.hexdigest()


def bayes_rule(question: SyntheticQuestion) -> list[float]:
    """p*(y | x) from the text alone: products of probabilities, where the package sums logarithms."""
    if question.question.endswith("adds up to"):
        document = question.question.split()[:-3]
        realm = "known" if set(question.options) <= names("known") else "foreign"
        answer = sum(words(realm).index(word) for word in document) % 4
        return [0.97 if y == answer else 0.01 for y in range(4)]
    document = question.question.removesuffix(" is about").split()
    joint = []
    for option in question.options:
        realm = "known" if option in names("known") else "foreign"
        weight_of = dict(zip(words(realm), weights(realm)[option], strict=True))
        joint.append(math.prod(weight_of[word] / sum(weight_of.values()) for word in document))
    return [mass / sum(joint) for mass in joint]


def weights(realm: str) -> dict[str, tuple[int, ...]]:
    return {topic.name: topic.weights for family in families(realm) for topic in family}


def names(realm: str) -> set[str]:
    return set(weights(realm))


def entropy(question: SyntheticQuestion) -> float:
    return -sum(p * math.log(p) for p in question.true_probs if p > 0)


def n_words(question: SyntheticQuestion) -> int:
    return len(question.question.removesuffix(" is about").removesuffix(" adds up to").split())


def text(question: SyntheticQuestion) -> tuple[str, ...]:
    return (question.question, *question.options)


@pytest.mark.parametrize("split", SPLITS)
def test_true_probabilities_follow_bayes_rule(split: str) -> None:
    for question in questions(split)[:500]:
        assert question.true_probs == pytest.approx(bayes_rule(question), rel=1e-9, abs=1e-12)
        assert math.fsum(question.true_probs) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_drawn_from_the_true_probabilities(split: str) -> None:
    """Every option is a Bernoulli(p*) trial; within a bin of p* the hits stay within four standard deviations."""
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.9), (0.9, 1.01)):
        trials = [(p, q.label == y) for q in questions(split) for y, p in enumerate(q.true_probs) if low <= p < high]
        excess = sum(hit - p for p, hit in trials)
        assert abs(excess) <= 4 * math.sqrt(sum(p * (1 - p) for p, _ in trials)) + 1e-9


def test_questions_are_the_same_in_another_process() -> None:
    script = f"import runpy; print(runpy.run_path({__file__!r})['fingerprint']())"
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == fingerprint()


def test_the_test_sets_are_fixed() -> None:
    """Published numbers are of these very questions: whoever changes them changes this digest, knowingly."""
    asked = [(q.question, q.options, q.label) for split in SPLITS[1:] for q in questions(split)]
    assert hashlib.sha256(repr(asked).encode()).hexdigest()[:16] == "f390143b1eb0a568"


def test_split_sizes() -> None:
    sizes = {split: len(questions(split)) for split in SPLITS}
    assert sizes == {"train": 2000, "test": 5000} | dict.fromkeys(SPLITS[2:], 2000)


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_unique_and_name_split_and_row(split: str) -> None:
    assert [question.id for question in questions(split)] == [f"{split}/{row}" for row in range(len(questions(split)))]


@pytest.mark.parametrize("split", SPLITS[1:])
def test_no_test_question_occurs_in_the_training_pool(split: str) -> None:
    pool = {text(question) for question in questions("train")}
    assert len(pool) == 2000
    assert not pool & {text(question) for question in questions(split)}


def test_in_distribution_sets_have_the_documented_mix() -> None:
    for split in ("train", "test", "shifted", "ood"):
        share = Counter(question.domain for question in questions(split))
        for domain, expected in {"easy": 0.5, "noisy": 0.3, "hard": 0.2}.items():
            n = len(questions(split))
            assert abs(share[domain] - expected * n) < 4 * math.sqrt(n * expected * (1 - expected))
    for domain in ("easy", "noisy", "hard"):
        assert {question.domain for question in questions(domain)} == {domain}


def test_unseen_topics_come_at_the_lengths_of_the_seen_ones() -> None:
    known, unseen = (Counter(map(n_words, questions(split))) for split in ("test", "ood"))
    assert known.keys() == unseen.keys()
    assert sum(abs(known[n] / 5000 - unseen[n] / 2000) for n in known) / 2 < 0.05  # total variation
    seen_names = {name for question in questions("train") for name in question.options}
    assert seen_names == names("known")
    assert not seen_names & {name for question in questions("ood") for name in question.options}


def test_shifted_questions_are_longer_and_of_the_same_topics() -> None:
    assert fmean(map(n_words, questions("shifted"))) == pytest.approx(
        fmean(map(n_words, questions("test"))) + 4, abs=0.2
    )
    assert {name for question in questions("shifted") for name in question.options} == names("known")


def test_only_the_noisy_domain_is_noisy() -> None:
    easy, noisy, hard = (fmean(map(entropy, questions(domain))) for domain in ("easy", "noisy", "hard"))
    assert easy < 0.25
    assert hard < 0.25
    assert noisy > 0.8


def test_the_hard_domain_has_no_shortcut() -> None:
    """Neither the answer's position nor any single word tells more than chance about a parity question."""
    hard = questions("hard")
    positions = Counter(question.label for question in hard)
    assert max(abs(count - 500) for count in positions.values()) < 4 * math.sqrt(2000 * 0.25 * 0.75)
    for place in (0, -4):
        table = Counter((question.question.split()[place], question.label) for question in hard)
        per_word = Counter(question.question.split()[place] for question in hard)
        chi_square = sum((table[w, y] - n / 4) ** 2 / (n / 4) for w, n in per_word.items() for y in range(4))
        freedom = 3 * len(per_word)
        assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_unknown_split_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError) as error:
        synthetic_process.questions("validation")
    assert "'validation'" in str(error.value)
    assert all(split in str(error.value) for split in SPLITS)
    assert "\n" not in str(error.value)
