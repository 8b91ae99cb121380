"""Distributions against scipy, closed forms and torch's own; samples against log_prob."""

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit
from torch.distributions import kl_divergence

from pyro_isingvit import Gaussian, SpikeAndSlab, StraightThroughBernoulli

FAILURE_RATE = 1e-3
"""A goodness-of-fit test of a right sampler fails this often over seeds; the seed here is fixed."""


class TestStraightThroughBernoulli:
    probs = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.7, 0.99]], dtype=torch.double)

    def test_log_prob_is_the_mass(self):
        for value in (torch.zeros(2, 3), torch.ones(2, 3)):
            expected = torch.as_tensor(scipy.stats.bernoulli.logpmf(value, self.probs))
            ours = StraightThroughBernoulli(self.probs)
            torch.testing.assert_close(ours.log_prob(value.double()), expected)
            torch.testing.assert_close(ours.to_event(1).log_prob(value.double()), expected.sum(1))

    def test_draws_are_exact_and_as_frequent_as_said(self):
        probs = self.probs.clone().requires_grad_()
        draws = StraightThroughBernoulli(probs).rsample((20_000,))
        assert set(draws.unique().tolist()) == {0.0, 1.0}
        counts = draws.detach().sum(0).numpy()
        for count, p in zip(counts.flat, self.probs.flatten(), strict=True):
            assert scipy.stats.binomtest(int(count), 20_000, float(p)).pvalue > FAILURE_RATE

    def test_gradient_goes_straight_through(self):
        probs = self.probs.clone().requires_grad_()
        slope = torch.randn_like(probs)
        (slope * StraightThroughBernoulli(probs).rsample()).sum().backward()
        torch.testing.assert_close(probs.grad, slope)

    def test_entropy_term_has_the_gradient_of_the_entropy(self):
        logits = torch.randn(7, requires_grad=True)
        q = StraightThroughBernoulli(logits=logits, event_dim=1)
        exact = torch.autograd.grad(q.entropy(), logits)[0]
        surrogate = -q.score_parts(q.rsample()).entropy_term
        torch.testing.assert_close(torch.autograd.grad(surrogate, logits)[0], exact)
        torch.testing.assert_close(q.entropy(), dist.Bernoulli(logits=logits).entropy().sum())

    def test_log_prob_is_linear_in_the_value(self):
        q = StraightThroughBernoulli(self.probs)
        value = torch.rand(2, 3, dtype=torch.double, requires_grad=True)
        q._validate_args = False
        torch.testing.assert_close(torch.autograd.grad(q.log_prob(value).sum(), value)[0], q.logits)

    def test_shapes(self):
        q = StraightThroughBernoulli(torch.tensor(0.3), event_dim=1, shape=(4, 5))
        assert (q.batch_shape, q.event_shape, q.rsample((2,)).shape) == ((4,), (5,), (2, 4, 5))
        assert q.expand((3, 4)).log_prob(torch.ones(5)).shape == (3, 4)
        assert q.to_event(1).event_shape == (4, 5)
        assert q.mean.shape == q.variance.shape == (4, 5)

    def test_refusals(self):
        with pytest.raises(ValueError, match="either probs or logits"):
            StraightThroughBernoulli()
        with pytest.raises(ValueError, match="event_dim=2"):
            StraightThroughBernoulli(torch.rand(3), event_dim=2)
        with pytest.raises(ValueError, match="support"):
            StraightThroughBernoulli(torch.rand(3)).log_prob(torch.tensor(0.5))


