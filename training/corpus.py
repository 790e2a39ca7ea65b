"""From the sources' texts to the training set: cleaned, checked against the held-out sentences, in quotas, varied.

No text may be or contain a sentence of the sets that the model is judged by. Those are known only as hashes of their
words (`Heldout`), so every run of words of every text is hashed and looked up, whatever it is a part of.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.quality import RETRIEVAL, SIMILARITY, Candidate, read_candidates, read_pairs
from training import everyday_grammar, name_grammar, source_packages
from training.config import Config

HELDOUT = "heldout_sentences.sha256"
STS_TRAIN, STS_DEV = "stsb-en-train.csv", SIMILARITY
QA_TRAIN, QA_DEV = "trecqa-train.csv", RETRIEVAL
SHORTEST_PART = 3
"""Words. Held-out texts of one or two words (there are some) are not looked for inside of others, where "go up" is
nothing but English, only as a whole text or between two marks: "ascent: go up"."""
FILLERS = frozenset(
    """
    a an the and or but if of in on at to for from by with as is are was were be been being am has have had do does did
    not no it its he she they them his her their this that these those there which who whom whose what when where why
    how i you we my your our me us him so than then also such can could will would shall should may might must s t into
    about over under after before between through during each any some all more most other only very just
    """.split()  # noqa: SIM905 (a list of a hundred literals is not easier to read)
)
"""Words that say little by themselves."""
QUESTIONS = (
    *[""] * 8, "what is", "what are", "what", "What is the", "What", "What", "who", "Who", "Who is", "Who was",
    "when did", "When was", "When did", "where is", "Where", "Where did", "how many", "How many", "How much", "How",
    "how to", "why", "Why do", "Which", "which", "is", "Does", "What kind of", "What does", "In what year did",
    "What was the name of",
)  # fmt: skip
"""How a question begins; a search begins with none of these."""
_MARKS = re.compile(r"[.!?;:,()\"]+")


class Heldout:
    """Sentences that must never be trained on, as hashes: those that a model is judged or chosen by.

    A hash is the first 16 hex digits of the SHA-256 of the text in lower case, with every run of characters other than
    a to z and 0 to 9 made one space, and none at the ends.
    """

    def __init__(self, hashes: Iterable[str]) -> None:
        self._hashes = frozenset(hashes)

    @classmethod
    def read(cls, data: Path) -> "Heldout":
        """The test splits' sentences, from their list, and those of the dev splits, which choose between models.

        Raises SystemExit for a list that is none: with it nothing would be held out.
        """
        listed = (data / HELDOUT).read_text().split()
        wrong = next((one for one in listed if not re.fullmatch("[0-9a-f]{16}", one)), None)
        if not listed or wrong:
            raise SystemExit(
                f"{data / HELDOUT} is no list of 16 hex digits a line ({wrong or 'empty'}): fetch it again"
            )
        sts = (text for pair in read_pairs(data / STS_DEV) for text in (pair.first, pair.second))
        return cls([*listed, *map(hashed, sts), *map(hashed, read_qa(data / QA_DEV))])

    def whole(self, text: str) -> bool:
        """Whether the text is a held-out sentence."""
        return hashed(text) in self._hashes

    def within(self, text: str) -> str | None:
        """The held-out sentence that the text is or contains, in its plain form."""
        if self.whole(text):
            return plain(text)
        words = plain(text).split()
        for start in range(len(words) - SHORTEST_PART + 1):
            running = hashlib.sha256()
            for stop, word in enumerate(words[start:], start + 1):
                running.update((" " + word if stop > start + 1 else word).encode())
                if stop - start >= SHORTEST_PART and running.hexdigest()[:16] in self._hashes:
                    return " ".join(words[start:stop])
        return next((plain(part) for part in _MARKS.split(text) if plain(part) and self.whole(part)), None)

    def any(self, texts: Iterable[str]) -> bool:
        return any(self.within(text) is not None for text in texts)

    def filter(self, texts: Sequence[str], workers: int = 2) -> list[str]:
        """The texts without a held-out sentence, in their order."""
        with ProcessPoolExecutor(workers) as pool:
            found = pool.map(self.within, texts, chunksize=4096)
            return [text for text, part in zip(texts, found, strict=True) if part is None]


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def hashed(text: str) -> str:
    return hashlib.sha256(plain(text).encode()).hexdigest()[:16]


def clean(text: str, most_words: int, longer_words: int) -> str | None:
    """One text as it is trained on, or None for what is not English prose or too long.

    A twentieth of the texts, chosen by their hash, may have `longer_words`.
    """
    text = " ".join(text.split()).strip(" -*•|")
    if text.startswith('"') and text.endswith('"') and text.count('"') == 2:
        text = text[1:-1]
    words = text.split()
    limit = longer_words if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 20 == 0 else most_words
    letters = sum(character.isascii() and character.isalpha() for character in text)
    if not 2 <= len(words) <= limit or letters < 0.7 * len(text.replace(" ", "")):
        return None
    if re.search(r"https?://|www\.|[\\{}<>]|_{3}|\.{4}|\w{40}", text) or text.startswith("See also"):
        return None
    return text


def read_qa(path: Path) -> list[str]:
    """The distinct texts of a TrecQA file: each question, then its sentences, those first that answer it."""
    questions: dict[str, list[Candidate]] = {}
    for one in read_candidates(path):
        questions.setdefault(one.question, []).append(one)
    texts: dict[str, None] = {}
    for question, rows in questions.items():
        texts[question] = None
        texts |= dict.fromkeys(one.answer for one in sorted(rows, key=lambda one: not one.right))
    return list(texts)


def untokenized(text: str) -> str:
    """TrecQA's text as people write it: it comes with a space before each mark, and numbers as <num>."""
    text = text.replace("-LRB-", "(").replace("-RRB-", ")").replace("``", '"').replace("''", '"').replace("<num>", "5")
    text = re.sub(r" ([.,;:?!%)'])", r"\1", text)
    return re.sub(r"([($]) ", r"\1", text).replace(" n't", "n't")


