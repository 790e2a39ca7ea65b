"""Embed files into files: a plan cuts the input into units, and each unit becomes one Parquet file, or is done again.

`sources` reads input, `plan` cuts it into units, `unit` embeds one, `parts` writes and checks its file, `run` does all
of them, `report` says how far a run is, `search` looks into the result. `main` is scripts/corpus.py.

The folder is the ledger: a unit is done if its file is there with the right footer. So a run may be killed and started
again at any time, and several may work on one folder.
"""
