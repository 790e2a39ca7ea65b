"""Reads predict.py's signature as Cog's build does: statically, without importing the file.

Cog's parser silently drops or mangles code that it does not understand: a computed default makes its input required,
adjacent strings keep their quotes in the description. This reader returns Cog's result for the subset of Python that
both understand, and rejects the rest with its line. It covers the needs of an embedding model (str, int, float, bool
and lists of them, and files), not secrets, dicts, numeric bounds or streaming outputs.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Function = ast.FunctionDef | ast.AsyncFunctionDef

PRIMITIVES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
KEYWORDS = ("default", "description", "choices")
COMPONENTS = (
    "Input",
    "Output",
    "PredictionRequest",
    "PredictionResponse",
    "Status",
    "HTTPValidationError",
    "ValidationError",
)
"""Schema components that Cog always writes. An input with choices becomes a component of the input's name."""


class SignatureError(ValueError):
    """Code in predict.py that Cog's parser would drop, mangle or reject. The message has the line and the cure."""


@dataclass(frozen=True)
class Signature:
    """Cog's view of a predictor: parts of the schema, and the number of concurrent predictions."""

    inputs: Json
    enums: Json
    required: tuple[str, ...]
    output: Json
    concurrency: int


def read(path: Path, class_name: str = "Predictor") -> Signature:
    """Parse a predictor's source. Raises SignatureError with file, line, cause and cure, and SyntaxError."""
    return _Reader(path).signature(class_name)


