"""Labels of several tokens against plain transformers that scores each of them by itself."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayeslora import Backbone, LoRA, Samples, UsageError
from bayeslora.curvature.jacobian import contrast_jacobian
from bayeslora.curvature.rows import select_questions
from bayeslora.datamodules.batch import collate
from bayeslora.datamodules.encode import Continuations, Encoded
from bayeslora.lightning_modules import LoRAEnsemble, LoRAModule
from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.c_lora import CONTEXTS, ContextualSites
from bayeslora.models.loading import load_answer_model
from bayeslora.types import AnswerBatch
from tests.helpers.models import save_llama
from tests.helpers.sizes import HIDDEN, VOCABULARY

HEAD = ["q_proj", "v_proj", "down_proj", "lm_head"]
LABELS = ((7, 2), (8, 9, 10, 2), (8, 11, 2), (12, 2), (8, 9, 13, 14, 2))
DRAWS = Samples(draws=torch.arange(3), seed=5)


def item(length: int, labels: tuple[tuple[int, ...], ...], normalised: bool = False, seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(100 * seed + length)
    row = torch.randint(20, VOCABULARY, (length,), generator=generator).tolist()
    weights = tuple(1 / len(ids) if normalised else 1.0 for ids in labels)
    first = tuple(ids[0] for ids in labels)
    return Encoded((row,), None, first, 1, labels=Continuations(labels, weights, normalised))


ITEMS = [item(5, LABELS), item(11, LABELS[:3]), item(1, LABELS[1:3]), item(8, LABELS[3:0:-1])]


def batch_of(items: list[Encoded]) -> AnswerBatch:
    return collate([(row, [one]) for row, one in enumerate(items)], "random", "left", 0)


def model_of(path: str, targets: list[str] | None = None, attention: str = "sdpa", dropout: float = 0.0) -> AnswerModel:
    lora = LoRA(r=4, dropout=dropout, target_modules=targets or HEAD)
    model = load_answer_model(Backbone(path), lora, 0)
    model.network.get_base_model().set_attn_implementation(attention)
    spread(model)
    return model


def spread(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.trainable().values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def plainly(model: AnswerModel, items: list[Encoded]) -> list[Tensor]:
    """Each label's log-probability behind its prompt, by transformers and peft, one row and one pass a label."""
    found = []
    for one in items:
        assert one.labels is not None
        scores = []
        for ids, weight in zip(one.labels.ids, one.labels.weights, strict=True):
            whole = torch.tensor([[*one.rows[0], *ids]])
            logits = model.network(input_ids=whole[:, :-1]).logits[0, -len(ids) :]
            scores.append(weight * logits.log_softmax(-1).gather(-1, whole[0, -len(ids) :, None]).sum())
        found.append(torch.stack(scores))
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_and_gradients_are_those_of_each_label_by_itself(llama: str, attention: str) -> None:
    model, batch = model_of(llama, attention=attention), batch_of(ITEMS)
    scores = model(batch).logits
    wanted = plainly(model, ITEMS)
    for own, expected, one in zip(scores, wanted, ITEMS, strict=True):
        torch.testing.assert_close(own[: len(one.answers)], expected, atol=1e-5, rtol=1e-5)
        assert (own[len(one.answers) :] == -torch.inf).all()
    loss = torch.nn.functional.cross_entropy(scores, batch.label)
    plain = -torch.stack([own.log_softmax(-1)[one.label] for own, one in zip(wanted, ITEMS, strict=True)]).mean()
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    parameters = list(model.trainable().values())
    for ours, theirs in zip(*(torch.autograd.grad(x, parameters) for x in (loss, plain)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_scores_divided_by_lengths(llama: str) -> None:
    model, items = model_of(llama), [item(5, LABELS, normalised=True)]
    output = model(batch_of(items), vocabulary="logsumexp")
    torch.testing.assert_close(output.logits[0], plainly(model, items)[0], atol=1e-5, rtol=1e-5)
    assert output.logsumexp is None


@torch.no_grad()
def test_what_is_left_for_other_continuations(llama: str) -> None:
    """The labels of one token each are events among all tokens: their log-sum-exp is zero."""
    model = model_of(llama)
    every = item(5, tuple((token,) for token in range(VOCABULARY)))
    output = model(batch_of([every]), vocabulary="logsumexp")
    torch.testing.assert_close(output.logits.logsumexp(-1), output.logsumexp, atol=1e-5, rtol=0)


@torch.no_grad()
def test_labels_of_one_token_are_answered_as_label_tokens(llama: str) -> None:
    model = model_of(llama, dropout=0.3)
    labels = ((3,), (4,), (5,))
    whole = batch_of([item(6, labels), item(9, labels)])
    one = [Encoded(i.rows, None, i.answers, i.label) for i in (item(6, labels), item(9, labels))]
    for samples in (None, DRAWS, Samples(draws=torch.arange(2), coherent=True)):
        ours, theirs = (model(batch, samples).logits.log_softmax(-1) for batch in (whole, batch_of(one)))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def kinds_of_samples(model: AnswerModel) -> dict[str, Samples | None]:
    generator = torch.Generator().manual_seed(2)
    shapes = {name: (3, *p.shape) for name, p in model.trainable().items()}
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    perturbed = {name: value for name, value in weights.items() if ".lora_A." in name}
    return {
        "none": None,
        "weights": Samples(weights),
        "dropout": DRAWS,
        "coherent": Samples(weights, draws=torch.arange(3), coherent=True),
        "flipout": Samples({}, torch.arange(3), 4, perturbed),
    }


@pytest.mark.parametrize("kind", ["none", "weights", "dropout", "coherent", "flipout"])
@torch.no_grad()
def test_all_labels_of_a_question_meet_the_same_function(llama: str, kind: str) -> None:
    """A label's score depends on no other label, and on no other question, also where there is noise."""
    model = model_of(llama, dropout=0.3)
    samples = kinds_of_samples(model)[kind]
    together = model(batch_of(ITEMS), samples).logits
    together = together if samples is not None else together[None]
    for row, one in enumerate(ITEMS):
        assert one.labels is not None
        for first, second in pairwise(range(len(one.answers))):
            ids = (one.labels.ids[first], one.labels.ids[second])
            alone = Encoded(one.rows, None, (ids[0][0], ids[1][0]), 0, labels=Continuations(ids, (1.0, 1.0)))
            scores = model(batch_of([alone]), samples).logits
            expected = together[:, row, [first, second]]
            torch.testing.assert_close(scores.view_as(expected), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_labels_meet_one_matrix_of_c_lora(llama: str, context: str) -> None:
    model = load_answer_model(Backbone(llama), LoRA(r=4, target_modules=HEAD), 0)
    sites = ContextualSites(model, context, width=16)
    sites.initialise("release", 0.05, 0)
    spread(model)
    together = model(batch_of(ITEMS), DRAWS).logits
    swapped = [ITEMS[0], item(11, LABELS[2::-1])]
    torch.testing.assert_close(model(batch_of(swapped), DRAWS).logits[:, 1, :3].flip(-1), together[:, 1, :3],
                               atol=2e-5, rtol=1e-5)  # fmt: skip
    alone = model(batch_of(ITEMS[2:3]), DRAWS).logits[:, 0]
    torch.testing.assert_close(alone, together[:, 2, :2], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@torch.no_grad()
def test_divergence_of_a_batch_is_the_mean_over_questions(llama: str, context: str) -> None:
    model = load_answer_model(Backbone(llama), LoRA(r=4, target_modules=HEAD), 0)
    sites = ContextualSites(model, context, width=16)
    sites.initialise("release", 0.05, 0)
    spread(model)

    def divergence(items: list[Encoded]) -> Tensor:
        batch = batch_of(items)
        with sites.recording():
            model(batch)
        return sites.divergence(batch.attention_mask, 0.5)

    every = torch.stack([divergence([one]) for one in ITEMS])
    torch.testing.assert_close(divergence(ITEMS), every.mean(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_members_with_batches_of_their_own(llama: str) -> None:
    module = LoRAEnsemble(Backbone(llama), LoRA(r=4, dropout=0.2, target_modules=HEAD), 2)
    module.configure_model()
    spread(module)
    stack = {name: value.detach() for name, value in module.trainable().items()}
    samples = Samples(stack, torch.arange(2), 3)
    batches = [batch_of(ITEMS[:2]), batch_of(ITEMS[2:])]
    found = module.model.forward_each(batches, samples).logits
    for place, batch in enumerate(batches):
        alone = module.model(batch, samples[place : place + 1]).logits[0]
        torch.testing.assert_close(found[place, :, : alone.shape[1]], alone, atol=2e-5, rtol=1e-5)


def test_a_selection_of_questions_and_jacobians(llama: str) -> None:
    model, batch = model_of(llama), batch_of(ITEMS)
    keep = torch.tensor([True, False, True, True])
    logits, jacobian = contrast_jacobian(model, batch, None)
    part, rows = contrast_jacobian(model, select_questions(batch, keep), None)
    torch.testing.assert_close(part, logits[keep], atol=1e-5, rtol=1e-5)
    for name, own in rows.items():
        torch.testing.assert_close(own, jacobian[name][keep], atol=1e-5, rtol=1e-4)
    scores = plainly(model, ITEMS[:1])[0]
    parameters = model.trainable()
    for contrast in (0, 3):
        expected = torch.autograd.grad(scores[contrast + 1] - scores[0], list(parameters.values()), retain_graph=True)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(jacobian[name][0, contrast], gradient, atol=1e-4, rtol=1e-4)


def bigrams(folder: Path, law: dict[int, dict[int, float]]) -> str:
    """A Llama that is a table of bigrams: the law of the next token, given the last one alone."""
    from transformers import LlamaForCausalLM

    path = save_llama(folder)
    model = LlamaForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for place, (last, following) in enumerate(law.items()):
            model.model.embed_tokens.weight[last, place] = 1.0  # normed to the root of the width
            logs = torch.full((VOCABULARY,), -100.0)
            for token, probability in following.items():
                logs[token] = torch.tensor(probability).log()
            model.lm_head.weight[:, place] = logs / HIDDEN**0.5
    model.save_pretrained(folder)
    return path


ASK, NO, ANSWER, END, OTHER, RE, FUND, ORDER, BILL, ING = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
PREFIX = {ASK: {NO: 0.5, OTHER: 0.5}, NO: {ANSWER: 0.4, END: 0.5, OTHER: 0.1}, ANSWER: {END: 0.9, OTHER: 0.1}}
WHOLE = {ASK: {RE: 0.1, BILL: 0.3, OTHER: 0.6}, RE: {FUND: 0.9, ORDER: 0.05, OTHER: 0.05},
         BILL: {ING: 0.2, OTHER: 0.8}, **{last: {END: 1.0} for last in (FUND, ORDER, ING)}}  # fmt: skip


@pytest.mark.parametrize(
    "law, labels, expected",
    [
        (PREFIX, ((NO, END), (NO, ANSWER, END)), [0.581, 0.419]),  # without ends .714 and .286
        (
            WHOLE,
            ((RE, FUND, END), (RE, ORDER, END), (BILL, ING, END)),
            [0.581, 0.032, 0.387],
        ),  # stepwise .237 .013 .750
    ],
)
@torch.no_grad()
def test_laws_that_are_known(tmp_path: Path, law: Any, labels: Any, expected: list[float]) -> None:
    model = load_answer_model(Backbone(bigrams(tmp_path, law)), LoRA(r=2, target_modules=["q_proj"]), 0)
    one = Encoded(([20, ASK],), None, (0,) * len(labels), 0, labels=Continuations(labels, (1.0,) * len(labels)))
    assert model(batch_of([one])).logits[0].softmax(-1).tolist() == pytest.approx(expected, abs=5e-4)


def test_what_cannot_carry_them_says_so(llama: str, tmp_path: Path) -> None:
    model, batch = model_of(llama), batch_of(ITEMS)
    with pytest.raises(UsageError, match="no one answer position"):
        model(batch, vocabulary="logits")
    module = LoRAModule(Backbone(llama), LoRA(r=2, target_modules=["q_proj"]), support="full_vocab")
    module.configure_model()
    with pytest.raises(UsageError, match="divided by lengths are no probabilities"):
        module.nll(batch_of([item(5, LABELS, normalised=True)]), DRAWS[:1])
    model.network.config.model_type = "gpt2"
    with pytest.raises(UsageError, match="a gpt2 with attention 'sdpa' is not known to take; allowed: llama"):
        model(batch)
    model.network.config.model_type = "mistral"
    model.network.config.sliding_window = 12
    with pytest.raises(UsageError, match="has 17 tokens, and attention of this model reaches 12"):
        model(batch)
