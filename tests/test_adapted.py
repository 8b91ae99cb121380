"""Any network: its sites, couplings and weights, against a native ViT and against lists by hand."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_isingvit import (
    FitConfig,
    Images,
    InputError,
    IsingNetwork,
    IsingSpikeSlab,
    LikelihoodGuided,
    Posterior,
    StructuredSpikeSlab,
    ViT,
    adapt,
    fit,
)
from pyro_isingvit.models.priors.structured import levels_of
from tests.conftest import QUICK, TINY, striped

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(dim), nn.LayerNorm(dim), heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        batch, tokens, _ = x.shape

        def split(z):
            return z.view(batch, tokens, self.heads, -1).transpose(1, 2)

        z = self.norm1(x)
        q, k, v = (split(part(z)) for part in (self.query, self.key, self.value))
        looks = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((looks @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Twin(nn.Module):
    """A `ViT` of linear layers."""

    def __init__(self, native):
        super().__init__()
        c = native.config
        self.embed = nn.Conv2d(c.channels, c.dim, c.patch_size, c.patch_size)
        self.position = nn.Parameter(native.position.detach().clone())
        self.blocks = nn.ModuleList(Block(c.dim, c.heads, c.hidden) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.hidden, self.head = nn.Linear(c.dim, c.classifier_units), nn.Linear(c.classifier_units, c.classes)
        with torch.no_grad():
            self.embed.weight.copy_(native.patch_embed.view_as(self.embed.weight))
            self.embed.bias.zero_()
            for k, block in enumerate(self.blocks):
                for name in ("query", "key", "value", "out", "up", "down"):
                    part = getattr(block, name)
                    part.weight.copy_(getattr(native.encoder, name)[k].reshape(part.weight.shape))
                    part.bias.zero_()
            for part, weight in ((self.hidden, native.classifier.hidden), (self.head, native.classifier.out)):
                part.weight.copy_(weight)
                part.bias.zero_()

    def forward(self, x):
        x = self.embed(x).flatten(2).mT + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.hidden(self.norm(x).mean(1)).relu())


NAMES = {
    "patch_embed": "embed",
    "classifier.hidden": "hidden",
    "classifier.out": "head",
    **{f"encoder.{role}": f"blocks.{role}" for role in ("query", "key", "value", "out", "up", "down")},
}


@pytest.fixture
def twins():
    torch.manual_seed(0)
    native = ViT(TINY)
    config = native.config
    example = torch.rand(1, config.channels, *config.image_size)
    options = {"mean": (config.pixel_mean,), "std": (config.pixel_std,)}
    return native, adapt(Twin(native), example, **options)


def test_a_twin_of_linear_layers_has_the_sites_and_couplings_of_a_vit(twins):
    native, twin = twins
    assert [site.name for site in twin.weight_sites()] == [NAMES[site.name] for site in native.weight_sites()]
    assert twin.uncoupled == twin.unknown == ()
    prior = IsingSpikeSlab(native.weight_sites())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        masks = {s.name: torch.randint(2, s.shape, generator=generator).float() for s in native.weight_sites()}
        shapes = {site.name: site.shape for site in twin.weight_sites()}
        same = {NAMES[name]: mask.reshape(shapes[NAMES[name]]) for name, mask in masks.items()}
        torch.testing.assert_close(twin.couplings.energy(same), prior.couplings.energy(masks))


UNITS_OF_VIT = levels_of("query_key", "value", "hidden", "classifier_hidden")


def structured(network):
    if isinstance(network, ViT):
        return StructuredSpikeSlab(network.weight_sites(), UNITS_OF_VIT, slab_scale=0.3)
    sites, levels = network.weight_sites(), network.unit_levels
    return StructuredSpikeSlab(sites, levels, couplings=network.couplings, slab_scale=0.3)


def unstructured(network):
    couplings = None if isinstance(network, ViT) else network.couplings
    return IsingSpikeSlab(network.weight_sites(), couplings=couplings, slab_scale=0.3)


def test_units_of_a_twin_are_those_of_a_vit(twins):
    native, twin = (structured(network) for network in twins)
    assert set(twins[1].unit_levels) == {NAMES[name] for name in UNITS_OF_VIT}
    shapes = {site.name: native.mask(site).event_shape for site in native.sites.values()}
    of_twin = {site.name: twin.mask(site).event_shape for site in twin.sites.values()}
    assert {NAMES[name]: shape.numel() for name, shape in shapes.items()} == {
        name: shape.numel() for name, shape in of_twin.items()
    }
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        masks = {name: torch.randint(2, shape, generator=generator).float() for name, shape in shapes.items()}
        same = {NAMES[name]: mask.reshape(of_twin[NAMES[name]]) for name, mask in masks.items()}
        energy = native.interaction.energy(masks)
        torch.testing.assert_close(twin.interaction.energy(same), energy)
        assert float(energy) != 0


@pytest.mark.parametrize("make_prior", [unstructured, structured])
def test_the_fit_of_a_twin_is_that_of_the_vit(twins, make_prior):
    """The same first weights and seed: the same inclusion probabilities, to rounding."""
    stripes, config = striped(), FitConfig(**QUICK | {"steps": 40, "temperature": 0.01})
    results = [
        fit(LikelihoodGuided(IsingNetwork(network, make_prior(network))), stripes, config=config, progress=False)
        for network in twins
    ]
    known, found = (result.posterior.inclusion_probabilities() for result in results)
    for name, probs in known.items():
        torch.testing.assert_close(found[NAMES[name]].flatten(), probs.flatten(), rtol=1e-3, atol=1e-4)
    assert float(torch.cat([p.flatten() for p in known.values()]).std()) > 0.01
    predictions = [result.posterior.predict(stripes.images, draws=5).probs for result in results]
    torch.testing.assert_close(*predictions, rtol=1e-3, atol=1e-4)


class Residual(nn.Module):
    """Convolutions with batch norm, a branch with a map of its own, and channels flattened with their places."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.across = nn.Conv2d(4, 6, 1, stride=2)
        self.own = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.out = nn.Linear(6 * 4, 5)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = (self.b(self.a(x).relu()) + self.across(x)).relu()
        return self.out(F.avg_pool2d(self.own(x), 2).flatten(1))


