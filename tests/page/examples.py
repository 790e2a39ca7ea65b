"""The page's worked examples."""

import json

from e5_cog.repository import ROOT


def page_example(label: str) -> tuple[list[str], list[str]]:
    """Queries and documents of the example with that label."""
    examples = json.loads((ROOT / "e5_gateway" / "page" / "examples.json").read_text("utf-8"))
    values = next(example["values"] for example in examples if example["label"] == label)
    return values["queries"].splitlines(), values["documents"].splitlines()
