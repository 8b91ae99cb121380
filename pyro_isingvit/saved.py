"""The format of a posterior on disk: a description in JSON, and the tensors.

There is no pickle, and nothing in the files is executed.
"""

import copy
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pyro.infer import autoguide
from torch import Tensor, nn

from . import guides as guide_classes
from .config import Config
from .couplings import Coupling
from .errors import InputError, kind_of
from .files import file_digest, read_json, read_tensors, storing, write_json, write_tensors
from .guides import Guide
from .guides.estimators import ESTIMATORS
from .interactions import CouplingGraph
from .models import IsingViT, likelihoods, priors
from .network import ViT, ViTConfig, WeightSite
from .probe import changed, log_densities
from .settings import LEARNED, describe, plain

FORMAT = 7
"""Version of the format that `write` writes."""

SHOWN = 80
"""Number of characters of a value that a message shows."""

DESCRIPTION, TENSORS = "posterior.json", "posterior.safetensors"


def write(folder: Path, guides: tuple[Guide, ...], logit_scale: float, names: tuple[str, ...] = ()) -> None:
    """Write a posterior's guides; see `Posterior.save`."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} is a file: choose another")
    if (folder / TENSORS).exists():
        raise InputError(f"folder={str(folder)!r} holds a posterior already: choose another or remove it")
    facts = {"format": FORMAT, "version": version("pyro-isingvit"), **description(guides[0])}
    for guide in guides[1:]:
        other = difference(description(guide), description(guides[0]))
        if other:
            raise InputError(f"posterior: its members are not of one kind ({other}); save each on its own")
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for number, guide in enumerate(guides):
        parts = {"model": guide.model.state_dict(), "guide": guide.state_dict()}
        if guide.model.fixed_masks is not None:
            parts["fixed_masks"] = guide.model.fixed_masks
        for part, state in parts.items():
            for name, tensor in state.items():
                tensors[f"{number}/{part}/{name}"] = tensor.detach()
    members = [
        {
            "temperature": guide.model.temperature,
            "num_data": guide.model.num_data,
            "held": sorted(guide.held),
            "log_densities": log_densities(guide),
        }
        for guide in guides
    ]
    write_tensors(folder / TENSORS, tensors)
    facts |= {"logit_scale": logit_scale, "names": names, "members": members, "tensors": file_digest(folder / TENSORS)}
    write_json(folder / DESCRIPTION, facts)


def read(folder: Path, guide: Any) -> tuple[tuple[Guide, ...], float, tuple[str, ...]]:
    """Read guides, logit scale and names of classes; see `Posterior.load`."""
    if guide is not None and not isinstance(guide, Guide):
        raise InputError(f"guide={kind_of(guide)}: give a guide made for a model, e.g. MyGuide(model)")
    facts = _facts(folder)
    if guide is not None:
        other = difference(description(guide), {name: facts[name] for name in _PARTS})
        if other:
            raise InputError(f"folder={str(folder)!r} is not of the guide given: {other}; build it as for the fit")
    tensors, _ = read_tensors(folder / TENSORS)
    if file_digest(folder / TENSORS) != facts["tensors"]:
        raise InputError(f"{folder / TENSORS}: not the tensors of {DESCRIPTION} beside it; restore both, or fit again")
    guides = []
    for number, member in enumerate(facts["members"]):
        one = _rebuild(facts, folder) if guide is None else copy.deepcopy(guide)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "guide": {}}
        for name, tensor in tensors.items():
            index, _, rest = name.partition("/")
            part, _, key = rest.partition("/")
            if index == str(number):
                parts.setdefault(part, {})[key] = tensor
        for part, module in (("model", one.model), ("guide", one)):
            _fill(module, parts[part], folder / TENSORS)
        device = one.model.prior.zero.device
        fixed = parts.get("fixed_masks")
        one.model.fix_masks(None if fixed is None else {name: mask.to(device) for name, mask in fixed.items()})
        one.model.temperature, one.model.num_data = member["temperature"], member["num_data"]
        one.held = frozenset(member["held"])
        one.eval()
        one.model.eval()
        other = changed(one, member["log_densities"])
        if other:
            raise InputError(f"folder={str(folder)!r} is not of the guide given: {other}; build it as for the fit")
        guides.append(one)
    return tuple(guides), float(facts["logit_scale"]), tuple(facts["names"])


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the state of a module, of which names, shapes and types have to be the same, and values finite."""
    state = module.state_dict()
    strange = next(
        (
            name
            for name, tensor in tensors.items()
            if name in state and (tensor.dtype != state[name].dtype or not bool(tensor.isfinite().all()))
        ),
        None,
    )
    if strange is not None:
        raise InputError(
            f"{path}: {strange} of type {tensors[strange].dtype} has to be finite and of type {state[strange].dtype}; "
            "restore it, or fit again"
        )
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not the tensors of {DESCRIPTION} ({problem}); fit again") from None


_PARTS = ("network", "sites", "prior", "interaction", "likelihood", "guide")


def description(guide: Guide) -> dict[str, Any]:
    """The description of a guide: classes and settings of network, prior and guide, and the weight sites."""
    model = guide.model
    return {
        "network": describe(model.network),
        "sites": [plain(site) for site in model.sites],
        "prior": describe(model.prior),
        "interaction": None if model.prior.interaction is None else describe(model.prior.interaction),
        "likelihood": describe(model.likelihood),
        "guide": describe(guide),
    }