def pair_energy(masks, pairs):
    """The energy by a double sum over all pairs of weights that share a unit; each has the axis of the unit."""
    total = 0.0
    for (first, i), (second, j) in pairs:
        a, b = (2 * masks[name].movedim(axis, 0).flatten(1) - 1 for name, axis in ((first, i), (second, j)))
        if len(a) != len(b):  # each unit has several places
            b = b.reshape(len(a), -1)
        n = min(a.shape[1], b.shape[1])
        for u in range(len(a)):
            total += (
                n * sum(x * y for x, y in itertools.product(a[u].tolist(), b[u].tolist())) / (a.shape[1] * b.shape[1])
            )
    return total


def test_couplings_of_convolutions_are_those_by_hand():
    torch.manual_seed(0)
    network = adapt(Residual(), IMAGES)
    pairs = [
        (("first", 0), ("a", 1)),
        (("first", 0), ("across", 1)),
        (("a", 0), ("b", 1)),
        (("b", 0), ("own", 0)),
        (("across", 0), ("own", 0)),
        (("own", 0), ("out", 1)),
    ]
    masks = {site.name: torch.randint(2, site.shape).float() for site in network.weight_sites()}
    assert {(c.first, c.second) for c in network.couplings.couplings} == {(a[0], b[0]) for a, b in pairs}
    assert float(network.couplings.energy(masks)) == pytest.approx(pair_energy(masks, pairs), rel=1e-4)


def test_each_channel_of_a_depthwise_convolution_sums_over_its_own_places():
    sites = {site.name: site for site in adapt(Residual(), IMAGES).weight_sites()}
    assert {name: (site.unit_shape, site.fan_in) for name, site in sites.items() if name in ("a", "own")} == {
        "a": ((6, 1, 1, 1), 36),
        "own": ((6, 1, 1), 9),
    }


