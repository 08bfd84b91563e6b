"""What benchmarks/off_policy.py says of each objective, exactly, and the arms of
benchmarks/collapse.py.

The worlds are small enough to list every completion: expectations are sums in float64.
"""

import random

import pytest
import torch

from minirl.testing.oracle import Oracle
from minirl.train.presets import check_flags
from tests.benchmark_modules import imported

NAMES = ("at_once", "collapse", "collapse_report", "collapse_tuning", "off_policy",
         "off_policy_report")


@pytest.fixture(scope="module")
def modules():
    with imported(*NAMES) as modules:
        yield modules


@pytest.fixture(scope="module")
def study(modules):
    return modules["off_policy"]


@pytest.fixture(scope="module")
def points(study):
    """Four worlds, near the sampler and far from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "WORLDS", 4)
        patch.setattr(study, "MOVES", (0, 1, 12))
        return study.worlds()


def of(points, method, step):
    return [point for point in points if (point["method"], point["step"]) == (method, step)]


# ---- exactly

def test_at_the_sampler_all_methods_are_one(study, points):
    """K = 0: every ratio is 1, so every expected gradient is that of E[r], in direction and
    length, and a sample is as noisy with one method as with another."""
    for method in study.METHODS:
        for point, plain in zip(of(points, method.name, 0), of(points, "no correction", 0),
                                strict=True):
            assert point["drift"] == 0
            assert point["cosine"] == pytest.approx(1, abs=1e-12)
            assert point["length"] == pytest.approx(1, abs=1e-12)
            assert point["noise"] == pytest.approx(plain["noise"], rel=1e-12)


def test_the_whole_ratio_has_no_bias_at_any_distance(study, points):
    assert min(point["drift"] for point in of(points, study.EXACT, 12)) > 0.3
    for step in (1, 12):
        for point in of(points, study.EXACT, step):
            assert point["cosine"] == pytest.approx(1, abs=1e-10)
            assert point["length"] == pytest.approx(1, abs=1e-10)


def test_all_others_are_biased_and_those_that_hold_back_turn_round(study, points):
    """Far from the sampler, in the direction that rewards point in, what a clip leaves over are the
    tokens that went against their advantage: PPO's, GSPO's and DPPO's expected gradients point
    another way than the right one, and token ratios that nothing cuts lead nearly as it does."""
    def cosines(name):
        return [point["cosine"] for point in of(points, name, 12)]

    for method in study.METHODS[:-1]:
        assert max(cosines(method.name)) < 0.9999
    assert max(cosines("PPO clip")) < 0
    assert max(cosines("GSPO")) < 0.1
    assert min(cosines("CISPO")) > 0.9
    assert min(cosines("no correction")) > 0.85


def test_gspo_turns_round_at_once(points):
    """Its region is a ten-thousandth wide: one small step, of which PPO's clip notices nothing."""
    assert max(point["cosine"] for point in of(points, "GSPO", 1)) < -0.3
    assert min(point["cosine"] for point in of(points, "PPO clip", 1)) > 0.99


def test_without_correction_the_length_is_wrong_and_not_the_direction(points):
    for point in of(points, "no correction", 12):
        assert point["cosine"] > 0.85
        assert not 0.6 < point["length"] < 1.7


@pytest.mark.parametrize("index", range(7))
def test_noise_is_the_variance_of_the_gradients_of_single_completions(study, index):
    """Each completion's gradient by itself, and the variance around their mean under μ."""
    method, oracle = study.METHODS[index], Oracle(3, 3, 2)
    policy, behavior_logp = oracle.table(seed=1), oracle.logp(oracle.table(seed=2)).detach()
    rewards = oracle.random(seed=3)
    found = study.exact_row(method, oracle, policy, behavior_logp, rewards)
    logp, p = oracle.logp(policy), oracle.prob(behavior_logp)
    right = oracle.gradient(policy, oracle.mean(logp, rewards))
    adv = (rewards - (p * rewards).sum())[:, None] * oracle.mask
    value = study.surrogate(method, logp, behavior_logp, adv, oracle.mask) * oracle.mask
    each = torch.stack([oracle.gradient(policy, row.sum()) for row in value])  # (N, parameters)
    mean = (p[:, None] * each).sum(0)
    noise = (p * (each - mean).square().sum(1)).sum().sqrt() / right.norm()
    assert found["noise"] == pytest.approx(noise.item(), rel=1e-9)
    assert found["length"] == pytest.approx((mean.norm() / right.norm()).item(), rel=1e-9)
    assert found["cosine"] == pytest.approx((mean @ right / mean.norm() / right.norm()).item())


