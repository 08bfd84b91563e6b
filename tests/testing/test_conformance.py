"""check accepts every equation, in every form, and names what is wrong with a wrong one."""

import functools

import numpy as np
import pytest
import torch

from minirl.equations.advantages import group_advantages
from minirl.equations.kl import k3
from minirl.equations.objectives import clipped_surrogate, sequence_clipped_surrogate
from minirl.equations.reduce import aggregate
from minirl.lm.logprobs import token_logprobs
from minirl.testing.conformance import check, properties, targets
from minirl.testing.others import completion_mask
from minirl.testing.slips import SLIPS


@pytest.mark.parametrize("name", targets())
def test_every_equation_agrees_with_itself(name):
    report = check(targets()[name].function, name, strict=True)
    assert report.ok, str(report)
    assert set(report.properties.values()) == {"holds"}


@pytest.mark.parametrize("name, slip", [(name, slip) for name, slips in SLIPS.items()
                                        for slip in slips], ids=lambda x: getattr(
                                            getattr(x, "function", None), "__name__", str(x)))
def test_a_planted_slip_is_named(name, slip):
    report = check(slip.function, name)
    assert not report.ok
    assert {failure.diagnosis for failure in report.failures} == {slip.text}
    assert report.failures[0].choice == slip.choice


def tool_mask_as_attention_mask(model, tokens, *, mask, temperature=1.0):
    """Reads the sampled tokens alone, and the prompt before the first of them."""
    out = torch.zeros(tokens.shape).double()
    for i, row in enumerate(mask.bool()):
        seen = row | (torch.arange(len(row)) < row.int().argmax())
        logp = token_logprobs(model, tokens[i, seen][None], mask=row[seen][None],
                              temperature=temperature)
        out[i, seen] = logp[0]
    return out


def eos_lost_with_pad(tokens, prompt_lengths, eos_id):
    """Drops padding by its id, and the EOS with it where both are the same."""
    ids = tokens == eos_id
    padded = ids.sum(1, keepdim=True) > 1
    return completion_mask(tokens, prompt_lengths, eos_id) & ~(padded & ids)


@pytest.mark.parametrize("name, function, words", [
    ("token_logprobs", tool_mask_as_attention_mask, "attention mask"),
    ("token_logprobs", lambda model, tokens, *, mask, temperature=1.0: token_logprobs(
        model, tokens, mask=mask), "temperature is forgotten"),
    ("completion_mask", eos_lost_with_pad, "lost where padding has its id"),
    ("accuracy", lambda prompts, completions, answer: [
        float(gold in text) if gold else None
        for text, gold in zip(completions, answer, strict=True)], ""),
])
def test_a_slip_that_one_property_shows(name, function, words):
    report = check(function, name)
    assert not report.ok
    assert words in report.failures[0].diagnosis


def loss_of(how):
    def loss(logp, old_logp, adv, mask):
        total = mask.numel() if how == "constant" else None
        return -aggregate(clipped_surrogate(logp, old_logp, adv), mask, how, total=total)

    return loss


@pytest.mark.parametrize("how", ["sequence_mean", "token_mean", "sequence_sum", "constant"])
def test_a_loss_that_returns_the_mean(how):
    assert check(loss_of(how), "clipped_surrogate", sign="minimise", reduced=how).ok
    other = "token_mean" if how == "sequence_mean" else "sequence_mean"
    report = check(loss_of(how), "clipped_surrogate", sign="minimise", reduced=other)
    assert not report.ok and report.failures[0].choice == (how != "constant")
    assert how in report.failures[0].diagnosis


def test_a_mask_that_multiplies_lets_nan_through():
    def loss(logp, old_logp, adv, mask):
        return (clipped_surrogate(logp, old_logp, adv) * mask).sum() / mask.sum()

    report = check(loss, "clipped_surrogate", reduced="token_mean")
    assert [failure.property for failure in report.failures] == [
        "what stands under the mask never matters"]
    assert "0 * NaN" in report.failures[0].diagnosis


def test_numpy_with_finite_differences():
    def numpy_k3(logp, ref_logp):
        return np.exp(ref_logp - logp) - (ref_logp - logp) - 1

    assert check(numpy_k3, "k3", arrays=np.asarray).ok

    def reversed_k3(logp, ref_logp):
        return np.exp(logp - ref_logp) - (logp - ref_logp) - 1

    report = check(reversed_k3, "k3", arrays=np.asarray)
    assert "turned over" in report.failures[0].diagnosis


