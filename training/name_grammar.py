"""Questions, news-like statements and searches about named people, organizations and places.

Users search for names, and neither dictionaries nor software descriptions contain many. The names and words come from a
spelling dictionary of 350,000 words and from WordNet. The sentences are not true, but the teacher's vectors still show
how much of a text's meaning is the name and how much is the question or statement about it. Texts about one subject
are generated together: questions and statements that answer this or another question.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from training.grammar import Grammar, capitalize


@dataclass(frozen=True)
class Lexicon:
    """Words for the sentences: the first three kinds from a spelling dictionary, the other two from WordNet."""

    names: tuple[str, ...]
    acronyms: tuple[str, ...]
    words: tuple[str, ...]
    nouns: tuple[str, ...]
    proper_nouns: tuple[str, ...]

    @classmethod
    def build(cls, spellings: Sequence[str], wordnet_nouns: Sequence[str]) -> "Lexicon":
        names = {word for word in spellings if word.istitle() and len(word) > 2}
        return cls(
            # Without plurals and derived forms: Berliners, Anglicized.
            names=tuple(
                name
                for name in sorted(names)
                if not (name.endswith("s") and name[:-1] in names) and not _DERIVED_FORM.search(name)
            ),
            acronyms=tuple(word for word in spellings if word.isupper() and 2 < len(word) < 7),
            words=tuple(word for word in spellings if word.islower() and len(word) > 2),
            nouns=tuple(noun for noun in wordnet_nouns if noun.islower()),
            proper_nouns=tuple(noun for noun in wordnet_nouns if noun.istitle()),
        )


_DERIVED_FORM = re.compile(r"(?:i[sz](?:ed|es|ing|ms?|tic)|ish(?:ly|ness)?|ness)$")
_FIRST_WORD = re.compile(r"^(?:The|There|Some|An?|Doctors|Farmers|Members|Police|Fighting|Shares|Born|In)\b")

# Questions and statements by kind of subject. SUBJECT is the same in all texts that are generated together.
_QUESTIONS = {
    "PERSON": "Who is SUBJECT?|Who was SUBJECT?|When was SUBJECT born?|Where was SUBJECT born?|"
    "When did SUBJECT die?|How did SUBJECT die?|How old was SUBJECT when SUBJECT died?|Where did SUBJECT live?|"
    "What is SUBJECT's real name?|Who is SUBJECT married to?|What did SUBJECT do for a living?|What is SUBJECT's job?|"
    "What is SUBJECT famous for?|What did SUBJECT win?|What books did SUBJECT write?|What did SUBJECT invent?|"
    "What college did SUBJECT attend?|Where did SUBJECT go to school?|What company does SUBJECT work for?|"
    "What team does SUBJECT play for?|What nationality is SUBJECT?|How many children does SUBJECT have?|"
    "When did SUBJECT become ROLE?|In which films did SUBJECT appear?|What instrument does SUBJECT play?|"
    "What disease did SUBJECT have?|Who killed SUBJECT?|Why was SUBJECT arrested?|Who succeeded SUBJECT?|"
    "Who beat SUBJECT?|What was SUBJECT accused of?|SUBJECT biography|SUBJECT age|SUBJECT NOUN",
    "ORGANIZATION": "What is SUBJECT?|Who founded SUBJECT?|By whom was SUBJECT founded?|When was SUBJECT founded?|"
    "Where is SUBJECT based?|Where is the headquarters of SUBJECT?|In what year was SUBJECT established?|"
    "What does SUBJECT make?|What does SUBJECT do?|What does SUBJECT sell?|Who runs SUBJECT?|"
    "Who is the head of SUBJECT?|Who owns SUBJECT?|How many people work for SUBJECT?|"
    "How many members does SUBJECT have?|"
    "What are members of SUBJECT called?|What kind of music does SUBJECT play?|What sport does SUBJECT play?|"
    "Who is the lead singer of SUBJECT?|Who directed SUBJECT?|Who wrote SUBJECT?|What is SUBJECT about?|"
    "How much does SUBJECT cost?|How big is SUBJECT?|Where did SUBJECT originate?|What color is SUBJECT?|"
    "When did SUBJECT begin?|When did SUBJECT end?|Who opposes SUBJECT?|What was SUBJECT's biggest success?|"
    "SUBJECT history|SUBJECT NOUN",
    "ACRONYM": "What does SUBJECT stand for?|What is SUBJECT?|Who is the president of SUBJECT?|"
    "When was SUBJECT founded?|What does SUBJECT do?|How many members does SUBJECT have?|Where is SUBJECT located?|"
    "Which countries belong to SUBJECT?|Who started SUBJECT?|What is the purpose of SUBJECT?",
    "PLACE": "Where is SUBJECT?|What country is SUBJECT in?|In which state is SUBJECT?|What is SUBJECT known for?|"
    "How many people live in SUBJECT?|What is the population of SUBJECT?|What language is spoken in SUBJECT?|"
    "Who is the mayor of SUBJECT?|How far is SUBJECT from NAME?|What river flows through SUBJECT?|"
    "How high is SUBJECT?|How long is SUBJECT?|When was SUBJECT built?|Who discovered SUBJECT?|"
    "Who was the first person to climb SUBJECT?|What is the climate of SUBJECT?|What happened in SUBJECT in YEAR?|"
    "What is the capital of SUBJECT?|How many people died in SUBJECT?|When did SUBJECT become independent?|"
    "What is the currency of SUBJECT?|Who rules SUBJECT?|things to see in SUBJECT|SUBJECT weather|SUBJECT NOUN",
    "NOUN": "What is SUBJECT?|What are the symptoms of SUBJECT?|How is SUBJECT treated?|What causes SUBJECT?|"
    "What is SUBJECT made of?|What is SUBJECT used for?|Who invented SUBJECT?|When was SUBJECT discovered?|"
    "Where does SUBJECT come from?|What does SUBJECT mean?|How does SUBJECT work?|How is SUBJECT made?|"
    "What is another name for SUBJECT?|What eats SUBJECT?|How much does SUBJECT weigh?|How long does SUBJECT live?|"
    "What is the opposite of SUBJECT?|How do you spell SUBJECT?|difference between SUBJECT and NOUN|"
    "SUBJECT NOUN|SUBJECT and NOUN|Why is SUBJECT important?|What kind of animal is SUBJECT?",
}
_STATEMENTS = {
    "PERSON": "SUBJECT was born in NAME in YEAR.|SUBJECT, AGE, died of DISEASE on DAY in NAME.|"
    "SUBJECT, ROLE of FIRM, said DAY that SAYING.|SUBJECT is ROLE who lives in NAME.|SUBJECT has won PRIZE.|"
    "SUBJECT was ROLE before becoming ROLE.|SUBJECT's real name is NAME NAME.|SUBJECT married NAME NAME in YEAR.|"
    "SUBJECT attended NAME University and became ROLE.|Born in NAME, SUBJECT moved to NAME at the age of AGE.|"
    "SUBJECT wrote `` The NOUN of NAME '' in YEAR.|SUBJECT was arrested in NAME and accused of CRIME.|"
    "In YEAR, SUBJECT was elected ROLE of NAME.|SUBJECT plays INSTRUMENT with FIRM.|"
    "SUBJECT and NAME NAME founded FIRM in YEAR.|The film stars SUBJECT as ROLE.|SUBJECT succeeded NAME NAME as ROLE.|"
    "SUBJECT discovered NOUN in YEAR.|`` SAYING, '' SUBJECT said.|SUBJECT told reporters that SAYING.|"
    "SUBJECT beat NAME NAME in the final.|Police in NAME said SUBJECT was killed on DAY.|"
    "SUBJECT is survived by a wife and AGE grandchildren.|SUBJECT, who was born in NAME, is ROLE.",
    "ORGANIZATION": "SUBJECT was founded in YEAR by NAME NAME.|SUBJECT is based in NAME.|SUBJECT makes NOUN and NOUN.|"
    "SUBJECT, founded in NAME in YEAR, employs NUMBER people.|SUBJECT said DAY it would buy FIRM.|"
    "NAME NAME, the head of SUBJECT, said that SAYING.|SUBJECT has NUMBER members in NAME and NAME.|"
    "SUBJECT played in NAME on DAY.|Shares of SUBJECT fell to NUMBER dollars on DAY.|"
    "SUBJECT won the title in YEAR, beating the NAMEs.|NAME NAME left SUBJECT in YEAR to join FIRM.|"
    "The first SUBJECT was opened in NAME in YEAR.|SUBJECT, a NOUN maker, lost NUMBER million dollars last year.|"
    "Members of SUBJECT met in NAME on DAY.|SUBJECT sold NUMBER copies of its album `` NAME ''.|"
    "SUBJECT was accused of CRIME.|A spokesman for SUBJECT denied the report.|"
    "SUBJECT began as a NOUN in NAME and now has offices in NAME.",
    "ACRONYM": "SUBJECT, the NAME NAME Association, was founded in YEAR.|SUBJECT has NUMBER members.|"
    "The NAME NOUN Organization, or SUBJECT, is based in NAME.|SUBJECT stands for NAME NOUN Council.|"
    "NAME NAME, president of SUBJECT, said that SAYING.|SUBJECT agreed to DEED with NAME.|"
    "SUBJECT troops left NAME on DAY.|SUBJECT helps people with NOUN.",
    "PLACE": "SUBJECT is a town in NAME.|SUBJECT is the capital of NAME.|NUMBER people live in SUBJECT.|"
    "SUBJECT lies NUMBER miles north of NAME.|SUBJECT, a city of NUMBER people, is known for NOUN.|"
    "An earthquake shook SUBJECT on DAY, killing NUMBER people.|The mayor of SUBJECT, NAME NAME, said that SAYING.|"
    "Mount SUBJECT is NUMBER feet high.|SUBJECT became independent in YEAR.|The people of SUBJECT speak NAME.|"
    "Fighting broke out near SUBJECT on DAY.|SUBJECT was discovered by NAME NAME in YEAR.|"
    "NAME NAME was born in SUBJECT.|The SUBJECT River flows through NAME.|SUBJECT, NAME -LRB- AP -RRB- --|"
    "President NAME visited SUBJECT on DAY.|SUBJECT was built in YEAR by NAME NAME.|"
    "SUBJECT is an island in the NAME Sea.",
    "NOUN": "SUBJECT is used for NOUN.|SUBJECT is made of NOUN and NOUN.|SUBJECT was invented by NAME NAME in YEAR.|"
    "SUBJECT is treated with NOUN.|SUBJECT is caused by NOUN.|Doctors in NAME used NOUN to treat SUBJECT.|"
    "SUBJECT was discovered in YEAR in NAME.|Farmers in NAME grow SUBJECT.|Some people believe SUBJECT causes DISEASE.|"
    "NAME NAME is an expert on SUBJECT.|The price of SUBJECT rose NUMBER percent.|SUBJECT is found in NAME.|"
    "SUBJECT is also called NOUN.|A new study of SUBJECT was published in NAME.|There are NUMBER kinds of SUBJECT.",
}
_SLOTS = {
    "ROLE": "president|chairman|chief executive|a lawyer|a singer|an actor|an actress|a novelist|a poet|a boxer|"
    "a football coach|governor|a senator|ambassador|an economist|a physicist|a biologist|a professor|an astronaut|"
    "a painter|a jazz musician|a film director|a general|a judge|a bishop|king|queen|prime minister|a baseball player|"
    "a golfer|a journalist|an architect|an engineer|a chess player|a spy|a murderer|a doctor|mayor|a dancer",
    "SAYING": "the talks had failed|the results were better than expected|there is no danger|the plan would cost jobs|"
    "he would not resign|the army was ready|more help is needed|it was a mistake|the company would grow|"
    "the law should be changed|they had found no evidence|we are very happy|nobody knew the reason|prices would fall",
    "PRIZE": "the Nobel Prize|an Academy Award|the Pulitzer Prize|a gold medal|three Grammys|the championship|"
    "the election|Wimbledon|an award for NOUN",
    "CRIME": "fraud|murder|bribery|spying|stealing NOUN|tax evasion|kidnapping NAME NAME|war crimes|drug trafficking",
    "DISEASE": "cancer|a heart attack|pneumonia|AIDS|a stroke|old age|injuries|kidney failure|malaria",
    "INSTRUMENT": "the piano|the trumpet|guitar|bass|the violin|drums|saxophone",
    "DEED": "share data|sign a treaty|end the strike|hold talks|lift the ban|cut spending",
    "FIRM": "NAME|NAME Inc.|NAME Corp.|NAME & NAME|the NAME Institute|the University of NAME|ACRONYM|NAME Airlines|"
    "the NAME Times|NAME Records|the NAME Foundation|Bank of NAME",
    "DAY": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "AGE": "2|3|5|18|21|34|47|56|63|71|84|92",
    "NUMBER": "12|30|45|150|300|2,000|7,500|18,000|65,000|120,000|1.2|4.5|two|six|dozens of|nearly 400",
    "YEAR": "1492|1776|1812|1848|1865|1889|1903|1912|1917|1929|1936|1945|1953|1961|1968|1974|1979|1984|1989|1991|1995|"
    "1997|1999|2001|2004|2008|2012",
}
_SUBJECTS = {
    "PERSON": "PROPER_NOUN|PROPER_NOUN|PROPER_NOUN|NAME NAME|NAME NAME|NAME NAME|NAME|NAME NAME NAME|Dr. NAME|"
    "King NAME|Sir NAME NAME|President NAME|St. NAME",
    "ORGANIZATION": "PROPER_NOUN|PROPER_NOUN|the PROPER_NOUN|NAME|the NAMEs|the NAME NAMEs|NAME and NAME|NAME & NAME|"
    "NAME Inc.|the NAME Institute|NAME University|the NAME Times|the NAME Party|the movie `` NAME ''|the NAME comet|"
    "the NAME case|the band NAME|the NAME religion|NAME WORD|the WORD NAME|the NAME Museum|the NAME Prize|"
    "the battle of NAME|the NAME WORD|Bank of NAME|the book NAME",
    "ACRONYM": "ACRONYM",
    "PLACE": "PROPER_NOUN|PROPER_NOUN|PROPER_NOUN|NAME|NAME|NAME, NAME|Mount NAME|Lake NAME|the NAME River|"
    "the NAME Bridge|Fort NAME|San NAME|New NAME|the island of NAME|NAME Falls|NAME City",
    "NOUN": "NOUN|NOUN|NOUN|NOUN NOUN|WORD|NAME NOUN|a NOUN|the NOUN|NOUNs",
}
_SEQUENCES = (("QUESTION", "STATEMENT"), ("QUESTION", "QUESTION", "STATEMENT"), ("QUESTION", "STATEMENT", "STATEMENT"))
_CONJUNCTIONS = (
    ", and", ", while", ", but", ";", " after", " because", ", according to a report that", " --", ", though",
)  # fmt: skip
SPACED_SHARE = 0.1
"""Share of the texts with a space before each punctuation mark, as in tokenized corpora."""


def generate(lexicon: Lexicon, count: int, generator: random.Random) -> Iterator[str]:
    """At least `count` texts, by subject: one or two questions and one or two statements; or a keyword search.

    Some statements continue with one about another subject, because sentences in real news are long.
    """
    rules = dict(_SLOTS)
    for part, by_kind in (("QUESTION", _QUESTIONS), ("STATEMENT", _STATEMENTS), ("SUBJECT", _SUBJECTS)):
        rules |= {f"{part}_{kind}": text for kind, text in by_kind.items()}
    words = {
        "NAME": lexicon.names,
        "ACRONYM": lexicon.acronyms,
        "WORD": lexicon.words,
        "NOUN": lexicon.nouns,
        "PROPER_NOUN": lexicon.proper_nouns,
    }
    # The grammar would expand a word that is spelled like a rule.
    reserved = rules.keys() | words.keys() | {"SUBJECT"}
    words = {kind: tuple(word for word in listed if word not in reserved) for kind, listed in words.items()}
    grammar = Grammar.parse(rules | {kind: "|".join(listed) for kind, listed in words.items()})
    kinds = tuple(_SUBJECTS)
    generated = 0
    while generated < count:
        kind = generator.choice(kinds)
        if generator.random() < 0.25:
            texts = [_search(words, generator)]
        else:
            subject = grammar.expand(f"SUBJECT_{kind}", generator)
            parts = generator.choice(_SEQUENCES)
            texts = [grammar.expand(f"{part}_{kind}", generator).replace("SUBJECT", subject) for part in parts]
            if generator.random() < 0.4:
                other_kind = generator.choice(kinds)
                clause = grammar.expand(f"STATEMENT_{other_kind}", generator)
                clause = clause.replace("SUBJECT", grammar.expand(f"SUBJECT_{other_kind}", generator))
                clause = _FIRST_WORD.sub(lambda match: match[0].lower(), clause, count=1)
                texts[-1] = texts[-1].removesuffix(".") + f"{generator.choice(_CONJUNCTIONS)} {clause}"
        for text in map(capitalize, texts):
            yield _space_punctuation(text) if generator.random() < SPACED_SHARE else text
        generated += len(texts)


def _space_punctuation(text: str) -> str:
    for mark in ("?", ",", ";", "'s "):
        text = text.replace(mark, f" {mark}")
    return f"{text[:-1]} ." if text.endswith(".") else text


def _search(words: dict[str, tuple[str, ...]], generator: random.Random) -> str:
    """Two to five names and words, as typed into a search box."""
    length = generator.choice((2, 2, 3, 3, 4, 5))
    kinds = generator.choices(("NAME", "PROPER_NOUN", "NOUN", "WORD"), (2, 1, 1, 1), k=length)
    return " ".join(generator.choice(words[kind]) for kind in kinds)
