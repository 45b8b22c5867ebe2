"""Curvature sums against the dense Gauss-Newton matrix, in the cases where they are exact, and their invariances."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayeslora.curvature.kfac import DiagonalAccumulator, EigenAccumulator, KroneckerAccumulator
from bayeslora.curvature.kfac_tokens import TokenAccumulator
from bayeslora.curvature.structures import BLOCK_STRUCTURES, accumulators, gaussian
from bayeslora.errors import UsageError
from bayeslora.posteriors.laplace.blocks import Block
from bayeslora.types import AnswerBatch
from tests.helpers.batches import label_token_batch, option_row_batch
from tests.helpers.jacobians import by_autograd
from tests.helpers.models import exact, trained
from tests.helpers.toy_lora import LoRALinear, MeanPool, ToyModel, batch_of, lora_mlp

TIGHT = {"atol": 1e-10, "rtol": 1e-10}
KINDS = list(BLOCK_STRUCTURES)
Blocks = dict[str, Any]


def shapes_of(model: Any) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.trainable().items()}


def run(accumulator: Any, model: Any, batches: list[AnswerBatch]) -> Blocks:
    for batch in batches:
        accumulator.update(model, batch)
    return accumulator.blocks()


def blocks_of(kind: str, model: Any, batches: list[AnswerBatch], rank: int | None = None) -> Blocks:
    for accumulator in accumulators(kind, shapes_of(model), rank, dtype=torch.float64):
        blocks = run(accumulator, model, batches)
    return blocks


def dense(block: Block, shape: torch.Size) -> Tensor:
    """The block as a matrix over the flattened parameter."""
    size = shape.numel()
    matrix = shape if len(shape) == 2 else (*shape, 1)
    unit = torch.eye(size, dtype=torch.float64).reshape(size, *matrix)
    return block.back(block.rotate(unit) * block.values).reshape(size, size)


def gauss_newton(model: Any, batches: list[AnswerBatch]) -> dict[str, Tensor]:
    """Every parameter's block of the dense matrix, from autograd and the softmax's covariance in full."""
    total = dict.fromkeys(model.trainable(), 0.0)
    for batch in batches:
        p = model(batch).logits.detach().double().softmax(-1)[:, 1:]
        covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        for name, jacobian in by_autograd(model, batch).items():
            rows = jacobian.flatten(2).double()
            total[name] = total[name] + torch.einsum("ncp,ncd,ndq->pq", rows, covariance, rows)
    return total


def same(found: Blocks, expected: Blocks, model: Any, **tolerance: float) -> None:
    for name, shape in shapes_of(model).items():
        torch.testing.assert_close(dense(found[name], shape), dense(expected[name], shape), **(tolerance or TIGHT))


TARGETS = ["q_proj", "v_proj", "lm_head"]
LENGTHS, OPTIONS = [5, 9, 7, 6], [4, 3, 4, 2]


def question(index: slice, **changes: Any) -> AnswerBatch:
    """Some of four questions."""
    whole = label_token_batch(LENGTHS, OPTIONS, **changes)
    part = replace(whole, **{n: v[index] for n, v in vars(whole).items() if isinstance(v, Tensor)})
    return replace(part, example_of_row=torch.arange(len(part)))


def test_what_each_approximation_keeps_of_the_dense_matrix(llama: str) -> None:
    model, batches = exact(llama, TARGETS), [question(slice(0, 2)), question(slice(2, 4))]
    expected = gauss_newton(model, batches)
    found = {kind: blocks_of(kind, model, batches) for kind in ("kfac", "ekfac", "diag")}
    for name, shape in shapes_of(model).items():
        block, scale = expected[name], expected[name].norm()
        assert scale > 0
        torch.testing.assert_close(dense(found["diag"][name], shape), block.diag().diag(), atol=1e-10 * scale, rtol=0)
        for kind in ("kfac", "ekfac"):
            torch.testing.assert_close(found[kind][name].values.sum(), block.trace(), **TIGHT)
        basis = found["ekfac"][name]
        unit = torch.eye(basis.values.numel(), dtype=torch.float64).reshape(-1, *basis.values.shape)
        columns = basis.back(unit).reshape(len(unit), -1)
        exact_values = torch.einsum("kp,pq,kq->k", columns, block, columns)
        torch.testing.assert_close(basis.values.flatten(), exact_values, atol=1e-10 * scale.item(), rtol=1e-9)
        errors = [(dense(found[kind][name], shape) - block).norm() for kind in ("ekfac", "kfac")]
        assert errors[0] <= errors[1] * (1 + 1e-9)  # the best diagonal in this basis


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "kfac_expand", "kfac_reduce", "release"])
def test_one_question_with_one_token_is_exact(llama: str, kind: str) -> None:
    model, batch = exact(llama, ["lm_head"]), question(slice(0, 1))
    expected = gauss_newton(model, [batch])
    blocks = blocks_of(kind, model, [batch])
    for name, shape in shapes_of(model).items():
        torch.testing.assert_close(dense(blocks[name], shape), expected[name], **TIGHT)


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "kfac_reduce"])
def test_tokens_that_are_averaged_before_a_linear_network_are_one_token(kind: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(LoRALinear(6, 6), MeanPool(), LoRALinear(6, 3)).double()
    model = ToyModel(network, torch.randn(1, 5, 6, dtype=torch.float64))
    batch = batch_of(torch.tensor([0]), 3, tokens=5)
    expected, found = gauss_newton(model, [batch]), blocks_of(kind, model, [batch])
    for name, shape in shapes_of(model).items():
        torch.testing.assert_close(dense(found[name], shape), expected[name], **TIGHT)
    expanded = blocks_of("kfac_expand", model, [batch])
    name = "0.A.weight"
    assert not torch.allclose(dense(expanded[name], shapes_of(model)[name]), expected[name], rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_order_and_padding_do_not_matter(llama: str, kind: str) -> None:
    model = exact(llama, TARGETS)
    whole = blocks_of(kind, model, [question(slice(0, 4))])
    alone = [question(slice(i, i + 1)) for i in (2, 0, 3, 1)]
    padded = [question(slice(0, 4), extra_padding=6)]
    if kind == "release":  # what it counts as tokens is what the batch is padded to
        name = next(name for name in shapes_of(model) if "lora_A" in name)
        assert blocks_of(kind, model, padded)[name].values.sum() > 1.3 * whole[name].values.sum()
        return
    same(blocks_of(kind, model, alone), whole, model, atol=1e-9, rtol=1e-9)
    same(blocks_of(kind, model, padded), whole, model, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_twice_is_twice_the_curvature(llama: str, kind: str) -> None:
    model, batch = exact(llama, ["v_proj"]), question(slice(0, 4))
    once, twice = (blocks_of(kind, model, [batch] * n) for n in (1, 2))
    for name, shape in shapes_of(model).items():
        torch.testing.assert_close(dense(twice[name], shape), 2 * dense(once[name], shape), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_options_have_the_same_curvature(llama: str, kind: str) -> None:
    model = exact(llama, ["v_proj", "lm_head"])
    batch = label_token_batch([5, 9], [4, 4])
    permuted = replace(batch, answer_ids=batch.answer_ids[:, torch.tensor([2, 0, 3, 1])])
    same(blocks_of(kind, model, [permuted]), blocks_of(kind, model, [batch]), model, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "kfac_reduce"])
def test_sketches_of_long_factors_are_exact_up_to_their_rank(llama: str, kind: str) -> None:
    model, batch = exact(llama, ["q_proj", "v_proj"]), question(slice(2, 4))
    full, sketched = (blocks_of(kind, model, [batch], rank) for rank in (None, 24))
    sizes = {tuple(block.values.shape) for block in sketched.values()}
    assert sizes == {(4, 24), (24, 4), (32, 4)}  # 4 options, r = 4; the narrow value projection is kept in full
    same(sketched, full, model, atol=1e-8, rtol=1e-8)


def test_the_curvature_of_one_kind_is_that_of_the_dense_toy() -> None:
    """Two tokens or one: expand, reduce and the release agree where a question is one token."""
    model = ToyModel(lora_mlp(), torch.randn(12, 8, dtype=torch.float64))
    batch = batch_of(torch.arange(12), 3)
    kinds = [blocks_of(kind, model, [batch]) for kind in ("kfac_expand", "kfac_reduce", "release")]
    for a, b in pairwise(kinds):
        same(a, b, model)


def test_an_encoders_rows_are_one_question(roberta: str) -> None:
    model = exact(roberta, ["query", "value"], readout="head")
    batch, wide = option_row_batch([3, 4, 2]), option_row_batch([3, 4, 2], extra_padding=5)
    expected = gauss_newton(model, [batch])
    for kind in ("kfac", "diag", "kfac_reduce", "kfac_expand"):
        found = blocks_of(kind, model, [batch])
        same(blocks_of(kind, model, [wide]), found, model, atol=1e-9, rtol=1e-9)
        for name in shapes_of(model):
            trace, exact_trace = found[name].values.sum(), expected[name].trace()
            if kind in ("kfac", "diag"):
                torch.testing.assert_close(trace, exact_trace, **TIGHT)
            elif exact_trace > 0:  # the classifier's bias, which options share, has no influence
                assert exact_trace / 20 <= trace <= 20 * exact_trace, (kind, name)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_bases(llama: str, quantization: str) -> None:
    model, batch = trained(llama, TARGETS, quantization=quantization), question(slice(0, 4))
    expected = gauss_newton(model, [batch])
    shapes = shapes_of(model)
    for accumulator in (KroneckerAccumulator(shapes), DiagonalAccumulator(shapes)):
        found = run(accumulator, model, [batch])
        for name, block in expected.items():
            torch.testing.assert_close(found[name].values.sum(), block.trace().double(), atol=1e-6, rtol=1e-2)


def later(kind: str, model: Any, batch: AnswerBatch) -> Callable[[], Any]:
    shapes = shapes_of(model)
    if kind == "ekfac":
        bases = blocks_of("kfac", model, [batch])
        return lambda: EigenAccumulator(bases, torch.float64)
    makers = {"kfac": lambda: KroneckerAccumulator(shapes, 3), "diag": lambda: DiagonalAccumulator(shapes)}
    return makers.get(kind, lambda: next(accumulators(kind, shapes, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_bit_for_bit_from_its_state(llama: str, kind: str) -> None:
    model, first, second = exact(llama, ["v_proj"]), question(slice(0, 2)), question(slice(2, 4))
    make = later(kind, model, first)
    whole, resumed = make(), make()
    whole.update(model, first)
    resumed.load_state_dict(whole.state_dict())
    for accumulator in (whole, resumed):
        accumulator.update(model, second)
    found, expected = resumed.blocks(), whole.blocks()
    for name in shapes_of(model):
        pairs = zip(vars(found[name]).values(), vars(expected[name]).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_updates_return_the_logits(llama: str) -> None:
    model, batch = exact(llama, ["v_proj"]), question(slice(0, 4))
    for accumulator in (KroneckerAccumulator(shapes_of(model)), TokenAccumulator("reduce", shapes_of(model))):
        torch.testing.assert_close(accumulator.update(model, batch), model(batch).logits.detach())


def test_a_structure_that_is_none_is_refused(llama: str) -> None:
    with pytest.raises(UsageError, match=r"the structure is 'full'.*kfac, ekfac"):
        next(accumulators("full", {}))


@pytest.mark.parametrize("kind", BLOCK_STRUCTURES)
def test_the_gaussian_of_some_sites_is_the_part_of_all(llama: str, kind: str) -> None:
    model, batch = exact(llama, TARGETS), question(slice(0, 4))
    shapes = {name: shape for name, shape in shapes_of(model).items() if "lm_head" in name}
    rows = by_autograd(model, batch)
    covariances = []
    for wanted in (shapes_of(model), shapes):
        for accumulator in accumulators(kind, wanted, dtype=torch.float64):
            accumulator.update(model, batch)
        posterior = gaussian(accumulator, model.trainable(), 0.5)
        zeroed = {name: own if name in shapes else torch.zeros_like(own) for name, own in rows.items()}
        covariances.append(posterior.logit_covariance(zeroed))
    assert posterior.mean().keys() == rows.keys()
    torch.testing.assert_close(*covariances, **TIGHT)


def test_a_rank_of_nothing_is_refused(llama: str) -> None:
    with pytest.raises(UsageError, match=r"rank.*is 0.*1 or more"):
        KroneckerAccumulator(shapes_of(exact(llama, ["v_proj"])), 0)
