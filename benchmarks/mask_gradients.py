"""Bias, standard deviation and time of the estimators of the gain in log-likelihood from keeping a weight.

There are three parts:

1. A network of ten weights at their most likely values, with uncertain masks: bias, standard deviation and time of one
   update of every estimator, against the exact E[L | mask = 1] - E[L | mask = 0], summed over all states.
2. The same for the gradients of the whole ELBO in the logits of these masks, as guides without estimators compute them.
3. A network trained on digits: rank correlation of the estimates with those by the exact diagonal of the Hessian.

    python benchmarks/mask_gradients.py --out docs
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyro
import scipy.stats
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import pyro_isingvit as iv
from pyro_isingvit.experiments.page import markdown
from pyro_isingvit.guides.estimators import ESTIMATORS
from pyro_isingvit.models.ising_vit import Pass
from pyro_isingvit.testing import TwoLayers

NOTES = {
    "Pull of the likelihood on ten masks": "Of one update from a batch of 20 of 200 images, in per cent of the root "
    "mean square of the exact pulls. The second-order estimators are made for weights near the maximum of the "
    "likelihood and many masks on; here half of the masks are off at any time. DisARM is unbiased. Paired draws "
    "are for the four weights of the last layer; the other six are squared gradients.",
    "Gradient of the ELBO in ten logits": "Likewise, of likelihood, prior and entropy together. The score function is "
    "unbiased, the straight-through gradients are not.",
    "Ranks on digits": "Spearman correlation of what each weight of a trained network is worth with what the exact "
    "Hessian diagonal says, on the same training images. GELU units bend the Hessian of `encoder.up` by a term that "
    "Gauss-Newton and Fisher information lack.",
}
"""Notes on each table, by its title."""

IMAGES, MASKS = 200, 10
STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=MASKS)))
GUIDES: dict[str, Callable[[iv.IsingViT], iv.MeanField]] = {
    "straight-through (MeanField)": iv.MeanField,
    "concrete (Relaxed)": iv.guides.Relaxed,
    "score function": lambda model: iv.guides.ScoreFunction(model, baseline="none"),
    "score function, decaying average": iv.guides.ScoreFunction,
}


def problem() -> tuple[TwoLayers, iv.Images]:
    """The network at the most likely weights for labels that were drawn from it, and the images."""
    torch.manual_seed(4)
    network, images = TwoLayers(), torch.rand(IMAGES, 1, 1, 3)
    with torch.no_grad():
        labels = torch.distributions.Categorical(logits=network(images)).sample()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = sum(p.square().sum() for p in network.parameters())
        loss = F.cross_entropy(network(images), labels) + 1e-3 * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return network, iv.Images(images, labels, 2)


def exact(network: TwoLayers, data: iv.Images, guide: iv.MeanField) -> tuple[Tensor, Tensor]:
    """Gains in log-likelihood from keeping each weight, and gradients of its mean in the logits of the masks."""
    probs = torch.cat([guide.logit[key].flatten().sigmoid() for key in ("first", "second")]).detach()
    values = []
    for state in STATES:
        masks = {"first": state[:6].view(2, 3), "second": state[6:].view(2, 2)}
        weights = {key: mask * guide.loc[key].detach() for key, mask in masks.items()}
        logits = torch.func.functional_call(network, weights, (data.images,))
        values.append(-F.cross_entropy(logits, data.labels, reduction="sum"))
    likelihood = torch.stack(values)
    q = (STATES * probs + (1 - STATES) * (1 - probs)).prod(1)
    pull = torch.einsum("k,k,kn->n", q, likelihood, STATES / probs - (1 - STATES) / (1 - probs))
    return pull, pull * probs * (1 - probs)


def spread(guide: iv.MeanField) -> None:
    """Make the masks of a guide uncertain."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for logit in guide.logit.values():
            logit.normal_()


def last_pass(guide: iv.LikelihoodGuided) -> Pass:
    """The last pass of training, which the guide itself does not learn from any more."""
    seen = guide.seen
    assert seen is not None
    guide.forget()
    return seen