def gather(config: Config, sources: Path, data: Path, heldout: Heldout) -> Iterator[tuple[str, list[str], int]]:
    """Each source's name, its clean, distinct texts, and how many of them were dropped as held out already.

    Those are questions' texts, which come in two forms: where one form is held out, so is the other.
    """
    for name, read in source_packages.SOURCES.items():
        if name in config.quotas:
            texts = _distinct(read(sources), config)
            _there(name, texts, sources)
            yield name, texts, 0
    dictionary = name_grammar.dictionary(source_packages.spelled(sources), source_packages.nouns(sources))
    for kind, words in dictionary._asdict().items():
        _there(f"names ({kind})", words, sources)
    yield "names", _distinct(name_grammar.make(dictionary, config.names, random.Random(config.seed)), config), 0
    sts = read_pairs(data / STS_TRAIN)
    yield "sts", _distinct((text for pair in sts for text in (pair.first, pair.second)), config), 0
    forms = [(text, untokenized(text)) for text in read_qa(data / QA_TRAIN)]
    kept = [both for both in forms if not heldout.any(both)]
    yield "questions", _distinct((form for both in kept for form in both), config), len(forms) - len(kept)
    yield "everyday", _distinct(everyday_grammar.make(config.everyday, random.Random(config.seed)), config), 0


def _there(name: str, texts: Sequence[str], sources: Path) -> None:
    if not texts:
        raise source_packages.SourceError(f"{name}: no text below {sources}: is the package laid out otherwise now?")


def _distinct(texts: Iterable[str], config: Config) -> list[str]:
    found = (clean(text, config.most_words, config.longer_words) for text in texts)
    return list(dict.fromkeys(text for text in found if text is not None))


