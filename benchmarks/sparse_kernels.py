"""Compare the time of dense products with that of compressed sparse rows, at several shares of zeros.

python benchmarks/sparse_kernels.py
"""

import argparse
import warnings

import pandas as pd
import torch
from torch.utils.benchmark import Timer

from pyro_isingvit.experiments.page import markdown

SHAPES = {"up of dim 32": (512, 32), "up of dim 384": (1536, 384), "up of dim 768": (3072, 768)}
"""Shapes (outputs, inputs) of matrices of the networks here, and of larger ones."""

DENSITIES = (0.5, 0.3, 0.1, 0.03)
COLUMNS = {"up of dim 32": 4096, "up of dim 384": 4096, "up of dim 768": 1024}
"""Number of tokens in a batch."""


def milliseconds(matrix: torch.Tensor, tokens: torch.Tensor) -> float:
    timer = Timer("matrix @ tokens", globals={"matrix": matrix, "tokens": tokens})
    return 1e3 * timer.blocked_autorange(min_run_time=0.5).median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    rows = []
    for name, shape in SHAPES.items():
        tokens = torch.randn(shape[1], COLUMNS[name])
        for density in DENSITIES:
            weight = torch.randn(shape) * (torch.rand(shape) < density)
            dense, sparse = milliseconds(weight, tokens), milliseconds(weight.to_sparse_csr(), tokens)
            rows.append({"matrix": name, "kept": density, "dense ms": dense, "CSR ms": sparse, "ratio": dense / sparse})
    print(markdown(pd.DataFrame(rows)))
    print("2:4 needs a CUDA device:", "available" if torch.cuda.is_available() else "none here, so it was not measured")


if __name__ == "__main__":
    main()
