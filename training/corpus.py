"""Build the training text: read and clean the sources, drop held-out sentences, apply the quotas, add variants."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.quality import read_pairs
from training import everyday_grammar, name_grammar, sources, variants, wordnet
from training.config import Config
from training.fetching import SourceError
from training.heldout import Heldout, read_qa

STS_TRAIN, QA_TRAIN = "stsb-en-train.csv", "trecqa-train.csv"


def clean(text: str, max_words: int, max_words_long: int) -> str | None:
    """The text with normalized spaces and quotes, or None if it is not English prose or too long.

    One text in twenty, chosen by hash, may have `max_words_long` words.
    """
    text = " ".join(text.split()).strip(" -*•|")
    if text.startswith('"') and text.endswith('"') and text.count('"') == 2:
        text = text[1:-1]
    words = text.split()
    limit = max_words_long if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 20 == 0 else max_words
    letters = sum(character.isascii() and character.isalpha() for character in text)
    if not 2 <= len(words) <= limit or letters < 0.7 * len(text.replace(" ", "")):
        return None
    if re.search(r"https?://|www\.|[\\{}<>]|_{3}|\.{4}|\w{40}", text) or text.startswith("See also"):
        return None
    return text


def detokenize(text: str) -> str:
    """Ordinary spelling of a TrecQA text, which has spaces before punctuation marks and <num> for numbers."""
    text = text.replace("-LRB-", "(").replace("-RRB-", ")").replace("``", '"').replace("''", '"').replace("<num>", "5")
    text = re.sub(r" ([.,;:?!%)'])", r"\1", text)
    return re.sub(r"([($]) ", r"\1", text).replace(" n't", "n't")


def gather(config: Config, folder: Path, data: Path, heldout: Heldout) -> Iterator[tuple[str, list[str], int]]:
    """Each source's name, its clean distinct texts, and the number of texts already dropped as held out.

    Only `questions` drops texts here: if the tokenized or the detokenized form is held out, both go.
    """
    for name, read in sources.SOURCES.items():
        if name in config.quotas:
            texts = _distinct(read(folder), config)
            _require_texts(name, texts, folder)
            yield name, texts, 0
    lexicon = name_grammar.Lexicon.build(sources.spellings(folder), wordnet.nouns(folder))
    for kind, words in asdict(lexicon).items():
        _require_texts(f"names ({kind})", words, folder)
    yield "names", _distinct(name_grammar.generate(lexicon, config.name_texts, random.Random(config.seed)), config), 0
    sts = read_pairs(data / STS_TRAIN)
    yield "sts", _distinct((text for pair in sts for text in (pair.first, pair.second)), config), 0
    questions = [(text, detokenize(text)) for text in read_qa(data / QA_TRAIN)]
    allowed = [forms for forms in questions if not heldout.any(forms)]
    yield "questions", _distinct((text for forms in allowed for text in forms), config), len(questions) - len(allowed)
    everyday = everyday_grammar.generate(config.everyday_texts, random.Random(config.seed))
    yield "everyday", _distinct(everyday, config), 0


def _require_texts(name: str, texts: Sequence[str], folder: Path) -> None:
    if not texts:
        raise SourceError(f"{name}: no text below {folder}: has the package's layout changed?")


def _distinct(texts: Iterable[str], config: Config) -> list[str]:
    cleaned = (clean(text, config.max_words, config.max_words_long) for text in texts)
    return list(dict.fromkeys(text for text in cleaned if text is not None))


def prepare(config: Config, folder: Path, data: Path, target: Path) -> None:
    """Write the training texts to `target`, one a line, and the counts to a .json file next to it.

    `folder`: the fetched sources. `data`: the labelled sets and the held-out list.
    """
    heldout = Heldout.read(data)
    counts: dict[str, int] = {}
    texts: dict[str, None] = {}
    labelled_texts: list[str] = []
    for name, source_texts, dropped in gather(config, folder, data, heldout):
        random.Random(f"{config.seed} {name}").shuffle(source_texts)
        # Sample more than the quota, so that the quota is met after held-out texts are dropped.
        sample = source_texts[: int(config.quotas[name] * 1.05) + 100]
        allowed = heldout.filter(sample)
        within_quota = allowed[: config.quotas[name]]
        counts |= _count(name, len(source_texts), dropped + len(sample) - len(allowed), len(within_quota))
        texts |= dict.fromkeys(within_quota)
        if name in ("sts", "questions"):
            labelled_texts += within_quota
    synsets = list(wordnet.synsets(folder))
    varied = list(dict.fromkeys(variants.generate(list(texts), labelled_texts, synsets, config)))
    allowed = heldout.filter(varied)
    counts |= _count("variants", len(varied), len(varied) - len(allowed), len(allowed))
    texts |= dict.fromkeys(allowed)
    counts["texts"] = len(texts)
    target.with_suffix(".json").write_text(json.dumps(counts, indent=1) + "\n")
    partial = target.with_suffix(".part")
    partial.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    partial.rename(target)


def _count(name: str, found: int, dropped: int, kept: int) -> dict[str, int]:
    print(f"  {name}: {kept:,} of {found:,} texts; {dropped:,} dropped as held out")
    return {f"{name} found": found, f"{name} held out": dropped, f"{name} kept": kept}
