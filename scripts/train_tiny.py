"""Train weights/e5-mistral-tiny: text, teacher, static start, base, adapter, export, evaluation.

Every stage keeps its result in --work and is skipped when it is there; base and adapter go on where they were
interrupted. Stop it at any time, and run it again. Configuration: training/config.py; where only the adapter's
changes, only the adapter is trained anew. Needs pip install '.[train]'.
"""

import sys

from training.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
