"""The training of the embedded model: held-out sentences, each part against an oracle, and a small whole run."""

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
    distillation,
    evaluation,
    everyday_grammar,
    faqs,
    name_grammar,
    pipeline,
    publishing,
    sources,
    task_instructions,
    wordnet,
)
from training.config import ADAPTER_FIELDS, Config
from training.distillation import AdapterData, distillation_losses, initial_adapter
from training.fetching import SourceError
from training.heldout import HELDOUT, QA_DEV, STS_DEV, Heldout, normalize_text
from training.network import ModelConfig, TrainingBatch, Weights, forward, initial_weights, merge_lora, pack
from training.pipeline import TOKENIZER, TrainingRun
from training.publishing import write_adapter, write_base
from training.teacher import Teacher, pca, project, teacher_folder
from training.trainer import LinearSchedule, LossFunction, train

# Training multiplies in bfloat16. A CPU that emulates it takes minutes for the run that many tests here share.
pytestmark = pytest.mark.timeout(900)

SMALL = ModelConfig(
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    semantic_size=60,
)
SENTENCES = ("A man is playing a large flute.", "the act of going up", "Not at all", "Shares rose 5% on Monday!")
SPLIT = "It did n't rain in the hills ."


def expected_hash(text: str) -> str:
    """An independent `text_hash`: the words in lower case, joined by single spaces."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = "".join(character if character in alphabet else " " for character in text.lower()).split()
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


# --- held-out sentences ----------------------------------------------------------------------------------------------


@pytest.fixture
def heldout() -> Heldout:
    return Heldout(map(expected_hash, SENTENCES))


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
def test_held_out_sentence_is_found_in_a_text(heldout: Heldout, text: str, part: str | None) -> None:
    assert heldout.find(text) == part
    assert heldout.any(["something else", text]) is (part is not None)


def test_short_sentences_count_only_as_a_text_or_between_punctuation_marks() -> None:
    short = Heldout(map(expected_hash, ("Go up.", "dog")))
    assert short.find("go UP") == "go up" and short.find("Dog!") == "dog"
    assert short.find("ascent: go up") == "go up" and short.find('It is a cat. "Dog", he said.') == "dog"
    assert short.find("to go up the hill") is None and short.find("a dog barks") is None


def test_filter_drops_texts_with_held_out_sentences(heldout: Heldout) -> None:
    texts = ["fine", SENTENCES[0], "also fine", f"word: {SENTENCES[1]}"]
    assert heldout.filter(texts) == ["fine", "also fine"]


# --- texts -----------------------------------------------------------------------------------------------------------


def test_sentences_split_at_punctuation_but_not_after_abbreviations() -> None:
    text = 'Mr. Smith came. He said "no." Then, e.g. at 5 p.m., he left! Why?'
    assert sources.sentences(text) == [
        "Mr. Smith came.",
        'He said "no."',
        "Then, e.g. at 5 p.m., he left!",
        "Why?",
    ]


@pytest.mark.parametrize(
    ("text", "cleaned"),
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
def test_clean_rejects_text_that_is_not_english_prose(text: str, cleaned: str | None) -> None:
    assert corpus.clean(text, max_words=60, max_words_long=60) == cleaned


def test_everyday_grammar_expands_all_rules() -> None:
    texts = list(everyday_grammar.generate(3000, random.Random(1)))
    assert texts == list(everyday_grammar.generate(3000, random.Random(1)))
    assert len(set(texts)) > 2000
    words = {word.strip(".,?'") for text in texts for word in text.split()}
    assert not {word for word in words if len(word) > 2 and word.isupper()} - {"DNA"}
    assert not [text for text in texts if " a a" in text.lower() or " a e" in text.lower()]


def test_name_grammar_fills_texts_about_one_subject_with_the_lexicon(tmp_path: Path) -> None:
    write_sources(tmp_path)
    lexicon = name_grammar.Lexicon.build(sources.spellings(tmp_path), wordnet.nouns(tmp_path))
    assert lexicon.names == ("Anna", "Berlin")
    assert lexicon.acronyms == ("NATO",)
    assert lexicon.words == ("bridge", "carve")
    assert lexicon.proper_nouns == ("Peru", "Lake Garda")
    assert {"dog", "teacher", "thing"} < set(lexicon.nouns)
    assert not {"Peru", "Lake Garda"} & set(lexicon.nouns)
    assert all(vars(lexicon).values())
    texts = list(name_grammar.generate(lexicon, 3000, random.Random(1)))
    assert texts == list(name_grammar.generate(lexicon, 3000, random.Random(1)))
    words = {word.strip(".,;?'`") for text in texts for word in text.split()}
    assert not {word for word in words if len(word) > 2 and word.isupper()} - {"NATO", "AIDS", "-LRB-", "-RRB-"}
    assert not [text for text in texts if " a a" in text.lower() or " a e" in text.lower()]
    # A question is followed by a text about the same subject.
    followers = [follower for text, follower in itertools.pairwise(texts) if text == "Where is Lake Garda?"]
    assert followers
    assert all("Lake Garda" in follower for follower in followers)


def test_spelling_dictionary_without_names_is_an_error(tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "wamerican-huge/usr/share/dict/american-english-huge").write_text("bridge\nNATO\n")
    config = replace(Config(), quotas={"names": 10})
    with pytest.raises(SourceError, match="names"):
        list(corpus.gather(config, tmp_path, tmp_path, Heldout([])))


def test_unseen_instructions_are_never_drawn() -> None:
    assert len(set(task_instructions.UNSEEN)) == 10
    published = {tasks.instruction(name) for name in tasks.names()}
    generator = random.Random(2)
    drawn = {task_instructions.draw(generator, ["any sentence at all"]) for _ in range(20000)}
    assert len(drawn) > 5000 and published <= drawn
    normalized = {normalize_text(text) for text in drawn}
    assert not normalized & {normalize_text(text) for text in task_instructions.UNSEEN}


# --- the network and its losses --------------------------------------------------------------------------------------


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    static = torch.randn(config.vocab_size, config.semantic_size, generator=generator) / 16
    weights = initial_weights(config, static, generator)
    return {name: weight + 0.05 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}


def test_forward_equals_transformers_mistral() -> None:
    weights = random_weights(SMALL)
    config = MistralConfig(
        vocab_size=SMALL.vocab_size,
        hidden_size=SMALL.hidden_size,
        intermediate_size=SMALL.intermediate_size,
        num_hidden_layers=SMALL.num_hidden_layers,
        num_attention_heads=SMALL.num_attention_heads,
        num_key_value_heads=SMALL.num_key_value_heads,
        head_dim=SMALL.head_dim,
        rms_norm_eps=SMALL.rms_norm_eps,
        sliding_window=None,
    )
    reference = MistralModel(config).eval()
    reference.load_state_dict(weights)
    generator = random.Random(0)
    texts = [[1, *(generator.randrange(3, 32000) for _ in range(length)), 2] for length in (3, 0, 17, 3, 40, 1, 17, 90)]
    batch = pack(texts)
    assert [length for count, length in batch.runs for _ in range(count)] == sorted(map(len, texts))
    got = forward(weights, SMALL, batch)
    for row, index in zip(got, batch.order.tolist(), strict=True):
        want = reference(torch.tensor([texts[index]])).last_hidden_state[0, -1]
        torch.testing.assert_close(row, want, rtol=1e-4, atol=1e-5)


def test_initial_weights_average_the_static_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    static = torch.randn(100, 60, generator=generator) * torch.rand(100, 1, generator=generator)
    static[:3] = 0
    weights = initial_weights(replace(SMALL, vocab_size=100), static, generator)
    texts = [[1, 20, 30, 40, 2], [1, 99, 2], [1, 3, 4, 5, 6, 7, 8, 2]]
    batch = pack(texts)
    got = torch.nn.functional.normalize(forward(weights, SMALL, batch))[batch.order.argsort()]
    want = torch.nn.functional.normalize(torch.stack([static[text].sum(0) for text in texts]))
    assert (got[:, :60] * want).sum(1).min() > 0.98 and got[:, 60:].abs().max() == 0


def test_distillation_losses_equal_numpy() -> None:
    """Three texts in two dimensions: cosines, and a Kullback-Leibler divergence row by row."""
    student, teacher = np.array([[2.0, 0], [3, 4], [0, 1]]), np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    config = Config(temperature=0.5, similarity_loss_weight=2.0)
    losses = distillation_losses(torch.tensor(student).float(), torch.tensor(teacher).float(), config)
    unit = student / np.linalg.norm(student, axis=1, keepdims=True)
    assert losses["cosine"].item() == pytest.approx(1 - np.mean([1, 0.8, 0.8]), abs=1e-6)

    def softmax(vectors: np.ndarray, row: int) -> np.ndarray:
        powers = np.exp([vectors[row] @ vectors[other] / 0.5 for other in range(3) if other != row])
        probabilities: np.ndarray = powers / powers.sum()
        return probabilities

    divergence = []
    for row in range(3):
        target, predicted = softmax(teacher, row), softmax(unit, row)
        divergence.append((target * np.log(target / predicted)).sum())
    assert losses["similarities"].item() == pytest.approx(2 * np.mean(divergence), abs=1e-6)


def test_adapter_targets_are_the_vectors_of_the_texts_without_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the texts have instructions, and half have other texts appended."""
    strings = ["A man plays a guitar.", "x", "How do I remove a stain from a shirt?", "an old dog", "two words"] * 20
    input_ids, offsets = dataset.tokenize(strings, TOKENIZER, 256)
    texts = dataset.TrainingSet(input_ids, offsets, torch.zeros(100, SMALL.semantic_size), torch.arange(100) % 5)
    config = Config(
        model=SMALL,
        lora_rank=2,
        lora_alpha=4,
        batch_tokens=900,
        group_size=4,
        instruction_probability=0.5,
        concatenation_probability=0.5,
        max_concatenated=2,
    )
    base = random_weights(SMALL)
    batches: list[TrainingBatch] = []
    targets: list[Tensor] = []

    def record_batch(weights: Weights, model: ModelConfig, batch: TrainingBatch) -> Tensor:
        batches.append(batch)
        return forward(weights, model, batch)

    def record_targets(_: Tensor, teacher: Tensor, __: Config) -> dict[str, Tensor]:
        targets.append(teacher)
        return {}

    monkeypatch.setattr(distillation, "forward", record_batch)
    monkeypatch.setattr(distillation, "distillation_losses", record_targets)
    next(AdapterData(config, strings, texts, TOKENIZER).loss_functions(base))(initial_adapter(config))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    student, start, embedded, instructions = batches[-1], 0, [], 0
    for count, length in student.runs:
        for _ in range(count):
            prompt = tokenizer.decode(student.input_ids[start : start + length].tolist())
            instruction, _, text = prompt.rpartition("Query:")
            instructions += bool(instruction)
            embedded.append(text.strip())
            start += length
    single = "|".join(map(re.escape, set(strings)))
    assert all(re.fullmatch(f"({single})( ({single})){{0,2}}", text) for text in embedded), "only whole texts"
    assert 0.3 < sum(text in strings for text in embedded) / len(embedded) < 0.7 and len(embedded) > 15
    assert 0.3 < instructions / len(embedded) < 0.7
    for text, target in zip(embedded, targets[0], strict=True):
        plain = pack([[dataset.BOS, *tokenizer.encode(text, add_special_tokens=False).ids, dataset.EOS]])
        want = torch.nn.functional.normalize(forward(base, SMALL, plain))[0]
        assert target @ want > 0.999


