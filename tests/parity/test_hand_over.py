"""From minirl to TRL and back, as tutorials/hand_over_to_trl.py does it: one checkpoint folder, one
reward function, one data file."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minirl.lm.checkpoint import load_pretrained, save_pretrained
from tests.parity.trl_stand_ins import NO_TRL

pytest.importorskip("trl", reason=NO_TRL)

FOLDER = Path(__file__).parent.parent.parent / "tutorials"


@pytest.fixture
def script(monkeypatch):
    """The script's functions; one may be replaced in `functions`, which they look others up in."""
    monkeypatch.syspath_prepend(FOLDER)
    functions = runpy.run_path(str(FOLDER / "hand_over_to_trl.py"))["hand_over"].__globals__
    functions["be_quiet"]()
    args = functions["arguments"](["--steps", "2", "--prompts", "4", "--asked", "4"])
    task = functions["read_task"](args.data)
    model, tokenizer = functions["stand_in"](task.task.problems, sums=320)
    return SimpleNamespace(functions=functions, args=args, task=task, model=model,
                           tokenizer=tokenizer)


def test_a_run_goes_on_in_trl_and_comes_back(script, tmp_path, capsys):
    """The script itself compares logits, ids, continuations and rewards. Here, what TRL hands to
    the reward while it trains is what minirl would have: text, message and columns."""
    calls, reward = [], script.functions["right_number"]

    def right_number(**columns):
        calls.append(columns)
        return reward(**columns)

    script.functions["right_number"] = right_number
    before = {name: p.clone() for name, p in script.model.state_dict().items()}
    back = script.functions["hand_over"](script.model, script.tokenizer, script.task, script.args,
                                         tmp_path)
    lines = capsys.readouterr().out
    assert "ids of 8 prompts" in lines and "greedy continuations" in lines

    answers = {json.dumps(row["prompt"]): row["answer"]
               for row in map(json.loads, script.args.data.read_text().splitlines())}
    of_trl = [call for call in calls if "trainer_state" in call]
    assert len(of_trl) == 2
    for call in of_trl:
        texts = [script.tokenizer.decode_completion(ids) for ids in call["completion_ids"]]
        assert call["completions"] == [[{"role": "assistant", "content": text}] for text in texts]
        assert call["answer"] == [answers[json.dumps(prompt)] for prompt in call["prompts"]]

    trained = script.model.state_dict()
    assert any(not torch.equal(trained[name], p) for name, p in before.items())
    assert any(not torch.equal(trained[name], p) for name, p in back.state_dict().items())
    again, tokenizer = load_pretrained(tmp_path / "from-trl")
    assert again.config == script.model.config and tokenizer.same_ids(script.tokenizer)
    prompt = script.task.task.problems[0].prompt
    assert (tokenizer.apply_chat_template(prompt.messages)
            == script.tokenizer.prompt_text(prompt))


def test_a_folder_of_another_model_is_noticed(script, tmp_path):
    save_pretrained(script.model, script.tokenizer, tmp_path)
    compare = script.functions["compare"]
    compare(tmp_path, script.model, script.tokenizer, script.task, script.args)
    with torch.no_grad():
        script.model.embed_tokens.weight += 0.01
    with pytest.raises(AssertionError):
        compare(tmp_path, script.model, script.tokenizer, script.task, script.args)
