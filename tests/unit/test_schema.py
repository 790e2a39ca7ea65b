"""predict.py's schema equals one written by hand, and code that Cog's parser would mangle is rejected."""

import ast
import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

import predict
from e5.inputs import LongTexts
from e5.prompts import DEFAULT_TASK
from e5.serving.request import EncodingFormat
from e5_cog import openapi, static_schema
from e5_cog.repository import ROOT
from e5_gateway.settings import GatewaySettings

TEXT = {"type": "string"}
FILE = {"type": "string", "format": "uri"}
TEXTS = {"type": "array", "items": TEXT}
INTEGERS = {"type": "array", "items": {"type": "integer"}}
NUMBERS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}

# Derived from a schema that Cog 0.22's own parser wrote for a predictor with this signature.
INPUT = {
    "title": "Input",
    "type": "object",
    "properties": {
        "task": {
            "title": "Task",
            "default": "Given a web search query, retrieve relevant passages that answer the query",
            "description": predict.TASK_HELP,
            "x-order": 0,
            **TEXT,
        },
        "query": {
            "title": "Query",
            "default": None,
            "nullable": True,
            "description": predict.QUERY_HELP,
            "x-order": 1,
            **TEXT,
        },
        "document": {
            "title": "Document",
            "default": None,
            "nullable": True,
            "description": predict.DOCUMENT_HELP,
            "x-order": 2,
            **TEXT,
        },
        "normalize": {
            "title": "Normalize",
            "default": False,
            "type": "boolean",
            "description": predict.NORMALIZE_HELP,
            "x-order": 3,
        },
        "queries": {
            "title": "Queries",
            "default": None,
            "nullable": True,
            "description": predict.QUERIES_HELP,
            "x-order": 4,
            **TEXTS,
        },
        "documents": {
            "title": "Documents",
            "default": None,
            "nullable": True,
            "description": predict.DOCUMENTS_HELP,
            "x-order": 5,
            **TEXTS,
        },
        "encoding_format": {
            "allOf": [{"$ref": "#/components/schemas/encoding_format"}],
            "default": "float",
            "description": predict.FORMAT_HELP,
            "x-order": 6,
        },
        "long_texts": {
            "allOf": [{"$ref": "#/components/schemas/long_texts"}],
            "default": "truncate",
            "description": predict.LONG_TEXTS_HELP,
            "x-order": 7,
        },
        "file": {
            "title": "File",
            "default": None,
            "nullable": True,
            "description": predict.FILE_HELP,
            "x-order": 8,
            **FILE,
        },
    },
}
OUTPUT = {
    "title": "Output",
    "type": "object",
    "properties": {
        "embeddings": {"title": "Embeddings", "nullable": True, **NUMBERS},
        "embeddings_base64": {"title": "Embeddings Base64", "nullable": True, **TEXTS},
        "score": {"title": "Score", "nullable": True, "type": "number"},
        "scores": {"title": "Scores", "nullable": True, **NUMBERS},
        "scales": {"title": "Scales", "nullable": True, "type": "array", "items": {"type": "number"}},
        "tokens": {"title": "Tokens", **INTEGERS},
        "truncated": {"title": "Truncated", **INTEGERS},
        "token_ids": {"title": "Token Ids", "nullable": True, "type": "array", "items": INTEGERS},
        "pieces": {"title": "Pieces", "nullable": True, "type": "array", "items": TEXTS},
        "file": {"title": "File", "nullable": True, **FILE},
    },
    "required": ["tokens", "truncated"],
}
ENUMS = {
    "encoding_format": ["float", "base64", "float16", "int8", "ubinary", "tokens"],
    "long_texts": ["truncate", "error", "average"],
}

PREDICTOR = """
import cog
from cog import BaseModel, BasePredictor, Input

class Output(BaseModel):
    embeddings: list[list[float]]
    score: float | None

class Predictor(BasePredictor):
    @cog.concurrent(max=8)
    async def predict(self, text: str = Input(description="A text.", default="x")) -> Output:
        ...
"""


def read(tmp_path: Path, source: str) -> static_schema.Signature:
    path = tmp_path / "predict.py"
    path.write_text(source)
    return static_schema.read(path)


def test_schema_of_this_model() -> None:
    whole = openapi.openapi(static_schema.read(ROOT / "predict.py"), "0.23.1")
    schemas = whole["components"]["schemas"]
    assert schemas["Input"] == INPUT
    assert schemas["Output"] == OUTPUT
    for name, values in ENUMS.items():
        assert schemas[name] == {"title": name, "description": "An enumeration.", "enum": values, **TEXT}
    assert sorted(schemas) == sorted([*static_schema.COMPONENTS, *ENUMS])
    assert schemas["PredictionRequest"] == {
        "properties": {"id": {"title": "Id", "type": "string"}, "input": {"$ref": "#/components/schemas/Input"}},
        "title": "PredictionRequest",
        "type": "object",
    }
    assert whole["info"] == {"title": "Cog", "version": "0.23.1"}
    assert list(whole["paths"]) == ["/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"]
    assert whole["openapi"] == "3.0.2"