class Packed(nn.Module):
    """Packed attention of torch, a gated MLP, and a class token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.back = nn.Linear(8, 12), nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        left, right = self.gate(x).chunk(2, -1)
        x = x + self.back(F.silu(left) * right)
        return self.head(x[:, 0])


def test_packed_weights_are_taken_apart():
    network = adapt(Packed(), IMAGES)
    packed = "attention.in_proj"
    assert [s.name for s in network.weight_sites()] == [
        *("embed", f"{packed}.query", f"{packed}.key", f"{packed}.value", "attention.out_proj"),
        *("gate.part0", "gate.part1", "back", "head"),
    ]
    found = {(c.first, c.second) for c in network.couplings.couplings}
    assert found == {
        *(("embed", f"{packed}.{role}") for role in ("query", "key", "value")),
        (f"{packed}.query", f"{packed}.key"),
        (f"{packed}.value", "attention.out_proj"),
        *(("attention.out_proj", f"gate.part{k}") for k in range(2)),
        *((f"gate.part{k}", "back") for k in range(2)),
        ("back", "head"),
    }


class Sums(nn.Module):
    """Sums: of a stream and what a convolution makes of it, and of a part of the units; then a gate and a chain."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.wide, self.chain = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.left, self.right, self.out = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.inner(x).relu()
        x = self.chain((F.pad(x, (0, 0, 0, 0, 0, 2)) + self.wide(x)).relu()).relu().mean((2, 3))
        return self.out(self.left(x) * self.right(x).sigmoid())


@pytest.mark.parametrize(
    ("make", "options", "levels"),
    [
        (Residual, {}, {"first": "first", "a": "first", "b": "a", "across": "first"}),
        (Residual, {"include": ("a", "b", "own", "out")}, {"a": "a", "b": "a"}),
        (Sums, {}, {**dict.fromkeys(["chain", "left", "right"], "chain"), "out": "left"}),
    ],
)
def test_masks_of_whole_units_are_not_of_sums(make, options, levels):
    """Also where other terms of a sum have no mask, or are of some of its units alone."""
    assert adapt(make(), IMAGES, **options).unit_levels == {name: (unit,) for name, unit in levels.items()}


def test_parts_of_packed_weights_have_masks_of_whole_units():
    packed = "attention.in_proj"
    assert adapt(Packed(), IMAGES).unit_levels == {
        **{f"{packed}.{role}": (f"{packed}.query",) for role in ("query", "key")},
        **dict.fromkeys((f"{packed}.value", "attention.out_proj"), (f"{packed}.value",)),
        **dict.fromkeys(("gate.part0", "gate.part1", "back"), ("gate.part0",)),
    }


class Stages(nn.Module):
    """Stages of blocks, of which the first of each and those of each stage have patterns of their own."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.head = nn.Linear(192, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        sizes = ((4, 2), (6, 2), (6, 1))
        every = ([nn.Linear(n, n) for _ in range(depth)] for n, depth in sizes)
        self.stages = nn.ModuleList(nn.ModuleDict({"blocks": nn.ModuleList(blocks)}) for blocks in every)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for number, stage in enumerate(self.stages):
            x = self.down(x) if number == 1 else x
            for block in stage["blocks"]:
                x = x + block(x).relu()
        return self.head(x)


def test_a_block_that_is_left_alone_is_a_site_of_its_own():
    """Of the second stage's blocks the first is stacked with the third stage's."""
    network = adapt(Stages(), IMAGES, exclude=("stem", "down"))
    assert {site.name: site.shape for site in network.weight_sites()} == {
        "stages.0.blocks.0": (4, 4),
        "stages.0.blocks.1": (4, 4),
        "stages.blocks.0": (2, 6, 6),
        "stages.1.blocks.1": (6, 6),
        "head": (3, 6),
    }
    assert [(c.first, c.second, c.first_layers, c.second_layers) for c in network.couplings.couplings] == [
        ("stages.0.blocks.0", "stages.0.blocks.1", None, None),
        ("stages.blocks.0", "stages.1.blocks.1", 0, None),
        ("stages.1.blocks.1", "stages.blocks.0", None, 1),
        ("stages.blocks.0", "head", 1, None),
    ]


class Moved(nn.Module):
    """Units that are sliced, padded, turned round and put together again on their way."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(192, 6), nn.Linear(6, 5)
        self.third, self.out = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = self.first(x.flatten(1))
        x = self.second(torch.cat([x[:, :2], x[:, 2:5], x[:, 5:]], 1))
        return self.out(self.third(x[:, 1:]).relu())