def test_exported_model_equals_the_trained_one(tmp_path: Path) -> None:
    """transformers and peft compute the vectors of `forward` from the exported base and adapter."""
    config = Config(model=SMALL, lora_rank=4, lora_alpha=8)
    base = {name: weight.bfloat16().float() for name, weight in random_weights(SMALL).items()}
    generator = torch.Generator().manual_seed(1)
    adapter = {
        name: (torch.randn(weight.shape, generator=generator) * 0.1).bfloat16().float()
        for name, weight in initial_adapter(config).items()
    }
    write_base(tmp_path / "base", base, config, TOKENIZER.parent)
    write_adapter(tmp_path / "adapter", adapter, config)
    texts = ["a text", "another, longer text that says more", "x"]
    batch = pack([[1, *ids, 2] for ids in token_ids(texts)])
    for weights, model in (
        (base, AutoModel.from_pretrained(tmp_path / "base", dtype=torch.float32)),
        (merge_lora(base, adapter, config.lora_alpha / config.lora_rank), with_peft(tmp_path)),
    ):
        got = forward(weights, SMALL, batch)[batch.order.argsort()].numpy()
        assert relative_l2(got, Reference(model, tmp_path / "base", 4096).embed(texts)) < 1e-4
    assert relative_l2(forward(base, SMALL, batch).numpy(), forward(weights, SMALL, batch).numpy()) > 0.1