def test_every_reference_in_the_schema_exists() -> None:
    text = json.dumps(openapi.openapi(static_schema.read(ROOT / "predict.py")))
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= set(json.loads(text)["components"]["schemas"])
    assert {"Input", "Output", "encoding_format", "ValidationError", "HTTPValidationError"} <= references


def test_default_task_and_choices_are_the_library_s() -> None:
    assert predict.TASK == DEFAULT_TASK
    assert {"encoding_format": [*get_args(EncodingFormat)], "long_texts": [*get_args(LongTexts)]} == ENUMS


def test_the_server_has_more_slots_than_the_gateway_uses() -> None:
    assert static_schema.read(ROOT / "predict.py").concurrency == 128 > GatewaySettings.concurrency == 64


def test_required_inputs_and_outputs(tmp_path: Path) -> None:
    signature = read(tmp_path, PREDICTOR.replace(', default="x"', ""))
    assert signature.required == ("text",)
    assert signature.output["required"] == ["embeddings"]
    assert openapi.openapi(signature)["components"]["schemas"]["Input"]["required"] == ["text"]


@pytest.mark.parametrize(
    ("annotation", "arguments", "entry"),
    [
        ("Optional[str]", "default=None", {"type": "string", "default": None, "nullable": True}),
        ("list[str] | None", "default=None", {**TEXTS, "default": None, "nullable": True}),
        ("Optional[list[int]]", "", {"type": "array", "items": {"type": "integer"}, "nullable": True}),
        ("int", "default=-3", {"type": "integer", "default": -3}),
        ("float", "default=0.5", {"type": "number", "default": 0.5}),
        ("bool", "default=True", {"type": "boolean", "default": True}),
        ("str", 'default=r"a\\b"', {"type": "string", "default": "a\\b"}),
        ("str", 'default=NAME, description="It\'s so."', {"type": "string", "default": "n", "description": "It's so."}),
    ],
)
def test_inputs_get_cog_s_schema(tmp_path: Path, annotation: str, arguments: str, entry: dict[str, Any]) -> None:
    source = PREDICTOR.replace("class Output", 'NAME = "n"\n\nclass Output', 1)
    source = source.replace('str = Input(description="A text.", default="x")', f"{annotation} = Input({arguments})")
    assert read(tmp_path, source).inputs["text"] == {"title": "Text", "x-order": 0, **entry}


def test_files_get_cog_s_schema(tmp_path: Path) -> None:
    """As Cog 0.23's own parser writes it."""
    source = PREDICTOR.replace("BasePredictor, Input", "BasePredictor, Input, Path")
    source = source.replace("    score: float | None", "    file: Path\n    files: list[Path] | None")
    signature = read(
        tmp_path, source.replace('text: str = Input(description="A text.", default="x")', "text: Path = Input()")
    )
    assert signature.inputs["text"] == {"title": "Text", "x-order": 0, **FILE}
    assert signature.required == ("text",)
    assert signature.output["properties"]["file"] == {"title": "File", **FILE}
    assert signature.output["properties"]["files"] == {
        "title": "Files",
        "nullable": True,
        "type": "array",
        "items": FILE,
    }
    with_choices = source.replace('default="x"', 'default=None, choices=["a"]').replace(
        "text: str", "text: Path | None"
    )
    with pytest.raises(static_schema.SignatureError, match="choices are a list"):
        read(tmp_path, with_choices)


def test_choices_from_a_constant(tmp_path: Path) -> None:
    source = PREDICTOR.replace("class Output", 'KINDS = ["a", "b"]\n\nclass Output', 1)
    signature = read(tmp_path, source.replace('default="x"', 'default="a", choices=KINDS'))
    assert signature.enums == {"text": {"title": "text", "description": "An enumeration.", "enum": ["a", "b"], **TEXT}}


