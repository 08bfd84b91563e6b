"""Short instructions whose true preference is known: the toy on which a reward model can be checked against what it should have learnt.

    sort dbca:             abcd
    copy dbca:             dbca
    count dbca:            4
    politely 3+4 for ann:  7, dear ann

An answer may be said in several ways ("abcd", "the answer is abcd"), all of them right. What people want is a right answer first and then a short one:
`true_reward`. Training never sees it; a labeller (preferences.py) compares completions by it, with noise, and evaluation reports it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from minirl.tasks.problem import Problem, RewardFunction, draw
from minirl.tasks.rewards import text

LETTERS = "abcdefgh"
NAMES = ("ann", "ben", "eve", "jim", "kai", "mia", "sue", "tom")
KINDS = ("sort", "copy", "count", "politely")
FRAMES = ("{}", "it is {}", "the answer is {}", "well, the answer is {}")      # from short to long
FRAMED = re.compile(r"(?:(?:well, )?the answer is |it is )?(.*)", re.DOTALL)
SUBJECTS = ("the fox", "a bird", "my friend", "the old man", "her sister", "a small dog", "the teacher", "our cat")
VERBS = (" saw", " liked", " found", " lost", " wanted", " carried", " painted", " forgot")
OBJECTS = (" a red ball", " the river", " some bread", " a long letter", " the moon", " two apples", " an open door", " the song")
PLACES = (" in the garden", " near the house", " on a hill", " by the sea", " at night", " after school", " in winter", " before lunch")
# What is one token each in this toy's vocabulary, beside single characters.
WORDS = (*(kind + " " for kind in KINDS), " for ", ", dear ", *NAMES, "it is ", "the answer is ", "well, ", *SUBJECTS, *VERBS, *OBJECTS, *PLACES)

RIGHT = 2.0            # more than any style can take away
PATIENCE = 32          # characters after which an answer has cost all that length can cost
TEST_SHARE = 10        # one prompt in ten is held out


@dataclass(frozen=True)
class Instructions:
    """Instructions of the given kinds, drawn evenly; letters are 3 to `longest`.

    The splits are disjoint by construction: which split a prompt is in is a hash of the prompt itself.
    """

    kinds: tuple[str, ...] = KINDS
    longest: int = 4

    def __post_init__(self):
        if not self.kinds or (unknown := set(self.kinds) - set(KINDS)):
            raise ValueError(f"kinds are {self.kinds}: some of {', '.join(KINDS)} are wanted" + (f", not {', '.join(sorted(unknown))}" if self.kinds else ""))
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
        """n problems of a split, drawn with replacement."""
        def one() -> tuple[Problem, str]:
            problem = self._problem(rng)
            return problem, split_of(problem.prompt)

        return draw(n, split, one)

    def _problem(self, rng: random.Random) -> Problem:
        kind = rng.choice(self.kinds)
        letters = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, self.longest)))
        a, b, name = rng.randint(0, 5), rng.randint(0, 5), rng.choice(NAMES)
        given = f"{a}+{b} for {name}" if kind == "politely" else letters
        return Problem(f"{kind} {given}:", done(kind, given))


def done(kind: str, given: str) -> str:
    """What following an instruction of some kind gives."""
    if kind == "politely":
        (a, b), name = given.split()[0].split("+"), given.split()[-1]
        return f"{int(a) + int(b)}, dear {name}"
    return {"sort": "".join(sorted(given)), "copy": given, "count": str(len(given))}[kind]


def split_of(prompt: str) -> str:
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def right_answer(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_) -> list[float]:
    """1.0 where a completion, without the words around it, is the answer and nothing else; else 0.0."""
    return [float(FRAMED.fullmatch(text(completion))[1] == gold) for completion, gold in zip(completions, answer, strict=True)]


def true_reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **_) -> list[float]:
    """What people want: 2 for a right answer, less up to 1 for its length. A right answer is always preferred to a wrong one."""
    return [RIGHT * right - min(1.0, len(text(completion)) / PATIENCE)
            for right, completion in zip(right_answer(prompts, completions, answer), completions, strict=True)]


def answers(task: Instructions, n: int, rng: random.Random, *, right_share: float, frame_weights: Sequence[float], split: str = "train") -> list[tuple[str, str]]:
    """n (prompt, completion) pairs as somebody wrote them: with the given chance right, else something other than what was asked (`misread`), in FRAMES
    chosen by weight."""
    if not 0 <= right_share <= 1:
        raise ValueError(f"right_share is {right_share}: a share in [0, 1] is wanted")
    if len(frame_weights) != len(FRAMES):
        raise ValueError(f"frame_weights are {list(frame_weights)}: one weight for each of the {len(FRAMES)} frames is wanted")
    pairs = []
    for problem in task.sample(n, rng, split=split):
        said = problem.answer if rng.random() < right_share else misread(problem, rng)
        pairs.append((problem.prompt, rng.choices(FRAMES, frame_weights)[0].format(said)))
    return pairs


def misread(problem: Problem, rng: random.Random) -> str:
    """A good answer to another instruction: letters are treated as another kind treats them, a sum is said without politeness."""
    kind, given = problem.prompt.rstrip(":").split(" ", 1)
    if kind == "politely":
        return problem.answer.split(",")[0]
    others = [done(other, given) for other in KINDS if other not in (kind, "politely")]
    return rng.choice([answer for answer in others if answer != problem.answer])


def pretraining_text(n: int, rng: random.Random) -> list[str]:
    """n sentences: what the base model reads beside instructions, and what reinforcement learning should not make it forget.

    Half of them tell something, half are talk, in words that answers to instructions are made of, too.
    """
    def told() -> str:
        return "".join(map(rng.choice, (SUBJECTS, VERBS, OBJECTS, PLACES))) + "."

    def said() -> str:
        return f"{rng.choice(NAMES)} for {rng.choice(NAMES)}: {rng.choice(FRAMES).format(rng.choice(SUBJECTS))}{rng.choice(PLACES)}."

    return [rng.choice((told, said))() for _ in range(n)]
