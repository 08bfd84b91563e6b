"""Short instructions whose true reward is known: the toy on which a reward model can be checked
against what it should have learnt.

    sort dbca:             abcd
    copy dbca:             dbca
    count dbca:            4
    politely 3+4 for ann:  7, dear ann

An answer may be phrased in several ways ("abcd", "the answer is abcd"), all of them right. What
people want is a right answer first and then a short one: `true_reward`. Training never sees it; a
labeller (preferences.py) compares completions by it, with noise, and evaluation reports it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirl.tasks.problem import Problem, RewardFunction, check_share, draw, split_of
from minirl.tasks.rewards import text

LETTERS = "abcdefgh"
NAMES = ("ann", "ben", "eve", "jim", "kai", "mia", "sue", "tom")
KINDS = ("sort", "copy", "count", "politely")
FRAMES = ("{}", "it is {}", "the answer is {}", "well, the answer is {}")      # from short to long
FRAMED = re.compile(r"(?:(?:well, )?the answer is |it is )?(.*)", re.DOTALL)
SUBJECTS = ("the fox", "a bird", "my friend", "the old man",
            "her sister", "a small dog", "the teacher", "our cat")
VERBS = (" saw", " liked", " found", " lost", " wanted", " carried", " painted", " forgot")
OBJECTS = (" a red ball", " the river", " some bread", " a long letter",
           " the moon", " two apples", " an open door", " the song")
PLACES = (" in the garden", " near the house", " on a hill", " by the sea",
          " at night", " after school", " in winter", " before lunch")
# what is one token each in this toy's vocabulary, beside single characters
WORDS = (*(kind + " " for kind in KINDS), " for ", ", dear ", *NAMES,
         "it is ", "the answer is ", "well, ", *SUBJECTS, *VERBS, *OBJECTS, *PLACES)

RIGHT = 2.0            # for a right answer: more than its length can cost
PATIENCE = 32          # characters from which on a longer answer costs no more


@dataclass(frozen=True)
class Instructions:
    """Instructions of the given kinds, drawn evenly, on 3 to `longest` letters.

    The splits are disjoint by construction: a hash of the prompt decides which one it is in.
    """

    kinds: tuple[str, ...] = KINDS
    longest: int = 4

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(KINDS))
        if not self.kinds or unknown:
            raise ValueError(f"kinds are {self.kinds}: some of {', '.join(KINDS)} are wanted"
                             + (f", not {', '.join(unknown)}" if unknown else ""))
        if not 3 <= self.longest <= 12:
            raise ValueError(f"longest is {self.longest}: 3 to 12 letters are wanted")

    @property
    def name(self) -> str:
        return "instructions"

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        return {"accuracy": right_answer, "true_reward": true_reward}

    @property
    def weights(self) -> dict[str, float]:
        return dict.fromkeys(self.rewards, 1.0)

    def sample(self, n: int, rng: random.Random, *, split: str = "train") -> list[Problem]:
        """Draw n problems of a split, with replacement."""
        def one() -> tuple[Problem, str]:
            problem = self._problem(rng)
            return problem, split_of(problem.prompt)

        return draw(n, split, one)

    def _problem(self, rng: random.Random) -> Problem:
        kind = rng.choice(self.kinds)
        letters = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, self.longest)))
        a, b, name = rng.randint(0, 5), rng.randint(0, 5), rng.choice(NAMES)
        content = f"{a}+{b} for {name}" if kind == "politely" else letters
        return Problem(f"{kind} {content}:", answer_to(kind, content))


def answer_to(kind: str, content: str) -> str:
    """Return the right answer to an instruction: answer_to("sort", "dbca") -> "abcd"."""
    if kind == "politely":
        addition, _, name = content.split()
        a, b = addition.split("+")
        return f"{int(a) + int(b)}, dear {name}"
    return {"sort": "".join(sorted(content)), "copy": content, "count": str(len(content))}[kind]


# rewards

def right_answer(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str],
                 **_: Any) -> list[float | None]:
    """1.0 where a completion is the answer in one of the FRAMES, and nothing else; else 0.0."""
    return [_is_right(completion, gold)
            for completion, gold in zip(completions, answer, strict=True)]


def true_reward(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[str],
                **_: Any) -> list[float | None]:
    """What people want: 2 for a right answer, minus up to 1 for the length.

    Any right answer is better than any wrong one.
    """
    return [RIGHT * _is_right(completion, gold) - min(1.0, len(text(completion)) / PATIENCE)
            for completion, gold in zip(completions, answer, strict=True)]


def _is_right(completion: str | Sequence[dict[str, Any]], gold: str) -> float:
    framed = FRAMED.fullmatch(text(completion))
    return float(framed is not None and framed[1] == gold)


# text to learn from

def answers(task: Instructions, n: int, rng: random.Random, *, right_share: float,
            frame_weights: Sequence[float] = (1, 1, 1, 1),
            split: str = "train") -> list[tuple[str, str]]:
    """Draw n (prompt, completion) pairs as people write them.

    An answer is right with probability `right_share`, else it is `wrong_answer`'s. It is phrased in
    one of the FRAMES, chosen by weight.
    """
    check_share("right_share", right_share)
    if len(frame_weights) != len(FRAMES):
        raise ValueError(f"frame_weights are {list(frame_weights)}: one weight for each of the "
                         f"{len(FRAMES)} frames is wanted")
    pairs = []
    for problem in task.sample(n, rng, split=split):
        right = rng.random() < right_share
        answer = problem.answer if right else wrong_answer(problem, rng)
        frame, = rng.choices(FRAMES, frame_weights)
        pairs.append((problem.prompt, frame.format(answer)))
    return pairs


def wrong_answer(problem: Problem, rng: random.Random) -> str:
    """Return a good answer to another instruction: another kind's, or a sum without politeness."""
    kind, content = problem.prompt.rstrip(":").split(" ", 1)
    if kind == "politely":
        return problem.answer.split(",")[0]
    others = [answer_to(other, content) for other in KINDS if other not in (kind, "politely")]
    return rng.choice([answer for answer in others if answer != problem.answer])


def pretraining_text(n: int, rng: random.Random) -> list[str]:
    """Draw n sentences: what the base model reads beside instructions, and what reinforcement
    learning should not make it forget.

    Half of them are statements. The others are talk, made of the words that answers to instructions
    are made of, too.
    """
    def statement() -> str:
        return "".join(map(rng.choice, (SUBJECTS, VERBS, OBJECTS, PLACES))) + "."

    def talk() -> str:
        speakers = f"{rng.choice(NAMES)} for {rng.choice(NAMES)}"
        framed = rng.choice(FRAMES).format(rng.choice(SUBJECTS))
        return f"{speakers}: {framed}{rng.choice(PLACES)}."

    return [rng.choice((statement, talk))() for _ in range(n)]


def base_texts(task: Instructions, rng: random.Random, *, n_answers: int,
               n_texts: int) -> list[tuple[str, str]]:
    """Draw what a base model reads: instructions, six of ten of them followed, and sentences."""
    texts = answers(task, n_answers, rng, right_share=0.6)
    texts += [("", text) for text in pretraining_text(n_texts, rng)]
    rng.shuffle(texts)
    return texts
