"""The page in Chromium, with the real gateway and the real Cog server.

PAGE_SCREENSHOTS=folder keeps the screenshots. Every test fails if a script does, or if the Content-Security-Policy had
to block anything.
"""

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from e5 import Embedder, tasks
from e5_cog.repository import ROOT
from e5_cog.server import free_port, running
from tests import npm
from tests.gateways import Gateway, gateway
from tests.page import wide_predictor
from tests.page.chromium import LAPTOP, PHONE, Tab, opened
from tests.rule_predictor import RULE

KEY = "test-key"
"""Of `shared_gateway`."""
# Characters with a meaning in the shell, Python, JavaScript and HTML.
NASTY = 'it\'s "so" $HOME `x` \\n {a} ${b} {{c}} <b>ü</b> 日本 🙂 !'
ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>${window.hacked=3}{{value}}</textarea>'
UNRELATED = [
    f"sentence number {index} about {word}" for index, word in enumerate(["tea", "rain", "trains", "music"] * 50)
]


def asked(url: str, path: str = "predictions", /, **inputs: Any) -> dict[str, Any]:
    """The API's answer to the same request."""
    body = {"input": inputs} if path == "predictions" else inputs
    answer: dict[str, Any] = httpx.post(f"{url}/{path}", json=body, timeout=60).raise_for_status().json()
    assert answer.get("status", "succeeded") == "succeeded", answer
    return answer


# ---- results


def test_ranking_shows_the_apis_scores(tab: Tab, url: str, screenshots: Path) -> None:
    documents = ["The tower is 300 m high.", "A recipe for soup.", "Towers are tall buildings."]
    tab.fill(queries="how tall is the tower?", documents="\n".join(documents))
    assert "1 query × 3 documents" in tab.run()
    expected = asked(url, query="how tall is the tower?", documents=documents)["output"]["scores"][0]
    best = sorted(range(3), key=lambda index: -expected[index])
    assert [float(score) for score in tab.scores()] == pytest.approx([expected[index] for index in best], abs=0.006)
    shown = tab.page.locator("#answer .ranking p").all_inner_texts()
    assert [text.partition(" ")[2] for text in shown] == [documents[index] for index in best]
    facts = tab.page.locator("#answer .facts").inner_text()
    assert "Round trip" in facts and "Tokens" in facts
    assert "temperature" not in tab.page.locator(".legend-of-scores").inner_text()  # it is no prefix model


def test_several_queries_show_a_heat_map(tab: Tab, url: str) -> None:
    tab.run()
    documents = tab.page.locator("#field-documents").input_value().splitlines()
    queries = tab.page.locator("#field-queries").input_value().splitlines()
    expected = asked(url, queries=queries, documents=documents)["output"]["scores"]
    cells = tab.page.locator(".heat tbody td").all_inner_texts()
    assert [float(cell) for cell in cells] == pytest.approx([value for row in expected for value in row], abs=0.06)
    assert tab.page.locator(".heat th[scope=col]").first.get_attribute("title") == documents[0]
    assert tab.page.locator("#answer details").count() == 2


def test_vectors_show_their_length_and_first_numbers(tab: Tab, url: str) -> None:
    tab.fill(queries="one", documents="two")
    expected = np.array(asked(url, query="one", document="two")["output"]["embeddings"])
    bounds = {"float": 0.0, "base64": 0.0, "float16": 2e-3, "int8": np.abs(expected).max() / 127}
    for name, bound in bounds.items():
        tab.page.locator("#field-encoding_format").select_option(name)
        assert "Done" in tab.run()
        tab.show("Vectors")
        numbers = [float(number) for number in tab.page.locator(".numbers span").all_inner_texts()]
        np.testing.assert_allclose(np.reshape(numbers, (2, 4)), expected[:, :4], rtol=0, atol=bound + 6e-5)
        norms = [float(number) for number in tab.page.locator("td.number:nth-child(3)").all_inner_texts()]
        np.testing.assert_allclose(norms, np.linalg.norm(expected, axis=1), rtol=0, atol=16 * bound + 6e-5)
    tab.page.locator("#field-encoding_format").select_option("ubinary")
    tab.run()
    tab.show("Vectors")
    signs = [float(number) for number in tab.page.locator(".numbers span").all_inner_texts()]
    assert signs == np.where(expected[:, :4] > 0, 1, -1).ravel().tolist()


def test_tokens_are_shown(tab: Tab, url: str) -> None:
    tab.fill(queries="what is ☃?", documents="one\ntwo")
    tab.page.locator("#field-encoding_format").select_option("tokens")
    tab.run()
    expected = asked(url, query="what is ☃?", documents=["one", "two"], encoding_format="tokens")["output"]
    shown = [row.locator(".pieces span").all_text_contents() for row in tab.page.locator("#answer tbody tr").all()]
    assert shown == expected["pieces"]
    assert tab.page.locator(".pieces span").first.get_attribute("title") == f"id {expected['token_ids'][0][0]}"


def test_long_texts_are_reported(tab: Tab) -> None:
    tab.fill(queries="one")
    tab.paste("documents", "two\n" + "word " * 5000)
    assert "Done" in tab.run()
    assert re.search(r"1 of (the )?3 texts|1 text", tab.page.locator("#answer .warning").inner_text())
    tab.show("Vectors")
    assert [row.locator(".cut").count() for row in tab.page.locator("#answer tbody tr").all()] == [0, 0, 1]
    tab.page.locator("#field-long_texts").select_option("error")
    assert "has 5,002 tokens" in tab.run()
    expect(tab.page.locator("#error-documents")).to_contain_text("5,002 tokens")
    tab.page.locator("#field-long_texts").select_option("average")
    assert "Done" in tab.run()
    assert tab.page.locator("#answer .warning").count() == 0


