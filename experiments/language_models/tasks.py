"""Prompts whose next token has a known reason, written as templates over lists of words.

A prompt marks each reason together with what it becomes in the corrupted prompt:
``The «key|keys» to the cabinets`` asks for ``is`` rather than ``are`` because of ``key``, and no
longer does with ``keys``.  Training and test prompts are made of different halves of the lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

WORDS = Path(__file__).parent / "words"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Prompt:
    """A prompt with marked reasons, and the two next words to tell apart."""

    text: str
    answer: str
    foil: str


class Words:
    """The half of every list of words that belongs to a split.

    Args:
        split (str): ``"train"`` or ``"test"``.
        blimp (Path, optional): Folder with files of BLiMP (Warstadt et al., TACL 2020).
    """

    def __init__(self, split: str, blimp: Path | None = None) -> None:
        self._start = SPLITS.index(split)
        self._blimp = blimp
        self.things, self.people = self._rows("things.tsv"), self._rows("people.tsv")
        self.pairs, self.names = self._rows("pairs.tsv"), self._rows("names.tsv")
        self.facts = self._rows("facts.tsv")
        self.words = [row[0] for row in self._rows("words.txt")]
        self.filler = [row[0] for row in self._rows("filler.txt")]

    def _rows(self, name: str) -> list[list[str]]:
        lines = (WORDS / name).read_text(encoding="utf-8").splitlines()
        return [line.split("\t") for line in lines][self._start :: len(SPLITS)]

    def blimp(self, name: str) -> list[dict[str, str]]:
        """Sentence pairs of one of BLiMP's files; none without the folder."""
        if self._blimp is None:
            return []
        lines = (self._blimp / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines][self._start :: len(SPLITS)]


Task = Callable[[Words, Random], Iterator[Prompt]]
_VERBS = (("is", "are"), ("was", "were"), ("has", "have"))


def agreement_nouns(words: Words, random: Random) -> Iterator[Prompt]:
    """A verb agrees with its subject, over a noun of the other number."""
    while True:
        (one, other), attractor = random.sample(words.things, 2)
        number = random.randrange(2)
        subject = (one, other)[number], (one, other)[1 - number]
        verbs = random.choice(_VERBS)
        where = random.choice(("to", "near", "behind", "beside", "next to", "in front of", "from"))
        yield Prompt(
            f"The «{subject[0]}|{subject[1]}» {where} the {attractor[1 - number]}",
            verbs[number], verbs[1 - number],
        )  # fmt: skip


def agreement_clauses(words: Words, random: Random) -> Iterator[Prompt]:
    """A verb agrees with its subject, over a relative clause with another subject."""
    inner = (("likes", "like"), ("admires", "admire"), ("knows", "know"), ("sees", "see"),
             ("visits", "visit"), ("needs", "need"), ("hates", "hate"))  # fmt: skip
    while True:
        subject, other = random.sample(words.people, 2)
        number = random.randrange(2)
        verbs = random.choice(_VERBS)
        clause = f"that the {other[1 - number]} {random.choice(inner)[1 - number]}"
        yield Prompt(
            f"The «{subject[number]}|{subject[1 - number]}» {clause}",
            verbs[number], verbs[1 - number],
        )  # fmt: skip


def reflexives(words: Words, random: Random) -> Iterator[Prompt]:
    """A reflexive pronoun has the gender of the subject, over a noun of the other gender."""
    forms = ("himself", "herself")
    verbs = ("hurt", "blamed", "washed", "defended", "introduced", "praised", "described")
    while True:
        subject, other = random.sample(words.pairs, 2)
        gender = random.randrange(2)
        where = random.choice(("next to", "near", "behind", "who met", "who knew", "who saw"))
        yield Prompt(
            f"The «{subject[gender]}|{subject[1 - gender]}» {where} the {other[1 - gender]} "
            f"{random.choice(verbs)}",
            forms[gender], forms[1 - gender],
        )  # fmt: skip


def determiners(words: Words, random: Random) -> Iterator[Prompt]:
    """A noun has the number of its determiner, over an adjective or two."""
    adjectives = ("old", "new", "small", "big", "red", "beautiful", "cheap", "strange", "heavy")
    while True:
        name, noun = random.choice(words.names)[random.randrange(2)], random.choice(words.things)
        number = random.randrange(2)
        pair = random.choice((("this", "these"), ("that", "those")))
        verb = random.choice(("bought", "sold", "saw", "found", "liked", "described"))
        between = " ".join(random.sample(adjectives, random.choice((1, 2))))
        yield Prompt(
            f"{name} {verb} «{pair[number]}|{pair[1 - number]}» {between}",
            noun[number], noun[1 - number],
        )  # fmt: skip


