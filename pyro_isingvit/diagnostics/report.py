"""HTML report on a fitted posterior, as a single page."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd
from matplotlib.figure import Figure

from ..errors import InputError
from ..files import file_digest, storing, write, write_json
from ..network.units import UNITS
from ..scores import ENSEMBLE, ISING, PLAIN
from .checks import LEVEL
from .findings import CHECK_DRAWS, LOO_DRAWS, PRIOR_DRAWS, Findings
from .meaning import inclusion_meaning
from .plots import (
    figure_attention,
    figure_features,
    figure_samples,
    figure_training,
    plot_check,
    plot_heads,
    plot_inclusion,
    plot_mask,
    plot_path,
    plot_radar,
    plot_reliability,
    plot_selective,
    plot_shift,
    plot_thresholds,
    plot_uncertainty,
)
from .plots.style import as_png, figure_of

PIXELS = 108
"""Pixels on the page for each inch of the width of a figure."""


def write_report(findings: Findings, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write ``report.html``, which needs no other file and no network, and its figures as PNG files in ``figures``.

    ``report.json`` has the SHA-256 of each.

    Every result on the page is a ``<data>`` element whose ``value`` is the number at full precision.

    Args:
        findings: from `examine`.
        folder: folder to write to. An earlier report there is overwritten.
        facts: configuration, versions and seed of the run, which the page shows.

    Returns:
        Path of the page.

    Raises:
        InputError: if ``figures`` is a link to another place.
        StorageError: if a file cannot be written.
    """
    embedded, files = _write_figures(findings, check_pictures(folder))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_isingvit.diagnostics", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    result = findings.result
    page = environment.get_template("report.html.j2").render(
        found=findings,
        result=result,
        posterior=result.posterior,
        selected=None if findings.selection is None else inclusion_meaning(findings.selection.posterior),
        network=result.posterior.model.network,
        densities=result.posterior.densities(),
        weights=sum(site.numel for site in result.posterior.model.sites),
        verdicts=verdicts(findings),
        level=LEVEL,
        loo_draws=LOO_DRAWS,
        prior_draws=PRIOR_DRAWS,
        check_draws=CHECK_DRAWS,
        loo_images=len(findings.loo.pointwise),
        bad_k=int((findings.loo.k > 0.7).sum()),
        facts=facts,
        settings=json.dumps(facts, indent=2),
        picture=embedded,
    )
    path = folder / "report.html"
    write(path, page)
    written = {each.relative_to(folder).as_posix(): file_digest(each) for each in (*files, path)}
    write_json(folder / "report.json", {"files": written})
    return path


def _write_figures(findings: Findings, pictures: Path) -> tuple[dict[str, dict[str, Any]], list[Path]]:
    """Write the figures; returns for each what the page embeds, by name, and their paths."""
    with storing(pictures):
        pictures.mkdir(parents=True, exist_ok=True)
    embedded: dict[str, dict[str, Any]] = {}
    files = []
    for name, figure in _figures(findings).items():
        files.append(pictures / f"{name}.png")
        data = as_png(figure, dpi=180)
        write(files[-1], data)
        embedded[name] = {
            "source": base64.b64encode(data).decode(),
            "width": round(PIXELS * figure.get_figwidth()),
        }
    return embedded, files


def check_pictures(folder: Path) -> Path:
    """The folder of the figures of a report.

    Raises:
        InputError: if it is a link to another place.
    """
    pictures = folder / "figures"
    if pictures.is_symlink():
        raise InputError(f"{pictures}: a link to another place, where no figures are written; remove it")
    return pictures


def verdicts(findings: Findings) -> list[tuple[bool | None, str]]:
    """Summary of the findings in one sentence each.

    Returns:
        Pairs of a flag and a sentence. The flag is True for a favourable finding, False for an unfavourable one, and
        None for a difference within two standard errors.
    """
    said = _comparisons(findings)
    failed = findings.checks["fails"]
    expected = LEVEL * len(failed)
    said.append(
        (
            int(failed.sum()) <= max(1, round(3 * expected)),
            f"{int(failed.sum())} of {len(failed)} posterior predictive checks fail; by chance {expected:.1f} would.",
        )
    )
    if findings.prior_checks is not None:
        bad = findings.prior_checks["fails"]
        text = f"{int(bad.sum())} of {len(bad)} prior predictive checks fail"
        said.append((not bad.any(), text + (": these data are unlikely under the prior." if bad.any() else ".")))
    loo = findings.loo
    said.append(
        (
            loo.k_hat <= 0.7,
            f"PSIS k-hat of the guide is {_rounded(loo.k_hat, '.2f')}: "
            + (
                "importance sampling can correct it."
                if loo.k_hat <= 0.7
                else "above 0.7, so the guide is far from the exact posterior, as mean-field ones of networks are. "
                "Judge its predictions by the test images, not by leave-one-out."
            ),
        )
    )
    said.append((None, _inclusion_in_words(findings.meaning)))
    for kind in findings.outside["outside"].unique():
        rows = findings.outside.query("outside == @kind and score == 'entropy'").set_index("method")["auroc"]
        text = f"Entropy tells images {kind} from the test images with an AUROC of {rows[ISING]:.3f}"
        if PLAIN in rows:
            text += f", that of the deterministic network with {rows[PLAIN]:.3f}"
        said.append((bool(rows[ISING] >= rows.max()), text + "."))
    return said