def test_rerank_shows_the_apis_order_and_code(tab: Tab, url: str) -> None:
    documents = [f"{NASTY} tower", "A recipe for soup.", "Towers are tall buildings.", "The tower is 300 m high."]
    tab.page.locator("#field-request-kind").select_option("rerank")
    expect(tab.page.locator("#field-normalize")).to_be_hidden()
    tab.fill(queries="how tall is the tower?", documents="\n".join(documents), task="a task", top_n="3")
    tab.page.locator("#field-long_texts").select_option("error")
    assert "1 query × 4 documents" in tab.run()
    request = {"query": "how tall is the tower?", "documents": documents, "task": "a task", "long_texts": "error"}
    expected = asked(url, "v2/rerank", **request, top_n=3)["results"]
    assert [float(score) for score in tab.scores()] == pytest.approx(
        [each["relevance_score"] for each in expected], abs=6e-5
    )
    shown = tab.page.locator("#answer .ranking p").all_inner_texts()
    assert [text.partition(" ")[2] for text in shown] == [documents[each["index"]] for each in expected]
    assert "1 are not in the answer" in tab.page.locator("#answer").inner_text()
    answer = json.loads(subprocess.run(["bash", "-c", tab.code("cURL")], capture_output=True, check=True).stdout)
    assert answer["results"] == expected
    printed = run_python(tab.code("Cohere"))
    assert [line.partition("  ") for line in printed.splitlines()] == [
        (f"{each['relevance_score']:.4f}", "  ", repr(documents[each["index"]])) for each in expected
    ]
    tab.fill(queries="one\ntwo")
    assert "takes one query" in tab.run()
    expect(tab.page.locator("#error-queries")).to_contain_text("takes one query")


def test_texts_of_one_side_are_compared(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Find duplicate questions").click()
    expect(tab.page.locator("#status")).to_contain_text("5 queries")
    cells = tab.page.locator(".heat tbody td").all_inner_texts()
    assert len(cells) == 25 and cells[::6] == ["100.0"] * 5
    assert "guitar" in tab.page.locator(".closest").inner_text()
    tab.fill(queries="", documents="only one")
    tab.run()
    assert "Add a query" in tab.page.locator("#answer").inner_text()
    assert tab.page.get_by_role("tab", name="Map").count() == 0


def test_large_scores_stay_usable(tab: Tab, url: str, screenshots: Path) -> None:
    texts = [f"{text} in town {index}" for index, text in enumerate(UNRELATED * 3)][:500]
    for name in ("queries", "documents"):
        tab.paste(name, "\n".join(texts))
    assert "500 queries × 500 documents" in tab.run()
    started = time.perf_counter()
    tab.page.locator("#field-task").press("End")
    print(f"500 × 500 scores: the page answers a key {1e3 * (time.perf_counter() - started):.0f} ms after them")
    canvas = tab.page.locator("#answer canvas")
    canvas.hover(position={"x": 2 * 7 + 1, "y": 2 * 3 + 1})
    expected = asked(url, queries=texts, documents=texts, encoding_format="base64")["output"]["scores"]
    readout = tab.page.locator("#answer .readout").inner_text()
    assert readout == f"{expected[3][7]:.2f}: query 4 “{texts[3]}” × document 8 “{texts[7]}”"
    canvas.press("ArrowRight")
    assert tab.page.locator("#answer .readout").inner_text().startswith(f"{expected[3][8]:.2f}: query 4")
    tab.page.screenshot(path=screenshots / "laptop-500.png")
    assert tab.page.locator("#answer details").count() == 20
    assert tab.page.locator("#answer details .ranking").count() == 4  # the others are closed
    tab.page.locator("#answer details summary").nth(9).click()
    expect(tab.page.locator("#answer details").nth(9).locator("li")).to_have_count(10)
    tab.page.get_by_role("button", name="more of 500 queries").click()
    assert tab.page.locator("#answer details").count() == 40
    started = time.perf_counter()
    tab.show("Map")
    expect(tab.page.locator(".map .document")).to_have_count(500)
    print(f"map of 1,000 texts: {1e3 * (time.perf_counter() - started):.0f} ms")


def test_map_shows_principal_components_of_the_vectors(tab: Tab, url: str, screenshots: Path) -> None:
    queries, documents = UNRELATED[:4], UNRELATED[4:60]
    tab.fill(queries="\n".join(queries), documents="\n".join(documents))
    tab.run()
    tab.show("Map")
    vectors = np.array(asked(url, queries=queries, documents=documents, normalize=True)["output"]["embeddings"])
    centered = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    read = "nodes => nodes.map((node) => [node.getAttribute('aria-label'), node.dataset.x, node.dataset.y])"
    marks = tab.page.locator(".map > *").evaluate_all(read)
    places = {label.partition(":")[0]: (float(x), float(y)) for label, x, y in marks}
    names = [f"query {index + 1}" for index in range(4)] + [f"document {index + 1}" for index in range(56)]
    shown = np.array([places[name] for name in names])
    for axis in (0, 1):
        assert abs(np.corrcoef(shown[:, axis], left[:, axis])[0, 1]) > 0.9999
    spread = shown.std(axis=0)
    assert spread[1] / spread[0] == pytest.approx(values[1] / values[0], rel=1e-3)  # one scale for both
    share = round(100 * (values[:2] ** 2).sum() / (values**2).sum())
    assert f"hold {share} % of their variance" in tab.page.locator("#answer .note").last.inner_text()
    assert tab.page.locator(".map path.query").count() == 4 and tab.page.locator(".map circle.document").count() == 56
    tab.page.locator(".map .document").nth(5).hover(force=True)
    tab.page.screenshot(path=screenshots / "laptop-map.png")


def test_map_is_usable_by_pointer_and_keyboard(tab: Tab) -> None:
    documents = UNRELATED[:9]
    tab.fill(queries="tea", documents="\n".join(documents))
    tab.run()
    tab.show("Map")
    readout, picture = tab.page.locator("#answer .readout"), tab.page.locator(".map")
    tab.page.locator(".map .document").nth(2).hover(force=True)
    assert readout.inner_text() == f"document 3: {documents[2]}"
    tab.page.locator(".map [tabindex='0']").focus()
    assert readout.inner_text() == "query 1: tea"
    for name in ("document 1", "document 2"):
        tab.page.keyboard.press("ArrowRight")
        assert readout.inner_text().startswith(name)
    assert tab.page.locator(".map [tabindex='0']").count() == 1
    tab.page.keyboard.press("+")
    assert picture.get_attribute("data-zoom") == "1.50"
    tab.page.get_by_role("button", name="Zoom in").click()
    assert picture.get_attribute("data-zoom") == "2.25"
    tab.page.locator(".map [tabindex='0']").focus()
    for _ in range(10):
        tab.page.keyboard.press("ArrowRight")
        mark, frame = tab.page.locator(".map :focus").bounding_box(), picture.bounding_box()
        assert mark is not None and frame is not None
        assert frame["x"] <= mark["x"] + mark["width"] / 2 <= frame["x"] + frame["width"]
        assert frame["y"] <= mark["y"] + mark["height"] / 2 <= frame["y"] + frame["height"]
    tab.page.keyboard.press("Control+ArrowRight")
    before = picture.get_attribute("viewBox")
    box = picture.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x - 60, y - 30, steps=3)
    tab.page.mouse.up()
    assert picture.get_attribute("viewBox") != before
    tab.page.get_by_role("button", name="Show the whole map").click()
    assert picture.get_attribute("viewBox") == "0 0 640 420"


