"""Policies made by hand, for tests of searches: the next character depends on the last one."""

import math

from minirl.lm.tokenizer import TAGS, build_tokenizer
from tests.lm.models import Markov

TOKENIZER = build_tokenizer(special_tokens=TAGS)
END = "<end>"           # EOS


def chain(chances):
    """chain({"a": {"b": 3, END: 1}}): after a comes b three times of four, else the end.

    A string stands for one that comes for sure. After other characters the end comes.
    """
    def id_of(text):
        if text == END:
            return TOKENIZER.eos_id
        ids = TOKENIZER.encode(text)
        assert len(ids) == 1, f"{text!r} is {len(ids)} tokens"
        return ids[0]

    V = TOKENIZER.vocab_size
    table = [[-1e4] * V for _ in range(V)]
    for row in table:
        row[TOKENIZER.eos_id] = 0.0
    for last, following in chances.items():
        row = table[id_of(last)] = [-1e4] * V
        for text, weight in ({following: 1} if isinstance(following, str) else following).items():
            row[id_of(text)] = math.log(weight)
    return Markov(table)


def ids(*texts):
    """Each text as the ids of a prompt."""
    return [TOKENIZER.encode(text) for text in texts]


def text(completion):
    return TOKENIZER.decode_completion(completion)
