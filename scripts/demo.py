"""`make predict`: the model cards' example and one complete prediction, from Cog's server on this machine.

    python scripts/demo.py

Starts scripts/serve.py on a free port of 127.0.0.1, sends two requests, prints the answers and stops the server. The
E5_* settings choose the model, by default the embedded one (no GPU, no download) in float32, so that every machine
prints the same numbers.
"""

import json
import os
import re
import sys
import urllib.request
from typing import Any

from e5.errors import SettingsError
from e5.settings import Settings
from e5_cog.server import running

# The worked example of the cards of intfloat/e5-mistral-7b-instruct and e5-small.
QUERIES = ["how much protein should a female eat", "summit define"]
DOCUMENTS = [
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. "
    "But, as you can see from this chart, you'll need to increase that if you're expecting or training for a marathon. "
    "Check out the chart below to see how much protein you should be eating each day.",
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. "
    ": 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
]
PAIR = {
    "query": "What is the recommended sugar intake for women",
    "document": "As a general guideline, the CDC’s average recommended sugar intake for women ages 19 to 70 is "
    "20 grams per day.",
}


def main() -> int:
    """Print the demo; return the exit status."""
    try:
        model = Settings.from_environment().model
    except SettingsError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    with running({"E5_DTYPE": os.environ.get("E5_DTYPE") or "float32"}, timeout=3600) as server:
        if server.health["status"] != "READY":
            print(f"demo.py: the model did not load:\n{server.log.read_text('utf-8')[-2000:]}", file=sys.stderr)
            return 1
        matrix = predict(server.url, queries=QUERIES, documents=DOCUMENTS)
        pair = predict(server.url, **PAIR)
    print(f"{model}: 100 × cosine of two queries with two documents\n")
    for query, row in zip(QUERIES, matrix["output"]["scores"], strict=True):
        print(f"  {query:40}" + "".join(f"{score:8.2f}" for score in row))
    print("\nOne query, one document: the response of POST /predictions\n")
    text = json.dumps(shortened(pair), indent=2, ensure_ascii=False)
    print(
        re.sub(
            r"\[[\d.,\s\[\]]*\]",
            lambda numbers: " ".join(numbers[0].split()).replace("[ ", "[").replace(" ]", "]"),
            text,
        )
    )
    return 0


def predict(url: str, **inputs: object) -> dict[str, Any]:
    """POST one prediction and return the whole answer."""
    body = json.dumps({"input": inputs}).encode()
    request = urllib.request.Request(f"{url}/predictions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def shortened(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with each vector shortened to its first numbers and its size."""
    vectors = [
        f"[{', '.join(f'{number:.4f}' for number in vector[:4])}, … {len(vector)} numbers]"
        for vector in answer["output"]["embeddings"]
    ]
    return answer | {"output": answer["output"] | {"embeddings": vectors}}


if __name__ == "__main__":
    sys.exit(main())
