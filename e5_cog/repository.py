"""Where predict.py is: in the clone that this code runs from, else the copy that the wheel has."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The clone, with predict.py, scripts/ and weights/. Of an installed wheel it is site-packages: `IS_CLONE` is False."""
IS_CLONE = (ROOT / "predict.py").is_file()
PREDICTOR = ROOT / "predict.py" if IS_CLONE else Path(__file__).with_name("predict.py")