def test_units_are_followed_through_slices():
    """Those of `first` are all read again; of `second` one is not, which no coupling of whole sites can say."""
    network = adapt(Moved(), IMAGES)
    assert [(c.first, c.second) for c in network.couplings.couplings] == [("first", "second"), ("third", "out")]
    assert network.unknown == ()


@pytest.mark.parametrize("make", [Residual, Packed])
@pytest.mark.parametrize("around", ["zero", "pretrained"])
def test_it_computes_what_the_module_does_and_gives_it_back(make, around):
    torch.manual_seed(0)
    module = make().eval()
    before = copy.deepcopy(module.state_dict())
    network = adapt(module, IMAGES, around=around, mean=(0.5, 0.4, 0.3), std=(0.2,)).eval()
    standardised = (IMAGES - torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1)) / 0.2
    with torch.no_grad():
        expected = module(standardised)
        torch.testing.assert_close(network(IMAGES), expected)
        torch.testing.assert_close(network.plain().eval()(standardised), expected)
    plain = network.plain()
    assert type(plain) is make
    assert plain.state_dict().keys() == before.keys()
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_around_pretrained_a_dropped_weight_is_what_it_was():
    torch.manual_seed(0)
    module = Packed().eval()
    network = adapt(module, IMAGES, around="pretrained").eval()
    sites = network.weight_sites()
    zeros = {site.name: torch.zeros(site.shape) for site in sites}
    model = IsingNetwork(network, IsingSpikeSlab(sites, couplings=network.couplings))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(IMAGES, zeros), module(IMAGES))
        moved = zeros | {"head": torch.ones(sites[-1].shape)}
        features = []
        module.head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        more = model.logits(IMAGES, moved) - module(IMAGES)
        torch.testing.assert_close(more, features[0].sum(1, keepdim=True).expand(-1, 4))


def test_a_posterior_of_it_is_fitted_saved_and_read(tmp_path):
    torch.manual_seed(0)
    images = Images(torch.rand(40, 3, 8, 8), torch.arange(40) % 4, 4)

    def guide():
        torch.manual_seed(1)
        network = adapt(Packed(), images.images[:1], exclude=("embed",), train="masked")
        sites = network.weight_sites()
        return LikelihoodGuided(IsingNetwork(network, IsingSpikeSlab(sites, couplings=network.couplings)))

    first = guide()
    frozen = copy.deepcopy(first.model.network.original.state_dict())
    posterior = fit(first, images, config=FitConfig(**QUICK | {"temperature": 0.01}), progress=False).posterior
    assert all(torch.equal(v, frozen[n]) for n, v in posterior.model.network.original.state_dict().items())
    posterior.save(tmp_path / "posterior")
    again = Posterior.load(tmp_path / "posterior", guide())
    torch.testing.assert_close(again.predict(images.images, 5).probs, posterior.predict(images.images, 5).probs)
    plain = posterior.network().plain().eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(images.images).softmax(-1), posterior.predict_plug_in(images.images))


class Tied(Packed):
    def __init__(self):
        super().__init__()
        self.back = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 8)
        self.back.weight = self.gate.weight

    def forward(self, x):
        x = self.embed(x).flatten(2).mT.mean(1)
        return self.head(self.back(self.gate(x)))


class Twice(Tied):
    def __init__(self):
        super().__init__()
        self.back = self.gate