def test_download_is_the_whole_answer(tab: Tab) -> None:
    documents = [f"document number {index} about the tower" for index in range(2_000)]
    tab.fill(queries="how tall is the tower?")
    tab.paste("documents", "\n".join(documents))
    tab.page.locator("#field-encoding_format").select_option("base64")
    assert "2,000 documents" in tab.run()
    assert tab.page.locator("#answer .ranking li").count() == 100
    tab.page.get_by_role("button", name="Show 100 more of 2,000 documents").click()
    assert tab.page.locator("#answer .ranking li").count() == 200
    tab.show("JSON")
    assert len(tab.page.locator("#answer pre").inner_text()) < 20_000
    with tab.page.expect_download() as download:
        tab.page.locator("#download").click()
    assert download.value.suggested_filename == "answer.json"
    answer = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert len(answer["output"]["embeddings_base64"]) == 2_001
    assert len(answer["output"]["scores"][0]) == 2_000
    tab.page.locator("#answer .copy").click()
    assert json.loads(tab.page.evaluate("navigator.clipboard.readText()")) == answer
    assert "@request.json" in tab.code("cURL")  # too long for a command line
    with tab.page.expect_download() as download:
        tab.page.locator("#save").click()
    assert download.value.suggested_filename == "request.json"
    assert json.loads(Path(download.value.path()).read_text("utf-8"))["input"]["documents"] == documents


# ---- a file of texts


FILE_TEXTS = ["The tower is 300 m high.", 'a "quoted", text', "日本 🙂", *UNRELATED[:40]]


def write_texts(path: Path, column: str) -> Path:
    if path.suffix == ".jsonl":
        records = ({"id": f"x{index}", column: text} for index, text in enumerate(FILE_TEXTS))
        path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", column], *([f"x{i}", t] for i, t in enumerate(FILE_TEXTS))])
    elif path.suffix == ".txt":
        path.write_text("\n".join(FILE_TEXTS), "utf-8")
    else:
        pq.write_table(pa.table({"id": [f"x{i}" for i in range(len(FILE_TEXTS))], column: FILE_TEXTS}), path)
    return path


def embed(library: Embedder, column: str) -> np.ndarray[Any, Any]:
    return (
        library.embed_queries(FILE_TEXTS, task="a task") if column == "query" else library.embed_documents(FILE_TEXTS)
    )


def choose(tab: Tab, path: Path) -> None:
    """Choose a file of texts in the form, and leave the other boxes empty."""
    tab.fill(queries="", documents="")
    tab.page.locator("#field-file").set_input_files(path)


def saved(tab: Tab) -> pa.Table:
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Download vectors.parquet").click()
    assert download.value.suggested_filename == "vectors.parquet"
    return pq.read_table(io.BytesIO(Path(download.value.path()).read_bytes()))


def vectors_of(table: pa.Table) -> np.ndarray[Any, Any]:
    assert np.all(np.diff(table["row"].to_numpy()) == 1)  # in the order of the file
    return np.array(table["vector"].to_pylist())


@pytest.mark.parametrize(
    ("name", "column"), [("a.jsonl", "text"), ("a.csv", "query"), ("a.parquet", "text"), ("a.txt", "text")]
)
def test_file_of_texts_becomes_a_file_of_vectors(
    tab: Tab, library: Embedder, tmp_path: Path, name: str, column: str
) -> None:
    choose(tab, write_texts(tmp_path / name, column))
    tab.fill(task="a task")
    assert f"{len(FILE_TEXTS)} texts" in tab.run()
    table = saved(tab)
    expected = embed(library, column)
    np.testing.assert_allclose(vectors_of(table), expected, rtol=0, atol=1e-5)
    if name != "a.txt":
        assert table["id"].to_pylist()[:2] == ["x0", "x1"]
    assert tab.page.get_by_role("tab", name="Scores").count() == 0
    heading = tab.page.locator("#answer h2").inner_text()
    assert heading.startswith(f"{len(FILE_TEXTS)} vectors of 256 dimensions")
    facts = tab.page.locator("#answer .facts").inner_text()
    assert f"Texts\n{len(FILE_TEXTS)}\n" in facts and "Cut texts\n0\n" in facts
    tab.show("JSON")
    shown = tab.page.locator("#answer pre").inner_text()
    assert "… " in shown and len(shown) < 2_000
    tab.page.locator("#answer .copy").click()
    whole = json.loads(tab.page.evaluate("navigator.clipboard.readText()"))
    content = base64.b64decode(whole["output"]["file"].partition(",")[2])
    assert pq.read_table(io.BytesIO(content)).equals(table)


def test_options_go_along_with_a_file(tab: Tab, library: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "word " * 5000}), "utf-8")
    choose(tab, path)
    tab.page.locator("#field-normalize").check()
    tab.page.locator("#field-encoding_format").select_option("float16")
    assert "2 texts" in tab.run()
    assert "1 of 2 texts were cut" in tab.page.locator("#answer .warning").inner_text()
    table = saved(tab)
    assert table["truncated"].to_pylist() == [False, True]
    expected = library.embed_documents(["one"], normalize=True)
    np.testing.assert_allclose(vectors_of(table)[:1], expected, rtol=0, atol=1e-3)
    tab.page.locator("#field-long_texts").select_option("error")
    assert "5,003 tokens" in tab.run()
    expect(tab.page.locator("#error-file")).to_contain_text("5,003 tokens")
    expect(tab.page.locator("#answer")).to_be_empty()