def row(name: str, draws: list[Tensor], seconds: float, truth: Tensor) -> dict[str, object]:
    """Bias and standard deviation (scatter) in per cent of the root mean square of the truth."""
    each, size = torch.stack(draws), truth.square().mean().sqrt()
    bias = (each.mean(0) - truth).square().mean().sqrt() / size
    noise = (each.var(0) / len(each)).mean().sqrt() / size
    return {
        "estimator": name,
        "bias %": round(100 * float(bias), 1),
        "its standard error %": round(100 * float(noise), 1),
        "scatter of one %": round(100 * float(each.var(0).mean().sqrt() / size)),
        "rank correlation": round(float(scipy.stats.spearmanr(each.mean(0), truth).statistic), 2)
        if each.any()
        else "-",
        "ms an update": round(1e3 * seconds / len(each), 2),
    }


def pulls(repeats: int) -> pd.DataFrame:
    """Part 1: estimators."""
    network, data = problem()
    rows = []
    for name, make in ESTIMATORS.items():
        count = min(repeats, 300) if name in ("paired_draws", "hessian_diagonal") else repeats
        prior = iv.IndependentSpikeSlab(network.weight_sites())
        model = iv.IsingViT(network, prior, num_data=len(data))
        guide = iv.LikelihoodGuided(model, initial_scale=1e-4, estimator=make)
        spread(guide)
        truth, _ = exact(network, data, guide)
        loss, draws, seconds = iv.TraceGraph_ELBO()(model, guide), [], 0.0
        for _ in range(count):
            batch = torch.randint(IMAGES, (20,))
            start = time.perf_counter()
            loss(data.images[batch], data.labels[batch]).backward()
            seen = last_pass(guide)
            with torch.no_grad():
                guide.estimator.update(guide, seen)
                guide.estimator.prepare(guide, seen)
            seconds += time.perf_counter() - start
            draws.append(torch.cat([guide.estimator.pull(s, guide.slab(s)).detach().flatten() for s in model.sites]))
            guide.estimator = make(model)
        rows.append(row(name, draws, seconds, truth))
    return pd.DataFrame(rows)


def gradients(repeats: int) -> pd.DataFrame:
    """Part 2: gradients of guides."""
    network, data = problem()
    rows = []
    for name, family in GUIDES.items():
        prior = iv.IndependentSpikeSlab(network.weight_sites(), inclusion=0.5)
        model = iv.IsingViT(network, prior, num_data=len(data))
        guide = family(model)
        spread(guide)
        with torch.no_grad():
            for scale in guide.log_scale.values():
                scale.fill_(-9.0)
        _, truth = exact(network, data, guide)
        for key in ("first", "second"):  # plus prior and entropy, in closed form
            site = next(s for s in model.sites if s.key == key)
            logit, part = guide.logit[key].detach(), slice(0, 6) if key == "first" else slice(6, 10)
            price = torch.distributions.kl_divergence(guide.slab(site), prior.slab(site)).detach()
            truth[part] += (logit.sigmoid() * (-logit).sigmoid() * (-logit - price)).flatten()
        loss, draws, seconds = iv.TraceGraph_ELBO()(model, guide), [], 0.0
        for _ in range(repeats):
            batch = torch.randint(IMAGES, (20,))
            start = time.perf_counter()
            loss.zero_grad()
            loss(data.images[batch], data.labels[batch]).backward()
            seconds += time.perf_counter() - start
            draws.append(-torch.cat([guide.logit[key].grad.flatten() for key in ("first", "second")]))
        rows.append(row(name, draws, seconds, truth))
    return pd.DataFrame(rows)


