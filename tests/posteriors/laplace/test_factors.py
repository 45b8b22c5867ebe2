"""Sums of outer products: in full, as a sketch, in any pieces."""

import torch

from bayeslora.posteriors.laplace.factors import OVERSAMPLING, OuterSum

TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def vectors(count: int, size: int, decay: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    scale = torch.arange(1, size + 1, dtype=torch.float64) ** -decay
    return torch.randn(count, size, dtype=torch.float64, generator=generator) * scale


def rebuilt(outer: OuterSum) -> torch.Tensor:
    values, basis = outer.eigenpairs()
    return basis * values @ basis.mT


def test_short_vectors_are_summed_in_full() -> None:
    data = vectors(30, 12)
    outer = OuterSum(12, rank=4)
    outer.add(data)
    assert outer.in_full
    torch.testing.assert_close(rebuilt(outer), data.mT @ data, **TIGHT)
    torch.testing.assert_close(outer.trace, (data.mT @ data).trace())


def test_a_sketch_is_exact_up_to_its_rank() -> None:
    data = vectors(6, 80)
    outer = OuterSum(80, rank=6)
    outer.add(data)
    assert not outer.in_full
    torch.testing.assert_close(rebuilt(outer), data.mT @ data, atol=1e-9, rtol=1e-9)
    values, basis = outer.eigenpairs()
    torch.testing.assert_close(basis.mT @ basis, torch.eye(6, dtype=torch.float64), **TIGHT)
    assert (values.diff() <= 0).all()


def test_a_sketch_never_exceeds_the_sum_and_keeps_most_of_it() -> None:
    data = vectors(500, 200, decay=1.0)
    outer, rank = OuterSum(200, rank=20), 20
    outer.add(data)
    exact = data.mT @ data
    assert torch.linalg.eigvalsh(exact - rebuilt(outer)).min() > -1e-8 * exact.trace()
    best = torch.linalg.eigvalsh(exact)[-rank:].sum()
    assert 0.97 < outer.eigenpairs()[0].sum() / best <= 1
    torch.testing.assert_close(outer.trace, exact.trace())


def test_order_and_pieces_do_not_matter() -> None:
    data = vectors(60, 50, decay=0.5)
    whole, parts = OuterSum(50, rank=10), OuterSum(50, rank=10)
    whole.add(data)
    for piece in data.flip(0).split(7):
        parts.add(piece)
    torch.testing.assert_close(rebuilt(whole), rebuilt(parts), **TIGHT)


def test_nothing_at_all_has_no_eigenvalues() -> None:
    for size in (5, 100):
        outer = OuterSum(size, rank=10)
        outer.add(torch.zeros(3, size))
        values, basis = outer.eigenpairs()
        assert values.max() < 1e-100
        assert basis.isfinite().all()


def test_goes_on_bit_for_bit_from_its_state() -> None:
    data = vectors(40, 50)
    whole = OuterSum(50, rank=50 - OVERSAMPLING - 1)
    whole.add(data[:20])
    resumed = OuterSum(whole.size, whole.rank)
    resumed.load_state_dict(whole.state_dict())
    for outer in (whole, resumed):
        outer.add(data[20:])
    assert all(torch.equal(a, b) for a, b in zip(whole.eigenpairs(), resumed.eigenpairs(), strict=True))
    assert torch.equal(whole.trace, resumed.trace)