def test_file_and_texts_together_are_refused(tab: Tab, tmp_path: Path) -> None:
    tab.page.locator("#field-file").set_input_files(write_texts(tmp_path / "a.jsonl", "text"))
    assert "A file cannot be combined with texts" in tab.run()
    expect(tab.page.locator("#error-file")).to_contain_text("clear the queries and documents, or remove the file")
    expect(tab.page.locator("#field-file")).to_be_focused()
    assert tab.page.locator("#field-file").get_attribute("aria-invalid") == "true"
    clear = tab.page.get_by_role("button", name="Clear the texts")
    clear.press("Enter")
    expect(clear).to_be_hidden()
    expect(tab.page.locator("#field-file")).to_be_focused()
    expect(tab.page.locator("#error-file")).to_be_hidden()
    for name in ("queries", "documents"):
        expect(tab.page.locator(f"#field-{name}")).to_have_value("")
    assert f"{len(FILE_TEXTS)} texts" in tab.run()
    tab.page.locator("#field-request-kind").select_option("rerank")  # it has no files
    expect(tab.page.locator("#field-file")).to_be_hidden()
    tab.fill(queries="a", documents="b")
    assert "1 query × 1 document" in tab.run()
    tab.page.locator("#field-request-kind").select_option("prediction")
    expect(clear).to_be_visible()


def test_file_can_be_removed(tab: Tab, tmp_path: Path) -> None:
    path, field = write_texts(tmp_path / "a.jsonl", "text"), tab.page.locator("#field-file")
    remove = tab.page.get_by_role("button", name="Remove the file")
    expect(remove).to_be_hidden()
    with tab.page.expect_file_chooser() as chooser:
        field.press("Enter")
    chooser.value.set_files(path)
    expect(remove).to_be_visible()
    expect(tab.page.locator(".field", has=field)).to_contain_text("KiB")
    remove.press("Enter")
    expect(remove).to_be_hidden()
    expect(field).to_be_focused()
    assert field.evaluate("node => node.files.length") == 0
    assert "2 queries × 2 documents" in tab.run()
    choose(tab, path)
    faq = tab.page.get_by_role("button", name="Search in a FAQ")
    assert "1 query × 8 documents" in tab.after(faq.click)  # an example replaces the file
    choose(tab, path)
    tab.page.get_by_role("button", name="Copy link").click()
    link = tab.page.evaluate("navigator.clipboard.readText()")
    assert "#task=" in link and "file" not in link and "a.jsonl" not in link  # a link cannot hold it
    tab.page.evaluate("location.hash = 'queries=new&file=x'")
    expect(tab.page.locator("#field-queries")).to_have_value("new")
    expect(remove).to_be_hidden()
    assert "1 query" in tab.run()


def test_files_that_cannot_be_sent_are_refused_when_chosen(tab: Tab, tmp_path: Path) -> None:
    large, empty, error = tmp_path / "large.jsonl", tmp_path / "empty.jsonl", tab.page.locator("#error-file")
    large.write_bytes(b" " * (23 * 2**20 + 1))
    empty.touch()
    choose(tab, large)
    expect(error).to_contain_text(
        "large.jsonl is larger than 23 MiB: upload it with Replicate’s client (POST /v1/files)"
    )
    assert "scripts/corpus.py" in tab.run()
    expect(error).to_be_visible()
    choose(tab, empty)
    expect(error).to_have_text("empty.jsonl is empty.")
    choose(tab, write_texts(tmp_path / "a.jsonl", "text"))
    expect(error).to_be_hidden()
    assert f"{len(FILE_TEXTS)} texts" in tab.run()
    for name, content in (("wrong.jsonl", '{"id": "1", "body": "a"}\n'), ("wrong.csv", "id,body\n1,a\n")):
        (tmp_path / name).write_text(content, "utf-8")
        choose(tab, tmp_path / name)
        assert "neither of the columns" in tab.run()
        expect(error).to_contain_text("its columns are id, body")
    (tmp_path / "gone.jsonl").write_text('{"text": "a"}\n', "utf-8")
    choose(tab, tmp_path / "gone.jsonl")
    (tmp_path / "gone.jsonl").unlink()
    assert "gone.jsonl cannot be read: choose it again" in tab.run()
    assert not [address for address in tab.requests if address.startswith("data:")]


def test_file_is_dropped_on_its_field(tab: Tab) -> None:
    tab.fill(queries="", documents="")
    drop(tab.page, "#field-file", ["a.txt"], "one\ntwo\n")
    expect(tab.page.locator(".field", has=tab.page.locator("#field-file"))).to_contain_text("8 bytes")
    assert "2 texts" in tab.run()
    drop(tab.page, "#field-file", ["a.txt", "b.txt"], "one")
    expect(tab.page.locator("#error-file")).to_have_text("These are 2 files: drop one.")
    assert "2 texts" in tab.run()  # the first one


def test_page_stays_usable_while_a_large_file_is_sent(tab: Tab, tmp_path: Path) -> None:
    path, padding = tmp_path / "large.jsonl", "x" * 100_000
    path.write_text("".join(json.dumps({"text": f"text {i}", "padding": padding}) + "\n" for i in range(230)), "utf-8")
    choose(tab, path)
    tab.page.evaluate("""() => {
      let last = performance.now();
      window.longest = 0;
      setInterval(() => { window.longest = Math.max(longest, performance.now() - last); last = performance.now(); }, 5);
    }""")
    assert "230 texts" in tab.run()
    print(f"23 MB: the page blocks for {tab.page.evaluate('longest'):.0f} ms at most")
    assert saved(tab).num_rows == 230


@pytest.mark.skipif(shutil.which("jq") is None, reason="NOT TESTED: jq is not installed")
def test_code_with_a_file_runs(tab: Tab, library: Embedder, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "it's (a) $HOME.jsonl", "text")
    choose(tab, path)
    expected = library.embed_documents(FILE_TEXTS)
    programs = {"cURL": ["bash", "-c"], "Replicate": [sys.executable, "-c"]}
    for name, program in programs.items():
        code = tab.code(name)
        assert len(code) < 1_000
        subprocess.run([*program, code], cwd=tmp_path, timeout=60, check=True, env=environment_without_clients())
        vectors = tmp_path / "vectors.parquet"
        np.testing.assert_allclose(vectors_of(pq.read_table(vectors)), expected, rtol=0, atol=1e-5)
        vectors.unlink()
    assert tab.page.get_by_role("tab", name="OpenAI").count() == 0
    tab.fill(documents="a")
    tab.page.wait_for_timeout(250)
    assert "Code appears here" in tab.page.locator("#code").inner_text()
    tab.page.get_by_role("button", name="Remove the file").click()
    assert "input=documents" in tab.code("OpenAI")


