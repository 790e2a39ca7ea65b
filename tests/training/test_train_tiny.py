"""Training the embedded model: what must never be in its text, its parts against oracles, and a whole run in small."""

import csv
import gzip
import hashlib
import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, MistralConfig, MistralModel

from benchmarks import quality
from e5 import Embedder, tasks
from tests.reference import Reference, relative_l2, with_peft
from training import (
    corpus,
    dataset,
    evaluation,
    everyday_grammar,
    loops,
    name_grammar,
    pipeline,
    publishing,
    source_packages,
    task_instructions,
)
from training.config import ADAPTER, Config
from training.corpus import Heldout
from training.loops import AdapterData, Schedule, distance, fresh_adapter, run
from training.network import Packed, Shape, Weights, forward, initial, merged, pack
from training.pipeline import Run
from training.publishing import write_adapter, write_base
from training.teacher import Teacher, folder, principal, reduced

SMALL = Shape(vocabulary=32000, width=64, inner=48, layers=2, heads=4, key_heads=2, head_width=32, semantic=60)
HELDOUT = ("A man is playing a large flute.", "the act of going up", "Not at all", "Shares rose 5% on Monday!")
SPLIT = "It did n't rain in the hills ."


def hashed(text: str) -> str:
    """As the list's description says, written out anew: the words in lower case, one space between them."""
    words = "".join(one if one in "abcdefghijklmnopqrstuvwxyz0123456789" else " " for one in text.lower()).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


# --- the ban ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def heldout() -> Heldout:
    return Heldout(map(hashed, HELDOUT))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a man is playing a LARGE flute", "a man is playing a large flute"),
        ("  A man\tis playing -- a large flute?!", "a man is playing a large flute"),
        ("ascent: the act of going up", "the act of going up"),
        ("One says so. Not at all. Another sentence.", "not at all"),
        ("Yesterday, shares rose 5 % on Monday, officials said", "shares rose 5 on monday"),
        ("the act of going upward", None),
        ("A man is playing a flute.", None),
        ("man is playing a large flute", None),
        ("", None),
    ],
)
def test_a_held_out_sentence_is_found_whole_and_as_a_part(heldout: Heldout, text: str, part: str | None) -> None:
    assert heldout.within(text) == part
    assert heldout.any(["something else", text]) is (part is not None)


def test_one_and_two_words_are_held_out_as_a_text_or_between_two_marks() -> None:
    short = Heldout(map(hashed, ("Go up.", "dog")))
    assert short.within("go UP") == "go up" and short.within("Dog!") == "dog"
    assert short.within("ascent: go up") == "go up" and short.within('It is a cat. "Dog", he said.') == "dog"
    assert short.within("to go up the hill") is None and short.within("a dog barks") is None


def test_dropped_texts_are_counted(heldout: Heldout) -> None:
    texts = ["fine", HELDOUT[0], "also fine", f"word: {HELDOUT[1]}"]
    assert heldout.filter(texts) == ["fine", "also fine"]


# --- texts -----------------------------------------------------------------------------------------------------------


def test_sentences_end_where_they_end() -> None:
    text = 'Mr. Smith came. He said "no." Then, e.g. at 5 p.m., he left! Why?'
    assert source_packages.sentences(text) == [
        "Mr. Smith came.",
        'He said "no."',
        "Then, e.g. at 5 p.m., he left!",
        "Why?",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("  two   words ", "two words"),
        ('"quoted as a whole"', "quoted as a whole"),
        ("one", None),
        ("see https://example.org for more", None),
        ("1 2 3 4 5 6 a", None),
        ("слова на другом языке", None),
        ("word " * 61, None),
    ],
)
def test_what_is_no_prose_is_left_out(text: str, kept: str | None) -> None:
    assert corpus.clean(text, most_words=60, longer_words=60) == kept


def test_the_grammar_makes_english_without_leftovers_of_its_names() -> None:
    made = list(everyday_grammar.make(3000, random.Random(1)))
    assert made == list(everyday_grammar.make(3000, random.Random(1)))
    assert len(set(made)) > 2000
    words = {word.strip(".,?'") for text in made for word in text.split()}
    assert not {word for word in words if len(word) > 2 and word.isupper()} - {"DNA"}
    assert not [text for text in made if " a a" in text.lower() or " a e" in text.lower()]


