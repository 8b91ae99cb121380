"""Attention maps with their uncertainty over the posterior.

References:
    Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (rollout).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from ..draws import Draw, evaluating
from ..errors import InputError
from ..network import ViT
from ..posterior import Posterior
from .units import unit_inclusion


@dataclass(frozen=True)
class Attention:
    """Attention maps of n images, with their uncertainty over the posterior.

    Tokens are the patches, row by row, after the class token if there is one.

    Attributes:
        mean, sd: mean and standard deviation of each head's attention map over the draws,
            (n, depth, heads, tokens, tokens). The last axis is over the tokens that are attended to.
        rollout_mean, rollout_sd: mean and standard deviation over the draws of the share of each patch in the attention
            rollout, that is, in what reaches the classifier through all blocks, (n, rows, columns). The shares of a
            draw sum to 1 over the patches, or are all 0 if no patch reaches the class token.
        head_inclusion: posterior probability that each head is alive, (depth, heads); ones if there are no masks.
    """

    mean: Tensor
    sd: Tensor
    rollout_mean: Tensor
    rollout_sd: Tensor
    head_inclusion: Tensor


def attention_maps(posterior: Posterior, images: Tensor, draws: int = 50, seed: int = 0) -> Attention:
    """Posterior mean and standard deviation of the attention maps of images.

    Attention rollout multiplies the maps of the blocks. The map of a block is the mean over the heads that are alive in
    the draw, averaged with the identity, which stands for the residual stream. Heads that have no weights into their
    values or none out of them contribute nothing and are left out.

    Args:
        posterior: posterior of a `ViT`.
        images: (n, channels, height, width) within [0, 1].
        draws: number of draws from the guide.
        seed: seed of the draws.

    Raises:
        InputError: if ``draws`` is below 1, or the network is no `ViT`.
    """
    network = posterior.model.network
    if not isinstance(network, ViT):
        raise InputError(f"network={type(network).__name__}: attention maps are of a ViT; this one gives none")
    config, sums = network.config, list[Tensor]()
    for draw in posterior.draws(draws, seed):
        maps = _maps(draw, images.to(posterior.device))
        value, out = draw.weights["encoder.value"], draw.weights["encoder.out"]
        alive = (value != 0).any(-1).any(-1) & (out != 0).any(-1).any(1)
        flow = _rollout(maps, alive.double(), config.pooling == "cls").unflatten(-1, _grid(network))
        moments = [maps, maps.square(), flow, flow.square()]
        sums = [a + b for a, b in zip(sums, moments, strict=True)] if sums else moments
    mean, square, flow, flow_square = (total.cpu() / draws for total in sums)
    inclusion = (
        torch.from_numpy(unit_inclusion(posterior, "head").values)
        if posterior.guides[0].mask_shapes
        else torch.ones(config.depth, config.heads)
    )
    return Attention(
        mean.float(),
        (square - mean.square()).clamp_min(0).sqrt().float(),
        flow.float(),
        (flow_square - flow.square()).clamp_min(0).sqrt().float(),
        inclusion.float(),
    )


def _maps(draw: Draw, images: Tensor) -> Tensor:
    """Attention maps (n, depth, heads, tokens, tokens) of a draw, in double precision."""
    blocks: list[Tensor] = []
    with evaluating(draw.model):
        functional_call(draw.model.network, draw.weights, (images, blocks))
    return torch.stack(blocks, 1).double()


def _rollout(maps: Tensor, alive: Tensor, class_token: bool) -> Tensor:
    """Share of each patch in the rollout, (n, patches).

    Args:
        maps: attention maps, (n, depth, heads, tokens, tokens).
        alive: 1 for the heads that are alive, else 0, (depth, heads).
        class_token: whether the first token is the class token.
    """
    tokens = maps.shape[-1]
    identity = torch.eye(tokens, dtype=maps.dtype, device=maps.device)
    flow = identity
    for block in range(maps.shape[1]):
        weight = alive[block].view(-1, 1, 1)
        heads = alive[block].sum()
        mixed = (maps[:, block] * weight).sum(1) / heads if heads else identity
        flow = (identity + mixed) / 2 @ flow
    share = flow[..., 0, 1:] if class_token else flow.mean(-2)
    share = share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return share.expand(len(maps), -1)


def _grid(network: ViT) -> tuple[int, int]:
    """Numbers of rows and of columns of patches."""
    config = network.config
    rows, columns = (side // patch for side, patch in zip(config.image_size, config.patch_size, strict=True))
    return rows, columns