# ---- the form


def test_page_is_interactive_at_once(browser: Browser, url: str) -> None:
    with opened(browser, url) as tab:
        first = tab.page.evaluate("performance.getEntriesByName('interactive')[0].startTime")
        tab.page.reload()
        tab.page.locator("#form").wait_for()
        again = tab.page.evaluate("performance.getEntriesByName('interactive')[0].startTime")
        print(f"interactive {first:.0f} ms after the request, {again:.0f} ms after a reload")
        loaded = {address.rpartition("/")[2] for address in tab.requests}
        assert {"app.js", "style.css", "openapi.json", "tasks.json", "examples.json"} <= loaded


def test_ctrl_enter_runs_and_no_other_host_is_contacted(tab: Tab) -> None:
    assert "2 queries × 2 documents" in tab.after(lambda: tab.page.locator("#field-queries").press("Control+Enter"))
    for name in ("Map", "Vectors", "JSON"):
        tab.show(name)
    hosts = {address.split("/")[2].split(":")[0] for address in tab.requests if not address.startswith("data:")}
    assert hosts == {"127.0.0.1"}


def test_fields_have_labels_and_the_predictors_words(tab: Tab, url: str) -> None:
    expect(tab.page.get_by_role("status").first).to_be_attached()
    schema = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["Input"]["properties"]
    for name in ("task", "queries", "documents", "file", "normalize", "encoding_format", "long_texts"):
        control = tab.page.locator(f"#field-{name}")
        described = tab.page.locator(f"#{str(control.get_attribute('aria-describedby')).split()[0]}").inner_text()
        words = schema[{"queries": "query", "documents": "document"}.get(name, name)]["description"]
        assert described.startswith(words)
    order = tab.page.locator("[id^=field-]").evaluate_all("nodes => nodes.map((node) => node.id.slice(6))")
    assert order == [
        "task",
        "queries",
        "documents",
        "file",
        "normalize",
        "encoding_format",
        "long_texts",
        "top_n",
        "request-kind",
    ]
    choices = tab.page.locator("#field-encoding_format option").all_inner_texts()
    assert choices == httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["encoding_format"]["enum"]
    for name in ("Task", "Queries", "Documents"):
        expect(tab.page.get_by_role("textbox", name=re.compile(f"^{name}$"))).to_be_visible()
    expect(tab.page.get_by_role("checkbox", name="Normalize")).to_be_visible()
    assert tab.page.title() == "E5 embeddings"


def test_new_input_of_predict_appears_by_itself(browser: Browser, tmp_path: Path) -> None:
    """The repository with another predict.py."""
    for name in ("e5", "e5_cog", "e5_gateway", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(wide_predictor.__file__), tmp_path / "predict.py")
    paths = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    with gateway((), tmp_path, environment=paths) as front, opened(browser, front.url) as tab:
        expect(tab.page.locator("#field-layer")).to_have_value("3")
        assert tab.page.locator("#field-task").count() == 0
        tab.fill(
            queries="a",
            documents="bb",
            note="as it is",
            labels="one\ntwo",
            factors="[0.5, 2.5]",
            layer="7",
            weight="0.5",
        )
        (tmp_path / "sample.bin").write_bytes(b"sample")
        tab.page.locator("#field-sample").set_input_files(tmp_path / "sample.bin")  # goes along with texts
        tab.page.locator("#field-reverse").uncheck()
        tab.page.locator("#field-pooling").select_option("mean")
        assert "Done" in tab.run()
        sent = {"layer": 7, "weight": 0.5, "reverse": False, "pooling": "mean", "note": "as it is"}
        sent |= {"labels": ["one", "two"], "factors": [0.5, 2.5]}
        sent |= {"sample": f"data:application/octet-stream;base64,{base64.b64encode(b'sample').decode()}"}
        answer = asked(front.url, query="a", document="bb", **sent)
        arrived = ["7", "0.5", "False", "'mean'", "'as it is'", "['one', 'two']", "[0.5, 2.5]", "b'sample'"]
        assert answer["output"]["arrived"] == arrived
        tab.show("JSON")
        for value in arrived:
            assert json.dumps(value) in tab.page.locator("#answer pre").inner_text()
        tab.fill(layer="1.5")
        assert "must be a whole number" in tab.run()
        expect(tab.page.locator("#error-layer")).to_contain_text("whole number")


def test_preset_fills_the_task_and_follows_it(tab: Tab) -> None:
    preset = tab.page.locator("#preset")
    assert preset.input_value() == "MSMARCO"
    options = preset.locator("optgroup option").evaluate_all("nodes => nodes.map((node) => node.value)")
    assert set(options) == set(tasks.names())
    preset.select_option("SciFact")
    expect(tab.page.locator("#field-task")).to_have_value(tasks.instruction("SciFact"))
    assert tasks.instruction("SciFact") in tab.code("cURL")
    tab.fill(task="a task of mine")
    assert preset.input_value() == ""
    assert "a task of mine" in tab.code("cURL")
    preset.select_option("Ocnli")
    assert preset.input_value() == "Ocnli"  # although STS has the same instruction


def test_examples_fill_the_form_and_run(browser: Browser, url: str) -> None:
    with opened(browser, url, scheme="dark") as tab:
        faq = tab.page.get_by_role("button", name="Search in a FAQ")
        assert "1 query × 8 documents" in tab.after(faq.click)
        assert "30 days" in tab.page.locator("#answer .ranking p").first.inner_text()
        assert tab.page.locator("#preset").input_value() == "NQ"
        assert tab.page.get_by_role("button", name="Across languages").count() == 0  # the model reads English


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"documents": '["a", ""]'}, "documents", "Document 2 is empty"),
        ({"queries": '["a", '}, "queries", "JSON list"),
        ({"queries": " ", "documents": " "}, None, "There is no text yet"),
    ],
)
def test_errors_are_shown_at_their_field(tab: Tab, fields: dict[str, str], where: str | None, words: str) -> None:
    tab.run()
    tab.fill(**fields)
    status = tab.run()
    assert words in status
    assert "InputError" not in status and "Prediction failed" not in status
    if where is not None:
        expect(tab.page.locator(f"#error-{where}")).to_contain_text(words)
        expect(tab.page.locator(f"#field-{where}")).to_be_focused()
        assert tab.page.locator(f"#field-{where}").get_attribute("aria-invalid") == "true"
    expect(tab.page.locator("#answer")).to_be_empty()  # not the previous answer
    tab.fill(queries="a", documents="b")
    assert "Done" in tab.run()
    assert tab.page.locator(".field .error:visible").count() == 0


