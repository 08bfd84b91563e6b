r"""Final answers: what a completion gives as its answer, and whether that is the right one.

    #### 1,234    <answer>1,234</answer>    \boxed{1,234}

Three steps, none of which raises or takes long, whatever a model wrote:

    claims        the texts that a completion gives as its answer
    read_answer   such a text as a number and its unit, or as plain text
    equal         whether two answers are the same

What is equal: numbers of the same value ("1,234" = "1234.00" = "$1,234", "0.5" = "1/2" =
"\frac{1}{2}", "3e8" = "3 \times 10^8"), with a unit on one side or the same on both ("18" = "18
dollars"); texts that differ in capitals, white space or LaTeX's dress ("(A)" = "\text{a}"). A
percent sign is dropped, as GSM8K and MATH do: "50%" is 50, and not 0.5. Numbers are not rounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from minirl.tasks.rewards import (
    FULL_WIDTH,
    Completion,
    Verdicts,
    answer_of,
    answer_text,
    check_lengths,
    normalise_answer,
    text,
)

LONGEST = 1000                     # characters of an answer that is read as more than plain text
LINE = re.compile(r"[^\n<]*")
BOX = "\\boxed"

# LaTeX that changes how an answer looks, and not what it is
DRESS = re.compile(r"\\(?:(?:left|right|displaystyle|limits)\b|[,!;: ()\[\]])|\\?[$%]"
                   r"|\^(?:\\circ|\{\\circ\})|°")
WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname) ?\{([^{}]*)\}")
FRACTION = re.compile(r"\\frac *(?:\{ *(-?[0-9]+) *\}|([0-9])) *(?:\{ *([0-9]+) *\}|([0-9]))")
LETTER = re.compile(r"\(([A-Za-z])\)")
# a word that is no unit in "2 pi" or "3 or four"
NO_UNIT = r"(?!(?:pi|sqrt|sin|cos|tan|log|ln|or|and|to|plus|minus|times|over)\b)"
UNIT = NO_UNIT + r"(?:[^\W\d_]{2,}|[가-힣]) (?:\^ \{? [0-9] \}?)?"
VALUE = re.compile(rf"""
    (?:[A-Za-z] \s? = \s?)?                                     # x =
    (?P<sign>[+-]?) \s?
    (?: (?:(?P<whole>[0-9]+) \s+)? (?P<above>-?[0-9]+) \s?/\s? (?P<below>[0-9]+)    # 1 1/2
      | (?P<number> (?:[0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]+)(?:\.[0-9]*)? | \.[0-9]+ )  # 1,234.5
        (?: (?:[eE] | \s?(?:\\times|\\cdot|×|\*)\s?10\s?\^)
            \{{? (?P<power>[+-]?[0-9]{{1,3}}) \}}? )?           # e8
    )
    (?P<unit> (?:\s* {UNIT} (?:\s+ {UNIT})* )? )                # square cm^2
    \s* \.?""", re.VERBOSE)


class Answer(NamedTuple):
    """A number in its one spelling, and the unit beside it; or, of no number, the text alone."""

    number: str
    words: str


# what a completion says

def claims(content: str) -> list[str]:
    r"""Return the texts that a completion gives as its final answer, none where it gives none.

    That is all that stands in <answer>…</answer> or behind "####"; where there is neither, the
    content of the last \boxed{…} that is no part of the reasoning. An <answer> that is not closed
    says "".

    >>> claims("so <answer>3</answer>"), claims("5"), claims(r"\boxed{1}, no, \boxed{\frac{1}{2}}")
    (['3'], [], ['\\frac{1}{2}'])
    """
    places = []
    for rest in content.split("<answer>")[1:]:
        inside, closed, _ = rest.partition("</answer>")
        places.append(inside if closed else "")
    for rest in content.split("####")[1:]:
        places.append(LINE.match(rest.lstrip())[0])    # type: ignore[index]
    if places:
        return [boxed(place) or place.rpartition("####")[2].strip() for place in places]
    reasoning, ended, rest = content.rpartition("</think>")
    box = None if not ended and "<think>" in content else boxed(rest)
    return [] if box is None else [box]


def boxed(content: str) -> str | None:
    r"""Return what the last \boxed{…} of a text holds, braces in it included; None without one, or
    where it is not closed.

    >>> boxed(r"$\boxed{\sqrt{2}}$, as \{ shows"), boxed(r"\boxed{1} \boxed{2"), boxed(r"\boxed 5")
    ('\\sqrt{2}', None, '5')
    """
    _, command, rest = content.rpartition(BOX)
    if not command:
        return None
    rest = rest.lstrip()
    if not rest.startswith("{"):                         # TeX takes the next character
        return rest[:1] or None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", rest, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return rest[1:match.start()]
    return None


def claim(completion: Completion) -> str | None:
    """Return the one text that a completion gives as its answer; None for none, or for several
    that differ: listing guesses does not pay."""
    places = claims(text(completion))
    different = {read_answer(place): place for place in dict.fromkeys(places)}
    return different.popitem()[1] if len(different) == 1 else None


def vote_of(completion: Completion) -> str | None:
    """Return a completion's answer so that equal answers are equal votes; None where it has none.

    One with an <answer> is read as rewards.accuracy reads it.
    """
    if "<answer>" in text(completion):
        return answer_of(completion)
    place = claim(completion)
    answer = Answer("", "") if place is None else read_answer(place)
    return answer.number or answer.words or None


# what an answer is

def read_answer(content: str) -> Answer:
    r"""Return the number that a text is, with its unit, or the text in plain.

    >>> read_answer(r"$\frac{3}{6}$"), read_answer("1,250.0 dollars.")
    (Answer(number='1/2', words=''), Answer(number='1250', words='dollars'))
    >>> read_answer(r"\text{Yes}.")
    Answer(number='', words='yes')
    """
    plain = unicodedata.normalize("NFC", content.translate(FULL_WIDTH).replace("\u2212", "-"))
    if len(plain) > LONGEST:
        return Answer("", _joined(plain))
    plain = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", plain.replace("{,}", ","))
    plain = DRESS.sub("", WORDS.sub(r" \1", plain)).strip("*` \t\n")
    value = VALUE.fullmatch(
        FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", plain).strip())
    if value is not None and (number := _number(value)) is not None:
        return Answer(str(number), _joined(value["unit"]))
    letter = LETTER.fullmatch(plain)
    return Answer("", _joined(letter[1] if letter else plain.removesuffix(".")))


def _joined(content: str) -> str:
    return "".join(content.casefold().split())


def _number(match: re.Match[str]) -> Fraction | None:
    """The number in a match of VALUE; None for a division by 0."""
    if match["number"]:
        value = Fraction(normalise_answer(match["number"]))
        value *= Fraction(10) ** int(match["power"] or 0)
    elif int(match["below"]) == 0:
        return None
    else:
        value = int(match["whole"] or 0) + Fraction(int(match["above"]), int(match["below"]))
    return -value if match["sign"] == "-" else value


def equal(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same."""
    if one == other:
        return True
    one_has_no_unit = not one.words or not other.words
    return bool(one.number) and one.number == other.number and one_has_no_unit


