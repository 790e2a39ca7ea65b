"""Small data sets in the formats of `evaluation.local_data`."""

import csv
import json
from pathlib import Path

DOCUMENTS = {
    "d01": ("Eiffel Tower", "The iron tower in Paris was finished in 1889 and is 330 metres high."),
    "d02": ("Big Ben", "The clock tower in London is 96 metres high and strikes every hour."),
    "d03": ("", "Onion soup is made of onions, broth, bread and grated cheese."),
    "d04": ("Pancakes", "Mix flour, eggs and milk, and fry the batter in a pan with butter."),
    "d05": ("Protein", "Women from 19 to 70 should eat about 46 grams of protein a day."),
    "d06": ("Marathon", "A runner needs months of training before a race of 42 kilometres."),
    "d07": ("Sleep", "Adults who sleep less than six hours a night are ill more often."),
    "d08": ("", "A dog that barks at night may be lonely, hungry or afraid."),
    "d09": ("Cats", "Cats sleep for most of the day and hunt at dawn and at dusk."),
    "d10": ("Volcano", "Lava, ash and gas escape from a volcano when it erupts."),
    "d11": ("Earthquake", "The ground shakes when two plates of the crust slide along each other."),
    "d12": ("Inflation", "Prices rise when more money chases the same amount of goods."),
    "d13": ("Interest", "A central bank raises its interest rate to slow inflation."),
    "d14": ("Guitar", "A guitar has six strings, which are plucked with the fingers or a pick."),
    "d15": ("Piano", "A piano has 88 keys; each key moves a hammer that strikes strings."),
    "d16": ("Chess", "The game ends when a king is attacked and cannot escape."),
}
QUERIES = {
    "q1": "how high is the tower in Paris",
    "q2": "how much protein should a woman eat",
    "q3": "why do prices rise",
    "q4": "musical instruments with strings",
    "q5": "what do cats and dogs do at night",
}
JUDGEMENTS = {
    "q1": {"d01": 2, "d02": 1},
    "q2": {"d05": 1},
    "q3": {"d12": 2, "d13": 1},
    "q4": {"d14": 1, "d15": 1},
    "q5": {"d08": 1, "d09": 2, "d16": 0},
}


def beir(folder: Path) -> Path:
    """A BEIR folder of 16 documents and 5 queries; a sixth query has no judgement."""
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": key, "title": title, "text": text}) for key, (title, text) in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    queries = QUERIES | {"q6": "a query that nobody judged"}
    lines = [json.dumps({"_id": key, "text": text}) for key, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    rows = [f"{query}\t{key}\t{grade}" for query, grades in JUDGEMENTS.items() for key, grade in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n", "utf-8")
    return folder


PAIRS = (
    ("A man plays the guitar.", "Someone is playing a guitar.", 4.8),
    ("A cat sleeps on the sofa.", "A cat is asleep on a couch.", 4.6),
    ("Prices rise every year.", "Inflation makes goods dearer.", 4.0),
    ("Two dogs run on a beach.", "Two dogs are running in the sand.", 4.2),
    ("The tower is 300 metres high.", "The tower is tall.", 3.1),
    ("A woman cuts onions.", "A woman slices bread.", 2.2),
    ("A runner trains for a race.", "The bank raised its rate.", 0.2),
    ("A king cannot escape.", "The pan is full of butter.", 0.1),
)


def sts(path: Path, pairs: tuple[tuple[str, str, float], ...] = PAIRS, header: bool = False) -> Path:
    """A table of pairs with their scores: CSV or TSV by the name."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([("sentence1", "sentence2", "score")] if header else [])
        writer.writerows(pairs)
    return path


ANIMALS = ("the cat sleeps", "a dog barks", "my cat hunts mice", "the dog runs", "a puppy plays", "kittens drink milk")
MONEY = (
    "prices rise",
    "the bank raised its rate",
    "money is tight",
    "inflation slows",
    "goods are dear",
    "pay the rent",
)


def all_types(folder: Path) -> Path:
    """A new folder with a data set of each type: towers, pairs and topics."""
    beir(folder / "towers")
    sts(folder / "pairs.csv")
    classification(folder, "topics")
    return folder


def classification(folder: Path, name: str) -> None:
    """NAME-train.csv and NAME-test.csv: animals or money."""
    for split, part in (("train", slice(None, None, 2)), ("test", slice(1, None, 2))):
        rows = [(text, "animals") for text in ANIMALS[part]] + [(text, "money") for text in MONEY[part]]
        with (folder / f"{name}-{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