CALL = 'Input(description="A text.", default="x")'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (CALL, "Input(default=IMPORTED)", r"predict\.py:12: default of `text`: IMPORTED is not a constant"),
        (CALL, "Input(default=COMPUTED)", "COMPUTED is not a constant"),
        (CALL, "Input(default=4 * 1024)", r"Cog drops '\*'"),
        (CALL, "Input(default=max(1, 2))", "Cog drops 'max'"),
        (CALL, "Input(default=None)", "makes an input with the default None required"),
        (CALL, 'Input(default=("x"))', r"Cog drops '\('"),
        (CALL, 'Input(default="x", description="a" "b")', "adjacent strings keep their quotes"),
        (CALL, 'Input(default="x", description=f"{1}")', r"predict\.py:12: description of `text`: Cog d"),
        (CALL, 'Input(default="x", description="a\\n")', "decodes neither escapes nor prefixes"),
        (CALL, 'Input(default="x", description=u"a")', "decodes neither escapes nor prefixes"),
        (CALL, 'Input(default="x", description=r"""a""")', "decodes neither escapes nor prefixes"),
        (CALL, 'Input(default="x", description=3)', "not a string"),
        (CALL, 'Input(default="x", choices=[k for k in "ab"])', "Cog drops 'k'"),
        (CALL, 'Input(default="x", choices=["x",  # why\n "y"])', "Cog drops '# why'"),
        (CALL, 'Input(default="x", choices="xy")', "choices are a list"),
        (CALL, 'Input("x")', "name the arguments"),
        (CALL, "Input(default=1, le=4096)", "this reader knows default, description, choices, not le"),
        (CALL, "cog.Input(default=1)", r"write `text: … = Input\(...\)`"),
        (CALL, '"x"', r"write `text: … = Input\(...\)`"),
        (" = " + CALL, "", "every input needs"),
        ("text: str", "text", r"no such type here: \(none given\)"),
        ("text: str", "text: list[list[str]]", r"no such type here: list\[list\[str\]\]"),
        ("text: str", "text: list[str | None]", "no such type here"),
        ("text: str", "text: Path", "Path is not imported from cog"),
        ("text: str", "text: list[list[Path]]", "Path is not imported from cog"),
        ("text: str", "Output: str", "overwrites the schema's component"),
        ("self, text", "self, *, text", "only plain arguments"),
        (") -> Output", ") -> Output | None", "must return a BaseModel"),
        ("(BaseModel)", "(Base)", "must be a BaseModel"),
        ("score: float | None", "score: float | str", "no such type here"),
        ("score: float | None", "score: float | None = None", "without defaults"),
        ("score: float | None", "score: list[float | None]", "no such type here"),
        ("max=8", "max=LIMIT", "with a whole number for N"),
        ("max=8", "8", "with a whole number for N"),
        ("async def", "def", "requires `async def predict`"),
        ("import cog\n", "", "cog is not imported from cog at the top level"),
        ("import cog\n", "try:\n    import cog\nexcept ImportError: ...\n", "cog is not imported"),
        (", Input\n", "\nfrom other import Input\n", "Input is not imported from cog"),
        ("class Predictor", "class Other", "no class Predictor at the top level"),
        ("def predict", "def run", r"has no method predict\(\)"),
    ],
)
def test_code_that_cog_would_drop_or_mangle_is_rejected_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in PREDICTOR
    source = PREDICTOR.replace(old, new, 1).replace("class Output", "COMPUTED = 4 * 1024\nclass Output", 1)
    compile(source, "predict.py", "exec")  # valid Python
    with pytest.raises(static_schema.SignatureError, match=message) as caught:
        read(tmp_path, source)
    assert str(caught.value).startswith("predict.py:")


def test_schema_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "schema.json"
    openapi.write_atomically(path, "one")
    openapi.write_atomically(path, "twö")
    assert path.read_text(encoding="utf-8") == "twö"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o400


def test_cog_yaml_has_only_keys_that_cog_knows() -> None:
    config = yaml.safe_load((ROOT / "cog.yaml").read_text())
    assert set(config) == {"build", "predict", "environment"}  # Cog silently ignores unknown keys
    assert config["build"] == {
        "gpu": True,
        "cuda": "12.9",
        "python_version": "3.12",
        "python_requirements": "requirements.txt",
    }
    assert config["predict"] == "predict.py:Predictor"
    assert "E5_MODEL=e5-mistral-7b-instruct" in config["environment"]
    reserved = ("HF_ENDPOINT", "HF_HUB_ENABLE_HF_TRANSFER", "CUDA_", "PYTHONPATH")
    assert not [entry for entry in config["environment"] if entry.startswith(reserved)]


def test_image_pins_versions_from_the_library_s_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["cog"]]
    ranges = {requirement.name: requirement.specifier for requirement in map(Requirement, needed)}
    del ranges["cog"]  # its build installs itself
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {pin.name for pin in pins} == set(ranges)
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in ranges[pin.name]


def test_dockerignore_keeps_every_file_of_the_build() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert not ignored & {".cog", "e5", "predict.py", "weights", "requirements.txt", "cog.yaml", "build"}


def test_no_module_of_the_library_imports_cog_or_a_front() -> None:
    for path in (ROOT / "e5").glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.partition(".")[0] in ("cog", "coglet", "scripts", "predict")]
