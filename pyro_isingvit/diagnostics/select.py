"""Selection of masks with control of the false discovery rate, by the posterior or by a null that the data provide.

The rules themselves, with their references, are in `error_rates`.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from ..data import Images
from ..errors import InputError, check_count, kind_of
from ..posterior import Posterior
from .error_rates import relevance, stable, tail_rates, while_mean_is_below
from .inclusion import inclusion_dataset
from .meaning import INPUT, check_masks, inclusion_meaning
from .refits import Refit, Refits, at_site, log_odds

By = Literal["posterior", "shadow", "null", "stability"]
"""Ways to control the false discovery rate, see `select`."""

FITS = {"shadow": 3, "null": 1, "stability": 10}
"""Number of refits, by default."""

FEWEST_HALVES, FEWEST_MEMBERS = 4, 10
"""Smallest number of fits on halves, in pairs that complete each other, and of members on halves that do not."""


OF_MEMBERS = (
    "Members of the mixture were fitted to as many images as half of the training images; assumes that these were "
    "drawn at random for each member by itself, as fit_mixture does."
)
"""What stability of the members of a mixture depends on beside the rest."""


@dataclass(frozen=True)
class Selection:
    """Masks that were selected, at a nominal false discovery rate.

    Attributes:
        selected: whether each mask of the site is selected; booleans in the shape of its masks.
        table: one row for each mask, in order, with its coordinates; ``score``, by which it was judged (see
            `select`); ``selected``.
        site: name of the site.
        by: the method.
        fdr: the nominal false discovery rate.
        estimated: false discovery rate of the selection as the method estimates it; 0 if nothing is selected.
        assumes: on what the control of the error rate depends, in a sentence or two.
    """

    selected: Tensor
    table: pd.DataFrame
    site: str
    by: By
    fdr: float
    estimated: float
    assumes: str

    def __str__(self) -> str:
        """The number selected, the error rates, and what they depend on."""
        return (
            f"{int(self.selected.sum())} of {self.selected.numel()} masks of {self.site} selected by {self.by}; false "
            f"discovery rate {self.estimated:.2g} estimated, {self.fdr:g} nominal. {self.assumes}"
        )


def select(
    posterior: Posterior,
    fdr: float = 0.1,
    by: By = "posterior",
    *,
    train: Images | None = None,
    refit: Refit | None = None,
    fits: int | None = None,
    site: str = INPUT,
    seed: int = 0,
) -> Selection:
    """Select as many masks of a site as a nominal false discovery rate permits.

    The false discovery rate is the expected share of irrelevant masks among those selected.

    * ``"posterior"``: those of highest inclusion probability p, as long as the mean of 1 - p over them is at most
      ``fdr``. It needs no further fit. The score is p. It is right where inclusion probabilities are, see
      `inclusion_meaning`.
    * ``"shadow"``: the model is fitted to images with as many channels again, which are those of other images, in
      random order. Each input feature competes with its shadow: an irrelevant one is as likely to have the lower log
      odds as the higher. The score is the mean over fits, each with other shadows, of the probability that the feature
      is relevant, given by how much it beats its shadow, see `error_rates.relevance`. Those of highest score are
      selected, as long as the mean of one minus the score over them is at most ``fdr``. It is right if irrelevant
      features are independent of the relevant ones and of each other. If they are correlated with each other, they pass
      their shadows together, and the rate is exceeded. Where fits differ it is below the nominal one: a feature that
      wins in all of them is more certain than a single fit says.
    * ``"null"``: the model is fitted to randomly permuted labels. The score is the smallest rate at which a mask is
      selected, by the tails of the log odds of ``posterior`` and of these fits. It also applies to inner sites.
    * ``"stability"``: the model is fitted to random halves of the images, two that complete each other at a time. The
      score is the share of the fits with an inclusion probability of at least one half. If irrelevant masks are
      exchangeable, the number of irrelevant ones that are selected has a bound, which often is far from tight; the
      estimated rate is that bound over the number selected.

    Args:
        posterior: a posterior with masks. A mixture of at least `FEWEST_MEMBERS` needs no refits for ``"stability"`` if
            its members were fitted to halves of ``train`` (``fit_mixture(share=0.5)``). How many images each was fitted
            to is checked; that these were drawn at random, for each member by itself, it does not know.
        fdr: nominal false discovery rate, within (0, 1).
        by: the method.
        train: the images that the posterior was fitted to, and of whose halves a mixture's members have one each; all
            methods but ``"posterior"`` need them.
        refit: fits a posterior with the same masks to given images, whose number of channels, for ``"shadow"``, is
            twice that of ``train``; all methods but ``"posterior"`` need it, save for ``"stability"`` of a mixture.
        fits: number of refits; 3 for ``"shadow"``, 1 for ``"null"`` and 10 for ``"stability"`` if None.
        site: name of the site; ``"shadow"`` needs one mask for each input feature, as of a `FeatureSpikeSlab`.
        seed: seed of permutations and halves.

    Returns:
        The selection, which says what its error rate depends on.

    Raises:
        InputError: if an argument is out of range, missing or superfluous, the posterior has no masks at the site,
            or members of a mixture without refits were not fitted to as many images as half of ``train`` has.

    Example: with all features kept, log odds rank them best (docs/inclusion.md).

        >>> def refit(images):  # doctest: +SKIP
        ...     network = ViT(ViTConfig(image_size=8, patch_size=4, channels=images.shape[0]))
        ...     prior = FeatureSpikeSlab(network.weight_sites(), inclusion=0.999)
        ...     guide = LikelihoodGuided(IsingViT(network, prior))
        ...     return fit(guide, images, config=FitConfig(temperature=0.1)).posterior
        >>> select(refit(train), fdr=0.1, by="shadow", train=train, refit=refit)  # doctest: +SKIP
    """
    _check(posterior, fdr, by)
    probs = at_site(posterior, site)
    free = by == "stability" and refit is None and len(posterior.members) >= FEWEST_MEMBERS
    if fits is not None and (by not in FITS or free):
        raise InputError(f"fits={fits}: by={by!r} takes no number of fits here; leave it out")
    if by == "posterior":
        if train is not None or refit is not None:
            raise InputError(f"by={by!r} needs no refit and no images; leave out train and refit")
    elif free:
        _check_halves(posterior, train)
    elif not isinstance(train, Images) or not callable(refit):
        raise InputError(f"by={by!r} fits again: give train, the training images, and refit, a function of images")
    number = check_fits(by, fits)
    if by == "posterior":
        chosen = _by_posterior(posterior, probs, fdr, site)
    elif free:
        chosen = _by_stability(torch.stack([at_site(member, site) for member in posterior.members]), fdr)
        chosen = replace(chosen, assumes=f"{chosen.assumes} {OF_MEMBERS}")
    else:
        assert train is not None
        assert refit is not None
        again = Refits(refit, train, site, seed, tuple(probs.shape))
        if by == "shadow":
            chosen = _by_shadow(again, probs, fdr, number)
        elif by == "null":
            chosen = _by_null(log_odds(posterior, site), again.to_permuted_labels(number), fdr)
        else:
            chosen = _by_stability(again.to_halves(number), fdr)
    return _selection(posterior, site, by, fdr, chosen)


def _check(posterior: Posterior, fdr: float, by: By) -> None:
    if by not in get_args(By):
        raise InputError(f"by={by!r}: choose one of {list(get_args(By))}")
    if not isinstance(posterior, Posterior):
        raise InputError(f"posterior={kind_of(posterior)}: give a Posterior, as fit(...).posterior")
    if not isinstance(fdr, int | float) or not 0 < fdr < 1:
        raise InputError(f"fdr={fdr!r}: a rate lies strictly between 0 and 1, e.g. 0.1")
    check_masks(posterior)


def _check_halves(posterior: Posterior, train: Images | None) -> None:
    """Check that each member of a mixture was fitted to as many images as half of the training images.

    Raises:
        InputError: if a member was not, or the images are not given.
    """
    if not isinstance(train, Images):
        raise InputError(
            f"train={kind_of(train)}: give the training images of the mixture, half of which each member was fitted to"
        )
    halves = {len(train) // 2, -(-len(train) // 2)}
    for number, guide in enumerate(posterior.guides):
        if guide.model.num_data not in halves:
            raise InputError(
                f"posterior: its member {number} was fitted to {guide.model.num_data} images, where half of train is "
                f"{len(train) // 2}; use fit_mixture(share=0.5), or give refit"
            )


def check_fits(by: str, fits: int | None) -> int:
    """The number of refits; raises an `InputError` if it is out of range."""
    number = FITS.get(by, 1) if fits is None else fits
    check_count("fits", number, 10_000)
    if by == "stability" and (number < FEWEST_HALVES or number % 2):
        raise InputError(f"fits={number}: give an even number, at least {FEWEST_HALVES}; halves come in pairs")
    return number


@dataclass(frozen=True)
class _Chosen:
    """Scores and selected masks, flat, with the estimated error rate and what it assumes."""

    scores: Tensor
    selected: Tensor
    estimated: float
    assumes: str


def _by_posterior(posterior: Posterior, probs: Tensor, fdr: float, site: str) -> _Chosen:
    scores = probs.flatten()
    selected, estimated = while_mean_is_below(1 - scores, fdr)
    meaning = inclusion_meaning(posterior).set_index("site").loc[site]
    right = meaning["reads_as"] == "probability"
    assumes = f"Assumes that the inclusion probabilities are right{'' if right else ', which they are not'}. "
    return _Chosen(scores, selected, estimated, assumes + str(meaning["says"]))


def _by_shadow(again: Refits, masks: Tensor, fdr: float, fits: int) -> _Chosen:
    if again.site != INPUT or masks.dim() != 2 or masks.shape[0] != 1:
        raise InputError(
            f"site={again.site!r} with masks of shape {tuple(masks.shape)}: shadows need one mask for each input "
            f"feature, at {INPUT}, as of a FeatureSpikeSlab; use by='null' for other masks"
        )
    own, shadow = again.to_shadows(masks.numel(), fits).unbind(1)
    scores = relevance(own - shadow).mean(0)
    selected, estimated = while_mean_is_below(1 - scores, fdr)
    assumes = (
        "Assumes that irrelevant features are independent of the relevant ones and of each other. Features that are "
        "correlated with relevant ones are selected too often."
    )
    return _Chosen(scores, selected, estimated, assumes)


def _by_null(own: Tensor, null: Tensor, fdr: float) -> _Chosen:
    scores = tail_rates(own.flatten(), null)
    selected = scores <= fdr
    estimated = float(scores[selected].max()) if selected.any() else 0.0
    assumes = (
        "Assumes that the log odds of an irrelevant mask are distributed as in a fit to permuted labels, which "
        "fits noise alone, and that higher log odds speak for relevance."
    )
    return _Chosen(scores, selected, estimated, assumes)


def _by_stability(probs: Tensor, fdr: float) -> _Chosen:
    kept = probs.flatten(1) >= 0.5
    frequency = kept.double().mean(0)
    selected, estimated = stable(frequency, float(kept.double().sum(1).mean()), fdr)
    assumes = (
        "Assumes that irrelevant masks are exchangeable, and no more often selected than at random. The estimate is a "
        "bound on the expected number of irrelevant masks, over the number selected."
    )
    return _Chosen(frequency, selected, estimated, assumes)


def _selection(posterior: Posterior, site: str, by: By, fdr: float, chosen: _Chosen) -> Selection:
    shape = posterior.guides[0].mask_shapes[site]
    table = inclusion_dataset(posterior)[site].to_dataframe().reset_index().drop(columns=site)
    table = table.assign(score=chosen.scores.numpy(), selected=chosen.selected.numpy())
    return Selection(chosen.selected.view(shape), table, site, by, fdr, chosen.estimated, chosen.assumes)
