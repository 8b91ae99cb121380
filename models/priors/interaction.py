"""The base class of interactions of masks: a factor on top of the base measure."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from pyro_isingvit.settings import Described


class Interaction(Described, nn.Module):
    """A factor ``exp(energy(masks))`` over all masks, on top of the prior's base measure.

    A prior has one as its ``interaction``. It is made from a function, or is a subclass that implements `energy`;
    `log_normaliser` and `draw` are needed only in the cases that their docstrings name. Parameters of an interaction
    are learned with the guide.

    Args:
        function: computes the energy, a scalar tensor, from the masks by site name. None for subclasses.

    Example: an interaction of two sites, without parameters.

        >>> together = Interaction(lambda masks: masks["encoder.up"].mean() * masks["encoder.down"].mean())
    """

    multilinear = True
    """Whether the energy is linear in each mask, so that its expectation over independent masks is that at their means,
    and its gradient there is the local field of mean-field inference."""

    normalised = False
    """Whether base measure times factor is a normalised distribution, so that `log_normaliser` is not needed."""

    covers_latents = False
    """Whether `log_normaliser` accounts for latent variables on which the base measure depends."""

    def __init__(self, function: Callable[[Mapping[str, Tensor]], Tensor] | None = None) -> None:
        super().__init__()
        self.function = function

    def energy(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Log of the factor, unnormalised, a scalar.

        It should be linear in each mask; if not, set ``multilinear = False``.

        Args:
            masks: masks, or mean masks, by site name.
        """
        if self.function is None:
            raise NotImplementedError(f"{type(self).__name__} must implement energy(masks), or be given a function")
        return self.function(masks)

    def log_normaliser(self, masks: Mapping[str, Tensor]) -> Tensor:
        """log Z of base measure times factor; needed only where it depends on learned parameters.

        Args:
            masks: the current draw by site name, which a pseudo-likelihood in place of log Z depends on.

        Raises:
            NotImplementedError: unless overridden.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.energy or the base measure depends on learned parameters, so the normaliser does "
            "too: override log_normaliser(masks) with log Z (Ising.log_normaliser for small systems) or a "
            "pseudo-likelihood in its place, or detach the parameters"
        )

    def draw(self, draws: int) -> dict[str, Tensor]:
        """Draws of the masks that interact, ``(draws, *mask shape)`` by site name; needed to draw from the prior.

        Raises:
            NotImplementedError: unless overridden.
        """
        raise NotImplementedError(
            f"{type(self).__name__} interacts, so masks are not drawn from prior.mask: override draw(draws), e.g. with "
            "Ising.chain"
        )

    def observe_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Called with the posterior means of all weights, by site name, before masks are updated in closed form."""
