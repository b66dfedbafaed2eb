"""Trust regions: penalties, dual losses, caps."""

import math

import pytest
import torch
from devices import DEVICES

from safe_components.mstep import HardTrustRegion, NoTrustRegion, SoftTrustRegion


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("init_alpha", [1e-3, 1.0, 50.0])
def test_hard_terms_and_gradients(init_alpha, dtype, device):
    region = HardTrustRegion(0.02, 0.003, init_alpha=init_alpha).to(device, dtype)
    kl = torch.tensor([0.05, 0.001], dtype=dtype, device=device, requires_grad=True)
    terms = region(kl[0], kl[1])
    tolerance = {"rel": 1e-5 if dtype == torch.float32 else 1e-9}
    assert terms.alpha_mean.item() == pytest.approx(init_alpha, **{"rel": 2e-4})
    alpha = torch.nn.functional.softplus(region.raw.detach())
    assert terms.penalty.item() == pytest.approx((alpha * kl.detach()).sum().item(), **tolerance)
    slack = torch.tensor([0.02, 0.003], dtype=dtype, device=device) - kl.detach()
    assert terms.dual_loss.item() == pytest.approx((alpha * slack).sum().item(), **tolerance)
    torch.testing.assert_close(torch.autograd.grad(terms.penalty, kl, retain_graph=True)[0], alpha)
    slope = torch.autograd.grad(terms.dual_loss, region.raw)[0]
    torch.testing.assert_close(slope, slack * torch.sigmoid(region.raw.detach()))
    assert not terms.capped


def ascend(region, kl, steps, lr=0.5):
    optimizer = torch.optim.Adam(region.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        terms = region(torch.tensor(kl), torch.tensor(kl))
        terms.dual_loss.backward()
        optimizer.step()
    return region(torch.tensor(kl), torch.tensor(kl))


def test_multipliers_rise_while_violated_fall_while_slack_and_return_soon():
    region = HardTrustRegion(0.01, 0.01)
    assert ascend(region, 0.1, 20).alpha_mean > 5.0
    slack = ascend(region, 0.0, 2000)
    assert slack.alpha_mean.item() == pytest.approx(
        1e-3, rel=1e-3
    )  # held there, whatever the number of steps
    assert ascend(region, 0.1, 40).alpha_mean > 5.0


def test_a_cap_is_kept_reported_and_left_again():
    region = HardTrustRegion(0.01, 0.01, max_alpha=2.0)
    capped = ascend(region, 1.0, 50)
    assert capped.capped
    assert capped.alpha_mean.item() == pytest.approx(2.0, rel=1e-5)
    left = ascend(region, 0.0, 5)
    assert not left.capped
    assert left.alpha_mean < 1.5


def test_soft_and_none():
    kl = torch.tensor([0.5, 0.25], requires_grad=True)
    soft, none = SoftTrustRegion(2.0, 8.0)(kl[0], kl[1]), NoTrustRegion()(kl[0], kl[1])
    assert (soft.penalty.item(), soft.alpha_mean.item(), soft.alpha_cov.item()) == (3.0, 2.0, 8.0)
    torch.testing.assert_close(torch.autograd.grad(soft.penalty, kl)[0], torch.tensor([2.0, 8.0]))
    assert not none.penalty.requires_grad
    for terms in (soft, none):
        assert terms.dual_loss.item() == 0.0
        assert not terms.capped
    assert not list(SoftTrustRegion(1.0, 1.0).parameters())
    infinite = torch.tensor(math.inf)
    assert NoTrustRegion()(infinite, infinite).penalty.item() == 0.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kl_mean": 0.0}, "kl_mean=0.0"),
        ({"kl_cov": -1.0}, "kl_cov=-1.0"),
        ({"kl_mean": math.nan}, "kl_mean=nan"),
        ({"kl_mean": math.inf}, "NoTrustRegion"),
        ({"init_alpha": 0.0}, "init_alpha=0.0"),
        ({"max_alpha": 0.5}, "max_alpha=0.5"),
        ({"min_alpha": 0.0}, "min_alpha=0.0"),
    ],
)
def test_bad_hard_settings_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HardTrustRegion(**({"kl_mean": 0.1, "kl_cov": 0.1} | kwargs))


@pytest.mark.parametrize("coef", [-0.1, math.inf, math.nan])
def test_bad_soft_settings_are_named(coef):
    with pytest.raises(ValueError, match="coef_cov"):
        SoftTrustRegion(1.0, coef)