def pronouns(words: Words, random: Random) -> Iterator[Prompt]:
    """A pronoun has the gender of the name that it stands for."""
    forms = ("he", "she")
    events = ("lost the keys because", "was late for work, so", "could not sleep because",
              "went home early because", "bought a new car when", "moved to the city when",
              "said that", "was very happy when", "stopped reading because")  # fmt: skip
    while True:
        names, gender = random.choice(words.names), random.randrange(2)
        yield Prompt(
            f"«{names[gender]}|{names[1 - gender]}» {random.choice(events)}",
            forms[gender], forms[1 - gender],
        )  # fmt: skip


def _of_facts(
    words: Words, random: Random, templates: dict[str, tuple[str, ...]]
) -> Iterator[Prompt]:
    facts = [fact for fact in words.facts if fact[0] in templates]
    while True:
        relation, subject, answer = random.choice(facts)
        others = [f for f in facts if f[0] == relation and f[2] != answer and f[1] != subject]
        if relation == "after":
            others = [f for f in others if f[1].endswith("day") == subject.endswith("day")]
        _, other, foil = random.choice(others)
        text = random.choice(templates[relation])
        text = text.replace("UNIT", "day" if subject.endswith("day") else "month")
        yield Prompt(text.replace("X", f"«{subject}|{other}»"), answer, foil)


def capitals(words: Words, random: Random) -> Iterator[Prompt]:
    """The capital of a country or state."""
    return _of_facts(words, random, {
        "capital": ("The capital of X is", "The capital city of X is called",
                    "Q: What is the capital of X? A:"),
    })  # fmt: skip


def facts(words: Words, random: Random) -> Iterator[Prompt]:
    """Languages, opposites, days and months, young animals, past tenses."""
    return _of_facts(words, random, {
        "language": ("Most people in X speak", "The official language of X is"),
        "opposite": ("The opposite of X is", "The opposite of the word X is"),
        "after": ("The UNIT after X is", "The UNIT that comes after X is"),
        "young": ("A baby X is called a",),
        "past": ("Every day I X. Yesterday I also", "Today they X. Yesterday they"),
    })  # fmt: skip


def indirect_object(words: Words, random: Random) -> Iterator[Prompt]:
    """The one of two people who is not the subject (Wang et al., ICLR 2023)."""
    while True:
        one, other, third = (pair[random.randrange(2)] for pair in random.sample(words.names, 3))
        marked = f"«{one}|{third}»"
        first, second = (marked, other) if random.random() < 0.5 else (other, marked)
        thing = random.choice(words.words)
        place = random.choice(("store", "park", "office", "station", "garden"))
        text = random.choice((
            f"When {first} and {second} went to the {place}, {other} gave the {thing} to",
            f"Then {first} and {second} met at the {place}. {other} handed the {thing} to",
            f"{first} and {second} had lunch at the {place}, and {other} passed the {thing} to",
        ))  # fmt: skip
        yield Prompt(text, one, other)


def induction(words: Words, random: Random) -> Iterator[Prompt]:
    """The next word of a sequence that is repeated (Olsson et al. 2022)."""
    while True:
        *series, spare = random.sample(words.words, random.randint(6, 8))
        place = random.randrange(2, len(series) - 1)
        foil = random.choice(series[place + 1 :] + series[:1])
        marked = [*series[:place], f"«{series[place]}|{spare}»", *series[place + 1 :]]
        yield Prompt(" ".join(["The", *marked, *series[:place]]), series[place], foil)


def copying(words: Words, random: Random) -> Iterator[Prompt]:
    """What somebody has, among the things of several people."""
    while True:
        people = [pair[random.randrange(2)] for pair in random.sample(words.names, 3)]
        *things, spare = random.sample(words.words, 4)
        asked = random.randrange(3)
        foil = things[(asked + random.randint(1, 2)) % 3]
        verb = random.choice(("has the", "likes the", "bought the", "carries the"))
        told = [f"«{t}|{spare}»" if i == asked else t for i, t in enumerate(things)]
        lines = [f"{p} {verb} {t}." for p, t in zip(people, told, strict=True)]
        yield Prompt(" ".join([*lines, f"{people[asked]} {verb}"]), things[asked], foil)


