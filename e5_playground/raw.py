"""The API's JSON to read on the page: whole where it is small, shortened where it is not. The download is whole."""

import json

from e5_playground.form import Json

MOST_WHOLE = 12_000  # characters of JSON that a page shows without becoming slow to scroll
MOST_ITEMS, MOST_NUMBERS, MOST_CHARACTERS = 8, 6, 120


def whole(answer: Json) -> str:
    """All of it, with each list of numbers on one line."""
    return _write(answer, 0, shorten=False)


def shown(answer: Json) -> tuple[str, bool]:
    """What the page shows, and whether that is all of it."""
    numbers = sum(len(row) for name in ("embeddings", "scores") for row in (answer.get("output") or {}).get(name) or ())
    base64 = sum(map(len, (answer.get("output") or {}).get("embeddings_base64") or ()))
    if numbers * 6 + base64 <= MOST_WHOLE:  # a number takes some six characters at least; writing millions takes time
        text = whole(answer)
        if len(text) <= MOST_WHOLE:
            return text, True
    return _write(answer, 0, shorten=True), False


def _write(value: object, depth: int, *, shorten: bool) -> str:
    inner, outer = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict) and value:
        entries = (f"{json.dumps(name)}: {_write(one, depth + 1, shorten=shorten)}" for name, one in value.items())
        return "{\n" + ",\n".join(inner + entry for entry in entries) + f"\n{outer}}}"
    if isinstance(value, list) and value and not isinstance(value[0], list | dict | str):
        most = MOST_NUMBERS if shorten else len(value)
        left_out = f", … {len(value) - most:,} more" if len(value) > most else ""
        return f"[{', '.join(map(json.dumps, value[:most]))}{left_out}]"
    if isinstance(value, list) and value:
        most = MOST_ITEMS if shorten else len(value)
        lines = [inner + _write(one, depth + 1, shorten=shorten) for one in value[:most]]
        lines += [f"{inner}… {len(value) - most:,} more"] if len(value) > most else []
        return "[\n" + ",\n".join(lines) + f"\n{outer}]"
    if shorten and isinstance(value, str) and len(value) > MOST_CHARACTERS:
        return json.dumps(f"{value[:MOST_CHARACTERS]}… {len(value) - MOST_CHARACTERS:,} more", ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)
