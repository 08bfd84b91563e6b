"""minirl/train/search.py"""

from random import Random

import pytest

from minirl.inference.steps import COMPLETIONS
from minirl.lm.tiny import TinySizes, make_base
from minirl.tasks.arithmetic import Arithmetic
from minirl.train import search as module
from minirl.train.presets import SEARCH_PRESETS
from minirl.train.process_reward import OutcomeRewardConfig, ProcessRewardConfig
from minirl.train.search import SearchConfig, label_tasks, read_slips, train_verifiers
from minirl.train.sft import SFTConfig
from minirl.train.stage import in_memory
from minirl.train.verifiers import outcome_verifier, step_verifier
from tests.train.small import Log, weights

TASKS = [Arithmetic("addition", 1), Arithmetic("addition", 2)]
MODEL, TOKENIZER = make_base(TinySizes(hidden_size=16, num_layers=1, num_heads=2,
                                       intermediate_size=32), seed=0, device="cpu")


def labelled(n=3, seed=0, **options):
    return label_tasks(MODEL, TOKENIZER, TASKS, n, **{"samples": 2, "max_new_tokens": 12,
                                                      "seed": seed, **options})


def test_solutions_of_every_task_and_every_sample_counts():
    class Counted:
        total = 0

        def update(self, n=1, note=""):
            self.total += n

    progress = Counted()
    solutions = labelled(progress=progress)
    assert progress.total == len(solutions) == 6
    assert [solution.prompt.count("+") for solution in solutions] == [1] * 6
    assert [len(s.prompt) for s in solutions[3:]] == [6, 6, 6]         # 12+34=
    assert all(TASKS[0].split_of(*map(int, s.prompt[:-1].split("+"))) == "train"
               for s in solutions), "held-out problems stay out"
    assert all(set(s.labels) <= {0.0, 0.5, 1.0} for s in solutions)
    assert labelled() == solutions != labelled(seed=1)


def test_the_policy_reads_all_tasks_with_slips(monkeypatch):
    monkeypatch.setattr(module, "EXAMPLES", 64)
    monkeypatch.setattr(module, "POLICY_SFT", SFTConfig(batch_size=16))
    read = []
    learn = module.train_sft

    def watch(model, tokenizer, pairs, config, **options):
        read.extend(pairs)
        return learn(model, tokenizer, pairs, config, **options)

    monkeypatch.setattr(module, "train_sft", watch)
    before = weights(MODEL)
    policies = [read_slips(in_memory(None), MODEL, TOKENIZER, TASKS, Random(0), slip_share=share,
                           seed=seed)
                for share, seed in ((0.5, 0), (0.5, 0), (0.5, 1))]
    assert weights(policies[0]).equal(weights(policies[1]))
    assert not weights(policies[0]).equal(weights(policies[2]))
    assert weights(MODEL).equal(before), "a stage starts from a copy"
    first = read[:64]
    assert [len(prompt) for prompt, _ in first] == [4] * 32 + [6] * 32
    wrong = [completion for prompt, completion in first
             if int(completion.split("<answer>")[1].split("<")[0])
             != sum(map(int, prompt[:-1].split("+")))]
    assert 10 < len(wrong) < 54


def test_both_verifiers_learn_from_the_same_solutions(monkeypatch):
    """The process model has a label for each step, the outcome model for each solution."""
    monkeypatch.setattr(module, "PRM", ProcessRewardConfig(epochs=1, batch_size=6))
    monkeypatch.setattr(module, "ORM", OutcomeRewardConfig(epochs=1, batch_size=6))
    solutions, asked, seen = labelled(), [], []
    learn = module.train_process_reward

    def watch(model, tokenizer, read, config, **options):
        seen.append((type(config), [solution.labels for solution in read]))
        return learn(model, tokenizer, read, config, **options)

    def make():
        asked.append(1)
        return solutions

    monkeypatch.setattr(module, "train_process_reward", watch)
    log = Log()
    prm, orm = train_verifiers(in_memory(log), MODEL, TOKENIZER, make, seed=0)
    assert asked == [1] and len(log) == 2
    assert [kind for kind, _ in seen] == [ProcessRewardConfig, OutcomeRewardConfig]
    assert seen[0][1] == [s.labels for s in solutions]
    assert seen[1][1] == [(None,) * (len(s.labels) - 1) + s.labels[-1:] for s in solutions]
    assert not weights(prm).equal(weights(orm))
    prompt, ids = TOKENIZER.encode_prompt("1+1="), TOKENIZER.encode("1,2")
    assert len(step_verifier(prm, TOKENIZER)([prompt], [ids])[0]) == 2
    assert 0 < outcome_verifier(orm, TOKENIZER)([prompt], [ids])[0] < 1


@pytest.mark.parametrize("change", [{"largest": 0}, {"expansions": 0}, {"temperature": 0.0},
                                    {"max_new_tokens": 0}, {"largest": 2.5},
                                    {"expansions": 6}])
def test_numbers_out_of_range(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        SearchConfig(**change)


def test_presets():
    """search-and-learn: temperature 0.8, a beam width of 4; N of Math-Shepherd is 8."""
    config = SearchConfig(**SEARCH_PRESETS["search-and-learn"].numbers)
    assert (config.temperature, config.expansions, config.largest) == (0.8, 4, 256)
    assert SearchConfig(**SEARCH_PRESETS["toy"].numbers) == SearchConfig() and COMPLETIONS == 8
