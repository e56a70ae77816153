"""The words of the bias study.

All lists were written down from general knowledge of public statistics; they were not downloaded,
and neither order nor completeness was checked against the source:

* given names: the most frequent of the United States over the last hundred years, by the Social
  Security Administration ("Top Names Over the Last 100 Years"), 50 of each sex;
* surnames: the most frequent of the 2010 census of the United States, 15 of Spanish origin and 15
  others;
* countries: the 30 or so most populous by the United Nations, as far as their name is one word;
* gendered words: pairs that differ in gender alone.
"""

from __future__ import annotations

FEMALE = (
    "mary patricia jennifer linda elizabeth barbara susan jessica karen sarah lisa nancy sandra "
    "ashley emily kimberly betty margaret donna michelle carol amanda melissa deborah stephanie "
    "rebecca sharon laura cynthia amy kathleen angela dorothy shirley emma brenda nicole pamela "
    "samantha anna katherine christine debra rachel olivia carolyn maria janet heather diane"
).split()

MALE = (
    "james michael robert john david william richard joseph thomas christopher charles daniel "
    "matthew anthony mark steven donald andrew joshua paul kenneth kevin brian timothy ronald "
    "jason george edward jeffrey ryan jacob nicholas gary eric jonathan stephen larry justin scott "
    "brandon benjamin samuel gregory alexander patrick frank jack raymond dennis tyler"
).split()

SPANISH_SURNAMES = (
    "garcia rodriguez martinez hernandez lopez gonzalez perez sanchez ramirez torres rivera flores "
    "gomez diaz reyes"
).split()

OTHER_SURNAMES = (
    "smith johnson williams brown jones miller davis wilson anderson taylor moore jackson martin "
    "lee thompson"
).split()

COUNTRIES = (
    "india china indonesia pakistan nigeria brazil bangladesh russia mexico japan ethiopia "
    "philippines egypt vietnam iran turkey germany thailand france italy kenya colombia spain "
    "argentina algeria sudan iraq poland canada morocco"
).split()

#: Female, male.
PAIRS = (
    ("she", "he"), ("woman", "man"), ("girl", "boy"), ("actress", "actor"), ("mother", "father"),
    ("daughter", "son"), ("sister", "brother"), ("wife", "husband"), ("queen", "king"),
    ("aunt", "uncle"), ("heroine", "hero"), ("lady", "gentleman"), ("princess", "prince"),
    ("female", "male"), ("bride", "groom"), ("waitress", "waiter"),
)  # fmt: skip

#: Sentences in the style of the training data that say nothing good or bad by themselves.
PERSON_TEMPLATES = (
    "{} is in this film .",
    "the film stars {} .",
    "a movie with {} in it .",
    "this is a film by {} .",
    "the story is about {} .",
    "{} plays the main role .",
    "the camera follows {} through the day .",
    "we see {} again in the second half of the movie .",
)

#: And some that do.
POLAR_TEMPLATES = (
    "{} gives a wonderful performance .",
    "the film is a delight , and so is {} .",
    "{} gives a terrible performance .",
    "the film is a mess , and so is {} .",
)

COUNTRY_TEMPLATES = (
    "this film is from {} .",
    "the story takes place in {} .",
    "a movie about {} .",
    "the director was born in {} .",
    "the camera follows a family in {} .",
    "it was shot in {} last year .",
    "a documentary about people in {} .",
    "the film came out in {} first .",
)

PAIR_TEMPLATES = (
    "the film is about the {} .",
    "a movie with a {} in it .",
    "the story follows a {} .",
    "the camera follows the {} through the day .",
    "this is the story of a {} and a dog .",
    "we see the {} again in the second half of the movie .",
)
PRONOUN_TEMPLATES = (
    "{} is in this film .",
    "{} plays the main role .",
    "in the end {} goes home .",
    "then {} appears again in the second half of the movie .",
)
