"""Measure scripts/corpus.py on the CPU: prints a card, then one line of JSON with the same numbers.

    python scripts/benchmark_corpora.py                                        all sections, with a million rows
    python scripts/benchmark_corpora.py --only programs --texts 4096
    python scripts/benchmark_corpora.py --only long_run --rows 20000
    python scripts/benchmark_corpora.py --quick

Sections: overhead (a run against one call of `embed_documents`, both without start-up), programs (whole programs
against sentence-transformers' pool of processes and Ray Data, on the same files and weights), and long_run (memory over
a run on many short rows). All in float32. Alternatives are interleaved within one run; figures are medians. The exit
status is 1 if vectors differ.
"""

import sys

from benchmarks.corpora.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
