"""The Ising distribution against sums over all states written out in plain Python."""

import itertools
import math

import pytest
import scipy.stats
import torch

from pyro_isingvit import InputError
from pyro_isingvit.distributions import Ising


def system(sites: int, strength: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    couplings = strength * torch.randn(sites, sites, generator=generator, dtype=torch.double)
    couplings = ((couplings + couplings.T) / 2).fill_diagonal_(0)
    return torch.randn(sites, generator=generator, dtype=torch.double), couplings


def weights_by_hand(field, couplings):
    """Unnormalised weight of each state, one spin and one pair at a time."""
    table = {}
    for state in itertools.product((0, 1), repeat=len(field)):
        spins = [2 * x - 1 for x in state]
        energy = sum(float(h) * s / 2 for h, s in zip(field, spins, strict=True))
        for i, j in itertools.combinations(range(len(field)), 2):
            energy += float(couplings[i, j]) * spins[i] * spins[j]
        table[state] = math.exp(energy)
    return table


@pytest.mark.parametrize("sites", [1, 3, 12])
def test_normaliser_marginals_and_entropy_equal_enumeration(sites):
    field, couplings = system(sites, 0.7)
    table = weights_by_hand(field, couplings)
    z = sum(table.values())
    ising = Ising.pairwise(field, couplings)
    assert ising.log_normaliser().item() == pytest.approx(math.log(z))
    marginals = [sum(w for x, w in table.items() if x[i]) / z for i in range(sites)]
    assert ising.marginals().tolist() == pytest.approx(marginals)
    assert ising.entropy().item() == pytest.approx(-sum(w / z * math.log(w / z) for w in table.values()))
    states = torch.tensor(list(table), dtype=torch.double)
    assert ising.log_prob(states).exp().sum().item() == pytest.approx(1)
    assert ising.log_prob(states).tolist() == pytest.approx([math.log(w / z) for w in table.values()])


def test_local_field_is_the_conditional_log_odds():
    field, couplings = system(6, 0.7)
    table = weights_by_hand(field, couplings)
    ising = Ising.pairwise(field, couplings)
    for state in [(0, 1, 0, 0, 1, 1), (1, 1, 1, 0, 0, 0)]:
        on = [math.log(table[(*state[:i], 1, *state[i + 1 :])]) for i in range(6)]
        off = [math.log(table[(*state[:i], 0, *state[i + 1 :])]) for i in range(6)]
        expected = [a - b for a, b in zip(on, off, strict=True)]
        assert ising.local_field(torch.tensor(state, dtype=torch.double)).tolist() == pytest.approx(expected)


def test_exact_and_gibbs_draws_have_the_exact_marginals_and_pairs():
    field, couplings = system(5, 0.5)
    ising = Ising.pairwise(field, couplings)
    table = weights_by_hand(field, couplings)
    z = sum(table.values())
    draws = 20_000
    samples = {
        "exact": ising.sample((draws,)),
        "gibbs": ising.gibbs(torch.zeros(draws, 5, dtype=torch.double), sweeps=50),
    }
    for drawn in samples.values():
        codes = (drawn @ 2.0 ** torch.arange(5, dtype=torch.double)).long()
        counts = torch.bincount(codes, minlength=32)
        expected = [draws * table[tuple((c >> i) & 1 for i in range(5))] / z for c in range(32)]
        assert scipy.stats.chisquare(counts.numpy(), expected).pvalue > 1e-3


def test_gibbs_in_blocks_of_many_sites():
    # Two groups of ten sites, complete coupling between the groups: too many to enumerate in one go,
    # but given the two group sums the groups factorise, so that the marginal follows from 11 x 11 terms.
    field, strength = -0.4, 0.04
    couplings = torch.zeros(20, 20)
    couplings[:10, 10:] = couplings[10:, :10] = strength
    ising = Ising.pairwise(torch.full((20,), field), couplings, blocks=[slice(0, 10), slice(10, 20)])
    z = on = 0.0
    for a, b in itertools.product(range(11), repeat=2):
        spin_a, spin_b = 2 * a - 10, 2 * b - 10
        weight = math.comb(10, a) * math.comb(10, b)
        weight *= math.exp(field * (spin_a + spin_b) / 2 + strength * spin_a * spin_b)
        z, on = z + weight, on + weight * a / 10
    drawn = ising.sample((4000,))
    # group means of 4,000 independent chains: standard error below 0.5 / sqrt(4000)
    assert drawn[:, :10].mean().item() == pytest.approx(on / z, abs=4 * 0.5 / 4000**0.5)


def test_mean_field_is_exact_without_coupling_and_a_fixed_point_with():
    field, couplings = system(8, 0.3)
    free = Ising.pairwise(field, torch.zeros_like(couplings))
    torch.testing.assert_close(free.mean_field(), free.marginals())
    ising = Ising.pairwise(field, couplings)
    mean = ising.mean_field()
    torch.testing.assert_close(mean, ising.local_field(mean).sigmoid(), atol=1e-5, rtol=0)


def test_bias_of_mean_field_grows_with_the_coupling():
    """Four sites in a ring, each with field -1. Mean field overstates what the neighbours say: at strength
    0.6 it gives 0.039 for 0.074; at 1.0 it has a second fixed point, 0.901, that the exact 0.031 knows nothing of.
    """
    ring = torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    figures = {}
    for strength in (0.1, 0.3, 0.6, 1.0):
        ising = Ising.pairwise(torch.full((4,), -1.0), strength * ring)
        each = (ising.marginals(), ising.mean_field(), ising.mean_field(torch.ones(4)))
        figures[strength] = [round(x[0].item(), 3) for x in each]
    assert figures == {
        0.1: [0.232, 0.228, 0.228],
        0.3: [0.157, 0.132, 0.132],
        0.6: [0.074, 0.039, 0.039],
        1.0: [0.031, 0.007, 0.901],
    }


def test_batch_and_expand():
    field, couplings = system(4, 0.5)
    ising = Ising.pairwise(torch.stack([field, -field]), couplings)
    torch.testing.assert_close(ising.marginals()[1], Ising.pairwise(-field, couplings).marginals())
    assert ising.expand((3, 2)).log_prob(torch.ones(4, dtype=torch.double)).shape == (3, 2)
    assert ising.sample((5,)).shape == (5, 2, 4)
    assert ising.expand((3, 2)).entropy().shape == (3, 2)


def test_refusals():
    with pytest.raises(InputError, match="40 sites: enumeration stops at 16"):
        Ising.pairwise(torch.zeros(40), torch.zeros(40, 40)).log_normaliser()
    with pytest.raises(InputError, match="symmetric with a zero diagonal"):
        Ising.pairwise(torch.zeros(2), torch.ones(2, 2))
