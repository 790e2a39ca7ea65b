"""Train weights/e5-mistral-tiny, or print its quality figures with --evaluate. See docs/tiny-model.md."""

import sys

from training.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