@pytest.mark.parametrize("name, equation, options, how", [
    ("ppo", clipped_surrogate, {}, "token_mean"), ("grpo", clipped_surrogate, {}, "sequence_mean"),
    ("dapo", clipped_surrogate, {"clip_high": 0.28}, "token_mean")])
def test_a_recipe_is_an_equation_with_its_mean_and_numbers(name, equation, options, how):
    def loss(logp, old_logp, adv, mask):
        return -aggregate(equation(logp, old_logp, adv, **options), mask, how)

    assert check(loss, name, sign="minimise").ok
    wrong = {"ppo": "grpo", "grpo": "ppo", "dapo": "ppo"}[name]
    assert not check(loss, wrong, sign="minimise").ok


def test_a_loss_with_one_advantage_per_completion():
    def loss(logp, old_logp, adv, mask):
        assert adv.shape == logp.shape[:1]
        terms = clipped_surrogate(logp, old_logp, adv[:, None].expand(logp.shape).clone())
        return -aggregate(terms, mask, "sequence_mean")

    assert check(loss, "grpo", sign="minimise", per_sequence=["adv"]).ok
    assert not check(loss, "ppo", sign="minimise", per_sequence=["adv"]).ok


@pytest.mark.parametrize("name, function", [
    ("group_advantages", lambda rewards, *, eps=1e-4: torch.where(
        rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) < 1e-6, 0,
        (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + eps))),
    ("leave_one_out_advantages", lambda rewards: rewards - (
        rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)),
])
def test_a_textbook_function_is_right_though_it_knows_no_verdict_of_nan(name, function):
    assert check(function, name).ok, str(check(function, name))
    assert not check(function, name, strict=True).ok


def test_gspo_is_a_recipe():
    def loss(logp, old_logp, adv, mask):
        return -sequence_clipped_surrogate(logp, old_logp, adv, mask, clip_low=3e-4,
                                           clip_high=4e-4, length_normalised=True).mean()

    assert check(loss, "gspo", sign="minimise").ok


def test_options_that_are_built_in():
    def wide(logp, old_logp, adv):
        return clipped_surrogate(logp, old_logp, adv, clip_high=0.28)

    assert check(wide, "clipped_surrogate", fixed={"clip_high": 0.28}).ok
    assert not check(wide, "clipped_surrogate").ok


@pytest.mark.parametrize("factor, words", [(-1, "sign"), (0.5, "0.5 times")])
def test_a_sign_or_a_factor(factor, words):
    report = check(lambda logp, ref_logp: factor * k3(logp, ref_logp), "k3")
    assert words in report.failures[0].diagnosis


@pytest.mark.parametrize("name", ["entropy_mask", "clip_cov_mask", "kl_cov_mask", "geometric_mask",
                                  "off_policy_mask", "dynamic_sampling"])
def test_a_wrong_mask_is_a_failure_and_not_an_end(name):
    """bool has no abs: the report of a wrong mask once ended in a NotImplementedError."""
    right = targets()[name].function

    @functools.wraps(right)
    def wrong(*arguments, **options):
        return ~right(*arguments, **options)

    assert not check(wrong, name).ok


@pytest.mark.parametrize("value", [1e9, 1e30, float("inf"), -1e12])
@pytest.mark.parametrize("name", ["k3", "clipped_surrogate", "prefix_weights", "gae", "vespo",
                                  "group_advantages", "exact_kl", "sequence_ratio"])
def test_numbers_that_explode_everywhere_are_no_ratio(name, value):
    """What is huge was taken for a ratio whose cap is anybody's choice, and all of it was ok."""
    right = targets()[name].function

    @functools.wraps(right)
    def wrong(*arguments, **options):
        came = right(*arguments, **options)
        many = came if isinstance(came, tuple) else (came,)
        bad = tuple(x * 0 + value for x in many)
        return bad if isinstance(came, tuple) else bad[0]

    report = check(wrong, name)
    assert not report.ok and report.properties["golden values"] == "fails"


def test_a_cap_on_ratios_far_away_is_anybodys_choice():
    """At e^3 or at e^40, with the gradient that each of them has; not at e^0.2."""
    for cap in (0.2, 3.0, 40.0):
        def capped(logp, old_logp, adv, *, clip_low=0.2, clip_high=0.2, cap=cap):
            ratio = (logp - old_logp).clamp(max=cap).exp()
            return torch.minimum(ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv)

        assert check(capped, "clipped_surrogate").ok == (cap > 1)


