"""Paths: the repository, and predict.py, of which the wheel has a copy."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The clone, with predict.py, scripts/ and weights/. For an installed wheel: site-packages."""
IS_CLONE = (ROOT / "predict.py").is_file()
PREDICTOR = ROOT / "predict.py" if IS_CLONE else Path(__file__).with_name("predict.py")
