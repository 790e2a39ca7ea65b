"""Benchmark on this machine: prints a card, then one line of JSON with the same numbers. Logs to standard error.

    python scripts/benchmark.py                                       default sections on the embedded model
    python scripts/benchmark.py --quick --only throughput,latency
    python scripts/benchmark.py --model e5-small --random-weights     a real model's sizes without a download
    python scripts/benchmark.py --serve                               only the server under load

Sections: roofline (the machine's limits), setup by phase, loading against the disk's bandwidth, serialization in Cog's
server, throughput and latency against sentence-transformers (and the model card's loop) on the same weights, scaling,
serve and gateway under load. Only if `--only` names them: ablations of the engine's parts, profile by kernel, fused_ops
(the steps between matrix products), and parity with float32 reference code. Alternatives are interleaved within one
run; figures are medians or percentiles.
"""

import sys

from benchmarks.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