class Nothing(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Pair(Residual):
    def forward(self, x):
        return super().forward(x), x


def changed(module, attribute, value):
    """The module with one of its tensors set."""
    with torch.no_grad():
        module.get_parameter(attribute).fill_(value)
    return module


def frozen(module):
    return module.requires_grad_(False)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: Nothing(), {}, "module=Nothing: no weight of a linear map"),
        (lambda: Residual(), {"example": torch.rand(2, 1, 8, 8)}, "example: Residual fails with it"),
        (lambda: Residual(), {"example": torch.rand(2, 3)}, r"example of shape \(2, 3\).*: need \(n, channels"),
        (
            lambda: Residual(),
            {"include": ("blocks.*",)},
            r"include='blocks.\*': matches no weight; there are \['first'",
        ),
        (lambda: Residual(), {"exclude": "out"}, "exclude='out': give a sequence of patterns"),
        (lambda: Residual(), {"exclude": ("*",)}, "leave no weight to mask"),
        (lambda: Residual(), {"around": "one"}, "around='one': choose one of"),
        (lambda: Residual(), {"std": (0.0,)}, r"std=\(0.0,\): must be positive"),
        (lambda: Residual(), {"mean": (0.0, 1.0)}, "mean=.*give one number for each of 3 channels"),
        (lambda: Tied(), {}, "back.weight and gate.weight are one parameter|gate.weight and back.weight are one"),
        (lambda: Twice(), {}, "is used 2 times|are one parameter"),
        (lambda: nn.Conv2d(3, 4, 3, groups=1), {}, r"gives \(1, 4, 6, 6\) for one image"),
        (lambda: 3, {}, "module=int: give a torch module"),
        (lambda: Pair(), {}, r"module=Pair: returns tuple; needs a tensor \(batch, outputs\)"),
        (lambda: nn.DataParallel(Residual()), {}, "module=DataParallel: give module.module"),
        (
            lambda: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))),
            {},
            "module=.*: give the module that",
        ),
        (lambda: changed(Residual(), "first.weight", float("nan")), {}, "module: first.weight holds NaN"),
        (lambda: frozen(Residual()), {}, "module: all weights that could be masked are frozen"),
        (lambda: Residual(), {"std": (float("nan"),)}, r"std=\(nan,\): must be finite"),
        (lambda: Residual(), {"example": 255 * IMAGES}, "example within .*: rescale them"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(module, options, message):
    with pytest.raises(InputError, match=message):
        adapt(module(), **{"example": IMAGES} | options)


def norms():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def fitted(network):
    prior = IsingSpikeSlab(network.weight_sites(), couplings=network.couplings)
    config = FitConfig(steps=6, batch_size=4, temperature=1.0, device="cpu")
    images = Images(torch.rand(8, 3, 8, 8), torch.arange(8) % 3, 3)
    return fit(LikelihoodGuided(IsingNetwork(network, prior)), images, config=config, progress=False).posterior


def test_what_is_frozen_stays_as_it_is():
    """Weights are not masked, and a batch norm keeps its statistics: by `requires_grad_`, or by train="masked"."""
    by_hand = norms()
    by_hand[0].requires_grad_(False)
    by_hand[1].requires_grad_(False)
    for module, options in ((by_hand, {}), (norms(), {"train": "masked", "include": ("4", "6")})):
        network = adapt(module, IMAGES, **options)
        assert [site.name for site in network.weight_sites()] == ["4", "6"]
        state = fitted(network).model.network.original.state_dict()
        for name, value in module.state_dict().items():
            if name[0] in "01":
                assert torch.equal(state[name], value), name
    plain = norms()
    plain[1] = nn.BatchNorm2d(4, affine=False)
    state = fitted(adapt(plain, IMAGES, train="masked", include=("4",))).model.network.original.state_dict()
    assert torch.equal(state["1.running_mean"], torch.zeros(4))
    with pytest.raises(InputError, match="include='0': what it matches is frozen"):
        adapt(by_hand, IMAGES, include=("0",))
    learned = fitted(adapt(norms(), IMAGES)).model.network.original.state_dict()
    assert not torch.equal(learned["1.running_mean"], torch.zeros(4))


def test_images_of_another_size_and_missing_couplings_are_said():
    network = adapt(Residual(), IMAGES)
    with pytest.raises(InputError, match=r"images of shape \(2, 3, 4, 4\): this network was adapted with"):
        network(torch.rand(2, 3, 4, 4))
    with pytest.raises(InputError, match="give couplings=network"):
        IsingSpikeSlab(network.weight_sites())
