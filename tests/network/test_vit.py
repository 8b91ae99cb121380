"""The network against torch's own transformer layers, and its refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_isingvit import InputError, ViT, ViTConfig


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("position", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [
        {"image_size": 28, "patch_size": 7},
        {"image_size": (8, 12), "patch_size": (2, 3), "channels": 3, "classes": 7, "dim": 12, "heads": 3, "depth": 1},
        {"image_size": 8, "patch_size": 8, "depth": 3, "mlp_ratio": 0.5, "classifier_hidden": 5},
        {"image_size": (28, 14), "patch_size": 7, "stem": "convolutions", "channels": 3},
        {"image_size": 8, "patch_size": 2, "stem": "convolutions"},
    ],
)
def test_logits_have_a_column_for_each_class(geometry, pooling, position):
    config = ViTConfig(**geometry, pooling=pooling, position_embedding=position)
    images = torch.rand(2, config.channels, *config.image_size)
    network = ViT(config)
    assert network.forward_features(images).shape == (2, config.tokens + (pooling == "cls"), config.dim)
    assert network(images).shape == (2, config.classes)


def test_blocks_equal_torch_encoder_layers():
    config = ViTConfig(image_size=8, patch_size=2, dim=8, heads=2, depth=3, mlp_ratio=3)
    network = ViT(config).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(5, 16, 8, dtype=torch.double)
    expected = x
    for i in range(config.depth):
        layer = nn.TransformerEncoderLayer(
            8,
            2,
            dim_feedforward=24,
            dropout=0,
            activation=F.gelu,
            batch_first=True,
            norm_first=True,
            dtype=torch.double,
        )
        e = network.encoder
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(torch.cat([w[i].flatten(0, 1) for w in (e.query, e.key, e.value)]))
            layer.self_attn.in_proj_bias.copy_(torch.cat([e.query_bias[i], e.key_bias[i], e.value_bias[i]]))
            layer.self_attn.out_proj.weight.copy_(e.out[i].flatten(1))
            layer.self_attn.out_proj.bias.copy_(e.out_bias[i])
            layer.linear1.weight.copy_(e.up[i])
            layer.linear1.bias.copy_(e.up_bias[i])
            layer.linear2.weight.copy_(e.down[i])
            layer.linear2.bias.copy_(e.down_bias[i])
            layer.norm1.weight.copy_(e.attention_norm[i])
            layer.norm1.bias.copy_(e.attention_norm_bias[i])
            layer.norm2.weight.copy_(e.mlp_norm[i])
            layer.norm2.bias.copy_(e.mlp_norm_bias[i])
        expected = layer(expected)
    torch.testing.assert_close(network.encoder(x), expected)


def test_patches_are_cut_row_by_row():
    config = ViTConfig(image_size=4, patch_size=2, dim=4, heads=1, depth=1, position_embedding=False)
    network = ViT(config)
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(1, 1, 4, 4)
    network(images)
    top_right = (images[0, 0, :2, 2:].flatten() - 0.5) / 0.5
    torch.testing.assert_close(seen[0][0, 1], network.patch_embed @ top_right + network.patch_embed_bias)


def test_convolutional_stem_equals_torch_convolutions():
    """Their last one is the patch embedding."""
    config = ViTConfig(image_size=8, patch_size=4, channels=3, dim=8, heads=2, stem="convolutions")
    network = ViT(config)
    nn.init.normal_(network.patch_embed_bias)
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 8, 8)
    network(images)
    (first,) = network.stem.convolutions
    assert (first.weight.shape, network.patch_embed.shape) == ((4, 3, 3, 3), (8, 36))
    x = F.gelu(F.conv2d((images - 0.5) / 0.5, first.weight, first.bias, stride=2, padding=1))
    x = F.conv2d(x, network.patch_embed.view(8, 4, 3, 3), network.patch_embed_bias, stride=2, padding=1)
    torch.testing.assert_close(seen[0], x.flatten(2).mT + network.position)


def test_sites_name_every_dimension_and_count_the_published_small_geometry():
    sites = ViT(ViTConfig()).weight_sites()
    assert [s.name for s in sites][:3] == ["patch_embed", "encoder.query", "encoder.key"]
    # 32*49 + 2*4*32*32 + 2*2*512*32 + 16*32 + 10*16, by hand
    assert sum(s.numel for s in sites) == 75_968
    fan_in = {s.name: s.fan_in for s in sites}
    assert fan_in["encoder.out"] == 32
    assert fan_in["encoder.down"] == 512
    assert fan_in["patch_embed"] == 49


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (
            {"image_size": 28, "patch_size": 5},
            r"patch_size=5 does not divide image_size=28; choose one of \[1, 2, 4, 7",
        ),
        (
            {"image_size": 30, "patch_size": 5, "stem": "convolutions"},
            r"one for each of 6 patches, which patch_size=5 does not allow; choose one of \[2, 15, 30\]",
        ),
        ({"image_size": (8, 12), "patch_size": (2, 4), "stem": "convolutions"}, r"patch_size=\(2, 4\) has to be"),
        ({"patch_size": 1, "stem": "convolutions"}, r"patch_size=1 does not allow; choose one of \[2, 4, 7, 14, 28\]"),
        ({"dim": 32, "heads": 5}, r"heads=5 does not divide dim=32"),
        ({"mlp_ratio": 0.001}, r"mlp_ratio=0.001 leaves no hidden unit"),
        ({"depth": 0}, r"depth=0"),
        ({"pooling": "max"}, r"pooling='max'"),
        ({"with": 3}, r"with=3: Extra inputs are not permitted"),
    ],
)
def test_impossible_geometry_is_refused(geometry, message):
    with pytest.raises(InputError, match=message) as caught:
        ViTConfig(**geometry)
    assert "\n" not in str(caught.value)


def test_wrong_image_size_names_both_shapes():
    with pytest.raises(InputError, match=r"\(2, 1, 9, 8\).*\(batch, 1, 28, 28\)"):
        ViT(ViTConfig())(torch.rand(2, 1, 9, 8))