def test_names_fill_sentences_whose_words_are_english_and_which_share_a_subject(tmp_path: Path) -> None:
    write_sources(tmp_path)
    dictionary = name_grammar.dictionary(source_packages.spelled(tmp_path), source_packages.nouns(tmp_path))
    assert dictionary.names == ("Anna", "Berlin")
    assert dictionary.initials == ("NATO",)
    assert dictionary.words == ("bridge", "carve")
    assert dictionary.known == ("Peru", "Lake Garda")
    assert {"dog", "teacher", "thing"} < set(dictionary.nouns)
    assert not {"Peru", "Lake Garda"} & set(dictionary.nouns)
    assert all(dictionary)
    made = list(name_grammar.make(dictionary, 3000, random.Random(1)))
    assert made == list(name_grammar.make(dictionary, 3000, random.Random(1)))
    words = {word.strip(".,;?'`") for text in made for word in text.split()}
    assert not {word for word in words if len(word) > 2 and word.isupper()} - {"NATO", "AIDS", "-LRB-", "-RRB-"}
    assert not [text for text in made if " a a" in text.lower() or " a e" in text.lower()]
    # A question is followed by a text on the same subject.
    follows = [two for one, two in itertools.pairwise(made) if one == "Where is Lake Garda?"]
    assert follows
    assert all("Lake Garda" in text for text in follows)


def test_a_dictionary_without_names_is_an_error(tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "wamerican-huge/usr/share/dict/american-english-huge").write_text("bridge\nNATO\n")
    config = replace(Config(), quotas={"names": 10})
    with pytest.raises(source_packages.SourceError, match="names"):
        list(corpus.gather(config, tmp_path, tmp_path, Heldout([])))


def test_unseen_instructions_are_unseen() -> None:
    assert len(set(task_instructions.UNSEEN)) == 10
    known = {tasks.instruction(name) for name in tasks.names()}
    generator = random.Random(2)
    drawn = {task_instructions.draw(generator, ["any sentence at all"]) for _ in range(20000)}
    assert len(drawn) > 5000 and known <= drawn
    plain = {corpus.plain(text) for text in drawn}
    assert not plain & {corpus.plain(text) for text in task_instructions.UNSEEN}


# --- the network and its losses --------------------------------------------------------------------------------------


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    static = torch.randn(shape.vocabulary, shape.semantic, generator=generator) / 16
    found = initial(replace(shape), static, generator)
    return {name: one + 0.05 * torch.randn(one.shape, generator=generator) for name, one in found.items()}


def test_forward_equals_stock_mistral() -> None:
    weights = random_weights(SMALL)
    config = MistralConfig(
        vocab_size=SMALL.vocabulary,
        hidden_size=SMALL.width,
        intermediate_size=SMALL.inner,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.key_heads,
        head_dim=SMALL.head_width,
        rms_norm_eps=SMALL.epsilon,
        sliding_window=None,
    )
    stock = MistralModel(config).eval()
    stock.load_state_dict(weights)
    generator = random.Random(0)
    texts = [[1, *(generator.randrange(3, 32000) for _ in range(length)), 2] for length in (3, 0, 17, 3, 40, 1, 17, 90)]
    batch = pack(texts)
    assert [length for count, length in batch.runs for _ in range(count)] == sorted(map(len, texts))
    got = forward(weights, SMALL, batch)
    for row, index in zip(got, batch.order.tolist(), strict=True):
        want = stock(torch.tensor([texts[index]])).last_hidden_state[0, -1]
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)


def test_the_start_is_the_mean_of_the_static_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    static = torch.randn(100, 60, generator=generator) * torch.rand(100, 1, generator=generator)
    static[:3] = 0
    weights = initial(replace(SMALL, vocabulary=100), static, generator)
    texts = [[1, 20, 30, 40, 2], [1, 99, 2], [1, 3, 4, 5, 6, 7, 8, 2]]
    batch = pack(texts)
    got = torch.nn.functional.normalize(forward(weights, SMALL, batch))[batch.order.argsort()]
    want = torch.nn.functional.normalize(torch.stack([static[text].sum(0) for text in texts]))
    assert (got[:, :60] * want).sum(1).min() > 0.98 and got[:, 60:].abs().max() == 0