def token_ids(texts: list[str]) -> list[list[int]]:
    """Token ids without special tokens."""
    input_ids, offsets = dataset.tokenize(texts, TOKENIZER, 256)
    return [input_ids[start:stop].tolist() for start, stop in itertools.pairwise(offsets.tolist())]


# --- data and training -----------------------------------------------------------------------------------------------


def test_teacher_equals_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["A man plays a guitar.", "x", "How do I remove a stain?", "a longer text " * 100]
    want = SentenceTransformer(str(teacher_folder()), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(Teacher(dtype=torch.float32).embed(texts), want, atol=1e-5)
    assert (Teacher().embed(texts) * want).sum(1).min() > 0.999


def test_pca_keeps_the_largest_share_of_the_energy() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 12)) * np.arange(12, 0, -1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    components, energy = pca(rows.astype(np.float16), 5)
    singular = np.linalg.svd(rows.astype(np.float16).astype(np.float64), compute_uv=False) ** 2
    assert energy == pytest.approx(singular[:5].sum() / singular.sum(), abs=1e-4)
    np.testing.assert_allclose(components.T @ components, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(project(rows.astype(np.float16), components), axis=1), 1, atol=1e-6)


def random_training_set(count: int = 400, seed: int = 0) -> dataset.TrainingSet:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
    vectors = torch.nn.functional.normalize(torch.randn(count, SMALL.semantic_size, generator=generator))
    input_ids = torch.randint(3, 32000, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    return dataset.TrainingSet(input_ids, offsets, vectors, dataset.cluster(vectors, 20, seed=0))


def test_epoch_has_each_text_once_in_groups_of_one_cluster() -> None:
    texts, config = random_training_set(), Config(batch_tokens=200, group_size=4)
    seen: list[int] = []
    same_cluster = 0
    for rows in dataset.batches(texts, config, seed=1):
        tokens = int((texts.lengths[rows] + 2).sum())
        assert 200 <= tokens < 200 + 4 * 10
        seen += rows.tolist()
        same_cluster += int((texts.clusters[rows[1:]] == texts.clusters[rows[:-1]]).sum())
        if len(seen) > 380:
            break
    assert len(set(seen)) == len(seen)
    assert same_cluster > 0.6 * len(seen)  # 3 of 4 neighbours through grouping, 1 in 20 by chance


def test_interrupted_training_gives_the_same_weights(tmp_path: Path) -> None:
    config = Config(save_steps=3, max_grad_norm=1e9)
    start = {"matrix": torch.eye(4), "vector": torch.ones(4)}
    computed: list[int] = []

    def loss_functions() -> Iterator[LossFunction]:
        generator = torch.Generator().manual_seed(5)
        for number in itertools.count():
            target = torch.randn(4, 4, generator=generator)

            def losses(p: dict[str, Tensor], number: int = number, target: Tensor = target) -> dict[str, Tensor]:
                computed.append(number)
                return {"loss": ((p["matrix"] * p["vector"] - target) ** 2).mean()}

            yield losses

    def train_from(batches: Iterator[LossFunction], name: str) -> dict[str, Tensor]:
        return train(start, batches, LinearSchedule(7, 0.1, 2), config, tmp_path / name, lambda _: "")

    uninterrupted = train_from(loss_functions(), "uninterrupted")

    class Interrupted(Exception):
        pass

    def interrupted() -> Iterator[LossFunction]:
        yield from itertools.islice(loss_functions(), 5)
        raise Interrupted

    with pytest.raises(Interrupted):
        train_from(interrupted(), "interrupted")
    computed.clear()
    resumed = train_from(loss_functions(), "interrupted")
    assert computed == [3, 4, 5, 6], "training resumes after the last checkpoint"
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)
    assert not torch.equal(uninterrupted["matrix"], start["matrix"])


def test_learning_rate_rises_and_falls_linearly() -> None:
    schedule = LinearSchedule(steps=100, peak=2.0, warmup_steps=10)
    assert [schedule.learning_rate(step) for step in (0, 4, 9, 10, 55, 99)] == pytest.approx(
        [0.2, 1.0, 2.0, 2.0, 1.0, 2 / 90]
    )


# --- a whole run -----------------------------------------------------------------------------------------------------


def write_sources(target: Path) -> None:
    """WordNet, a spelling dictionary and package descriptions in their own formats, with held-out sentences."""
    wordnet = target / "wordnet-base/usr/share/wordnet"
    wordnet.mkdir(parents=True)
    nouns = ["dog", "cat", "guitar", "flute", "mountain", "river", "teacher", "house", "Peru", "Lake_Garda"]
    lines = ["  1 a license\n"]
    for number, noun in enumerate(nouns):
        gloss = f'a common {noun} that most people know; "they saw the {noun} near the old bridge"'
        lines.append(f"{number:08d} 05 n 01 {noun} 0 001 @ 00000099 n 0000 | {gloss}  \n")
    lines.append(f"00000098 05 n 01 climb 0 001 @ 00000099 n 0000 | {SENTENCES[1]}  \n")
    lines.append('00000099 03 n 01 thing 0 000 | a separate and self-contained entity; "it was full of things"  \n')
    (wordnet / "data.noun").write_text("".join(lines))
    for part in ("verb", "adj", "adv"):
        (wordnet / f"data.{part}").write_text("  1 a license\n")
    spelling = target / "wamerican-huge/usr/share/dict"
    spelling.mkdir(parents=True)
    (spelling / "american-english-huge").write_text("Anna\nAnna's\nBerlin\nNATO\na\nbridge\ncarve\ncafé\nMcKay\n")
    records = [
        f"Package: {word}\nDescription-en: tool for {word} work\n It helps with {word} work.\n .\n {SENTENCES[0]}\n"
        for word in ("garden", "office", "kitchen", "workshop")
    ]
    (target / "descriptions.txt").write_text("\n".join(records))
    (target / "versions.json").write_text("{}")


def write_data(target: Path) -> None:
    target.mkdir()
    (target / HELDOUT).write_text("\n".join(map(expected_hash, (*SENTENCES, SPLIT))) + "\n")
    things = ("dog", "cat", "guitar", "house", "river", "train", "book", "garden")
    for name, verb in ((corpus.STS_TRAIN, "likes"), (STS_DEV, "owns")):
        with (target / name).open("w", newline="") as file:
            rows = [
                (f"A man {verb} a {first}.", f"A woman {verb} a {second}.", 4.5 if first == second else 0.5)
                for first, second in itertools.product(things, things)
            ]
            csv.writer(file).writerows([*rows, (SENTENCES[0], "A man plays.", 4.0)])
    for name in (corpus.QA_TRAIN, QA_DEV):
        kind = "old" if name == corpus.QA_TRAIN else "new"
        with (target / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["qtext", "label", "atext"])
            writer.writerows([[SENTENCES[0], "1", "He is."], [SENTENCES[0], "0", "She is."]])
            for thing in things[1:]:
                writer.writerow([f"Where is the {kind} {thing}?", "0", f"So he says: {SENTENCES[2]}!"])
                writer.writerow([f"Where is the {kind} {thing}?", "1", f"The {kind} {thing} is behind the hill ."])
                writer.writerow([f"Where is the {kind} {thing}?", "0", f"Nobody in {kind} times bought anything ."])
            if name == corpus.QA_TRAIN:
                # Held out in the tokenized form only, where "did" and "n't" are two words.
                writer.writerow(["Where is it ?", "0", SPLIT])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    home = tmp_path_factory.mktemp("training")
    write_sources(home / "work" / "sources")
    write_data(home / "data")
    quotas = {"definitions": 50, "entries": 50, "usages": 50, "packages": 50, "sts": 200, "questions": 100}
    quotas |= {"names": 200, "everyday": 400}
    config = Config(
        model=SMALL,
        quotas=quotas,
        everyday_texts=400,
        name_texts=200,
        variants=100,
        static_batch_size=64,
        base_steps=12,
        base_warmup_steps=2,
        adapter_steps=6,
        adapter_warmup_steps=2,
        batch_tokens=600,
        num_clusters=16,
        save_steps=6,
        lora_rank=2,
        lora_alpha=4,
    )
    run = TrainingRun(config, home / "work", home / "data", home / "out", torch.device("cpu"))
    run.run()
    return run


def test_no_training_text_has_a_held_out_sentence(trained: TrainingRun) -> None:
    texts = (trained.work / "texts.txt").read_text().splitlines()
    counts = json.loads((trained.work / "texts.json").read_text())
    assert len(texts) == counts["texts"] > 400
    assert any("tool for office work" in text for text in texts), "allowed texts are kept"
    assert any(text.startswith("A man likes") for text in texts)
    joined = "\n".join(normalize_text(text) for text in texts)
    for sentence in SENTENCES:
        assert normalize_text(sentence) not in joined
    assert "rain in the hills" not in joined
    assert "owns" not in joined, "no text of the dev split"
    assert not [text for text in texts if " new " in text and "Where is" in text]
    assert counts["definitions held out"] == 1 and counts["packages held out"] == 1 and counts["sts held out"] >= 1
    # The held-out question, two answers of the dev split, a sentence with a held-out part, and SPLIT in its two forms.
    assert counts["questions held out"] == 5


def test_published_model_gives_the_vectors_of_peft(trained: TrainingRun) -> None:
    tiny = Embedder.load("e5-mistral-tiny", trained.target, dtype="float32")
    texts = ["A man likes a dog.", "x"]
    want = Reference(with_peft(trained.target), trained.target / "base", 4096).embed(texts)
    assert relative_l2(tiny.embed_documents(texts), want) < 1e-4


def test_published_files_have_the_umasks_permissions(trained: TrainingRun) -> None:
    ordinary = trained.target.with_name("ordinary")
    ordinary.touch()
    files = [path for path in trained.target.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode for path in files} == {ordinary.stat().st_mode}


def test_second_run_does_nothing_and_refuses_another_configuration(
    trained: TrainingRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trained.run()
    assert capsys.readouterr().out.count(": already done") == 8
    with pytest.raises(SystemExit, match="another configuration"):
        replace(trained, config=replace(trained.config, base_steps=13)).run()
    with pytest.raises(SystemExit, match="other data"):
        other = tmp_path / "data"
        shutil.copytree(trained.data, other)
        (other / HELDOUT).write_text(expected_hash("one more") + "\n")
        replace(trained, data=other).run()


OTHER_ADAPTER: dict[str, Any] = {
    "lora_rank": 3,
    "lora_alpha": 5,
    "adapter_steps": 8,
    "adapter_learning_rate": 1e-3,
    "adapter_warmup_steps": 3,
    "instruction_probability": 0.3,
    "concatenation_probability": 0.2,
    "max_concatenated": 2,
    "extra_tokens": 10,
}


def test_changed_adapter_fields_retrain_only_the_adapter(
    trained: TrainingRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    work, target = tmp_path / "work", tmp_path / "out"
    shutil.copytree(trained.work, work)
    again = replace(trained, work=work, target=target, config=replace(trained.config, **OTHER_ADAPTER))
    again.run()
    out = capsys.readouterr().out
    assert "base: already done" in out and "step 8/8" in out and "step 12/12" not in out
    assert json.loads((target / "adapter/adapter_config.json").read_text())["r"] == 3
    again.run()
    assert capsys.readouterr().out.count(": already done") == 8


def test_adapter_fields_do_not_affect_earlier_stages(trained: TrainingRun, tmp_path: Path) -> None:
    assert set(OTHER_ADAPTER) == ADAPTER_FIELDS
    for key, value in OTHER_ADAPTER.items():
        assert getattr(trained.config, key) != value, key
    shutil.copytree(trained.work / "sources", tmp_path / "sources")
    # The teacher's vectors, which take a minute, do not come from the configuration.
    for name in ("made_from.json", "texts.txt", "texts.json", "teacher.npy", "vocabulary.npy"):
        shutil.copy(trained.work / name, tmp_path)
    replace(trained, work=tmp_path, target=tmp_path / "out", config=replace(trained.config, **OTHER_ADAPTER)).run()
    assert (tmp_path / "base.safetensors").read_bytes() == (trained.work / "base.safetensors").read_bytes()
    assert (tmp_path / "adapter.safetensors").read_bytes() != (trained.work / "adapter.safetensors").read_bytes()


def test_same_seed_gives_the_same_text(trained: TrainingRun, tmp_path: Path) -> None:
    shutil.copytree(trained.work / "sources", tmp_path / "sources")
    corpus.prepare(trained.config, tmp_path / "sources", trained.data, tmp_path / "texts.txt")
    assert (tmp_path / "texts.txt").read_bytes() == (trained.work / "texts.txt").read_bytes()


def test_card_has_all_figures(trained: TrainingRun, tmp_path: Path) -> None:
    write_manual(tmp_path)
    result = evaluation.evaluate(trained.target, trained.data, tmp_path)
    merged = Embedder.load("e5-mistral-tiny", trained.target, dtype="float32", device="cpu")
    base = Embedder.load("e5-mistral-tiny", trained.target / "base", source="merged", dtype="float32", device="cpu")
    pairs = quality.read_pairs(trained.data / quality.SIMILARITY)
    card = evaluation.card(result)
    names = ["stsb-en-dev", "trecqa-dev MRR", "trecqa-dev MAP", "manuals MRR"]
    assert card.splitlines()[0] == "| merged model | " + " | ".join(names) + " |"
    assert len(result["unseen"]) == 10
    assert {"instructed", "plain", "without the adapter, instructed", "without the adapter, plain"} == set(
        result["figures"]
    )
    for values in (*result["figures"].values(), *result["unseen"]):
        assert list(values) == names and all(-100 <= value <= 100 for value in values.values())
    assert result["figures"]["plain"]["stsb-en-dev"] == quality.similarity(merged, pairs, None)
    assert result["figures"]["without the adapter, plain"]["stsb-en-dev"] == quality.similarity(base, pairs, None)
    assert (merged.embed_documents(["A man likes a dog."]) != base.embed_documents(["A man likes a dog."])).any()


def write_manual(folder: Path) -> None:
    page = folder / "r-doc-html/usr/share/R/doc/manual/R-FAQ.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        "<h1>FAQ</h1><p>Not an answer.</p><ul><li>What is a tree?</li></ul><h2>Users</h2>"
        "<h3>1.1: What is a tree?</h3><p>A tree grows.</p><p>It has leaves.</p><p>Next: What is a fish?</p>"
        "<h3>What is a fish?</h3><ul><li>A fish swims.</li></ul><h3>What is nothing?</h3>"
    )


def test_questions_and_answers_of_a_manual(tmp_path: Path) -> None:
    write_manual(tmp_path)
    assert faqs.read(tmp_path) == [
        [
            ("What is a tree?", "A tree grows. It has leaves."),
            ("What is a fish?", "A fish swims."),
        ]
    ]
    assert faqs.read(tmp_path / "nothing") == []


def test_rank_of_a_manuals_answer(library: Embedder) -> None:
    """The ranks by sentence pairs, one at a time. An answer that equals another one gets the worse rank."""
    texts = [("What is a tree?", "A fish swims."), ("What is a fish?", "A tree grows."), ("a bird", "A fish swims.")]
    manual = [faqs.QuestionAnswer(*pair) for pair in texts]
    ranks = faqs.reciprocal_ranks(library, [manual], None)
    for (question, answer), rank in zip(texts, ranks, strict=True):
        vector = library.embed_documents([question], normalize=True)[0]
        cosines = [library.embed_documents([other], normalize=True)[0] @ vector for _, other in texts]
        own = library.embed_documents([answer], normalize=True)[0] @ vector
        assert 1 / rank == sum(cosine > own - 1e-5 for cosine in cosines)
    assert ranks[0] <= 1 / 2 and ranks[2] <= 1 / 2


def test_missing_data_files_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        pipeline.main(["--data", str(tmp_path)])
    assert exit_info.value.code == 2
    assert "lacks heldout_sentences.sha256, stsb-en-train.csv" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "not a hash\n", "ab" * 32 + "\n", "0123456789ABCDEF\n"])
