"""Local data sets: formats, names, and errors that say which line is wrong."""

from pathlib import Path

import pytest

from evaluation import local_data
from evaluation.errors import EvaluationError
from tests.evaluation import small_data


def test_beir_folder(tmp_path: Path) -> None:
    small_data.beir(tmp_path / "towers")
    task = load(tmp_path, "towers")
    (split,) = task.dataset["default"].values()
    assert split["corpus"]["id"] == list(small_data.DOCUMENTS)
    assert split["corpus"]["title"][2] == ""
    assert split["queries"]["id"] == ["q1", "q2", "q3", "q4", "q5"]  # q6 has no judgement
    assert split["relevant_docs"] == small_data.JUDGEMENTS
    assert (task.metadata.type, task.metadata.main_score, task.eval_splits) == ("Retrieval", "ndcg_at_10", ["test"])


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
@pytest.mark.parametrize("header", [True, False])
def test_sts_table(tmp_path: Path, name: str, header: bool) -> None:
    small_data.sts(tmp_path / name, header=header)
    table = load(tmp_path, "pairs").dataset["default"]["test"]
    assert list(zip(table["sentence1"], table["sentence2"], table["score"], strict=True)) == list(small_data.PAIRS)


def test_columns_in_another_order_with_others_between_and_quoted_fields(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('id,score,sentence2,sentence1\n7,2.5,"b, ""quoted""\nnext line",a\n', "utf-8")
    table = load(tmp_path, "pairs").dataset["default"]["test"]
    assert table.to_dict() == {"sentence1": ["a"], "sentence2": ['b, "quoted"\nnext line'], "score": [2.5]}


def test_quotation_marks_in_tsv_are_characters(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text('say "a\tsay b"\t1\n"c\td\t2\n', "utf-8")
    table = load(tmp_path, "pairs").dataset["default"]["test"]
    assert table.to_dict() == {"sentence1": ['say "a', '"c'], "sentence2": ['say b"', "d"], "score": [1.0, 2.0]}


def test_classification_tables(tmp_path: Path) -> None:
    small_data.classification(tmp_path, "topics")
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_bytes((tmp_path / f"topics-{split}.csv").read_bytes())
    for name in ("topics", "folder"):
        task = load(tmp_path, name)
        dataset = task.dataset["default"]
        assert dataset["train"]["text"] == [*small_data.ANIMALS[::2], *small_data.MONEY[::2]]
        assert dataset["test"]["label"] == [0] * 3 + [1] * 3
        assert not task.is_cross_validation


def test_one_table_of_texts_and_labels_is_cross_validated(tmp_path: Path) -> None:
    (tmp_path / "topics.csv").write_text("a cat,animals\nthe rent,money\n", "utf-8")
    task = load(tmp_path, "topics")
    assert task.is_cross_validation and task.eval_splits == ["all"] and task.train_split == "all"


@pytest.mark.parametrize("file", ["SICK-R", "sick-r"])
def test_settings_of_mteb_s_task_of_that_name_apply(tmp_path: Path, file: str) -> None:
    small_data.sts(tmp_path / f"{file}.csv")
    small_data.classification(tmp_path, "banking77")
    assert local_data.names(tmp_path) == sorted([file, "banking77"])
    sick, banking = load(tmp_path, "SICK-R"), load(tmp_path, "Banking77Classification")
    assert sick.metadata.name == "SICK-R" and sick.max_score == 5 and sick.metadata.main_score == "cosine_spearman"
    assert banking.metadata.name == "Banking77Classification"
    assert banking.metadata.prompt == "Given a online banking query, find the corresponding intents"
    assert load(tmp_path, "banking77").metadata.name == "Banking77Classification"
    assert local_data.task(tmp_path, "SciFact") is None


def test_a_multilingual_task_of_mteb_takes_local_data(tmp_path: Path) -> None:
    small_data.sts(tmp_path / "STS17.csv")
    task = load(tmp_path, "STS17")
    assert task.hf_subsets == ["default"] and len(task.dataset["default"]["test"]) == len(small_data.PAIRS)


def test_dev_split_of_msmarco(tmp_path: Path) -> None:
    folder = small_data.beir(tmp_path / "MSMARCO")
    (folder / "qrels" / "dev.tsv").write_text("q1 0 d01 1\n".replace(" ", "\t"), "utf-8")  # TREC's four columns
    task = load(tmp_path, "MSMARCO")
    assert task.eval_splits == ["dev"]
    assert task.dataset["default"]["dev"]["relevant_docs"] == {"q1": {"d01": 1}}


def test_revision_follows_the_content(tmp_path: Path) -> None:
    small_data.sts(tmp_path / "SICK-R.csv")
    before = load(tmp_path, "SICK-R").metadata.revision
    assert load(tmp_path, "SICK-R").metadata.revision == before
    small_data.sts(tmp_path / "SICK-R.csv", small_data.PAIRS[1:])
    assert load(tmp_path, "SICK-R").metadata.revision != before


BROKEN_FILES = (
    ("corpus.jsonl", '{"_id": "d01", "text": "a"}\n{"_id": "d02"', "corpus.jsonl, line 2: not a JSON object"),
    ("corpus.jsonl", '{"_id": "d01", "text": 3}', "corpus.jsonl, line 1: not a JSON object"),
    ("corpus.jsonl", '{"text": "a"}', "corpus.jsonl, line 1: not a JSON object"),
    ("corpus.jsonl", '["d01"]', "corpus.jsonl, line 1: not a JSON object"),
    ("corpus.jsonl", '{"_id": "d01", "text": "\\ud800"}', "corpus.jsonl, line 1: not a JSON object"),
    ("corpus.jsonl", '{"_id": "a", "text": "a"}\n{"_id": "a", "text": "b"}', "line 2: the _id 'a' is there twice"),
    ("corpus.jsonl", "", "corpus.jsonl is empty"),
    ("corpus.jsonl", b"\xff\xfe", "corpus.jsonl cannot be read"),
    ("queries.jsonl", None, "queries.jsonl cannot be read: No such file"),
    ("qrels/test.tsv", "q1\td99\t1", "test.tsv, line 1: no document has the _id 'd99'"),
    ("qrels/test.tsv", "q9\td01\t1", "test.tsv, line 1: no query has the _id 'q9'"),
    ("qrels/test.tsv", "q1\td01\t1\nq1\td02\thigh", "test.tsv, line 2: not query, document and a whole number"),
    ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "test.tsv has no judgements"),
)


@pytest.mark.parametrize(("name", "content", "message"), BROKEN_FILES)
def test_broken_beir_files(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = small_data.beir(tmp_path / "towers") / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EvaluationError, match=message):
        load(tmp_path, "towers")


BROKEN_TABLES = (
    ("a,b,1\nc,d,high\n", "row 2: the score 'high' is not a number"),
    ("a,b,1\nc,d\n", "row 2 has 2 columns, not sentence1, sentence2, score"),
    ("sentence1,sentence2,score\n", "has no rows"),
    ('a,b,1\n"c,d,2\n', "cannot be read"),
)


@pytest.mark.parametrize(("content", "message"), BROKEN_TABLES)
def test_broken_tables(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(content, "utf-8")
    with pytest.raises(EvaluationError, match=message):
        load(tmp_path, "pairs")


def test_folder_without_data_sets(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", "utf-8")
    (tmp_path / "four.csv").write_text("a,b,c,d\n", "utf-8")
    with pytest.raises(EvaluationError, match=r"has no data set: put a BEIR folder .* there"):
        local_data.names(tmp_path)
    with pytest.raises(EvaluationError, match="is not a folder"):
        local_data.names(tmp_path / "missing")


def load(folder: Path, name: str):  # type: ignore[no-untyped-def]
    """The task with its data; Any, because mteb's data sets have no types."""
    task = local_data.task(folder, name)
    assert task is not None
    task.load_data()
    return task
