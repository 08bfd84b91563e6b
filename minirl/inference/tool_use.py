r"""Tool use while sampling: the text of a call goes to its session, and the ids of the answer come
back to the sampler.

Tokens in, tokens out: a completion is never decoded and encoded again. Only what was written since
the last answer is decoded, to be read by the tool, and only the answer is encoded.

With a chat template that teaches <tool_call>, as those of Qwen and Hermes do, the prompt shows the
tools' schemas, a turn may hold several calls, and their answers are turns of the template's own:

    …<tool_call>\n{"name": "calculate", "arguments": {"expression": "6*7"}}\n</tool_call><|im_end|>
    <|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from minirl.lm.replies import Reply
from minirl.lm.tokenizer import Tokenizer
from minirl.tasks.calls import BARE, JSON, Spelling
from minirl.tasks.environment import Session, ToolTask
from minirl.tasks.problem import Problem, columns

KNOWN = "this call is known"


def spelling_of(tokenizer: Tokenizer) -> Spelling:
    """Return how a policy with this tokenizer calls: BARE, if `<tool>` is one token, else JSON."""
    return JSON if tokenizer.backend.token_to_id(BARE.begin) is None else BARE


def takes_turns(tokenizer: Tokenizer) -> bool:
    """Return whether calls and their answers are turns of a chat."""
    return tokenizer.chat is not None and spelling_of(tokenizer) is JSON


def call_stops(tokenizer: Tokenizer) -> list[int]:
    """Return the ids after which a row may get an answer: the end of a call, where that is one
    token, and every stop, as a model may end its turn after a call. In a chat it must."""
    if takes_turns(tokenizer):
        return tokenizer.stop_ids
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


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], sessions: Sequence[Session] = ()
                   ) -> list[list[int]]:
    """Return the ids of prompts. In a chat they tell what can be called.

    Raises ValueError where the template does not teach how.
    """
    schemas = sessions[0].tools.schemas() if sessions and takes_turns(tokenizer) else None
    if schemas is not None and JSON.begin not in tokenizer.prompt_text(prompts[0], schemas):
        raise ValueError(f"the chat template does not teach {JSON.begin}, so that the policy would "
                         "not know how to call a tool: give one that does, as those of Qwen and "
                         "Hermes, or explain it in the system prompt")
    keys = [(prompt, repr(getattr(prompt, "messages", ""))) for prompt in prompts]
    by_key = dict(zip(keys, prompts, strict=True))    # of a group's prompts one is rendered
    ids = {key: tokenizer.encode_prompt(prompt, schemas) for key, prompt in by_key.items()}
    return [ids[key] for key in keys]


def replies_of(sessions: Sequence[Session], tokenizer: Tokenizer) -> Reply:
    """Return what the sampler asks: row i's calls go to session i."""
    begins = [0] * len(sessions)    # where what was written since the last answer begins
    spelling = spelling_of(tokenizer)

    def reply(row: int, ids: list[int]) -> list[int]:
        written = tokenizer.decode_completion(ids[begins[row]:])
        answers = [plain(answer, tokenizer) for answer in sessions[row].reply(written)]
        if answers and takes_turns(tokenizer):
            given = answer_turns(tokenizer, sessions[row].called, answers)
        else:
            given = [i for answer in answers
                     for text in (spelling.answer_begin, answer, spelling.answer_end)
                     for i in tokenizer.encode(text)]
        begins[row] = len(ids) + len(given)
        return given

    return reply


def answer_turns(tokenizer: Tokenizer, names: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Return what follows the stop of a turn with calls: the answers of the tools of these names,
    up to where the assistant's next turn begins.

    The template renders a conversation in which the answers follow a call that is known. What
    stands behind the end of that call's turn is theirs.
    """
    assert tokenizer.chat is not None
    call = {"type": "function", "function": {"name": names[0], "arguments": {"text": KNOWN}}}
    text = tokenizer.apply_chat_template(
        [*tokenizer.chat.messages("?"), {"role": "assistant", "content": "", "tool_calls": [call]},
         *({"role": "tool", "name": name, "content": answer}
           for name, answer in zip(names, answers, strict=True))], **tokenizer.chat.variables)
    stops = list(filter(None, map(tokenizer.backend.id_to_token, tokenizer.stop_ids)))
    _, known, rest = text.partition(KNOWN)
    end = re.search("|".join(map(re.escape, stops)), rest)
    if not known or end is None:
        raise ValueError(f"the chat template writes no turn with a call that ends with "
                         f"{' or '.join(stops)}: tools need a template that does")
    return tokenizer.encode(rest[end.start():])[1:]    # without the stop, which was sampled


def plain(answer: str, tokenizer: Tokenizer) -> str:
    """Return a tool's answer without special tokens: it must not write an <answer> for the policy.

    A space behind the first character takes them apart: "<answer>" becomes "< answer>".
    """
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        answer = answer.replace(token.content, f"{token.content[:1]} {token.content[1:]}")
    return answer