# the reward

def judged_answers(completions: Sequence[Completion], answer: Sequence[Any],
                   same: Callable[[str, str], bool] | None = None) -> Verdicts:
    """1.0 where a completion's final answer is the answer, else 0.0; None where `answer` is empty.

    An answer may be a number, a text, or a whole solution in which it is marked. `same(gold,
    claim)` is asked about formulas that are not written alike.
    """
    check_lengths(completions, answer=answer)
    return [_verdict(completion, gold, same)
            for completion, gold in zip(completions, answer, strict=True)]


def _verdict(completion: Completion, answer: Any, same: Callable[[str, str], bool] | None
             ) -> float | None:
    whole = answer_text(answer)
    if whole is None:
        return None
    gold, place = marked(whole), claim(completion)
    if place is None or not any(read_answer(place)):
        return 0.0
    if equal(read_answer(place), read_answer(gold)):
        return 1.0
    return float(same is not None and is_formula(gold) and same(gold, place))


def marked(answer: str) -> str:
    """Return the final answer in a solution that marks it; a text without a mark as it is."""
    place = claim(answer)
    return answer.strip() if place is None else place.strip()


def is_formula(gold: str) -> bool:
    r"""Whether an answer is mathematics that can be written in more than one way.

    A number is none: "196+507" would be as right as 703, and the question its own answer. A word is
    none: math-verify reads "Paris" as a product of five letters, in any order.

    >>> [is_formula(x) for x in (r"\frac{\sqrt{2}}{2}", "x^2-1", "703", "Paris", "well-known")]
    [True, True, False, False, False]
    """
    letters = re.sub(r"\\[A-Za-z]+", " ", WORDS.sub(r"\1", gold))
    return (not read_answer(gold).number and re.search(r"[\\^_+\-*/=(\[{<>|]", gold) is not None
            and re.search(r"[^\W\d_]{3}", letters) is None)