def test_a_policy_that_learns_exactly(study, monkeypatch):
    """From its own completions every method takes the same way. From old ones the exact weight is
    no worse for it after a while, and GSPO's narrow region holds it back."""
    monkeypatch.setattr(study, "UPDATES", 24)
    plain, clip, gspo, exact = (study.METHODS[i] for i in (0, 1, 4, -1))
    own = study.learn_exactly(plain, 1, 0)
    assert own[-1] > own[0] + 0.5
    for method in (clip, gspo, exact):
        assert study.learn_exactly(method, 1, 0) == pytest.approx(own, abs=1e-9)
    old, narrow = study.learn_exactly(exact, 1, 4), study.learn_exactly(gspo, 1, 4)
    assert old[:2] == pytest.approx(own[:2]) and old[-1] > own[-1] - 0.1
    assert narrow[-1] - narrow[0] < (own[-1] - own[0]) / 3


def test_drift_by_hand(study):
    """One token of two, μ = 1/2 each, π = (1/4, 3/4): (ln 2 + ln 3/2) / 2."""
    oracle = Oracle(2, 1)
    logp = torch.tensor([[0, 0.25], [0, 0.75]], dtype=torch.float64).log().clamp(min=-9)
    half = torch.full_like(logp, 0.5).log()
    behavior_logp = torch.where(oracle.mask, half, 0)
    logp = torch.where(oracle.mask, logp, 0)
    assert study.drift(oracle, logp, behavior_logp) == pytest.approx(0.5493061)


def test_medians_lie_on_the_line_between_steps(modules):
    """At drift 1 the first world has 0.5 (between 1 at 0 and 0 at 2), the others 0.2 and 0.8."""
    method = modules["off_policy"].METHODS[0]
    rows = [(0, 0, 1.0), (0, 2, 0.0), (1, 0, 1.0), (1, 1, 0.2), (2, 0, 1.0), (2, 1, 0.8)]
    exact = [{"world": world, "method": method.name, "drift": drift, "cosine": cosine}
             for world, drift, cosine in rows]
    assert modules["off_policy_report"].medians(exact, method, "cosine", [0, 1]) == [1, 0.5]


# ---- the arms of collapse.py

@pytest.mark.parametrize("seed", range(3))
def test_a_run_reads_the_same_sums_in_every_step(modules, seed):
    """... each once in a step, and none of those that it is asked afterwards."""
    task = modules["collapse"].FixedSums(seed)
    steps = [[p.prompt for p in task.sample(8, random.Random(step))] for step in range(20)]
    assert all(len(set(prompts)) == 8 for prompts in steps)
    train = {prompt for prompts in steps for prompt in prompts}
    held_out = {p.prompt for p in task.sample(64, random.Random(0), split="test")}
    assert len(train) == 16 and len(held_out) > 50 and not train & held_out


def test_the_arms_of_both_files_say_what_differs(modules):
    """A preset reads each number of its arm, and every remedy was tuned at the strength that it
    has; the others have none to tune."""
    arms, tuned = modules["collapse"].ARMS, modules["collapse_tuning"].ARMS
    for arm in (*arms, *tuned):
        check_flags("grpo", arm.preset, list(arm.numbers), arm.config)
        assert arm.config.steps == 240 and arm.config.aggregate == "token_mean"
    assert {arm.name for arm in arms if arm not in tuned} == {
        "strong adaptive bonus", "smaller steps", "fresh sums"}


def test_what_the_table_of_outcomes_says_of_two_seeds(modules):
    """Means over the steps and looks it is given, then over seeds."""
    steps = [{"entropy": [0.1, 0.3], "frac_reward_zero_std": [0.5, 0.5], "reward": [1.0, 0.5]},
             {"entropy": [0.4, 0.4], "frac_reward_zero_std": [1.0, 0.0], "reward": [0.0, 0.5]}]
    looks = [[{"pass": 1.0, "different": 4, "accuracy": 0.2}],
             [{"pass": 0.5, "different": 2, "accuracy": 0.5},
              {"pass": 0.5, "different": 4, "accuracy": 0.7}]]
    assert modules["collapse_report"].cells(steps, looks) == [
        "0.300", "50%", "0.500", "0.750", "3.5", "0.400", "0.200 / 0.600"]


# ---- the toy

def test_an_answer_is_digits_that_are_worth_the_sum(modules):
    texts = ["132", "0132", "13", "", "-132", "132 ", "1x2", "047"]
    judged = modules["at_once"].equal([""] * 8, texts, ["132"] * 7 + ["47"])
    assert judged == [1, 1, 0, 0, 0, 0, 0, 1]


def test_the_end_of_a_run_is_a_mean_of_its_last_looks(modules):
    looks = [{"step": i, "accuracy": accuracy} for i, accuracy in enumerate((0, 0.1, 0.2, 0.6))]
    assert modules["off_policy_report"].end({"looks": looks}) == pytest.approx(0.3)