class _Reader:
    """One source file. Every error names its line."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source, str(path))
        self.imported = set(_imported_names(self.tree))
        self.constants: dict[str, object] = {}
        for node in self.tree.body:
            self._collect_constant(node)

    def signature(self, class_name: str) -> Signature:
        method = self._method(self._class(class_name), "predict")
        arguments = method.args
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
            raise self._error(method, "predict() takes only plain arguments: no *, /, *args or **kwargs")
        parameters = arguments.args[1:]
        if len(arguments.defaults) != len(parameters):
            raise self._error(method, "every input needs `= Input(...)`")
        inputs: Json = {}
        enums: Json = {}
        for order, (parameter, call) in enumerate(zip(parameters, arguments.defaults, strict=True)):
            inputs[parameter.arg] = self._input(parameter, call, order, enums)
        required = tuple(name for name, entry in inputs.items() if "default" not in entry and not entry.get("nullable"))
        return Signature(inputs, enums, required, self._output(method), self._concurrency(method))

    def _input(self, parameter: ast.arg, call: ast.expr, order: int, enums: Json) -> Json:
        name = parameter.arg
        if name in COMPONENTS:
            raise self._error(parameter, f"an input named {name} overwrites the schema's component of that name")
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Input"):
            raise self._error(call, f"write `{name}: … = Input(...)`")
        self._need_import(call, "Input")
        if call.args:
            raise self._error(call, f"`{name}`: name the arguments of Input(), Cog drops positional ones")
        arguments = {str(keyword.arg): self._keyword(name, keyword) for keyword in call.keywords}
        kind, nullable = self._type(parameter.annotation, parameter, nested=False)
        entry: Json = {"title": _title(name), **kind}
        if "choices" in arguments:
            if kind not in ({"type": "string"}, {"type": "integer"}) or not isinstance(arguments["choices"], list):
                raise self._error(call, f"`{name}`: choices are a list of str or int, like the input")
            enums[name] = {"description": "An enumeration.", "enum": arguments["choices"], "title": name, **kind}
            entry = {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
        if "default" in arguments:
            if arguments["default"] is None and not nullable:
                raise self._error(
                    call, f"`{name}`: Cog makes an input with the default None required, write Optional[...]"
                )
            entry["default"] = arguments["default"]
        if "description" in arguments:
            entry["description"] = arguments["description"]
        return entry | ({"nullable": True} if nullable else {}) | {"x-order": order}

    def _keyword(self, name: str, keyword: ast.keyword) -> object:
        if keyword.arg not in KEYWORDS:
            raise self._error(keyword, f"`{name}`: this reader knows {', '.join(KEYWORDS)}, not {keyword.arg}")
        text = (ast.get_source_segment(self.source, keyword) or "").partition("=")[2].strip()
        if not isinstance(keyword.value, ast.Name):
            value = self._literal(keyword, text, f"{keyword.arg} of `{name}`")
        elif text in self.constants:
            value = self.constants[text]
        else:
            raise self._error(
                keyword, f"{keyword.arg} of `{name}`: {text} is not a constant of this file with a literal value"
            )
        if keyword.arg == "description" and not isinstance(value, str):
            raise self._error(keyword, f"description of `{name}`: not a string")
        return value

    def _collect_constant(self, node: ast.stmt) -> None:
        """Record `NAME = literal`. Any other assignment is not a constant, and its use is rejected."""
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            text = (ast.get_source_segment(self.source, node) or "").partition("=")[2].strip()
            try:
                self.constants[name] = self._literal(node, text, name)
            except SignatureError:
                self.constants.pop(name, None)

    def _literal(self, node: ast.AST, text: str, what: str) -> object:
        """A literal's value. Rejected unless Cog's parser reads the same value from the source text."""
        before = None
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING:
                if before == tokenize.STRING:
                    raise self._error(
                        node, f"{what}: adjacent strings keep their quotes in Cog's schema, write one literal"
                    )
                plain = _as_cog_reads(token.string)
                if plain is None or plain != ast.literal_eval(token.string):
                    raise self._error(node, f"{what}: Cog decodes neither escapes nor prefixes, write the text plainly")
            elif not (
                token.type in (tokenize.NUMBER, tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)
                or token.string in ("[", "]", ",", "-", "None", "True", "False")
            ):
                raise self._error(
                    node, f"{what}: Cog drops {token.string!r}, write a literal or a constant of this file"
                )
            before = token.type
        return ast.literal_eval(text)

    def _type(self, node: ast.expr | None, at: ast.AST, *, nested: bool) -> tuple[Json, bool]:
        """An annotation's schema, and whether it is nullable. `nested` allows lists of lists, for outputs."""
        if isinstance(node, ast.Name) and node.id in PRIMITIVES:
            return {"type": PRIMITIVES[node.id]}, False
        if isinstance(node, ast.Name) and node.id == "Path":
            self._need_import(node, "Path")
            return {"type": "string", "format": "uri"}, False
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            if isinstance(node.right, ast.Constant) and node.right.value is None:
                return self._type(node.left, at, nested=nested)[0], True
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            inner, nullable = self._type(node.slice, at, nested=nested)
            if node.value.id == "Optional":
                return inner, True
            if node.value.id == "list" and not nullable and (nested or inner["type"] != "array"):
                return {"items": inner, "type": "array"}, False
        raise self._error(at, f"Cog's schema has no such type here: {ast.unparse(node) if node else '(none given)'}")

    def _output(self, method: Function) -> Json:
        if not isinstance(method.returns, ast.Name):
            raise self._error(method, "predict() must return a BaseModel of this file")
        model = self._class(method.returns.id)
        if [ast.unparse(base) for base in model.bases] != ["BaseModel"]:
            raise self._error(model, f"{model.name} must be a BaseModel")
        self._need_import(model, "BaseModel")
        properties: Json = {}
        required: list[str] = []
        for field in model.body:
            if isinstance(field, ast.Expr) and isinstance(field.value, ast.Constant):
                continue  # a docstring
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is None):
                raise self._error(field, f"{model.name} may contain only `name: type`, without defaults")
            kind, nullable = self._type(field.annotation, field, nested=True)
            name = field.target.id
            properties[name] = {**kind, "title": _title(name)} | ({"nullable": True} if nullable else {})
            required += [] if nullable else [name]
        output: Json = {"properties": properties, "title": "Output", "type": "object"}
        return output | ({"required": required} if required else {})

    def _concurrency(self, method: Function) -> int:
        for decorator in method.decorator_list:
            name = ast.unparse(decorator).partition("(")[0]
            if name not in ("cog.concurrent", "concurrent"):
                raise self._error(decorator, f"this reader knows @cog.concurrent(max=N), not @{name}")
            self._need_import(decorator, name.partition(".")[0])
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            value = keywords[0].value if [keyword.arg for keyword in keywords] == ["max"] else None
            if not (isinstance(value, ast.Constant) and type(value.value) is int and value.value > 0):
                raise self._error(decorator, "write @cog.concurrent(max=N) with a whole number for N")
            if not isinstance(method, ast.AsyncFunctionDef):
                raise self._error(method, "@cog.concurrent requires `async def predict`")
            return value.value
        return 1

    def _class(self, name: str) -> ast.ClassDef:
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
        raise self._error(self.tree, f"no class {name} at the top level")

    def _method(self, owner: ast.ClassDef, name: str) -> Function:
        for node in owner.body:
            if isinstance(node, Function) and node.name == name:
                return node
        raise self._error(owner, f"{owner.name} has no method {name}()")

    def _need_import(self, node: ast.AST, name: str) -> None:
        if name not in self.imported:
            raise self._error(node, f"{name} is not imported from cog at the top level, where Cog looks for it")

    def _error(self, node: ast.AST, message: str) -> SignatureError:
        return SignatureError(f"{self.name}:{getattr(node, 'lineno', 1)}: {message}")


def _imported_names(tree: ast.Module) -> Iterator[str]:
    """Names that top-level imports take from cog, and `cog` itself. Ignores imports with `as`, like Cog."""
    for node in tree.body:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module == "cog"):
            yield from (alias.name for alias in node.names if alias.asname is None)


def _as_cog_reads(text: str) -> str | None:
    """A string literal's value by Cog's rule: strip the quotes, decode nothing. None: Cog drops it."""
    for opening, closing in (('"""', 3), ("'''", 3), ('"', 1), ("'", 1), ('r"', 1), ("r'", 1)):
        if text.startswith(opening):
            return text[len(opening) : -closing]
    return None


def _title(name: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in name.split("_"))
