"""Time of the posterior predictive beside plain passes, its memory, and size and time of the InferenceData.

    python benchmarks/posterior.py --json posterior.json

Prediction and plain passes of the same network take turns in one process. Peak memory can only be measured for a whole
process, so each measurement of it starts a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pyro_isingvit import IsingSpikeSlab, IsingViT, LikelihoodGuided, Posterior, ViT, ViTConfig
from pyro_isingvit.draws import BATCH
from pyro_isingvit.processes import peak_memory

PUBLISHED = ViTConfig(dim=64, heads=8)
"""The published MNIST geometry, of some 300,000 weights."""


def unfitted(classes: int = 10) -> Posterior:
    """A posterior of that size before any fit; the cost of reading it does not depend on the fit."""
    torch.manual_seed(0)
    network = ViT(PUBLISHED.model_copy(update={"classes": classes}))
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites()))
    return Posterior.of(LikelihoodGuided(model, initial_logit=0.0))


def against_plain(images: int, draws: int, rounds: int) -> dict[str, float]:
    """Seconds of a posterior predictive, and of as many passes of one network over the same images."""
    posterior, pixels = unfitted(), torch.rand(images, 1, 28, 28)
    network, times = posterior.network(), []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        posterior.predict(pixels, draws)
        middle = time.perf_counter()
        with torch.no_grad():
            for _ in range(draws):
                for batch in pixels.split(BATCH):
                    network(batch)
        times.append((middle - start, time.perf_counter() - middle))
    predictive, plain = zip(*times[1:], strict=True)
    ratio = statistics.median(a / b for a, b in zip(predictive, plain, strict=True))
    return {"predictive_s": statistics.median(predictive), "plain_s": statistics.median(plain), "ratio": ratio}


def memory(images: int, draws: int, classes: int) -> dict[str, float]:
    """Time of a posterior predictive, and the peak memory of this process."""
    posterior, pixels = unfitted(classes), torch.rand(images, 1, 28, 28)
    started = time.perf_counter()
    if draws:
        posterior.predict(pixels, draws)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mib": peak_memory()}


def inference_data(draws: int) -> dict[str, float]:
    """Time to make an InferenceData of all masks, and its size in memory and as netCDF."""
    from pyro_isingvit.diagnostics.arviz_adapter import write_netcdf
    from pyro_isingvit.diagnostics.inference_data import to_inference_data

    posterior = unfitted()
    to_inference_data(posterior, draws=1)  # the first call imports packages
    started = time.perf_counter()
    data = to_inference_data(posterior, draws=draws)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        write_netcdf(data, Path(folder) / "posterior.nc")
        on_disk = (Path(folder) / "posterior.nc").stat().st_size
    size = data.posterior.nbytes + data.sample_stats.nbytes
    return {
        "masks": sum(site.numel for site in posterior.model.sites),
        "seconds": seconds,
        "memory_mb": size / 1e6,
        "disk_mb": on_disk / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--masks", type=int, default=100, help="draws in the InferenceData")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--only", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--inference-data", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(memory(*options.only)))
        return
    if options.inference_data:
        print(json.dumps(inference_data(options.masks)))
        return

    def alone(*arguments: object) -> dict[str, float]:
        command = [sys.executable, __file__, *map(str, arguments)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    found: dict[str, Any] = {"against_plain": against_plain(options.images, options.draws, options.rounds)}
    speed = found["against_plain"]
    print(f"{options.draws} draws x {options.images} images: {speed['predictive_s']:.2f} s; as many plain passes:")
    print(f"  {speed['plain_s']:.2f} s; ratio {speed['ratio']:.3f}")
    print("peak MiB of the process, seconds")
    found["memory"] = []
    for draws, classes in ((0, 10), (1, 10), (50, 10), (500, 10), (1, 1000), (500, 1000)):
        row = {"draws": draws, "classes": classes} | alone("--only", 250, draws, classes)
        found["memory"].append(row)
        print(f"  {draws:3} draws, {classes:4} classes, 250 images {row['peak_mib']:8.0f} {row['seconds']:8.1f}")
    found["inference_data"] = data = alone("--inference-data", "--masks", options.masks)
    print(
        f"InferenceData of {options.masks} draws of {data['masks']:,} masks: {data['seconds']:.1f} s, "
        f"{data['memory_mb']:.0f} MB in memory, {data['disk_mb']:.1f} MB as netCDF"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
