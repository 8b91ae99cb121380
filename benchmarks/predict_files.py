"""Throughput of predicting image files by a run, beside a plain loop of torch over the same files.

python benchmarks/predict_files.py [--files 1000] [--rounds 5]

The plain loop opens each file with Pillow, resizes it with torchvision, and passes batches through one plain network:
the run's median-probability model. It makes one pass, or 50 whose probabilities are averaged, which is as many as a
prediction with 50 draws makes. Loops take turns; medians are printed, and the memory that is held as more and more
files are predicted.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

import pyro_isingvit as iv
from pyro_isingvit.experiments import FilePredictor, RunConfig, run

SIZE, DRAWS, BATCH = 32, 50, 250
PIXELS = 256
"""Height and width of the files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        files = write_files(top / "images", options.files)
        fit(top)
        network = iv.Posterior.load(top / "run").network()
        every: dict[str, Callable[[], object]] = {
            "isingvit predict, 50 draws": lambda: list(FilePredictor(top / "run", DRAWS, device="cpu").predict(files)),
            "isingvit predict, 1 draw": lambda: list(FilePredictor(top / "run", 1, device="cpu").predict(files)),
            "plain loop, 50 passes": lambda: plain(network, files, DRAWS),
            "plain loop, 1 pass": lambda: plain(network, files, 1),
            "reading and resizing alone": lambda: [read(path) for path in files],
        }
        seconds: dict[str, list[float]] = {name: [] for name in every}
        for _ in range(options.rounds):
            for name, loop in every.items():
                start = time.perf_counter()
                loop()
                seconds[name].append(time.perf_counter() - start)
        print(f"{options.files} files of {PIXELS} x {PIXELS} pixels, network of {SIZE} x {SIZE}, one thread")
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            spread = f"({min(taken):.2f}-{max(taken):.2f})"
            print(f"{name:28} {middle:6.2f} s  {options.files / middle:6.0f} images/s  {spread}")
        held = []
        for i, _ in enumerate(FilePredictor(top / "run", 1, device="cpu").predict(files * 15)):
            if i % (3 * len(files)) == 0:
                held.append(f"{i:,}: {memory():,.0f}")
        print(f"resident memory in MiB after so many of {15 * len(files):,} files: {', '.join(held)}")


def memory() -> float:
    """Resident memory of this process in MiB, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def write_files(folder: Path, number: int) -> list[Path]:
    """JPEG files of smooth random colours, of two classes."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(number):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(path, quality=90)
        files.append(path)
    return files


def fit(top: Path) -> None:
    """A run on the first files; how well it predicts does not matter here."""
    network = iv.ViTConfig(image_size=SIZE, patch_size=4, channels=3, classes=2, dim=64, depth=2, heads=8, mlp_ratio=4)
    settings = iv.FitConfig(steps=20, batch_size=20, temperature=1e-3, device="cpu")
    config = RunConfig(
        dataset="folder",
        data_root=str(top / "images"),
        image_size=SIZE,
        train=100,
        validation=20,
        test=20,
        network=network,
        fit=settings,
    )
    run(config, top / "run", compare=False, progress=False)


TRANSFORM = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()])


def read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return TRANSFORM(image.convert("RGB"))


@torch.no_grad()
def plain(network: torch.nn.Module, files: list[Path], passes: int) -> torch.Tensor:
    """Mean probabilities over a number of passes of one network."""
    found = []
    for start in range(0, len(files), BATCH):
        images = torch.stack([read(path) for path in files[start : start + BATCH]])
        found.append(sum(network(images).softmax(-1) for _ in range(passes)) / passes)
    return torch.cat(found)


if __name__ == "__main__":
    main()
