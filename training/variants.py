"""Variants of texts: small edits show the model how a word changes the meaning; keyword searches and questions."""

import random
from collections.abc import Iterator, Sequence

from training.config import Config
from training.heldout import normalize_text
from training.wordnet import Synset

STOP_WORDS = frozenset(
    """
    a an the and or but if of in on at to for from by with as is are was were be been being am has have had do does did
    not no it its he she they them his her their this that these those there which who whom whose what when where why
    how i you we my your our me us him so than then also such can could will would shall should may might must s t into
    about over under after before between through during each any some all more most other only very just
    """.split()  # noqa: SIM905 (a list of a hundred literals is not easier to read)
)
QUESTION_STARTS = (
    *[""] * 8, "what is", "what are", "what", "What is the", "What", "What", "who", "Who", "Who is", "Who was",
    "when did", "When was", "When did", "where is", "Where", "Where did", "how many", "How many", "How much", "How",
    "how to", "why", "Why do", "Which", "which", "is", "Does", "What kind of", "What does", "In what year did",
    "What was the name of",
)  # fmt: skip
"""An empty start makes a keyword search instead of a question."""


def generate(
    texts: Sequence[str], labelled_texts: Sequence[str], synsets: Sequence[Synset], config: Config
) -> Iterator[str]:
    """At most `config.variants` variants, an eighth of them of `labelled_texts`.

    A variant replaces one or two words with related or random ones (45 %), drops words (10 %), cuts out a part (12 %),
    joins halves of two texts (10 %), or makes a search or question of the text's keywords (23 %).
    """
    generator = random.Random(config.seed + 1)
    related = related_words(synsets)
    all_words = [word for word in related if " " not in word]
    short_texts, short_labelled = _short(texts), _short(labelled_texts)
    for _ in range(config.variants):
        use_labelled = short_labelled and generator.random() < 0.125
        words = generator.choice(short_labelled if use_labelled else short_texts).split()
        kind = generator.random()
        if kind < 0.45:
            replaceable = [index for index, word in enumerate(words) if normalize_text(word) in related]
            if not replaceable:
                continue
            for index in generator.sample(replaceable, min(len(replaceable), generator.choice((1, 1, 2)))):
                word = normalize_text(words[index])
                candidates = related[word] if generator.random() < 0.7 else all_words
                words[index] = words[index].lower().replace(word, generator.choice(candidates))
        elif kind < 0.55:
            words = [word for word in words if generator.random() > 0.2]
        elif kind < 0.67:
            length = max(3, int(len(words) * generator.uniform(0.4, 0.8)))
            start = generator.randrange(len(words) - length + 1)
            words = words[start : start + length]
        elif kind < 0.77:
            other = generator.choice(short_texts).split()
            words = words[: len(words) // 2] + other[len(other) // 2 :]
        else:
            words = keywords(words, generator)
        if len(words) > 1:
            yield " ".join(words)


def _short(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if 4 <= len(text.split()) <= 30]


def keywords(words: Sequence[str], generator: random.Random) -> list[str]:
    """Two to five of a sentence's content words in order, as a search or after a question word."""
    content = [
        word.strip("\"'()[].,;:!?") for word in words if normalize_text(word) and normalize_text(word) not in STOP_WORDS
    ]
    count = min(len(content), generator.randint(2, 5))
    chosen = [content[index] for index in sorted(generator.sample(range(len(content)), count))]
    question = generator.choice(QUESTION_STARTS)
    end = "?" if question and generator.random() < 0.8 else ""
    return [*question.split(), *chosen[:-1], chosen[-1] + end] if chosen else []


def related_words(synsets: Sequence[Synset]) -> dict[str, list[str]]:
    """For each word of WordNet: its synonyms, its hypernyms, and the other hyponyms of those."""
    members: dict[str, list[str]] = {}
    for synset in synsets:
        lemmas = [lemma for lemma in synset.lemmas if lemma.islower() and lemma.count(" ") < 2]
        for key in (synset.offset, *synset.hypernyms):
            members.setdefault(key, []).extend(lemmas)
    # WordNet's data files do not order a word's senses by frequency (its index does), so all senses count.
    related: dict[str, dict[str, None]] = {}
    for synset in synsets:
        for lemma in synset.lemmas:
            if not lemma.islower() or " " in lemma or len(lemma) < 3:
                continue
            neighbours = related.setdefault(lemma, {})
            for key in (synset.offset, *synset.hypernyms):
                neighbours |= dict.fromkeys(members[key][:40])
    return {
        word: [neighbour for neighbour in neighbours if neighbour != word]
        for word, neighbours in related.items()
        if len(neighbours) > 1
    }
