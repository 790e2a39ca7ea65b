"""How fast it is, here: a card for people, then one line of JSON with the same numbers.

    python scripts/benchmark.py                                       everything, on the embedded model
    python scripts/benchmark.py --quick --only throughput,latency
    python scripts/benchmark.py --model e5-small --random-weights     a real model's sizes without a download
    python scripts/benchmark.py --serve                               the server under load, and nothing else

Sections: the machine's ceilings; setup by phase; loading beside what the disk allows; the cost of an answer in Cog's
server; throughput and latency beside sentence-transformers (and the model card's loop) on the same weights; scaling;
serving; what the gateway adds. Only when they are named: what each part of the engine brings (levers), where its time
goes (profile, elementwise), and how equal its vectors are to float32 reference code (equality). What is compared takes
turns within one run, and the figures are medians or percentiles of it. Progress goes to standard error.
"""

import sys

from benchmarks.suite import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
