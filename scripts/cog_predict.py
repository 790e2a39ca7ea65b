"""One prediction without Docker, with the flags of `cog predict`, by predict.py's Predictor in this process.

    python scripts/cog_predict.py -i query="how tall is it?" -i document="It is 300 m high."
    python scripts/cog_predict.py -i documents=one -i documents=two -i normalize=true -o vectors.json
    python scripts/cog_predict.py --json @request.json

Prints the output to stdout as one line of JSON, everything else to stderr. Exit status 2: the request or a setting is
invalid; this is checked before the model is loaded. Exit status 1: the model cannot be loaded or run.
"""

import sys

from e5_cog.predict_once import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