class TestGaussian:
    def test_equals_torch_normal(self):
        loc, log_scale = torch.randn(3, 4), torch.randn(4)
        ours, torchs = Gaussian(loc, log_scale), torch.distributions.Normal(loc, log_scale.exp())
        x = torch.randn(3, 4)
        torch.testing.assert_close(ours.log_prob(x), torchs.log_prob(x))
        torch.testing.assert_close(ours.entropy(), torchs.entropy())
        torch.testing.assert_close(ours.cdf(x), torchs.cdf(x))
        prior = Gaussian(torch.tensor(0.1), torch.tensor(-1.0), (3, 4))
        expected = kl_divergence(torchs, torch.distributions.Normal(0.1, math.exp(-1)))
        torch.testing.assert_close(kl_divergence(ours, prior), expected)

    def test_samples_match_log_prob(self):
        q = Gaussian(torch.tensor(1.0), torch.tensor(-0.5))
        draws = q.rsample((20_000,))
        assert auto_goodness_of_fit(draws, q.log_prob(draws).exp()) > FAILURE_RATE

    def test_broadcast_parameters_still_draw_independently(self):
        draws = Gaussian(torch.tensor(0.0), torch.tensor(0.0), (1000,)).rsample()
        assert draws.unique().numel() == 1000

    def test_pathwise_gradient_is_the_total_derivative(self):
        loc, log_scale = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
        q = Gaussian(loc, log_scale)
        x = q.rsample()
        total = torch.autograd.grad(q.log_prob(x).sum(), (loc, log_scale), retain_graph=True)
        path = torch.autograd.grad(q.pathwise_log_prob(x).sum(), (loc, log_scale), materialize_grads=True)
        torch.testing.assert_close(path, total, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(q.pathwise_log_prob(x), q.log_prob(x))


class TestSpikeAndSlab:
    mask = torch.tensor([1.0, 0.0, 1.0])
    slab = dist.Normal(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 2.0, 0.5]))

    def test_log_prob_of_slab_and_point_spike(self):
        value = torch.tensor([0.3, 0.0, -1.2])
        expected = scipy.stats.norm.logpdf([0.3, -1.2], [0, -1], [1, 0.5])
        log_prob = SpikeAndSlab(self.mask, self.slab).log_prob(value)
        assert log_prob.tolist() == pytest.approx([expected[0], 0.0, expected[1]])
        assert SpikeAndSlab(self.mask, self.slab, event_dim=1).log_prob(value).item() == pytest.approx(expected.sum())

    def test_a_dropped_weight_cannot_be_other_than_zero(self):
        assert SpikeAndSlab(self.mask, self.slab).log_prob(torch.ones(3))[1] == -math.inf

    def test_log_prob_with_continuous_spike(self):
        spike = dist.Normal(torch.zeros(3), 0.1)
        value = torch.tensor([0.3, 0.05, -1.2])
        expected = scipy.stats.norm.logpdf(value, [0, 0, -1], [1, 0.1, 0.5])
        assert SpikeAndSlab(self.mask, self.slab, spike).log_prob(value).tolist() == pytest.approx(expected.tolist())

    @pytest.mark.parametrize("spike", [None, dist.Normal(torch.zeros(3), 0.1)])
    def test_samples_match_log_prob(self, spike):
        p = SpikeAndSlab(self.mask, self.slab, spike)
        draws = p.rsample((20_000,))
        log_prob = p.log_prob(draws)
        for i in range(3):
            if spike is None and self.mask[i] == 0:
                assert (draws[:, i] == 0).all()
            else:
                assert auto_goodness_of_fit(draws[:, i], log_prob[:, i].exp()) > FAILURE_RATE
        torch.testing.assert_close(draws.mean(0), p.mean, atol=4 * 2 / 20_000**0.5, rtol=0)

    def test_mask_gets_the_gradient_of_the_log_prob(self):
        mask = self.mask.clone().requires_grad_()
        value = torch.tensor([0.3, 0.0, -1.2])
        SpikeAndSlab(mask, self.slab).log_prob(value).sum().backward()
        torch.testing.assert_close(mask.grad, self.slab.log_prob(value))

    def test_shared_components_are_drawn_for_each_element(self):
        draws = SpikeAndSlab(torch.ones(1000), dist.Normal(0.0, 1.0)).rsample()
        assert draws.unique().numel() == 1000

    def test_kl_and_entropy_in_closed_form(self):
        q = SpikeAndSlab(self.mask, Gaussian(torch.tensor([0.5, 1.0, 2.0]), torch.zeros(3)), event_dim=1)
        p = SpikeAndSlab(self.mask, Gaussian(torch.zeros(3), torch.zeros(3)), event_dim=1)
        assert kl_divergence(q, p).item() == pytest.approx(0.5 * (0.5**2 + 2.0**2))
        assert q.entropy().item() == pytest.approx(2 * scipy.stats.norm.entropy())

    @pytest.mark.parametrize("slab", [Gaussian(torch.zeros(4), torch.zeros(4)), dist.Laplace(torch.zeros(4), 1.0)])
    def test_score_parts_agree_with_log_prob(self, slab):
        q = SpikeAndSlab(torch.tensor([1.0, 0, 1, 0]), slab, event_dim=1)
        draw = q.rsample()
        parts = q.score_parts(draw)
        torch.testing.assert_close(parts.log_prob, q.log_prob(draw))
        assert parts.score_function == 0

    def test_expand(self):
        p = SpikeAndSlab(self.mask, self.slab, event_dim=1).expand((4,))
        assert p.log_prob(p.rsample((2,))).shape == (2, 4)

    def test_slab_has_to_be_reparametrised(self):
        with pytest.raises(ValueError, match="slab="):
            SpikeAndSlab(self.mask, dist.Poisson(torch.ones(3)))
