"""README.md and docs/*.md: their links, commands and layout match the repository, and README shows what runs print."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from e5_cog.repository import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings. No page may have the same heading twice."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    assert len(set(slugs)) == len(slugs)
    return set(slugs)


def code(page: Path) -> str:
    """The page's code blocks and inline code."""
    text = read(page)
    blocks = [block for _, block in FENCE.findall(text)]
    return "\n".join([*blocks, *re.findall(r"`([^`]+)`", FENCE.sub("", text))])


@each_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", read(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(read(ROOT / "docs" / "README.md"))}
    assert {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"} <= linked


def test_readme_has_at_most_200_lines() -> None:
    assert len(read(README).splitlines()) <= 200


@each_page
def test_named_programs_and_tests_exist(page: Path) -> None:
    files = set(re.findall(r"\b(?:scripts|tests)/[\w/]+\.(?:py|mjs|json)\b", read(page)))
    modules = {f"{name.replace('.', '/')}.py" for name in re.findall(r"-m (tests\.\w+)", code(page))}
    assert not [name for name in sorted(files | modules) if not (ROOT / name).is_file()]


@each_page
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", read(ROOT / "Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|&& |[$=\w] )make ([a-z][\w-]*)", code(page), re.MULTILINE))
    assert named <= targets


@each_page
def test_named_modules_exist(page: Path) -> None:
    packages = "|".join(path.parent.name for path in ROOT.glob("*/__init__.py"))
    paths = set(re.findall(rf"`((?:{packages})/[\w/]+\.\w+)`", read(page)))
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_the_layout_names_every_program_and_package() -> None:
    development = read(ROOT / "docs" / "development.md")
    programs = {f"`scripts/{path.name}`" for path in ROOT.glob("scripts/*.py")}
    folders = {path.parent for depth in ("*", "*/*") for path in ROOT.glob(f"{depth}/__init__.py")}
    packages = {str(folder.relative_to(ROOT)) for folder in folders}
    kinds = {f"`tests/{path.name}`" for path in (ROOT / "tests").iterdir() if [*path.glob("test_*.py")]}
    names = programs | {f"(../{package})" for package in packages} | kinds
    assert not [name for name in sorted(names) if name not in development]


def test_the_layout_of_readme_names_every_folder() -> None:
    layout = next(block for _, block in FENCE.findall(read(README)) if "predict.py  " in block)
    folders = {path.parent for pattern in ("*/*.py", "e5/*/*.py") for path in ROOT.glob(pattern)}
    folders = {folder for folder in folders if not folder.name.startswith(".")}
    assert not [folder.name for folder in folders if f"{folder.name}/ " not in layout]


def test_every_target_of_the_makefile_is_documented() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", read(ROOT / "Makefile"), re.MULTILINE))
    documented = {target for page in PAGES for target in re.findall(r"make ([a-z][\w-]*)", code(page))}
    assert targets - {"clean"} <= documented


def test_every_setting_is_documented() -> None:
    from e5.settings import VARIABLES

    serving = read(ROOT / "docs" / "serving.md")
    assert not [name for name in VARIABLES if f"| `{name}` |" not in serving]


def test_readme_shows_what_make_predict_prints() -> None:
    """The scores exactly; the first numbers of each vector to 1e-3; ids and times are those of one run."""
    block = next(block for _, block in FENCE.findall(read(README)) if "make predict\n" in block)
    shown = block.split("make predict\n", 1)[1]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    table, answer = shown.split("{", 1)
    printed_table, printed_answer = done.stdout.split("{", 1)
    assert table == printed_table
    documented, printed = json.loads("{" + answer), json.loads("{" + printed_answer)
    assert documented.keys() == printed.keys() and documented["metrics"].keys() == printed["metrics"].keys()
    for name in ("batch_texts", "input_tokens", "model", "texts", "truncated"):
        assert documented["metrics"][name] == printed["metrics"][name]
    vectors = documented["output"].pop("embeddings"), printed["output"].pop("embeddings")
    for left, right in zip(*vectors, strict=True):
        assert NUMBER.sub("", left) == NUMBER.sub("", right)
        assert [float(number) for number in NUMBER.findall(left)] == pytest.approx(
            [float(number) for number in NUMBER.findall(right)], abs=1e-3
        )
    assert documented["output"]["score"] == pytest.approx(printed["output"]["score"], abs=1e-3)
    assert documented["output"]["scores"] == [[documented["output"]["score"]]]
    assert documented["status"] == printed["status"] == "succeeded"
