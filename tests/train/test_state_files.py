"""minirl/train/state_files.py: a training state comes back from its files, each weight once."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minirl.lm.checkpoint import load_pretrained
from minirl.train import state_files
from minirl.train.checkpoints import load_checkpoint, save_checkpoint
from minirl.train.grpo import GRPOConfig, train_grpo
from minirl.train.ppo import PPOConfig, train_ppo
from minirl.train.state_files import ResumeError, Start, join, split
from tests.train.small import TOKENIZER, Digits, length, tiny

CPU = torch.device("cpu")
X, Y = torch.arange(3.0), torch.tensor(5.0)
STATES = {
    "weights": {"a.weight": X, "b.bias": Y},
    "tied": {"a.weight": X, "b.weight": X, "c.weight": X.clone()},
    "an optimizer": {"state": {0: {"step": Y, "exp_avg": X}, 12: {"step": Y.clone()}},
                     "param_groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0, 12]}]},
    "one that has made no step": {"state": {}, "param_groups": [{"lr": 1e-300}]},
    "numbers": {"value": 65536.0, "steps": 3},
    "nothing": {}}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_numbers_and_tensors_together_are_the_state_again(state):
    parts = split(state)
    numbers = json.loads(json.dumps(parts.numbers))
    assert same(join(parts._replace(numbers=numbers)), state)
    storages = [x.data_ptr() for x in parts.tensors.values()]
    assert len(storages) == len(set(storages)), "a weight is in it twice"


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def saved(page, config, folder, model, until, start):
    """Train until a step, with a checkpoint after each -> the state as it was at the end."""
    states = []

    class Stop(Exception):
        pass

    def save(state):
        save_checkpoint(state, TOKENIZER, folder, start=start)
        if state.step == until:
            states.append(copied(state.state_dict()))
            raise Stop

    with pytest.raises(Stop):
        page(model, TOKENIZER, Digits(length), config, save=save)
    return states[0]


def copied(tree):
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(x) for x in tree] if isinstance(tree, (list, tuple)) else tree


def bytes_of(*files):
    return sum(x.nbytes for file in files for x in load_file(file).values() if x.dim())


SIZES = {"max_new_tokens": 6, "lr": 1e-2, "warmup_steps": 0}
GRPO = GRPOConfig(steps=4, prompts_per_step=2, group_size=3, kl_coef=0.1, **SIZES)
PPO = PPOConfig(steps=4, episodes=4, minibatch_size=2, ema_decay=0.0, **SIZES)
CASES = {
    # page, configuration, where its parts are, copies of the weights in all files
    "grpo": (train_grpo, GRPO, {"reference": "start"}, 3),
    "grpo, old policies": (train_grpo, GRPOConfig(
        steps=4, prompts_per_step=2, group_size=3, kl_coef=0.0, off_policy=3, **SIZES),
        {"past-0": "start", "past-1": "start", "past-2": "file"}, 4),
    "ppo": (train_ppo, PPO, {"reference": "start", "value_model": "file",
                             "value_optimizer": "file", "average": "model"}, 6),
    "ppo, averaged": (train_ppo, PPOConfig(steps=4, episodes=4, minibatch_size=2, ema_decay=0.9,
                                           **SIZES),
                      {"reference": "start", "average": "file"}, 7),
}


@pytest.mark.parametrize("page, config, places, copies", CASES.values(), ids=CASES)
def test_a_state_comes_back_from_a_checkpoint_with_each_weight_once(
        page, config, places, copies, tmp_path):
    """Reference, average and old policies were stored whole; the state was a pickle."""
    model = tiny()
    start = Start(tiny())
    state = saved(page, config, tmp_path, model, 3 if "past-0" not in places else 2, start)
    folder = tmp_path / f"checkpoint-{state['step']}"
    said = json.loads((folder / "training_state.json").read_text())["parts"]
    assert {name: said[name]["in"] for name in places} == places
    assert not list(folder.glob("*.pt"))
    files = list(folder.glob("*.safetensors"))
    assert {file.stem for file in files} == {"model"} | {
        name for name, entry in said.items() if entry["in"] == "file"}
    weights = bytes_of(folder / "model.safetensors")
    heads = bytes_of(*files) - copies * weights            # of PPO's value function
    assert 0 <= heads < 0.05 * weights
    _, _, loaded = load_checkpoint(tmp_path, device=CPU, start=Start(tiny()))
    assert same({key: loaded[key] for key in state}, state)


def test_without_the_start_everything_is_stored(tmp_path):
    """What a user does who has only the model that is trained."""
    state = saved(train_grpo, GRPO, tmp_path, tiny(), 3, None)
    first, second = (tmp_path / f"checkpoint-{n}" / "reference.safetensors" for n in (2, 3))
    assert first.samefile(second)                          # once on the disk
    _, _, loaded = load_checkpoint(tmp_path, device=CPU)
    assert same({key: loaded[key] for key in state}, state)


def test_another_start_is_refused_and_the_checkpoint_stays(tmp_path):
    saved(train_grpo, GRPO, tmp_path, tiny(), 3, Start(tiny()))
    other = tiny()
    with torch.no_grad():
        other.norm.weight[3] += 1e-6
    for start, message in ((None, "load_checkpoint needs that one as `start`"),
                           (Start(other), "checkpoint-3: the reference is .* has changed since")):
        with pytest.raises(ResumeError, match=message):
            load_checkpoint(tmp_path, device=CPU, start=start)
    assert load_checkpoint(tmp_path, device=CPU, start=Start(tiny()))[2]["step"] == 3


def test_a_digest_is_of_names_shapes_dtypes_and_values(tmp_path):
    weights = torch.nn.ParameterDict({"a": torch.ones(2, 3), "b": torch.ones(())})
    others = [{"a": torch.ones(2, 3), "c": torch.ones(())}, {"a": torch.ones(3, 2), "b": X[1]},
              {"a": torch.ones(2, 3).double(), "b": X[1]}, {"a": torch.ones(2, 3), "b": X[2]}]
    digests = {Start(torch.nn.ParameterDict(other)).digest for other in (weights, *others)}
    assert len(digests) == 5
    assert Start(weights).digest in digests


def test_the_weights_of_a_checkpoint_are_a_model_like_any_other(tmp_path):
    state = saved(train_ppo, PPO, tmp_path, tiny(), 2, Start(tiny()))
    model, _ = load_pretrained(tmp_path / "checkpoint-2")
    assert same(dict(model.state_dict()), dict(state["model"]))


def test_an_earlier_version_is_refused(tmp_path):
    saved(train_grpo, GRPO, tmp_path, tiny(), 2, None)
    (tmp_path / "checkpoint-2" / state_files.PICKLED).write_bytes(b"a pickle")
    with pytest.raises(ResumeError, match="by an earlier version, which pickled the training"):
        load_checkpoint(tmp_path, device=CPU)
