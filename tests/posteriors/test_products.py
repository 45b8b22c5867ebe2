"""Inner products of BA from small matrices equal those of the products themselves."""

import pytest
import torch

from bayeslora.posteriors.products import cosine, product_gram


def members(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q": (3, 7, 5), "v": (2, 6, 4)}
    return [
        {
            f"{layer}.lora_{half}.weight": torch.randn(size, generator=generator, dtype=torch.float64)
            for layer, (r, d_in, d_out) in shapes.items()
            for half, size in (("A", (r, d_in)), ("B", (d_out, r)))
        }
        | {"head.weight": torch.ones(2)}
        for _ in range(count)
    ]


def formed(member: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(member[f"{n}.lora_B.weight"] @ member[f"{n}.lora_A.weight"]).flatten() for n in "qv"])


def test_gram_is_that_of_the_products() -> None:
    given = members(3)
    vectors = torch.stack([formed(member) for member in given])
    torch.testing.assert_close(product_gram(given), vectors @ vectors.T, atol=1e-10, rtol=0)
    wanted = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    torch.testing.assert_close(cosine(product_gram(given)), wanted)


def test_the_cosine_sees_the_product_and_not_its_factors() -> None:
    """(B R, R^-1 A) is another pair of factors of the same update; -B is the opposite one."""
    (member,) = members(1)
    turn = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    turned, opposite = dict(member), dict(member)
    turned["q.lora_A.weight"] = torch.linalg.solve(turn, member["q.lora_A.weight"])
    turned["q.lora_B.weight"] = member["q.lora_B.weight"] @ turn
    for layer in "qv":
        opposite[f"{layer}.lora_B.weight"] = -member[f"{layer}.lora_B.weight"]
    found = cosine(product_gram([member, turned, opposite]))
    wanted = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)


def test_at_initialisation_there_is_no_direction() -> None:
    given = members(2)
    for layer in "qv":
        given[1][f"{layer}.lora_B.weight"].zero_()
    found = cosine(product_gram(given))
    assert found[0, 0] == pytest.approx(1)
    assert found[0, 1].isnan()
    assert found[1, 1].isnan()
