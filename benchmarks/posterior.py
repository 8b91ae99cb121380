"""Memory and time of the posterior predictive, and size and time of the InferenceData.

    python benchmarks/posterior.py

Peak memory can only be measured for a whole process, so each measurement starts a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pyro_isingvit import IsingSpikeSlab, IsingViT, LikelihoodGuided, Posterior, ViT, ViTConfig

PUBLISHED = ViTConfig(dim=64, heads=8)
"""The published MNIST geometry, of some 300,000 weights."""


def unfitted() -> Posterior:
    """A posterior of that size before any fit; the cost of reading it does not depend on the fit."""
    torch.manual_seed(0)
    network = ViT(PUBLISHED)
    model = IsingViT(network, IsingSpikeSlab(network.weight_sites()))
    return Posterior.of(LikelihoodGuided(model, initial_logit=0.0))


def predictive(images: int, draws: int) -> dict[str, float]:
    """Time of a posterior predictive, and the peak memory of this process."""
    posterior, pixels = unfitted(), torch.rand(images, 1, 28, 28)
    started = time.perf_counter()
    if draws:
        posterior.predict(pixels, draws)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


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
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--masks", type=int, default=100, help="draws in the InferenceData")
    parser.add_argument("--only", choices=["predictive", "inference_data"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only == "predictive":
        print(json.dumps(predictive(options.images, options.draws)))
    elif options.only == "inference_data":
        print(json.dumps(inference_data(options.masks)))
    else:

        def alone(*arguments: str) -> dict[str, float]:
            command = [sys.executable, __file__, *arguments]
            return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

        def at(draws: int) -> dict[str, float]:
            return alone("--only", "predictive", "--images", str(options.images), "--draws", str(draws))

        none, one, many = at(0), at(1), at(options.draws)
        print(f"posterior predictive of {options.images} images: peak MiB of the process, seconds")
        for draws, found in ((0, none), (1, one), (options.draws, many)):
            print(f"  {draws:3} draws {found['peak_mib']:8.0f} {found['seconds']:8.1f}")
        print(f"  peak of {options.draws} draws / peak of one: {many['peak_mib'] / one['peak_mib']:.3f}")
        extra = [found["peak_mib"] - none["peak_mib"] for found in (one, many)]
        print(f"  beyond images and network: {extra[0]:.0f} and {extra[1]:.0f} MiB")
        found = alone("--only", "inference_data", "--masks", str(options.masks))
        print(
            f"InferenceData of {options.masks} draws of {found['masks']:,} masks: {found['seconds']:.1f} s, "
            f"{found['memory_mb']:.0f} MB in memory, {found['disk_mb']:.1f} MB as netCDF"
        )


if __name__ == "__main__":
    main()