def _facts(folder: Path) -> dict[str, Any]:
    for name in (DESCRIPTION, TENSORS):
        if not (folder / name).is_file():
            raise InputError(f"folder={str(folder)!r}: no {name} there; give a folder that Posterior.save wrote")
    path = folder / DESCRIPTION
    facts = read_json(path)
    if facts.get("format") != FORMAT:
        raise InputError(f"{path}: format={facts.get('format')!r}; this version reads {FORMAT}; fit again")
    facts.setdefault("likelihood", describe(likelihoods.Classes()))  # of versions that had no other
    missing = [name for name in (*_PARTS, "members", "logit_scale", "names", "tensors") if name not in facts]
    if missing:
        raise InputError(f"{path}: {missing} is missing; fit again")
    try:
        _Numbers(logit_scale=facts["logit_scale"], names=facts["names"], members=facts["members"])
    except InputError as error:
        raise InputError(f"{path}: {error}; fit again") from None
    return facts


class _Member(Config):
    temperature: pydantic.PositiveFloat
    num_data: pydantic.PositiveInt | None
    held: tuple[str, ...]
    log_densities: dict[str, float | None]


class _Numbers(Config):
    """What a description says beside classes and settings."""

    logit_scale: pydantic.PositiveFloat
    names: tuple[str, ...]
    members: Annotated[tuple[_Member, ...], pydantic.Field(min_length=1)]


def difference(given: Any, known: Any, where: str = "") -> str | None:
    """The first difference of two descriptions, or None. Values that training changes are not compared."""
    if isinstance(given, Mapping) and isinstance(known, Mapping):
        if LEARNED in given and LEARNED in known:
            return None
        for name in [*known, *(name for name in given if name not in known)]:
            inner = where if name == "settings" else f"{where}.{name}".lstrip(".")
            found = difference(given.get(name), known.get(name), inner)
            if found:
                return found
        return None
    if isinstance(given, list | tuple) and isinstance(known, list | tuple) and len(given) == len(known):
        every = (difference(*each, f"{where}[{i}]") for i, each in enumerate(zip(given, known, strict=True)))
        return next((one for one in every if one), None)
    return None if given == known else f"{where} is {_shown(given)} and was {_shown(known)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _rebuild(facts: Mapping[str, Any], folder: Path) -> Guide:
    """A guide, with its model, from a description whose classes all ship with the package."""
    try:
        network = _network(facts["network"])
        sites = [_site(each) for each in facts["sites"]]
        prior = _made(facts["prior"], vars(priors), priors.Prior, sites)
        _set_interaction(prior, facts["interaction"])
        likelihood = _made(facts["likelihood"], vars(likelihoods), likelihoods.Likelihood)
        model = IsingViT(network, prior, likelihood=likelihood)
        return _made(facts["guide"], vars(guide_classes), Guide, model)
    except _NotOursError as stranger:
        raise InputError(
            f"folder={str(folder)!r} is of {stranger}, which this package cannot rebuild: build the guide as for the "
            "fit, and pass guide="
        ) from None
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{folder / DESCRIPTION}: does not describe a posterior ({error!r}); fit again") from None


def _set_interaction(prior: priors.Prior, facts: Mapping[str, Any] | None) -> None:
    """Compare the interaction of a rebuilt prior, which comes with it, with the one that was saved."""
    if facts is None:
        prior.interaction = None
    elif prior.interaction is None or describe(prior.interaction)["class"] != facts["class"]:
        raise _NotOursError(f"interaction={facts['class']}")


class _NotOursError(Exception):
    """A class that does not ship with the package, or a setting that JSON cannot hold."""


def _network(facts: Mapping[str, Any]) -> ViT:
    if facts["class"] != "ViT":
        raise _NotOursError(f"network={facts['class']}")
    return ViT(ViTConfig(**facts["settings"]))


def _made(facts: Mapping[str, Any], known: Mapping[str, Any], base: type, *arguments: Any) -> Any:
    cls = known.get(facts["class"])
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise _NotOursError(f"{base.__name__.lower()}={facts['class']}")
    return cls(*arguments, **{name: _setting(name, value) for name, value in facts["settings"].items()})


def _setting(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith("<"):
        raise _NotOursError(f"{name}={value}")
    if isinstance(value, Mapping) and LEARNED in value:
        return value[LEARNED]
    special: dict[str, Callable[[Any], Any]] = {"couplings": _graph, "estimator": _estimator, "family": _family}
    if name in special and value is not None:
        return special[name](value)
    return value


def _graph(facts: Mapping[str, Any]) -> CouplingGraph:
    settings = facts["settings"]
    return CouplingGraph([_site(each) for each in settings["sites"]], [_coupling(c) for c in settings["couplings"]])


def _coupling(facts: Mapping[str, Any]) -> Coupling:
    def layers(value: Any) -> Any:
        return slice(*value["slice"]) if isinstance(value, Mapping) else value

    ends = {name: layers(facts[name]) for name in ("first_layers", "second_layers")}
    return Coupling(**{**facts, **ends, "units": tuple(facts["units"])})


def _site(facts: Mapping[str, Any]) -> WeightSite:
    fields: dict[str, Any] = {name: value if name == "name" else tuple(value) for name, value in facts.items()}
    return WeightSite(**fields)


def _family(name: str) -> Any:
    if name not in autoguide.__all__:
        raise _NotOursError(f"family={name}")
    return getattr(autoguide, name)


def _estimator(facts: Mapping[str, Any]) -> Callable[[IsingViT], nn.Module]:
    found = {cls.__name__: cls for cls in ESTIMATORS.values()}.get(facts["class"])
    if found is None:
        raise _NotOursError(f"estimator={facts['class']}")
    return lambda model: found(model, **facts["settings"])
