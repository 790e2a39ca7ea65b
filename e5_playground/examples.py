"""Worked examples, and the trained instructions as presets: what fills the form at a click."""

from dataclasses import dataclass

from e5 import tasks
from e5_playground.form import Form, inputs

CUSTOM = ""
"""The preset of a task that is none of the trained ones."""


@dataclass(frozen=True)
class Example:
    """One filled form. `multilingual`: only a model of many languages makes sense of it."""

    name: str
    label: str
    form: Form
    multilingual: bool = False


def presets() -> list[tuple[str, str]]:
    """(label, name) of every trained task, by kind; the custom one first."""
    known = [(f"{kind} · {name}", name) for kind in tasks.kinds() for name in tasks.names(kind)]
    return [("Custom: what the field says", CUSTOM), *known]


def preset_of(task: str, current: str = CUSTOM) -> str:
    """The preset whose instruction `task` is: `current` while it fits (some share one), else the first, else none."""
    if current != CUSTOM and tasks.instruction(current) == task:
        return current
    return next((name for name in tasks.names() if tasks.instruction(name) == task), CUSTOM)


def _form(task: str, queries: list[str], documents: list[str]) -> Form:
    default = inputs().default
    options = (default[name] for name in ("normalize", "encoding_format", "long_texts"))
    return Form(task, "\n".join(queries), "\n".join(documents), *options)


def _web_search() -> str:
    task: str = inputs().default["task"]
    return task


# The worked example of the model cards of intfloat/e5-mistral-7b-instruct and intfloat/e5-small.
_PROTEIN = (
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. "
    "But, as you can see from this chart, you'll need to increase that if you're expecting or training for a marathon. "
    "Check out the chart below to see how much protein you should be eating each day."
)
_SUMMIT = (
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. "
    ": 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments."
)

# The second pair of the model cards of intfloat/multilingual-e5-*; the passage is its first recipe.
_PUMPKIN = (
    "1.清炒南瓜丝 原料:嫩南瓜半个 调料:葱、盐、白糖、鸡精 做法: 1、南瓜用刀薄薄的削去表面一层皮,用勺子刮去瓤 "
    "2、擦成细丝(没有擦菜板就用刀慢慢切成细丝) "
    "3、锅烧热放油,入葱花煸出香味 4、入南瓜丝快速翻炒一分钟左右,放盐、一点白糖和鸡精调味出锅"
)

EXAMPLES: tuple[Example, ...] = (
    Example(
        "cards",
        "Two questions, two passages",
        _form(_web_search(), ["how much protein should a female eat", "summit define"], [_PROTEIN, _SUMMIT]),
    ),
    Example(
        "replicate",
        "One question, one passage",
        _form(  # The example of Replicate's page for e5-mistral-7b-instruct.
            _web_search(),
            ["What is the recommended sugar intake for women"],
            [
                "As a general guideline, the CDC’s average recommended sugar intake for women ages 19 to 70 is "
                "20 grams per day."
            ],
        ),
    ),
    Example(
        "faq",
        "Search in a FAQ",
        _form(
            tasks.instruction("NQ"),
            ["How long do I have to send something back?"],
            [
                "You can return any item within 30 days of delivery, as long as it is unused and in its box.",
                "We ship to every country of the European Union; delivery takes three to five working days.",
                "Pay by credit card, bank transfer or invoice. We never keep the number of your card.",
                "To reset your password, follow the link on the sign-in page; it is valid for one hour.",
                "Our shop in the city centre is open from Monday to Saturday, 10 am to 7 pm.",
                "Refunds go to the card you paid with and arrive within a week.",
                "A gift voucher is valid for three years and can be used in several orders.",
                "Every bicycle has a warranty of five years on the frame and two on all other parts.",
            ],
        ),
    ),
    Example(
        "duplicates",
        "Find duplicate questions",
        _form(  # A symmetric task: every text is a query (e5/tasks.py).
            tasks.instruction("QuoraRetrieval"),
            [
                "How can I learn to play the guitar by myself?",
                "What is the best way to teach yourself guitar?",
                "How do I lose weight without going to a gym?",
                "Can I get slimmer if I never visit a gym?",
                "Which city is the capital of Australia?",
            ],
            [],
        ),
    ),
    Example(
        "languages",
        "Across languages",
        _form(
            _web_search(),
            ["南瓜的家常做法", "how much protein should a female eat", "recette simple de courge"],
            [_PUMPKIN, _PROTEIN],
        ),
        multilingual=True,
    ),
)


def get(name: str) -> Example:
    """The example of that name. Raises KeyError."""
    return {example.name: example for example in EXAMPLES}[name]