def test_distance_by_hand() -> None:
    """Three texts in two dimensions: cosines and a Kullback-Leibler divergence that numpy computes row by row."""
    student, teacher = np.array([[2.0, 0], [3, 4], [0, 1]]), np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    config = Config(temperature=0.5, relation_weight=2.0)
    found = distance(torch.tensor(student).float(), torch.tensor(teacher).float(), config)
    unit = student / np.linalg.norm(student, axis=1, keepdims=True)
    assert found["distance"].item() == pytest.approx(1 - np.mean([1, 0.8, 0.8]), abs=1e-6)
    divergence = []
    for row in range(3):
        others = [other for other in range(3) if other != row]
        theirs, ours = (np.exp([one[row] @ one[other] / 0.5 for other in others]) for one in (teacher, unit))
        theirs, ours = theirs / theirs.sum(), ours / ours.sum()
        divergence.append((theirs * np.log(theirs / ours)).sum())
    assert found["relation"].item() == pytest.approx(2 * np.mean(divergence), abs=1e-6)


def test_the_adapter_is_to_give_the_vectors_of_the_plain_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half have instructions, half other texts behind them: each row's target is that of all but the instruction."""
    strings = ["A man plays a guitar.", "x", "How do I remove a stain from a shirt?", "an old dog", "two words"] * 20
    file = pipeline.PUBLISHED / "base" / "tokenizer.json"
    ids, offsets = dataset.tokenized(strings, file, 256)
    texts = dataset.Texts(ids, offsets, torch.zeros(100, SMALL.semantic), torch.arange(100) % 5)
    config = Config(
        shape=SMALL, rank=2, alpha=4, batch_tokens=900, group=4, instructed=0.5, lengthened=0.5, lengthened_by=2
    )
    base = random_weights(SMALL)
    seen: list[Packed] = []
    targets: list[Tensor] = []

    def spied(weights: Weights, shape: Shape, batch: Packed) -> Tensor:
        seen.append(batch)
        return forward(weights, shape, batch)

    def spied_distance(_: Tensor, teacher: Tensor, __: Config) -> dict[str, Tensor]:
        targets.append(teacher)
        return {}

    monkeypatch.setattr(loops, "forward", spied)
    monkeypatch.setattr(loops, "distance", spied_distance)
    next(AdapterData(config, strings, texts, file).steps(base))(fresh_adapter(config))
    tokenizer = Tokenizer.from_file(str(file))
    student, at, found, instructions = seen[-1], 0, [], 0
    for count, length in student.runs:
        for _ in range(count):
            prompt = tokenizer.decode(student.ids[at : at + length].tolist())
            instruction, _, text = prompt.rpartition("Query:")
            instructions += bool(instruction)
            found.append(text.strip())
            at += length
    one = "|".join(map(re.escape, set(strings)))
    assert all(re.fullmatch(f"({one})( ({one})){{0,2}}", text) for text in found), "whole texts and no instruction"
    assert 0.3 < sum(text in strings for text in found) / len(found) < 0.7 and len(found) > 15
    assert 0.3 < instructions / len(found) < 0.7
    for text, target in zip(found, targets[0], strict=True):
        plain = pack([[dataset.BOS, *tokenizer.encode(text, add_special_tokens=False).ids, dataset.EOS]])
        want = torch.nn.functional.normalize(forward(base, SMALL, plain))[0]
        assert target @ want > 0.999


def test_what_is_exported_is_what_was_trained(tmp_path: Path) -> None:
    """Base and adapter, read by transformers and by peft, give the vectors of `forward` on the merged weights."""
    config = Config(shape=SMALL, rank=4, alpha=8)
    base = {name: one.bfloat16().float() for name, one in random_weights(SMALL).items()}
    generator = torch.Generator().manual_seed(1)
    adapter = {
        name: (torch.randn(one.shape, generator=generator) * 0.1).bfloat16().float()
        for name, one in fresh_adapter(config).items()
    }
    write_base(tmp_path / "base", base, config, pipeline.PUBLISHED / "base")
    write_adapter(tmp_path / "adapter", adapter, config)
    texts = ["a text", "another, longer text that says more", "x"]
    batch = pack([[1, *ids, 2] for ids in plain_ids(texts)])
    for weights, model in (
        (base, AutoModel.from_pretrained(tmp_path / "base", dtype=torch.float32)),
        (merged(base, adapter, config.alpha / config.rank), with_peft(tmp_path)),
    ):
        got = forward(weights, SMALL, batch)[batch.order.argsort()].numpy()
        assert relative_l2(got, Reference(model, tmp_path / "base", 4096).embed(texts)) < 1e-4
    assert relative_l2(forward(base, SMALL, batch).numpy(), forward(weights, SMALL, batch).numpy()) > 0.1