def test_double_click_sends_one_request(tab: Tab) -> None:
    tab.after(tab.page.locator("#run").dblclick)
    tab.page.wait_for_timeout(500)
    assert len([address for address in tab.requests if address.endswith("/predictions")]) == 1


def test_stop_ends_a_long_run(tab: Tab) -> None:
    tab.fill(queries="one")
    tab.paste("documents", "\n".join(["word " * 4000] * 60))
    tab.page.locator("#run").click()
    stop = tab.page.get_by_role("button", name="Stop")
    assert tab.after(lambda: stop.press("Enter")) == "Stopped."
    expect(tab.page.locator("#run")).to_be_focused()
    tab.page.locator("#run").click()
    expect(stop).to_be_visible()
    faq = tab.page.get_by_role("button", name="Search in a FAQ")  # replaces the run
    assert "1 query × 8 documents" in tab.after(faq.click)


def test_texts_are_copied_without_a_clipboard_too(browser: Browser, url: str) -> None:
    """On plain HTTP beyond this machine navigator.clipboard does not exist."""
    with opened(browser, url) as tab:
        tab.fill(queries="a")
        tab.paste("documents", "\n".join(UNRELATED[:100]))
        tab.run()
        tab.show("JSON")
        tab.page.evaluate("window.read = navigator.clipboard.readText.bind(navigator.clipboard)")
        tab.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        tab.page.locator("#answer .copy").click()
        expect(tab.page.locator("#answer .copy")).to_have_text("Copied")
        assert len(json.loads(tab.page.evaluate("read()"))["output"]["scores"][0]) == 100
        tab.page.get_by_role("button", name="Copy link").click()
        expect(tab.page.get_by_role("button", name="Copied")).to_have_count(2)
        assert "queries=a" in tab.page.evaluate("read()")


def test_link_holds_the_form(browser: Browser, url: str) -> None:
    with opened(browser, url) as tab:
        tab.fill(queries=NASTY, documents="b\nc", task="a task & more")
        tab.page.locator("#field-normalize").check()
        tab.page.locator("#field-request-kind").select_option("rerank")
        tab.page.get_by_role("button", name="Copy link").click()
        link = str(tab.page.evaluate("navigator.clipboard.readText()"))
    assert link.startswith(f"{url}/#")
    with opened(browser, link) as other:
        assert other.page.locator("#field-queries").input_value() == NASTY
        assert other.page.locator("#field-documents").input_value() == "b\nc"
        assert other.page.locator("#field-task").input_value() == "a task & more"
        assert other.page.locator("#preset").input_value() == ""
        assert other.page.locator("#field-request-kind").input_value() == "rerank"
        assert other.page.locator("#field-normalize").is_checked()
        assert not any(
            "/predictions" in address or "/rerank" in address for address in other.requests
        )  # it waits for Run
        assert all(NASTY[:9] not in address for address in other.requests[1:])
        other.paste("documents", "x" * 40_000)
        other.page.get_by_role("button", name="Copy link").click()
        expect(other.page.get_by_role("button", name="Too long: share request.json")).to_be_visible()
        other.page.evaluate("location.hash = 'queries=new'")
        expect(other.page.locator("#field-queries")).to_have_value("new")
        expect(other.page.locator("#field-documents")).to_have_value("")
        assert other.page.locator("#preset").input_value() == "MSMARCO"


