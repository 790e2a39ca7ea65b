"""Write a checkpoint of a real model's size with random weights: to measure without a download.

    python scripts/random_checkpoint.py --model e5-mistral-7b-instruct --to /tmp/random-7b
    python scripts/random_checkpoint.py --model e5-small --to /tmp/random-small --layers 2
    python scripts/random_checkpoint.py --model e5-mistral-7b-instruct --to /tmp/random-7b --merged

A decoder gets the layout of the flagship's two repositories: `base/` (bfloat16 shards with an index, names of a model
with a language head, like Mistral-7B-v0.1) and `adapter/` (rank 16 on all seven projections). With `--merged` it is one
complete checkpoint in float16, which every library loads. An encoder is one file. The tensors are drawn on the GPU if
there is one. A folder that already has the same checkpoint is left alone.

Speed and memory use are those of the real model; the vectors mean nothing.
"""

import sys

from benchmarks.random_checkpoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