def prepare(config: Config, sources: Path, data: Path, target: Path) -> None:
    """Write the training texts to `target`, one a line, and what was counted to a .json beside it."""
    heldout = Heldout.read(data)
    counts: dict[str, int] = {}
    chosen: dict[str, None] = {}
    near: list[str] = []
    for name, texts, dropped in gather(config, sources, data, heldout):
        generator = random.Random(f"{config.seed} {name}")
        generator.shuffle(texts)
        # A few more than the quota, so that it is met without those that are held out.
        sample = texts[: int(config.quotas[name] * 1.05) + 100]
        allowed = heldout.filter(sample)
        kept = allowed[: config.quotas[name]]
        dropped += len(sample) - len(allowed)
        counts |= {
            f"{name} found": len(texts),
            f"{name} held out": dropped,
            f"{name} kept": len(kept),
        }
        chosen |= dict.fromkeys(kept)
        print(f"  {name}: {len(kept):,} of {len(texts):,} texts; {dropped:,} dropped as held out")
        if name in ("sts", "questions"):
            near += kept
    synsets = list(source_packages.synsets(sources))
    made = list(dict.fromkeys(variants(list(chosen), near, synsets, config)))
    allowed = heldout.filter(made)
    counts |= {
        "variants found": len(made),
        "variants held out": len(made) - len(allowed),
        "variants kept": len(allowed),
    }
    print(f"  variants: {len(allowed):,}; {len(made) - len(allowed):,} dropped as held out")
    chosen |= dict.fromkeys(allowed)
    counts["texts"] = len(chosen)
    target.with_suffix(".json").write_text(json.dumps(counts, indent=1) + "\n")
    partial = target.with_suffix(".part")
    partial.write_text("".join(f"{text}\n" for text in chosen), encoding="utf-8")
    partial.rename(target)


def variants(
    texts: Sequence[str], near: Sequence[str], synsets: Sequence[source_packages.Synset], config: Config
) -> Iterator[str]:
    """Texts close to others, which teach what a change of a word changes, and what one asks about them.

    Some words left out, a word replaced by a related one or by any, a part of a sentence, two halves of two sentences,
    some of the words as a search or a question has them. `near`: texts from which an eighth of them are made.
    """
    generator = random.Random(config.seed + 1)
    related = _related(synsets)
    anything = [one for one in related if " " not in one]
    short, close = ([text for text in some if 4 <= len(text.split()) <= 30] for some in (texts, near))
    for _ in range(config.variants):
        words = generator.choice(close if close and generator.random() < 0.125 else short).split()
        kind = generator.random()
        if kind < 0.45:
            places = [place for place, word in enumerate(words) if plain(word) in related]
            if not places:
                continue
            for place in generator.sample(places, min(len(places), generator.choice((1, 1, 2)))):
                word = plain(words[place])
                new = generator.choice(related[word]) if generator.random() < 0.7 else generator.choice(anything)
                words[place] = words[place].lower().replace(word, new)
        elif kind < 0.55:
            words = [word for word in words if generator.random() > 0.2]
        elif kind < 0.67:
            length = max(3, int(len(words) * generator.uniform(0.4, 0.8)))
            start = generator.randrange(len(words) - length + 1)
            words = words[start : start + length]
        elif kind < 0.77:
            other = generator.choice(short).split()
            words = words[: len(words) // 2] + other[len(other) // 2 :]
        else:
            words = typed(words, generator)
        if len(words) > 1:
            yield " ".join(words)


def typed(words: Sequence[str], generator: random.Random) -> list[str]:
    """Some of a sentence's telling words in their order, as one types them into a search or puts them in a question."""
    telling = [word.strip("\"'()[].,;:!?") for word in words if plain(word) and plain(word) not in FILLERS]
    count = min(len(telling), generator.randint(2, 5))
    kept = [telling[place] for place in sorted(generator.sample(range(len(telling)), count))]
    question = generator.choice(QUESTIONS)
    end = "?" if question and generator.random() < 0.8 else ""
    return [*question.split(), *kept[:-1], kept[-1] + end] if kept else []


def _related(synsets: Sequence[source_packages.Synset]) -> dict[str, list[str]]:
    """For each word of WordNet: its synonyms, its more general words, and the words that share one with it."""
    members: dict[str, list[str]] = {}
    for one in synsets:
        lemmas = [lemma for lemma in one.lemmas if lemma.islower() and lemma.count(" ") < 2]
        for key in (one.offset, *one.parents):
            members.setdefault(key, []).extend(lemmas)
    # The first senses come first in WordNet's index, not in its data: a word may be any of them.
    related: dict[str, dict[str, None]] = {}
    for one in synsets:
        for lemma in one.lemmas:
            if not lemma.islower() or " " in lemma or len(lemma) < 3:
                continue
            near = related.setdefault(lemma, {})
            for key in (one.offset, *one.parents):
                near |= dict.fromkeys(members[key][:40])
    return {word: [one for one in near if one != word] for word, near in related.items() if len(near) > 1}