def test_empty_or_malformed_heldout_list_is_refused(tmp_path: Path, content: str) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "data" / HELDOUT).write_text(content)
    with pytest.raises(SystemExit, match="is not a list of 16 hex digits"):
        Heldout.read(tmp_path / "data")


def test_source_without_text_is_an_error(trained: TrainingRun, tmp_path: Path) -> None:
    config = replace(trained.config, quotas={"terms": 5})
    for name in ("foldoc", "jargon"):
        folder = tmp_path / f"dict-{name}/usr/share/dictd"
        folder.mkdir(parents=True)
        (folder / f"{name}.dict.dz").write_bytes(gzip.compress(b""))
    with pytest.raises(SourceError, match="terms: no text below"):
        corpus.prepare(config, tmp_path, trained.data, tmp_path / "texts.txt")


def test_failed_export_leaves_the_model_unchanged(trained: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[str, bytes]:
        return {str(path.relative_to(trained.target)): path.read_bytes() for path in trained.target.rglob("*.*")}

    def raise_disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    before = files()
    assert len(before) == 6
    monkeypatch.setattr(publishing, "write_adapter", raise_disk_full)
    with pytest.raises(OSError, match="no space"):
        trained.export()
    assert files() == before


def test_repeated_stage_invalidates_later_ones(
    trained: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(trained.work, work)
    (work / "set.safetensors").unlink()
    attempts: list[str] = []

    def interrupt(_: TrainingRun) -> None:
        attempts.append("set")
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "_build_training_set", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(trained, work=work).run()
    assert attempts == ["set"] and (work / "vocabulary.npy").exists()
    assert not [name for name in ("static", "base", "adapter") if (work / f"{name}.safetensors").exists()]
    assert not list(work.glob("*.state"))


def test_gradients_are_clipped_and_fast_parameters_get_a_higher_rate(tmp_path: Path) -> None:
    """AdamW's first step moves each parameter by the learning rate, whatever the gradient. Decay is for matrices."""
    config = Config(max_grad_norm=1e-9, weight_decay=0.5)
    start = {"fast": torch.ones(2, 2), "matrix": torch.ones(2, 2), "vector": torch.ones(2)}
    norms: list[float] = []

    def losses(p: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": sum((parameter.sum() * 100 for parameter in p.values()), torch.zeros(()))}

    def check(p: Weights) -> str:
        norms.append(
            float(
                torch.nn.utils.get_total_norm(
                    [parameter.grad for parameter in p.values() if parameter.grad is not None]
                )
            )
        )
        return ""

    schedule = LinearSchedule(1, 0.1, 1)
    trained = train(start, itertools.repeat(losses), schedule, config, tmp_path / "s", check, fast=("fast",))
    assert norms == [pytest.approx(1e-9, rel=1e-3)]
    # ε = 1e-8 is not negligible against a gradient of 1e-9 / √10.
    step = 0.1 / (1 + 1e-8 * 10**0.5 / 1e-9)
    assert trained["vector"][0].item() == pytest.approx(1 - step, abs=1e-5)
    assert trained["matrix"][0, 0].item() == pytest.approx((1 - 0.1 * 0.5) - step, abs=1e-5)
    assert trained["fast"][0, 0].item() == pytest.approx(1 - 1.5 * step, abs=1e-5)


def test_pack_sorts_texts_by_length() -> None:
    batch = pack([[1, 5, 2], [1, 2], [1, 6, 2]])
    assert isinstance(batch, TrainingBatch) and batch.tokens == 8
    assert batch.order.tolist() == [1, 0, 2] and batch.input_ids.tolist() == [1, 2, 1, 5, 2, 1, 6, 2]
