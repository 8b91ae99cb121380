"""One value for each weight: maximum likelihood under `Flat`, maximum a posteriori under another prior."""

from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.sites import WeightSite

from .base import Guide, initial_weights


class PointEstimate(Guide):
    """``weight = loc``. For priors without masks; under `Flat` it trains the deterministic network.

    Raises:
        InputError: if the prior has masks.
    """

    def __init__(self, model: IsingViT) -> None:
        super().__init__(model)
        if self.mask_shapes:
            raise InputError(f"prior={type(model.prior).__name__} has masks; PointEstimate has none: use e.g. Flat")
        self.loc = nn.ParameterDict({key: nn.Parameter(weight) for key, weight in initial_weights(model).items()})

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        return Delta(self.loc[site.key], event_dim=len(site.shape))
