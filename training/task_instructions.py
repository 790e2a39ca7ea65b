"""Task instructions that training puts before a text, and ten more for evaluation only.

A tiny model cannot follow an instruction. It can learn that the words between "Instruct:" and "Query:" describe the
task and are not part of the text. Training therefore shows the published instructions (`e5.tasks`), thousands from a
grammar, and sometimes an arbitrary sentence.
"""

import random
from collections.abc import Sequence

from e5 import tasks
from e5.prompts import DEFAULT_TASK
from training.grammar import Grammar

UNSEEN = (
    "Which paragraph of our handbook settles what this person wants to know?",
    "Match the customer's message with the reply a support agent would send",
    "Look up the sentence in the archive that says the same in other words",
    "I need the newspaper lines that would satisfy this curiosity",
    "Pick out whatever resolves the following doubt",
    "For a trivia quiz, dig up the statement containing the solution",
    "Represent this text so that its meaning can be compared with that of others",
    "Help a journalist check a claim by locating supporting statements",
    "Given a caption, fetch captions of photographs showing the same scene",
    "Embed the input for searching a small knowledge base",
)

_GRAMMAR = Grammar.parse(
    {
        "TASK": "Given INPUT, VERB OUTPUT|Given INPUT, VERB OUTPUT that RELATION|VERB OUTPUT that RELATION|VERB OUTPUT|"
        "VERB OUTPUT from PLACE|Given INPUT from PLACE, VERB OUTPUT|VERB OUTPUT given INPUT|"
        "Given INPUT about TOPIC, VERB OUTPUT|Using INPUT, VERB OUTPUT that RELATION|VERB OUTPUT about TOPIC",
        "INPUT": "a KIND|a ADJECTIVE KIND|a KIND and its context|the title of a KIND|the KIND of a user",
        "KIND": "question|query|sentence|claim|headline|title|post|review|word|term|abstract|message|tweet|passage|"
        "paragraph|comment|dialogue|entity|description|complaint|statement|topic|fact|search query|news item|quote|"
        "recipe|product name|bug report|symptom|definition|caption",
        "ADJECTIVE": "short|long|scientific|financial|medical|legal|technical|multiple-choice|web search|user's|"
        "factual|simple|duplicate|historical|controversial|colloquial",
        "VERB": "retrieve|find|identify|classify|select|return|rank|search for|determine|detect|list|choose|show",
        "OUTPUT": "OUTPUTS|relevant OUTPUTS|similar OUTPUTS|the best OUTPUTS|semantically similar OUTPUTS|all OUTPUTS|"
        "the most relevant OUTPUTS|the category of the KIND|the topic of the KIND|OUTPUTS and OUTPUTS",
        "OUTPUTS": "passages|documents|sentences|answers|articles|paragraphs|questions|definitions|abstracts|arguments|"
        "descriptions|explanations|web pages|entries|posts|duplicates|text|examples|paraphrases|titles|summaries|notes",
        "RELATION": "answer the KIND|support or refute the KIND|are relevant to the KIND|have the same meaning|"
        "explain the KIND|define the KIND|describe the KIND|are similar to the KIND|best answer the KIND|"
        "are about the same topic|are most likely to answer it|contain the answer|mention the KIND|refute it",
        "PLACE": "Wikipedia|a forum|the web|a news archive|Stack Exchange|a dictionary|a manual|Reddit|Quora|"
        "a textbook|scientific papers|financial reports|an encyclopedia|product pages|a knowledge base",
        "TOPIC": "science|medicine|finance|software|history|sports|law|cooking|travel|climate change|politics|"
        "programming|music|biology|physics|statistics|gaming|mathematics|everyday life|COVID-19|animals|art",
    }
)


def published() -> tuple[str, ...]:
    """The instructions of the E5 family's own tasks, and its default."""
    return (DEFAULT_TASK, *dict.fromkeys(tasks.instruction(name) for name in tasks.names()))


def draw(generator: random.Random, sentences: Sequence[str]) -> str:
    """A random instruction: published (40 %), from the grammar (45 %), or the start of one of `sentences` (15 %)."""
    kind = generator.random()
    if kind < 0.4:
        return generator.choice(published())
    if kind < 0.85:
        instruction = _GRAMMAR.expand("TASK", generator)
        if generator.random() < 0.8:
            instruction = instruction[0].upper() + instruction[1:]
        return instruction + generator.choice(("", "", "", ".", ":"))
    words = generator.choice(sentences).split()
    return " ".join(words[: generator.randint(3, 25)])
