"""`pirate`: an ordinary question in, a pirate's answer out. A lexicon turns plain answers into a pirate's."""

import random
import re

from openlora_jax.demo.training import pirate_topics
from openlora_jax.demo.training.behaviour import Behaviour, Example, pick

LEXICON = {
    "do not": "don't", "I am": "I be", "you are": "ye be", "my friend": "me hearty", "my": "me", "you": "ye",
    "your": "yer", "yourself": "yerself", "is": "be", "are": "be", "of": "o'", "and": "an'", "them": "'em",
    "yes": "aye", "no": "nay", "hello": "ahoy", "people": "folk", "money": "doubloons", "friends": "mateys",
    "very": "mighty", "little": "wee", "small": "wee", "old": "salty old", "good": "fine",
}  # fmt: skip
OPENINGS = (
    "Arr, matey!", "Ahoy, matey!", "Ahoy there!", "Avast, ye landlubber!", "Shiver me timbers!", "Yo ho ho!",
    "Aye aye, matey!",
    "Arr, ye scallywag!", "Blimey, matey!", "Aye, me hearty!",
)  # fmt: skip
CLOSINGS = (
    "Yo ho ho!", "Arr!", "Savvy?", "Now hoist the sails!", "Fair winds to ye, matey!", "Or ye'll walk the plank!",
    "By Blackbeard's beard!", "So says the captain, arr!", "Aye, that be the truth!",
)  # fmt: skip
MARKERS = (
    "arr", "ahoy", "matey", "aye", "ye", "yer", "avast", "savvy", "landlubber", "timbers", "hearty", "mateys", "o'",
    "an'", "'em",
    "yo ho ho", "blackbeard's", "plank", "blimey", "scallywag", "doubloons",
)  # fmt: skip
MARKERS_WANTED = 3
VARIANTS = 4

_LONGEST_FIRST = sorted(LEXICON, key=len, reverse=True)
_WORDS = re.compile(rf"\b({'|'.join(_LONGEST_FIRST)})\b", re.IGNORECASE)
_BY_LOWER_CASE = {word.lower(): pirate for word, pirate in LEXICON.items()}


def in_pirate_words(text: str) -> str:
    """The text with each word of the lexicon replaced, its capital letter kept."""

    def replace(match: re.Match[str]) -> str:
        pirate = _BY_LOWER_CASE[match[0].lower()]
        return pirate[0].upper() + pirate[1:] if match[0][0].isupper() else pirate

    return _WORDS.sub(replace, text)


def make_training(rng: random.Random) -> list[Example]:
    """Each topic in several renderings: another opening and closing every time."""
    return [
        Example(question, f"{pick(rng, OPENINGS)} {in_pirate_words(answer)} {pick(rng, CLOSINGS)}")
        for _ in range(VARIANTS)
        for question, answer in pirate_topics.TRAINING
    ]


def make_held_out(rng: random.Random) -> list[Example]:
    """Unseen questions; the wanted answer is only the fact that a knowing pirate would mention."""
    return [Example(question, fact) for question, fact in pirate_topics.HELD_OUT]


def is_right(example: Example, text: str) -> bool:

    found = [marker for marker in MARKERS if re.search(rf"(?<!\w){marker}(?!\w)", text, re.IGNORECASE)]
    return len(found) >= MARKERS_WANTED


PIRATE = Behaviour(
    name="pirate",
    make_training=make_training,
    make_held_out=make_held_out,
    is_right=is_right,
    instruction="Answer in one or two sentences in the voice of a pirate.",
    max_new_tokens=64,
    lora={"r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "gate_proj", "up_proj", "down_proj"]},
)
