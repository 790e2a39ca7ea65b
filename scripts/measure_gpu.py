"""Measure the flagship on a GPU within a time limit, in one run or in three parts.

    python scripts/measure_gpu.py --to out --part 1     roofline, throughput, latency; tests that need CUDA
    python scripts/measure_gpu.py --to out --part 2     ablations, also of an encoder; parity at full size
    python scripts/measure_gpu.py --to out --part 3     serving, profile, setup, merge, quality by dtype, loading
    python scripts/measure_gpu.py --to out --dry-run    a trial of all steps on the embedded model, with tiny sizes

On a bare GPU machine, without an installation, run it from the repository as

    PYTHONPATH=. python scripts/measure_gpu.py --to out --part 1

It needs torch, transformers and their dependencies; a step whose other packages are missing is left out. Each step is a
process with its own time limit; one that fails or is late keeps its figures so far and does not stop the others.
Prints each step's figures against their goals. The folder gets the steps' logs and all figures in `summary.txt`.
`--weights` keeps the random weights for the next run.
"""

import sys

from benchmarks.gpu_run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