def test_inputs_that_are_changed_are_named():
    def careless(logp, ref_logp):
        value = k3(logp, ref_logp)
        ref_logp.zero_()
        return value

    report = check(careless, "k3")
    assert "writes into its input ref_logp" in report.failures[0].diagnosis


def test_an_error_is_a_failure_and_not_an_end():
    def broken(logp, ref_logp):
        raise KeyError("oops")

    report = check(broken, "k3")
    assert set(report.properties.values()) == {"fails"}
    assert report.failures[0].came == "KeyError: 'oops'"


def test_one_property_alone():
    every = properties("k3")
    assert "a batch" in every and "expectation over all completions" in every
    report = check(k3, "k3", only="a batch")
    assert report.properties == {"a batch": "holds"}


@pytest.mark.parametrize("arguments, words", [
    ({"against": "k4"}, "k1"), ({"against": "k3", "sign": "up"}, "minimise"),
    ({"against": "k3", "reduced": "mean"}, "sequence_mean"),
    ({"against": "k3", "fixed": {"beta": 1}}, "no option 'beta'"),
    ({"against": "k3", "only": "colour"}, "no property"),
    ({"against": "k3", "arrays": np.float32}, "float64")])
def test_a_wrong_request_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        check(k3, **arguments)


def test_the_report_can_be_read():
    text = str(check(lambda logp, old_logp, adv: torch.maximum(
        (logp - old_logp).exp() * adv, (logp - old_logp).exp().clamp(0.8, 1.2) * adv),
        "clipped_surrogate"))
    assert "NOT ok" in text and "right is" in text and "clip truth table" in text


def test_strict_asks_for_no_gradient_through_constants_and_for_none_under_the_mask():
    def attached(logp, old_logp, adv):
        ratio = (logp - old_logp).clamp(max=20).exp()
        return torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)

    assert check(attached, "clipped_surrogate").ok
    assert not check(attached, "clipped_surrogate", strict=True).ok
    detached = check(lambda rewards: group_advantages(rewards.detach()), "group_advantages",
                     strict=True)
    assert detached.ok, str(detached)

    def masked_too_late(logp, old_logp, adv, mask):
        return aggregate(attached(logp, old_logp, adv), mask, "sequence_mean")

    assert check(masked_too_late, "grpo").ok
    assert "what stands under the mask never matters" in {
        failure.property for failure in check(masked_too_late, "grpo", strict=True).failures}


def test_strict_takes_numpy_too():
    def advantages(rewards):
        return (rewards - rewards.mean(1, keepdims=True)) / (
            rewards.std(1, ddof=1, keepdims=True) + 1e-4)

    assert check(advantages, "group_advantages", arrays=np.asarray).ok
    assert "not asked" in str(check(advantages, "group_advantages", arrays=np.asarray))
    check(advantages, "group_advantages", arrays=np.asarray, strict=True)


def test_a_slip_is_named_only_if_it_gives_all_that_came():
    """k3 whose ratio has no gradient has k1's gradient, and not k1's value."""
    def half_detached(logp, ref_logp):
        return (ref_logp - logp).detach().exp() - (ref_logp - logp) - 1

    report = check(half_detached, "k3")
    assert not report.ok and "k1" not in report.failures[0].diagnosis
    half = check(lambda logp, old_logp, adv: 0.5 * clipped_surrogate(logp, old_logp, adv),
                 "clipped_surrogate")
    assert {failure.diagnosis for failure in half.failures} == {
        "it is 0.5 times what is right, everywhere"}


def test_a_row_without_tokens_is_told_from_a_nan_under_the_mask():
    def loss(logp, old_logp, adv, mask):
        terms = torch.where(mask, clipped_surrogate(logp, old_logp, adv), 0)
        return (terms.sum(1) / mask.sum(1)).mean()

    failure, = check(loss, "grpo").failures
    assert failure.property == "B == T, and an empty row" and "0 / 0" in failure.diagnosis
    assert failure.inputs["mask"].shape == failure.inputs["logp"].shape


def test_a_mean_over_padding_is_no_convention():
    report = check(lambda logp, old_logp, adv, mask: torch.where(
        mask, clipped_surrogate(logp, old_logp, adv), 0).mean(), "ppo")
    assert "padding included" in report.failures[0].diagnosis and not report.failures[0].choice