def ranks(steps: int, images: int) -> pd.DataFrame:
    """Part 3: ranks. Training, estimators and Hessian use the same images, so that they differ by no sampling error."""
    torch.manual_seed(0)
    train = iv.split(iv.read("digits"), train=images, test=500).train
    network = iv.ViT(iv.ViTConfig(image_size=8, patch_size=4, mlp_ratio=8))
    model = iv.IsingViT(network, iv.IsingSpikeSlab(network.weight_sites()))
    guide = iv.LikelihoodGuided(model)
    config = iv.FitConfig(steps=steps, learning_rate=4e-3, pilot=1.0, temperature=1e-3, device="cpu")
    print(iv.fit(guide, train, config=config, progress=False).history.iloc[-1].to_dict())
    model.fix_masks({site.name: torch.ones(site.shape) for site in model.sites})
    worth = {}
    for name in ("squared_gradient", "levenberg_marquardt"):
        guide.estimator = worth[name] = ESTIMATORS[name](model, decay=0.998)
        loss = iv.TraceGraph_ELBO()(model, guide)
        for batch in (torch.randperm(images)[:20] for _ in range(1500)):
            loss(train.images[batch], train.labels[batch]).backward()
            seen = last_pass(guide)
            with torch.no_grad():
                guide.estimator.update(guide, seen)
    start = time.perf_counter()
    weights = {site.name: guide.loc[site.key].detach() for site in model.sites}
    worth["hessian_diagonal"] = ESTIMATORS["hessian_diagonal"](model)
    with torch.no_grad():
        worth["hessian_diagonal"].prepare(guide, Pass(train.images, train.labels, weights, 1.0, images))
    print(f"Hessian diagonal of {sum(s.numel for s in model.sites)} weights: {time.perf_counter() - start:.0f} s")
    rows = []
    for site in [None, *model.sites]:
        chosen = model.sites if site is None else [site]
        each = {n: torch.cat([e.pull(s, guide.slab(s)).detach().flatten() for s in chosen]) for n, e in worth.items()}
        exactly = each.pop("hessian_diagonal")
        line: dict[str, object] = {"site": "all" if site is None else site.name, "weights": len(exactly)}
        for name, pull in each.items():
            line[name] = round(float(scipy.stats.spearmanr(pull, exactly).statistic), 3)
        rows.append(line)
    return pd.DataFrame(rows)


def picture(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Draw bias and scatter of every estimator of parts 1 and 2."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    sizes = [len(table) for table in tables.values()]
    axes = figure.subplots(2, 1, sharex=True, height_ratios=sizes)
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        rows = range(len(table))
        bias, error = table["bias %"].clip(lower=0.1), table["its standard error %"]
        ax.errorbar(bias, rows, xerr=[0.999 * bias.clip(upper=error), error], fmt="o", color="#1b3a5c", label="bias")
        ax.plot(
            table["scatter of one %"].replace(0, float("nan")), rows, "s", mfc="none", color="#c8553d", label="scatter"
        )
        ax.set_yticks(rows, table["estimator"])
        ax.set(xscale="log", title=title, ylim=(len(table) - 0.4, -0.6))
        ax.grid(axis="x", color="#dddddd")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="upper left", fontsize="small")
    axes[1].set_xlabel("% of the root mean square of the truth; bars: two-sided standard error of the bias")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the digits network")
    parser.add_argument("--images", type=int, default=100, help="training images of the digits network")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with pyro.validation_enabled(False):
        first, second = pulls(options.repeats), gradients(options.repeats)
        third = ranks(options.steps, options.images)
    titles = list(NOTES)
    options.out.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/mask_gradients.py --repeats {options.repeats} --steps {options.steps} "
    command += f"--images {options.images}"
    text = f"# Estimators of what a mask is worth\n\nMade by `{command}`.\n"
    for title, table in zip(titles, (first, second, third), strict=True):
        text += f"\n## {title}\n\n{NOTES[title]}\n\n{markdown(table)}\n"
    text += "\n![Bias against scatter](mask_gradients.png)\n"
    (options.out / "mask_gradients.md").write_text(text)
    picture(dict(zip(titles[:2], (first, second), strict=True)), options.out / "mask_gradients.png")
    print(text)


if __name__ == "__main__":
    main()
