"""A checkpoint of real size with random weights, in the file layout of the real one: to measure without a download.

    python scripts/random_checkpoint.py --model e5-mistral-7b-instruct --to /tmp/random-7b
    python scripts/random_checkpoint.py --model e5-small --to /tmp/random-small --layers 2
    python scripts/random_checkpoint.py --model e5-mistral-7b-instruct --to /tmp/random-7b --merged

The decoder gets `base/` (bfloat16 shards with an index, keys of a model with a language head, as Mistral-7B-v0.1 has
them) and `adapter/` (rank 16 on all seven projections), or `--merged` the complete checkpoint in float16, which every
library loads; an encoder one file. The tensors are drawn on the GPU if there
is one and saved shard by shard, so that the host never holds more than one shard (twice, while it is written).

A folder that has the same checkpoint already is left as it is.

Speed and memory are those of the real model; the vectors mean nothing. The encoders' tokenizers are small ones.
"""

import sys

from benchmarks.random_checkpoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
