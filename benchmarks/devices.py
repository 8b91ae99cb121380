"""Images a second with one process and with several, of one thread each, and a large folder of images.

The batch of each process is the same, so that a step of n processes takes n times as many images.

    python benchmarks/devices.py [--devices 2] [--batch 128] [--repeats 3]
    python benchmarks/devices.py --folder 50000 [--workers 2]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

import pyro_isingvit as iv
from pyro_isingvit.data import FolderImages, Stream
from pyro_isingvit.inference.events import Event, StepTaken
from pyro_isingvit.processes import peak_memory

STEPS, SKIPPED = 120, 20
"""Steps of each fit, and how many of them are not timed."""

CLASSES, SIDE = 10, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="Images a step of each process.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=int, help="Number of image files to make and read, in place of the above.")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folder is not None:
        folder(options.folder, options.workers)
        return
    rates: dict[int, list[float]] = {1: [], options.devices: []}
    for repeat in range(options.repeats):
        for devices, found in rates.items():  # in turns
            found.append(rate(devices, options.batch))
            print(f"repeat {repeat}, {devices} processes: {found[-1]:.0f} images a second", flush=True)
    one, several = (statistics.median(found) for found in rates.values())
    print(f"{options.devices} processes of one thread: {several / one:.2f} times the images a second of one")


def rate(devices: int, batch: int) -> float:
    """Images a second of the steps of a fit, MNIST geometry."""
    images = iv.Images(torch.rand(2048, 1, 28, 28), torch.arange(2048) % CLASSES, CLASSES)
    times: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepTaken):
            times.append(time.perf_counter())

    torch.manual_seed(0)
    network = iv.ViT(iv.ViTConfig())
    guide = iv.LikelihoodGuided(iv.IsingViT(network, iv.IsingSpikeSlab(network.weight_sites())))
    config = iv.FitConfig(steps=STEPS, batch_size=batch * devices, pilot=0, temperature=1e-3, device="cpu")
    torch.set_num_threads(devices)  # shared among the processes
    iv.fit(guide, images, config=config, progress=False, listeners=[listen], devices=devices)
    torch.set_num_threads(1)
    return (STEPS - SKIPPED - 1) * batch * devices / (times[-1] - times[SKIPPED])


def folder(number: int, workers: int) -> None:
    """Peak memory and seconds of an epoch of `FolderImages`, for a part and for all files, beside torchvision's."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory() as scratch:
        for some in (number // 10, number):
            root = Path(scratch, str(some))
            _make(root, some)
            before, seconds = peak_memory(), {}
            theirs = DataLoader(ImageFolder(root, transforms.PILToTensor()), 128, shuffle=True, num_workers=workers)
            start = time.perf_counter()
            for images, _ in theirs:
                assert images.dtype == torch.uint8
            seconds["torchvision"] = time.perf_counter() - start
            ours = DataLoader(FolderImages(root), 128, num_workers=workers)
            start = time.perf_counter()
            for images, _ in Stream.of(ours).batches(torch.randperm(some).split(128)):
                assert images.dtype == torch.uint8
            seconds["ours"] = time.perf_counter() - start
            network = iv.ViT(iv.ViTConfig(image_size=SIDE, patch_size=16, channels=3, dim=8, depth=1, heads=1))
            guide = iv.guides.PointEstimate(iv.IsingViT(network, iv.priors.Flat(network.weight_sites())))
            config = iv.FitConfig(steps=some // 128, temperature=1.0, device="cpu")
            start = time.perf_counter()
            iv.fit(guide, ours, config=config, progress=False)
            seconds["fit"] = time.perf_counter() - start
            print(
                f"{some:,} files, {workers} workers: an epoch of ImageFolder {seconds['torchvision']:.1f} s,", end=" "
            )
            print(f"of FolderImages {seconds['ours']:.1f} s, a fit of one epoch {seconds['fit']:.1f} s;", end=" ")
            print(f"peak memory {peak_memory() - before:+.0f} MiB", flush=True)


def _make(root: Path, number: int) -> None:
    generator = np.random.default_rng(0)
    for k in range(CLASSES):
        (root / f"class {k}").mkdir(parents=True)
    for i in range(number):
        pixels = generator.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"class {i % CLASSES}" / f"{i:06}.jpg")


if __name__ == "__main__":
    main()