def needle(words: Words, random: Random) -> Iterator[Prompt]:
    """A word told somewhere in a text of 150 to 300 tokens, and another told elsewhere."""
    while True:
        kept, spare, foil = random.sample(words.words, 3)
        text = random.sample(words.filler, random.randint(12, len(words.filler)))
        text.insert(
            random.randrange(len(text)), f"The word that opens the door is «{kept}|{spare}»."
        )
        text.insert(random.randrange(len(text)), f"The word that closes the book is {foil}.")
        yield Prompt(" ".join([*text, "Remember: the word that opens the door is"]), kept, foil)


def brackets(words: Words, random: Random) -> Iterator[Prompt]:
    """The closing bracket of the one that is open, over a closed pair of the other kind."""
    kinds = (("[", "]"), ("(", ")"), ("{", "}"))
    while True:
        (opened, closed), (begin, end) = random.sample(kinds, 2)
        names = random.sample(words.words, 5)
        inner = f"{begin} {names[1]} , {names[2]} {end} , " if random.random() < 0.6 else ""
        rest = " , ".join(names[3 : random.choice((4, 5))])
        yield Prompt(f"{names[0]} = «{opened}|{begin}» {inner}{rest}", closed, end)


def _of_blimp(
    words: Words, random: Random, name: str, subject: Callable[[str], str]
) -> Iterator[Prompt]:
    """Pairs of BLiMP, corrupted by the reason of another pair with the other answer."""
    pairs = words.blimp(name)
    random.shuffle(pairs)
    for pair in pairs:
        text, answer = pair["one_prefix_prefix"], pair["one_prefix_word_good"]
        others = [
            reason
            for other in pairs
            if (other["one_prefix_word_good"], other["one_prefix_word_bad"])
            == (pair["one_prefix_word_bad"], answer)
            and (reason := subject(other["one_prefix_prefix"]))
        ]
        reason = subject(text)
        if reason and others:
            for other_reason in random.sample(others, min(3, len(others))):
                marked = text.replace(reason, f"«{reason}|{other_reason}»", 1)
                yield Prompt(marked, answer, pair["one_prefix_word_bad"])


def blimp_distractors(words: Words, random: Random) -> Iterator[Prompt]:
    """BLiMP: a verb agrees with its subject, over the noun that belongs to it."""
    name = "distractor_agreement_relational_noun"
    return _of_blimp(words, random, name, lambda text: text.partition(" of ")[0])


def blimp_anaphors(words: Words, random: Random) -> Iterator[Prompt]:
    """BLiMP: a reflexive pronoun has the number of the subject."""
    determiners = ("The A An This That These Those Some Many Most Few Every Each All Every No "
                   "Several A lot of").split()  # fmt: skip

    def subject(text: str) -> str:
        first, *rest = text.split(" ")
        return f"{first} {rest[0]}" if first in determiners and rest else first

    return _of_blimp(words, random, "anaphor_number_agreement", subject)


def blimp_determiners(words: Words, random: Random) -> Iterator[Prompt]:
    """BLiMP: a noun has the number of the determiner in front of it."""
    other = {"this": "these", "these": "this", "that": "those", "those": "that"}
    pairs = words.blimp("determiner_noun_agreement_1")
    random.shuffle(pairs)
    for pair in pairs:
        text, _, last = pair["one_prefix_prefix"].rpartition(" ")
        if last in other:
            words_ = pair["one_prefix_word_good"], pair["one_prefix_word_bad"]
            yield Prompt(f"{text} «{last}|{other[last]}»", *words_)


#: In the order of the tables.
TASKS: dict[str, Task] = {
    "agreement, nouns": agreement_nouns,
    "agreement, clauses": agreement_clauses,
    "agreement, BLiMP": blimp_distractors,
    "reflexives": reflexives,
    "reflexives, BLiMP": blimp_anaphors,
    "determiners": determiners,
    "determiners, BLiMP": blimp_determiners,
    "pronouns": pronouns,
    "capitals": capitals,
    "facts": facts,
    "indirect object": indirect_object,
    "induction": induction,
    "copying": copying,
    "brackets": brackets,
    "needle": needle,
}
