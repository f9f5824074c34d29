from __future__ import annotations

import torch

from filmloop.training.trainer import thinned_loss


def test_the_true_rate_minimises_the_loss() -> None:
    # Expected loss: the rest is replaced by its mean, rate * (1 - keep); at the true rate the gradient is zero.
    true = torch.rand(3, 4, 8) + 0.1
    keep = torch.tensor([0.5, 0.75, 0.95])[:, None, None]
    rate = true.clone().requires_grad_()
    thinned_loss(rate, true * (1 - keep), keep).sum().backward()
    assert rate.grad is not None
    assert rate.grad.abs().max() < 1e-3  # the floor of 1e-6 against rates of 0.005 and more


def test_how_much_was_kept_does_not_scale_the_gradient() -> None:
    true, guess = torch.ones(2, 1, 1), torch.full((2, 1, 1), 2.0, requires_grad=True)
    keep = torch.tensor([0.5, 0.95])[:, None, None]
    thinned_loss(guess, true * (1 - keep), keep).sum().backward()
    assert guess.grad is not None
    assert torch.allclose(guess.grad[0], guess.grad[1], rtol=1e-4)


def test_a_count_where_the_rate_is_zero_pulls_it_up() -> None:
    rate = torch.zeros(1, 1, 1, requires_grad=True)
    loss = thinned_loss(rate, torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.75)).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert rate.grad is not None
    assert rate.grad.item() < -1e5
