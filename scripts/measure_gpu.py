"""Everything that is to be known about the flagship on a GPU, in one command with a time limit; or in three.

    python scripts/measure_gpu.py --to out --part 1     ceilings, throughput, latency; and the tests that need CUDA
    python scripts/measure_gpu.py --to out --part 2     what each part of the engine brings; equality at full size
    python scripts/measure_gpu.py --to out --part 3     serving, a profile, setup, the merge, quality by dtype, loading
    python scripts/measure_gpu.py --to out --dry-run    all of it on the embedded model, tiny, to see that it runs

Each step is a process of its own with its own time limit. A step that fails or is late does not stop the next one, and
keeps the figures that it had until then. A step whose packages are not installed is left out. Standard output has a
step's figures, beside their goals, as soon as it ends; `summary.txt` in the folder always has all of them so far, and
the logs have what the steps print. With `--weights` the random weights are kept, and used again by the next command.
"""

import sys

from benchmarks.gpu_run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