def test_files_are_opened_and_dropped(tab: Tab, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text('id,text,title\n1,"one, ""1""",A\n2,two,B\n', "utf-8")
    documents, queries = tab.page.locator("#field-documents"), tab.page.locator("#field-queries")
    block = tab.page.locator(".field", has=documents)
    with tab.page.expect_file_chooser() as chooser:
        block.get_by_role("button", name="Open a file").click()
    chooser.value.set_files(table)
    expect(documents).to_have_value('one, "1"\ntwo')
    expect(block).to_contain_text("2 texts of table.csv, column")
    block.get_by_label("Column").select_option("title")
    expect(documents).to_have_value("A\nB")
    drop(tab.page, "#field-queries", ["texts.jsonl"], '{"query": "a\\nb"}\n{"query": "c"}\n')
    expect(queries).to_have_value('[\n "a\\nb",\n "c"\n]')
    assert "2 queries × 2 documents" in tab.run()
    drop(tab.page, "#field-queries", ["image.png"], "x")
    expect(tab.page.locator(".field", has=queries)).to_contain_text("image.png: the page reads")
    drop(tab.page, "header", ["elsewhere.txt"], "x")  # beside the boxes
    drop(tab.page, "#field-queries", ["a.jsonl"], '{"text": "a"}\n{"text": ""}\n{"text": "b"}')
    expect(tab.page.locator(".field", has=queries)).to_contain_text("2 texts of a.jsonl (1 without text)")
    assert "2 queries × 2 documents" in tab.run()


def drop(page: Page, selector: str, names: list[str], content: str) -> None:
    script = """([selector, names, content]) => {
      const dataTransfer = new DataTransfer();
      for (const name of names) dataTransfer.items.add(new File([content], name));
      for (const type of ["dragover", "drop"]) document.querySelector(selector).dispatchEvent(
        new DragEvent(type, {dataTransfer, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, [selector, names, content])


def test_page_waits_for_a_model_that_is_starting(browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    front = gateway(f"http://127.0.0.1:{port}", tmp_path, wait=False)
    with front as started, opened(browser, started.url, wait=False) as tab:
        expect(tab.page.locator("#model")).to_contain_text("nothing answers at its address")
        expect(tab.page.locator("#form")).to_be_hidden()
        with running(RULE, port=port):
            tab.page.locator("#form").wait_for()
            expect(tab.page.locator("#model")).to_contain_text("rule")
            assert "Done" in tab.run()
        assert "The model is" in tab.run()  # it is down again


# ---- code


def test_code_follows_the_form_and_runs(tab: Tab, url: str) -> None:
    tab.fill(queries=NASTY, documents=f"{NASTY}\nA recipe for soup.")
    tab.page.locator("#field-normalize").check()
    tab.run()
    code = tab.code("cURL")
    tab.page.locator("#code .copy:visible").click()
    assert tab.page.evaluate("navigator.clipboard.readText()") == code
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    answer = json.loads(done.stdout)
    expected = asked(url, query=NASTY, documents=[NASTY, "A recipe for soup."], normalize=True)
    assert answer["output"]["scores"] == expected["output"]["scores"]
    assert answer["output"]["embeddings"] == expected["output"]["embeddings"]
    assert sorted(map(float, tab.scores())) == pytest.approx(sorted(expected["output"]["scores"][0]), abs=0.006)
    for name in ("Replicate", "OpenAI"):
        printed = [float(number) for number in re.findall(r"-?\d+\.\d+", run_python(tab.code(name)))]
        for score in expected["output"]["scores"][0]:
            assert pytest.approx(score, abs=0.06) in printed
    tab.fill(queries="", documents="")
    tab.page.wait_for_timeout(250)
    assert "Code appears here" in tab.page.locator("#code").inner_text()
    assert tab.page.locator("#code pre:visible").count() == 0


def run_python(code: str) -> str:
    environment = environment_without_clients()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment_without_clients() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REPLICATE_"))}


# ---- the key, and hostile texts


def test_page_asks_for_the_key_and_keeps_it_nowhere(
    browser: Browser, shared_gateway: Gateway, screenshots: Path
) -> None:
    with opened(browser, shared_gateway.url) as tab:
        assert "key is missing or wrong" in tab.run()
        expect(tab.page.locator("#error-api-key")).to_contain_text("key is missing or wrong")
        tab.page.screenshot(path=screenshots / "laptop-key.png")
        tab.fill(**{"api-key": "not a ké\u0301y"})
        assert "no key can have" in tab.run()
        tab.fill(**{"api-key": KEY})
        assert "Done" in tab.run()
        for name in ("cURL", "Replicate", "OpenAI", "Node.js"):
            assert "GATEWAY_API_KEY" in tab.code(name)
        environment = {**os.environ, "GATEWAY_API_KEY": KEY}
        done = subprocess.run(["bash", "-c", tab.code("cURL")], capture_output=True, env=environment, check=True)
        assert json.loads(done.stdout)["status"] == "succeeded"
        tab.page.get_by_role("button", name="Copy link").click()
        kept = tab.page.evaluate(
            """async () => [document.documentElement.outerHTML, location.href, document.cookie, {...localStorage},
              {...sessionStorage}, await indexedDB.databases(), await caches.keys(),
              await navigator.clipboard.readText()]"""
        )
        assert KEY not in json.dumps(kept)
        assert kept[2:7] == ["", {}, {}, [], []]
        tab.page.reload()
        tab.page.locator("#form").wait_for()
        assert tab.page.locator("#field-api-key").input_value() == ""


def test_key_is_asked_for_only_where_it_is_needed(tab: Tab) -> None:
    assert tab.page.locator("#field-api-key").count() == 0


def test_texts_are_never_html(browser: Browser, url: str, tmp_path: Path) -> None:
    hostile = tmp_path / "table.csv"
    hostile.write_text(f'text,"{ATTACK.replace(chr(34), chr(34) * 2)}"\n"{ATTACK.replace(chr(34), chr(34) * 2)}",b\n')
    with opened(browser, url) as tab:
        tab.fill(queries=f"{ATTACK}\nsecond", documents=f"{ATTACK}\nother", task=ATTACK)
        tab.run()
        assert ATTACK in tab.page.locator("#answer details").first.inner_text()
        for name in ("Map", "Vectors", "JSON"):
            tab.show(name)
        tab.page.locator("#answer [role=tab]", has_text="Map").click()
        tab.page.locator(".map .document").first.hover(force=True)
        assert ATTACK in tab.page.locator("#answer .readout").inner_text()
        for name in ("cURL", "Replicate", "OpenAI", "Node.js"):
            assert "onerror" in tab.code(name)
        tab.page.locator("#field-encoding_format").select_option("tokens")
        tab.run()
        tab.page.locator("#field-encoding_format").select_option("float")
        tab.paste("documents", "\n".join([ATTACK] * 60))
        tab.run()
        tab.page.locator("#answer canvas").hover()
        assert ATTACK in tab.page.locator("#answer .readout").inner_text()
        tab.fill(queries=f"[{ATTACK}", documents="b")
        assert ATTACK[:4] in tab.run()
        tab.fill(queries="", documents=f"{ATTACK}\n{ATTACK}")
        tab.run()
        assert ATTACK[:40] in tab.page.locator(".closest").inner_text()
        tab.fill(queries="a")
        tab.page.locator("#field-request-kind").select_option("rerank")
        tab.run()
        assert ATTACK in tab.page.locator("#answer .ranking").inner_text()
        tab.page.locator("input[type=file]").nth(1).set_input_files(hostile)
        expect(tab.page.locator("#field-documents")).to_have_value(ATTACK)
        drop(tab.page, "#field-documents", [f"{ATTACK}.pdf"], "x")
        expect(tab.page.locator(".field", has=tab.page.locator("#field-documents"))).to_contain_text("<img")
        tab.page.locator("#field-request-kind").select_option("prediction")
        tab.fill(queries="", documents="")
        drop(tab.page, "#field-file", [f"{ATTACK}.txt"], "")
        expect(tab.page.locator("#error-file")).to_contain_text(f"{ATTACK}.txt is empty")
        drop(tab.page, "#field-file", [f"{ATTACK}.txt"], ATTACK)
        for name in ("cURL", "Replicate", "Node.js"):
            assert "onerror" in tab.code(name)
        assert "1 text" in tab.run()
        check_unharmed(tab)
    fragment = httpx.QueryParams({"queries": ATTACK, "task": ATTACK, "long_texts": ATTACK, "request-kind": ATTACK})
    with opened(browser, f"{url}/#{fragment}") as tab:
        assert tab.page.locator("#field-queries").input_value() == ATTACK
        assert tab.page.locator("#field-long_texts").input_value() == "truncate"
        tab.run()
        check_unharmed(tab)


def check_unharmed(tab: Tab) -> None:
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img, script:not([src='page/app.js']), iframe, object, embed").count() == 0


def test_policy_forbids_html_from_strings_and_inline_scripts(browser: Browser, url: str) -> None:
    """What the other tests find unbroken does stand."""
    policy = httpx.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    with opened(browser, url) as tab:
        attempts = """() => {
          const results = [];
          try { document.body.innerHTML = "<b>x</b>"; results.push("html"); } catch { results.push("refused"); }
          const script = document.createElement("script");
          try { script.textContent = "window.hacked = 1"; document.body.append(script); } catch {}
          const image = document.createElement("img");
          image.src = "https://example.com/x.png";
          document.body.append(image);
          return results;
        }"""
        assert tab.page.evaluate(attempts) == ["refused"]
        tab.page.wait_for_function("window.violations.length >= 2")
        assert tab.page.evaluate("window.hacked") is None
        assert any("img-src" in violation for violation in tab.page.evaluate("window.violations"))
        with pytest.raises(AssertionError):
            tab.check()
        tab.problems.clear()
        tab.page.evaluate("window.violations = []")


# ---- for everyone


def test_keyboard_reaches_every_control(tab: Tab) -> None:
    tab.run()
    seen = []
    for _ in range(45):
        tab.page.keyboard.press("Tab")
        seen.append(tab.page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 20)"))
    for name in ("preset", "field-task", "field-queries", "field-documents", "field-normalize", "run", "answer-tab-0"):
        assert name in seen, seen
    assert {"Search in a FAQ", "Copy link", "code-tab-0"} <= set(seen)
    tab.page.locator("#answer-tab-0").focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.evaluate("document.activeElement.textContent") == "Map"
    expect(tab.page.locator(".map")).to_be_visible()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowLeft")
    assert tab.page.evaluate("document.activeElement.textContent") == "JSON"


def test_phone_needs_no_horizontal_scrolling(browser: Browser, url: str, screenshots: Path, tmp_path: Path) -> None:
    with opened(browser, url, PHONE) as tab:
        tab.page.screenshot(path=screenshots / "phone-first.png")
        tab.run()
        expect(tab.page.locator("#status")).to_be_in_viewport()
        tab.page.screenshot(path=screenshots / "phone-result.png")
        tab.fill(queries="word" * 60, documents="\n".join(["x" * 300, *UNRELATED[:50]]))
        tab.run()
        for name in ("Scores", "Map", "Vectors", "JSON"):
            tab.show(name)
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], name
        path = write_texts(tmp_path / f"{'long' * 40}.jsonl", "text")
        tab.page.locator("#field-file").set_input_files(path)
        assert "cannot be combined with texts" in tab.run()
        error, bar = tab.page.locator("#error-file"), tab.page.locator(".actions")
        expect(error).to_be_in_viewport(ratio=1)
        below, above = bar.bounding_box(), error.bounding_box()
        assert below is not None and above is not None
        assert above["y"] + above["height"] <= below["y"]  # the bar does not hide it
        choose(tab, path)
        tab.run()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        left = tab.page.locator("#form").bounding_box()
        right = tab.page.locator("#results").bounding_box()
        assert left is not None and right is not None
        assert right["y"] >= left["y"] + left["height"]  # one column


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, from npm. Skips without npm or its registry."""
    folder = tmp_path_factory.mktemp("axe")
    shutil.copy(ROOT / "tests" / "page" / "package.json", folder)
    npm.install(folder, "ACCESSIBILITY IS NOT TESTED")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


def violations(tab: Tab, axe: str) -> Iterator[str]:
    tab.page.evaluate(f"() => {{ {axe} }}")
    for violation in tab.page.evaluate("axe.run()")["violations"]:
        for node in violation["nodes"]:
            yield f"{violation['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"


# For screenshots, each size in each scheme.
SCREENS = [(LAPTOP, "light"), (PHONE, "dark")]
if "PAGE_SCREENSHOTS" in os.environ:
    SCREENS += [(LAPTOP, "dark"), (PHONE, "light")]


@pytest.mark.parametrize(("size", "scheme"), SCREENS)
def test_axe_finds_no_violation(
    browser: Browser,
    url: str,
    shared_gateway: Gateway,
    axe: str,
    screenshots: Path,
    tmp_path: Path,
    size: tuple[int, int],
    scheme: str,
) -> None:
    device = "laptop" if size == LAPTOP else "phone"
    found: dict[str, list[str]] = {}

    def look(tab: Tab, state: str) -> None:
        tab.page.screenshot(path=screenshots / f"{device}-{scheme}-{state}.png", full_page=device == "phone")
        found[state] = list(violations(tab, axe))

    with opened(browser, url, size, scheme) as tab:
        look(tab, "empty")
        tab.run()
        look(tab, "filled")
        tab.paste("queries", "\n".join(UNRELATED[:30]))
        tab.paste("documents", "\n".join(UNRELATED))
        tab.run()
        look(tab, "200-documents")
        for name in ("Map", "Vectors", "JSON"):
            tab.show(name)
            look(tab, f"200-documents-{name.lower()}")
        tab.paste("documents", "word " * 5000)
        tab.run()
        look(tab, "warning")
        tab.fill(documents="one\ntwo")
        tab.page.locator("#field-encoding_format").select_option("tokens")
        tab.run()
        look(tab, "tokens")
        tab.page.locator("#field-request-kind").select_option("rerank")
        tab.fill(queries="one\ntwo")
        tab.run()
        look(tab, "error")
        tab.fill(queries="one")
        tab.run()
        look(tab, "rerank")
        tab.page.locator("#field-request-kind").select_option("prediction")
        tab.page.locator("#field-encoding_format").select_option("float")
        tab.page.locator("#field-file").set_input_files(write_texts(tmp_path / "a.jsonl", "text"))
        tab.run()
        look(tab, "file-and-texts")
        tab.page.get_by_role("button", name="Clear the texts").click()
        tab.run()
        look(tab, "file")
    with opened(browser, shared_gateway.url, size, scheme) as tab:
        tab.run()
        look(tab, "key")
    assert {state: problems for state, problems in found.items() if problems} == {}