def plain_ids(texts: list[str]) -> list[list[int]]:
    ids, offsets = dataset.tokenized(texts, pipeline.PUBLISHED / "base" / "tokenizer.json", 256)
    return [ids[start:stop].tolist() for start, stop in itertools.pairwise(offsets.tolist())]


# --- data and training -----------------------------------------------------------------------------------------------


def test_the_teacher_is_all_minilm_as_sentence_transformers_runs_it() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["A man plays a guitar.", "x", "How do I remove a stain?", "a longer text " * 100]
    want = SentenceTransformer(str(folder()), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(Teacher(dtype=torch.float32).embed(texts), want, atol=1e-5)
    assert (Teacher().embed(texts) * want).sum(1).min() > 0.999


def test_the_reduction_keeps_the_most_of_the_energy() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 12)) * np.arange(12, 0, -1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns, kept = principal(rows.astype(np.float16), 5)
    singular = np.linalg.svd(rows.astype(np.float16).astype(np.float64), compute_uv=False) ** 2
    assert kept == pytest.approx(singular[:5].sum() / singular.sum(), abs=1e-4)
    np.testing.assert_allclose(columns.T @ columns, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(reduced(rows.astype(np.float16), columns), axis=1), 1, atol=1e-6)


def some_texts(count: int = 400, seed: int = 0) -> dataset.Texts:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
    vectors = torch.nn.functional.normalize(torch.randn(count, SMALL.semantic, generator=generator))
    ids = torch.randint(3, 32000, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    return dataset.Texts(ids, offsets, vectors, dataset.clustered(vectors, 20, seed=0))


def test_an_epoch_has_each_text_once_and_groups_are_of_one_cluster() -> None:
    texts, config = some_texts(), Config(batch_tokens=200, group=4)
    seen: list[int] = []
    together = 0
    for rows in dataset.batches(texts, config, seed=1):
        tokens = int((texts.lengths[rows] + 2).sum())
        assert 200 <= tokens < 200 + 4 * 10
        seen += rows.tolist()
        together += sum(int(texts.clusters[one] == texts.clusters[other]) for one, other in itertools.pairwise(rows))
        if len(seen) > 380:
            break
    assert len(set(seen)) == len(seen)
    assert together > 0.6 * len(seen)  # 3 of 4 neighbours by the grouping; 1 in 20 by chance


def test_training_that_was_interrupted_gives_the_same_weights(tmp_path: Path) -> None:
    config = Config(save_every=3, clip=1e9)
    start = {"matrix": torch.eye(4), "vector": torch.ones(4)}
    asked: list[int] = []

    def steps() -> Iterator[object]:
        generator = torch.Generator().manual_seed(5)
        for number in itertools.count():
            target = torch.randn(4, 4, generator=generator)

            def losses(p: dict[str, Tensor], number: int = number, target: Tensor = target) -> dict[str, Tensor]:
                asked.append(number)
                return {"loss": ((p["matrix"] * p["vector"] - target) ** 2).mean()}

            yield losses

    def train(schedule: Schedule, name: str) -> dict[str, Tensor]:
        return run(start, steps(), schedule, config, tmp_path / name, lambda _: "")  # type: ignore[arg-type]

    whole = train(Schedule(7, 0.1, 2), "whole")

    class Interrupted(Exception):
        pass

    def interrupted() -> Iterator[object]:
        yield from itertools.islice(steps(), 5)
        raise Interrupted

    with pytest.raises(Interrupted):
        run(start, interrupted(), Schedule(7, 0.1, 2), config, tmp_path / "parts", lambda _: "")  # type: ignore[arg-type]
    asked.clear()
    again = train(Schedule(7, 0.1, 2), "parts")
    assert asked == [3, 4, 5, 6], "it goes on after the last state that was kept"
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not torch.equal(whole["matrix"], start["matrix"])


def test_the_rate_rises_and_falls() -> None:
    schedule = Schedule(steps=100, rate=2.0, warm_up=10)
    assert [schedule.at(step) for step in (0, 4, 9, 10, 55, 99)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.0, 2 / 90])


# --- a whole run -----------------------------------------------------------------------------------------------------


def write_sources(target: Path) -> None:
    """Two of the sources in their own formats, with a held-out sentence in each."""
    wordnet = target / "wordnet-base/usr/share/wordnet"
    wordnet.mkdir(parents=True)
    nouns = ["dog", "cat", "guitar", "flute", "mountain", "river", "teacher", "house", "Peru", "Lake_Garda"]
    lines = ["  1 a licence\n"]
    for number, noun in enumerate(nouns):
        gloss = f'a common {noun} that most people know; "they saw the {noun} near the old bridge"'
        lines.append(f"{number:08d} 05 n 01 {noun} 0 001 @ 00000099 n 0000 | {gloss}  \n")
    lines.append(f"00000098 05 n 01 climb 0 001 @ 00000099 n 0000 | {HELDOUT[1]}  \n")
    lines.append('00000099 03 n 01 thing 0 000 | a separate and self-contained entity; "it was full of things"  \n')
    (wordnet / "data.noun").write_text("".join(lines))
    for part in ("verb", "adj", "adv"):
        (wordnet / f"data.{part}").write_text("  1 a licence\n")
    spelling = target / "wamerican-huge/usr/share/dict"
    spelling.mkdir(parents=True)
    (spelling / "american-english-huge").write_text("Anna\nAnna's\nBerlin\nNATO\na\nbridge\ncarve\ncafé\nMcKay\n")
    records = [
        f"Package: {word}\nDescription-en: tool for {word} work\n It helps with {word} work.\n .\n {HELDOUT[0]}\n"
        for word in ("garden", "office", "kitchen", "workshop")
    ]
    (target / "descriptions.txt").write_text("\n".join(records))
    (target / "versions.json").write_text("{}")


def write_data(target: Path) -> None:
    target.mkdir()
    (target / corpus.HELDOUT).write_text("\n".join(map(hashed, (*HELDOUT, SPLIT))) + "\n")
    things = ("dog", "cat", "guitar", "house", "river", "train", "book", "garden")
    for name, verb in ((corpus.STS_TRAIN, "likes"), (corpus.STS_DEV, "owns")):
        with (target / name).open("w", newline="") as file:
            rows = [(f"A man {verb} a {one}.", f"A woman {verb} a {two}.", 4.5 if one == two else 0.5)
                    for one in things for two in things]  # fmt: skip
            csv.writer(file).writerows([*rows, (HELDOUT[0], "A man plays.", 4.0)])
    for name in (corpus.QA_TRAIN, corpus.QA_DEV):
        kind = "old" if name == corpus.QA_TRAIN else "new"
        with (target / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["qtext", "label", "atext"])
            writer.writerows([[HELDOUT[0], "1", "He is."], [HELDOUT[0], "0", "She is."]])
            for one in things[1:]:
                writer.writerow([f"Where is the {kind} {one}?", "0", f"So he says: {HELDOUT[2]}!"])
                writer.writerow([f"Where is the {kind} {one}?", "1", f"The {kind} {one} is behind the hill ."])
                writer.writerow([f"Where is the {kind} {one}?", "0", f"Nobody in {kind} times bought anything ."])
            if name == corpus.QA_TRAIN:
                # Held out as it stands, but not as people would write it: "did", "n't" are two words.
                writer.writerow(["Where is it ?", "0", SPLIT])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("training")
    write_sources(home / "work" / "sources")
    write_data(home / "data")
    quotas = {"definitions": 50, "entries": 50, "usages": 50, "packages": 50, "sts": 200, "questions": 100}
    quotas |= {"names": 200, "everyday": 400}
    config = Config(
        shape=SMALL,
        quotas=quotas,
        everyday=400,
        names=200,
        variants=100,
        static_texts=64,
        base_steps=12,
        base_warm_up=2,
        adapter_steps=6,
        adapter_warm_up=2,
        batch_tokens=600,
        clusters=16,
        save_every=6,
        rank=2,
        alpha=4,
    )
    one = Run(config, home / "work", home / "data", home / "out", torch.device("cpu"))
    one.all()
    return one


def test_no_training_text_has_a_held_out_sentence(trained: Run) -> None:
    texts = (trained.work / "texts.txt").read_text().splitlines()
    counts = json.loads((trained.work / "texts.json").read_text())
    assert len(texts) == counts["texts"] > 400
    assert any("tool for office work" in text for text in texts), "what is allowed is there"
    assert any(text.startswith("A man likes") for text in texts)
    joined = "\n".join(corpus.plain(text) for text in texts)
    for sentence in HELDOUT:
        assert corpus.plain(sentence) not in joined
    assert "rain in the hills" not in joined
    assert "owns" not in joined, "nothing of the dev split is trained on"
    assert not [text for text in texts if " new " in text and "Where is" in text]
    assert counts["definitions held out"] == 1 and counts["packages held out"] == 1 and counts["sts held out"] >= 1
    # The held-out question, two answers of the dev split, a sentence with a held-out part, one that is in two forms.
    assert counts["questions held out"] == 5


def test_the_result_runs_in_the_package_and_in_peft(trained: Run) -> None:
    tiny = Embedder.load("e5-mistral-tiny", trained.target, dtype="float32")
    texts = ["A man likes a dog.", "x"]
    want = Reference(with_peft(trained.target), trained.target / "base", 4096).embed(texts)
    assert relative_l2(tiny.embed_documents(texts), want) < 1e-4


def test_what_is_published_may_be_read_by_whom_the_umask_lets(trained: Run) -> None:
    plain = trained.target.with_name("plain")
    plain.touch()
    files = [one for one in trained.target.rglob("*") if one.is_file()]
    assert len(files) == 6
    assert {one.stat().st_mode for one in files} == {plain.stat().st_mode}


def test_a_second_run_trains_nothing_and_another_configuration_is_refused(
    trained: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trained.all()
    assert capsys.readouterr().out.count(": there") == 8
    with pytest.raises(SystemExit, match="another configuration"):
        replace(trained, config=replace(trained.config, base_steps=13)).all()
    with pytest.raises(SystemExit, match="other data"):
        other = tmp_path / "data"
        shutil.copytree(trained.data, other)
        (other / corpus.HELDOUT).write_text(hashed("one more") + "\n")
        replace(trained, data=other).all()


OTHER_ADAPTER: dict[str, Any] = {
    "rank": 3,
    "alpha": 5,
    "adapter_steps": 8,
    "adapter_rate": 1e-3,
    "adapter_warm_up": 3,
    "instructed": 0.3,
    "lengthened": 0.2,
    "lengthened_by": 2,
    "more_tokens": 10,
}


def test_another_configuration_of_the_adapter_keeps_the_base(
    trained: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    work, target = tmp_path / "work", tmp_path / "out"
    shutil.copytree(trained.work, work)
    again = replace(trained, work=work, target=target, config=replace(trained.config, **OTHER_ADAPTER))
    again.all()
    out = capsys.readouterr().out
    assert "base: there" in out and "step 8/8" in out and "step 12/12" not in out
    assert json.loads((target / "adapter/adapter_config.json").read_text())["r"] == 3
    again.all()
    assert capsys.readouterr().out.count(": there") == 8


def test_the_adapters_configuration_is_nothing_to_the_stages_before_it(trained: Run, tmp_path: Path) -> None:
    assert set(OTHER_ADAPTER) == ADAPTER
    for key, value in OTHER_ADAPTER.items():
        assert getattr(trained.config, key) != value, key
    shutil.copytree(trained.work / "sources", tmp_path / "sources")
    replace(trained, work=tmp_path, target=tmp_path / "out", config=replace(trained.config, **OTHER_ADAPTER)).all()
    assert (tmp_path / "base.safetensors").read_bytes() == (trained.work / "base.safetensors").read_bytes()
    assert (tmp_path / "adapter.safetensors").read_bytes() != (trained.work / "adapter.safetensors").read_bytes()


def test_the_same_seeds_give_the_same_text(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.work / "sources", tmp_path / "sources")
    corpus.prepare(trained.config, tmp_path / "sources", trained.data, tmp_path / "texts.txt")
    assert (tmp_path / "texts.txt").read_bytes() == (trained.work / "texts.txt").read_bytes()


def test_the_card_has_all_figures(trained: Run) -> None:
    result = evaluation.evaluate(trained.target, trained.data)
    merged = Embedder.load("e5-mistral-tiny", trained.target, dtype="float32", device="cpu")
    bare = Embedder.load("e5-mistral-tiny", trained.target / "base", source="merged", dtype="float32", device="cpu")
    pairs = quality.read_pairs(trained.data / quality.SIMILARITY)
    card = evaluation.card(result)
    names = ["stsb-en-dev", "trecqa-dev MRR", "trecqa-dev MAP"]
    assert card.splitlines()[0] == "| merged model | " + " | ".join(names) + " |"
    assert len(result["unseen"]) == 10
    assert {"instructed", "plain", "without the adapter, instructed", "without the adapter, plain"} == set(
        result["figures"]
    )
    for values in (*result["figures"].values(), *result["unseen"]):
        assert list(values) == names and all(-100 <= value <= 100 for value in values.values())
    assert result["figures"]["plain"]["stsb-en-dev"] == quality.similarity(merged, pairs, None)
    assert result["figures"]["without the adapter, plain"]["stsb-en-dev"] == quality.similarity(bare, pairs, None)
    assert (merged.embed_documents(["A man likes a dog."]) != bare.embed_documents(["A man likes a dog."])).any()


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        pipeline.main(["--data", str(tmp_path)])
    assert end.value.code == 2
    assert "lacks heldout_sentences.sha256, stsb-en-train.csv" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "not a hash\n", "ab" * 32 + "\n", "0123456789ABCDEF\n"])
def test_a_list_that_would_hold_nothing_out_is_refused(tmp_path: Path, content: str) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "data" / corpus.HELDOUT).write_text(content)
    with pytest.raises(SystemExit, match="no list of 16 hex digits"):
        Heldout.read(tmp_path / "data")


