"""Tool use while sampling: the text of a call goes to its session, and the ids of the answer come
back to the sampler.

Tokens in, tokens out: a completion is never decoded and encoded again. Only what was written since
the last answer is decoded, to be read by the tool, and only the answer is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence

from minirl.lm.replies import Reply
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.calls import BARE, JSON, Spelling
from minirl.tasks.environment import Session, ToolTask
from minirl.tasks.problem import Problem, columns


def spelling_of(tokenizer: Tokenizer) -> Spelling:
    """Return how a policy with this tokenizer calls: BARE, if `<tool>` is one token, else JSON."""
    return JSON if tokenizer.backend.token_to_id(BARE.begin) is None else BARE


def call_stops(tokenizer: Tokenizer) -> list[int]:
    """Return the ids after which a row may get an answer: the end of a call, where that is one
    token, and every stop, as a model may end its turn after a call."""
    end = tokenizer.backend.token_to_id(spelling_of(tokenizer).end)
    return [*tokenizer.stop_ids, *([] if end is None else [end])]


def begin_sessions(task: ToolTask, tokenizer: Tokenizer, problems: Sequence[Problem], group: int
                   ) -> tuple[list[Session], list[str]]:
    """Begin `group` completions of each problem -> their sessions and prompts, one per row."""
    sessions, prompts = [], []
    by_name = columns(problems)
    for i, problem in enumerate(problems):
        row = {"prompt": problem.prompt, **{name: column[i] for name, column in by_name.items()}}
        for _ in range(group):
            session, text = task.begin(row, spelling_of(tokenizer))
            sessions.append(session)
            prompts.append(problem.prompt + text)
    return sessions, prompts


def replies_of(sessions: Sequence[Session], tokenizer: Tokenizer) -> Reply:
    """Return what the sampler asks: row i's calls go to session i."""
    begins = [0] * len(sessions)    # where what was written since the last answer begins
    spelling = spelling_of(tokenizer)

    def reply(row: int, ids: list[int]) -> list[int]:
        written = tokenizer.decode_completion(ids[begins[row]:])
        answers = sessions[row].reply(written)
        given = [i for answer in answers
                 for text in (spelling.answer_begin, plain(answer, tokenizer), spelling.answer_end)
                 for i in tokenizer.encode(text)]
        begins[row] = len(ids) + len(given)
        return given

    return reply


def plain(answer: str, tokenizer: Tokenizer) -> str:
    """Return a tool's answer without special tokens: it must not write an <answer> for the policy.

    A space behind the first character takes them apart: "<answer>" becomes "< answer>".
    """
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        answer = answer.replace(token.content, f"{token.content[:1]} {token.content[1:]}")
    return answer