def _comparisons(findings: Findings) -> list[tuple[bool | None, str]]:
    """The posterior beside what was trained by the same recipe; see `verdicts`."""
    said: list[tuple[bool | None, str]] = []
    ising = findings.scores[ISING]
    if findings.difference is not None:
        plain, gaps = findings.scores[PLAIN], findings.difference.set_index("score")
        for key, name, form, better in (("accuracy", "Accuracy", ".2%", 1), ("nll", "NLL", ".4f", -1)):
            gap, se = gaps.loc[key, "difference"], gaps.loc[key, "se"]
            clear, images = abs(gap) > 2 * se, len(findings.data.test)
            verdict = ("better" if gap * better > 0 else "worse") + ", by more than" if clear else "within"
            verdict += f" two standard errors ({se:{form}}) of the difference."
            if gap == se == 0:
                verdict = f"both are right and wrong on the same of {images} images, which shows no difference."
            text = f"{name} {ising[key]:{form}}, the deterministic network's {plain[key]:{form}}: {verdict}"
            said.append((bool(gap * better > 0) if clear else None, text))
    if ENSEMBLE in findings.scores:
        other = findings.scores[ENSEMBLE]
        said.append(
            (
                None,
                f"An ensemble of as many deterministic networks has {other['accuracy']:.2%} and an NLL of "
                f"{other['nll']:.4f}, and {other['density']:.0%} of one network's weights for {ising['density']:.0%}.",
            )
        )
    return said


def _inclusion_in_words(meaning: pd.DataFrame) -> str:
    """What inclusion probabilities of a fit mean, in one paragraph. It is no verdict, since the truth is not known."""
    probable = meaning.query("reads_as == 'probability'")["site"].tolist()
    measured = meaning.loc[meaning["realised"].notna(), "says"].tolist()
    start = (
        f"Inclusion is a probability at {', '.join(probable)}" + (", a score elsewhere." if len(meaning) > 1 else ".")
        if probable
        else "Inclusion probabilities of this fit are scores that serve prediction, not error rates."
    )
    return " ".join([start, *(text.split(". ", 1)[1] for text in measured)])


def _figures(findings: Findings) -> dict[str, Figure]:
    result, test = findings.result, findings.data.test
    posterior = result.posterior
    labels, shown = test.labels.cpu(), findings.shown
    ising = findings.predictions[ISING]
    few = ising[shown]
    probs = {method: prediction.probs for method, prediction in findings.predictions.items()}
    figures = {
        "training": figure_training(result.history),
        "radar": figure_of(plot_radar(findings.scores)),
        "reliability": figure_of(plot_reliability(probs, labels)),
        "selective": figure_of(plot_selective(findings.predictions, labels)),
        "entropy": figure_of(plot_uncertainty(ising, labels)),
        "mutual_information": figure_of(plot_uncertainty(ising, labels, "mutual_information")),
        "inclusion": figure_of(plot_inclusion(posterior)),
        "thresholds": figure_of(plot_thresholds(posterior)),
        "samples": figure_samples(few, test.images[shown], labels[shown]),
        "checks": figure_of(plot_check(findings.checks)),
    }
    if findings.attention is not None:
        figures["attention"] = figure_attention(findings.attention, test.images[shown])
    if any(role in posterior.inclusion_probabilities() for role in UNITS["head"].owns):
        figures["heads"] = figure_of(plot_heads(posterior))
    if findings.selection is not None:
        figures["features"] = figure_features(findings.selection.posterior)
    if result.trials is not None:
        figures["trials"] = figure_of(plot_path(result.trials))
    for site in ("patch_embed", "classifier.out"):
        if site in posterior.inclusion_probabilities():
            figures[f"mask_{site.replace('.', '_')}"] = figure_of(plot_mask(posterior, site))
    names = list(findings.shift[ISING]["shift"].unique())
    return figures | {f"shift_{name}": figure_of(plot_shift(findings.shift, name)) for name in names}


def _number(value: float | int, form: str = ".4f", name: str = "") -> markupsafe.Markup:
    """A ``<data>`` element with the number at full precision as its value, and rounded as its text."""
    label = markupsafe.Markup(' data-name="{}"').format(name) if name else ""
    return markupsafe.Markup('<data value="{!r}"{}>{}</data>').format(
        float(value) if isinstance(value, float) else int(value), label, _rounded(value, form)
    )


def _rounded(value: float | int, form: str) -> str:
    return "infinite" if value == float("inf") else format(value, form)
