"""One value for each weight: maximum likelihood under `Flat`, maximum a posteriori under another prior.

References:
    Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.
"""

from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_isingvit.errors import InputError
from pyro_isingvit.models.ising_vit import IsingViT
from pyro_isingvit.network import WeightSite

from .base import Guide, initial_weights
from .joint import PointDraw


class PointEstimate(Guide):
    """A point estimate of every weight, for priors without masks; under `Flat` it is the deterministic network.

    Masks that are fixed (`IsingViT.fix_masks`) set weights to zero, as in magnitude pruning.

    Args:
        model: the model whose posterior this approximates.
        dropconnect: share of the weights, within [0, 1), that each step of training sets to zero at random; the others
            are scaled up.

    Raises:
        InputError: if the prior has masks, or ``dropconnect`` is out of range.
    """

    def __init__(self, model: IsingViT, dropconnect: float = 0.0) -> None:
        super().__init__(model)
        if not 0 <= dropconnect < 1:
            raise InputError(f"dropconnect={dropconnect}: a share of the weights lies within [0, 1), e.g. 0.1")
        self.dropconnect = dropconnect
        if self.mask_shapes:
            raise InputError(f"prior={type(model.prior).__name__} has masks; PointEstimate has none: use e.g. Flat")
        self.loc = nn.ParameterDict({key: nn.Parameter(weight) for key, weight in initial_weights(model).items()})

    def weight(self, site: WeightSite, mask: Tensor | None) -> TorchDistributionMixin:
        loc = nn.functional.dropout(self.loc[site.key], self.dropconnect, self.training)
        return Delta(loc if mask is None else loc * mask, event_dim=len(site.shape))

    def draw_jointly(self) -> PointDraw | None:
        own = all(getattr(type(self), name) is getattr(PointEstimate, name) for name in ("weight", "forward"))
        if not own or any(self._hypers.values()):
            return None
        self.begin()
        masks = self.model.fixed_masks or {}
        weights = {site.name: self.weight(site, masks.get(site.name)).v for site in self.model.sites}
        return PointDraw(dict(masks), weights)
