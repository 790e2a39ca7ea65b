"""Benchmark on this machine: prints a card, then one line of JSON with the same numbers. Logs to standard error.

    python scripts/benchmark.py                                       default sections on the embedded model
    python scripts/benchmark.py --quick --only throughput,latency
    python scripts/benchmark.py --model e5-small --random-weights     a real model's sizes without a download
    python scripts/benchmark.py --serve                               only the server under load

Default sections:
    roofline        the device's matrix rate and bandwidth, and the model's linear layers against them
    setup           seconds and memory of each phase up to the first prediction
    loading         loading the weights against the disk's bandwidth
    serialization   returning vectors through Cog's server
    throughput      tokens/s, against sentence-transformers on the same weights
    latency         one query and one document, against sentence-transformers and the model card's loop
    scaling         time per token from 1,000 to 100,000 texts
    serve, gateway  the Cog server, and the gateway's APIs, under load

Sections that run only if `--only` names them:
    ablations       speed with one part of the engine switched off at a time
    profile         device time by kernel
    fused_ops       the steps between matrix products
    parity          vectors against float32 reference code

Alternatives are interleaved within one run; figures are medians or percentiles.
"""

import sys

from benchmarks.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