def test_a_source_without_text_is_an_error(trained: Run, tmp_path: Path) -> None:
    config = replace(trained.config, quotas={"terms": 5})
    for name in ("foldoc", "jargon"):
        place = tmp_path / f"dict-{name}/usr/share/dictd"
        place.mkdir(parents=True)
        (place / f"{name}.dict.dz").write_bytes(gzip.compress(b""))
    with pytest.raises(source_packages.SourceError, match="terms: no text below"):
        corpus.prepare(config, tmp_path, trained.data, tmp_path / "texts.txt")


def test_an_export_that_fails_leaves_the_model_as_it_was(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[str, bytes]:
        return {str(one.relative_to(trained.target)): one.read_bytes() for one in trained.target.rglob("*.*")}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    before = files()
    assert len(before) == 6
    monkeypatch.setattr(publishing, "write_adapter", full)
    with pytest.raises(OSError, match="no space"):
        trained.export()
    assert files() == before


def test_a_stage_made_again_makes_the_later_ones_again(trained: Run, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained.work, work)
    (work / "set.safetensors").unlink()
    made: list[str] = []

    def failing() -> None:
        made.append("set")
        raise KeyboardInterrupt

    again = replace(trained, work=work)
    object.__setattr__(again, "_set", failing)
    with pytest.raises(KeyboardInterrupt):
        again.all()
    assert made == ["set"] and (work / "vocabulary.npy").exists()
    assert not [one for one in ("static", "base", "adapter") if (work / f"{one}.safetensors").exists()]
    assert not list(work.glob("*.state"))


def test_a_step_is_clipped_and_some_parameters_are_faster(tmp_path: Path) -> None:
    """AdamW's first step moves each parameter by its rate, whatever the gradient; decay is for matrices."""
    config = Config(clip=1e-9, decay=0.5)
    start = {"fast": torch.ones(2, 2), "matrix": torch.ones(2, 2), "vector": torch.ones(2)}
    seen: list[float] = []

    def losses(p: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sum((one.sum() * 100 for one in p.values()), torch.zeros(()))}

    def steps() -> Iterator[object]:
        while True:
            yield losses

    def check(p: object) -> str:
        assert isinstance(p, dict)
        seen.append(float(torch.nn.utils.get_total_norm([one.grad for one in p.values()])))
        return ""

    got = run(start, steps(), Schedule(1, 0.1, 1), config, tmp_path / "s", check, faster=("fast",))  # type: ignore[arg-type]
    assert seen == [pytest.approx(1e-9, rel=1e-3)]
    # ε = 1e-8 is not small beside a gradient of 1e-9 / √10.
    moved = 0.1 / (1 + 1e-8 * 10**0.5 / 1e-9)
    assert got["vector"][0].item() == pytest.approx(1 - moved, abs=1e-5)
    assert got["matrix"][0, 0].item() == pytest.approx((1 - 0.1 * 0.5) - moved, abs=1e-5)
    assert got["fast"][0, 0].item() == pytest.approx(1 - 1.5 * moved, abs=1e-5)


def test_packed_keeps_every_text() -> None:
    batch = pack([[1, 5, 2], [1, 2], [1, 6, 2]])
    assert isinstance(batch, Packed) and batch.tokens == 8
    assert batch.order.tolist() == [1, 0, 2] and batch.ids.tolist() == [1, 2, 1, 5, 2, 1, 6, 2]
