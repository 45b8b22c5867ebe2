"""The root of the softmax's covariance."""

import torch

from bayeslora.posteriors.laplace.softmax import softmax_root


def covariance(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(-1)[:, 1:]
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


def test_is_a_root_of_the_covariance_also_with_absent_options() -> None:
    logits = 3 * torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[1, 4] = logits[2, 2] = logits[3, 1] = -torch.inf
    root = softmax_root(logits)
    torch.testing.assert_close(root @ root.mT, covariance(logits), atol=1e-15, rtol=1e-12)
    assert root[2, 1].eq(0).all()
    assert root[2, :, 1].eq(0).all()


def test_tiny_curvatures_keep_their_digits() -> None:
    root = softmax_root(torch.tensor([[40.0, 0.0]]))
    torch.testing.assert_close(root.square().item(), torch.tensor(-40.0).double().exp().item(), rtol=1e-10, atol=0)
    root = softmax_root(torch.tensor([[0.0, 40.0]]))  # 1 - p of a p that rounds to one
    torch.testing.assert_close(root.square().item(), torch.tensor(-40.0).double().exp().item(), rtol=1e-10, atol=0)


def test_certain_beyond_every_float_is_no_curvature() -> None:
    root = softmax_root(torch.tensor([[0.0, 9e4, 0.0, -torch.inf]]))
    assert root.eq(0).all()
