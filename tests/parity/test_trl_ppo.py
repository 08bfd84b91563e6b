"""PPO as TRL had it up to version 1.12: rewards, advantages and losses from its own statements.
Skipped where TRL is not installed, or is newer.

TRL's PPO is one method, train(), which cannot be called in parts. So its statements are cut out of
that method's syntax tree, unchanged, and run on given tensors: from the masks to the returns, the
whitening, and from the value clip to the loss. Where a cut no longer fits, test_the_cuts fails. All
numbers are float64.
"""

import ast
import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch

from minirl.equations.advantages import gae
from minirl.equations.kl import k1, k2, k3, kl_shaped_rewards
from minirl.equations.objectives import clipped_surrogate, clipped_value_loss
from minirl.equations.reduce import aggregate, masked_mean, masked_whiten
from tests.parity.trl_stand_ins import assert_close, normal

ppo = pytest.importorskip(
    "trl.experimental.ppo.ppo_trainer",
    reason="no TRL with a PPO trainer: python -m pip install --no-deps 'trl==1.12.0'")

TREE = ast.parse(textwrap.dedent(inspect.getsource(ppo.PPOTrainer.train)))
# by name: how the first statement of a cut starts, and the last one
CUTS = {
    "rewards": ("response_idxs = ", "rewards[actual_start, actual_end] += scores"),
    "whitened rewards": ("if args.whiten_rewards:", "if args.whiten_rewards:"),
    "returns": ("lastgaelam = 0", "returns = advantages + values"),
    "whitened": ("advantages = masked_whiten(", "advantages = torch.masked_fill("),
    "loss": ("vpredclipped = ", "loss = pg_loss + "),
    "approxkl": ("approxkl = ", "approxkl = "),
}
TO_RETURNS = ("rewards", "whitened rewards", "returns")
LENGTHS = torch.tensor([6, 3, 1, 5, 4, 6])      # the first and the last row have no slot after EOS
MASK = (torch.arange(6) < LENGTHS[:, None]).long()  # (B, T)
BEHIND = (torch.arange(6) < LENGTHS[:, None] + 1).long()  # (B, T): MASK with one slot more


def cut(name):
    """Return the statements of a cut, which stand in one block of train()."""
    first, last = CUTS[name]
    for node in ast.walk(TREE):
        body = getattr(node, "body", None)
        texts = [ast.unparse(statement) for statement in body] if isinstance(body, list) else []
        start = [i for i, text in enumerate(texts) if text.startswith(first)]
        stop = [i for i, text in enumerate(texts) if text.startswith(last)]
        if start and stop:
            return body[start[0]:stop[-1] + 1]
    raise LookupError(f"PPOTrainer.train has no statements from {first!r} to {last!r} any more")


def run(names, **variables):
    """Execute cuts in PPOTrainer's module with the variables that they read, and return all
    variables, also those that they set."""
    scope = {**vars(ppo), **variables, "self": SimpleNamespace(args=variables["args"])}
    for name in names:
        exec(compile(ast.Module(cut(name), []), "PPOTrainer.train", "exec"), scope)
    return SimpleNamespace(**{name: x for name, x in scope.items() if name.isidentifier()})


def options(**changes):
    return SimpleNamespace(**{
        "kl_coef": 0.05,
        "kl_estimator": "k1",
        "whiten_rewards": False,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        **changes,
    })


def rollouts(args, names=TO_RETURNS, mask=MASK, **tensors):
    """Return the tensors of a batch, and the variables after TRL's statements."""
    batch = {
        "logprobs": -1 - normal(6, 6, seed=0).abs(),
        "ref_logprobs": -1 - normal(6, 6, seed=1).abs(),
        "values": normal(6, 6, seed=2),
        "scores": normal(6, seed=3),
        **tensors,
    }
    copies = {name: x.clone() for name, x in batch.items()}     # TRL's statements write to them
    theirs = run(names, args=args, responses=torch.zeros_like(mask),
                 sequence_lengths=mask.sum(1) - 1, **copies)
    return batch, theirs


@pytest.mark.parametrize("name", CUTS)
def test_the_cuts(name):
    assert cut(name)


def our_rewards(batch, mask, estimator=k1):
    logp, ref = batch["logprobs"], batch["ref_logprobs"]
    return kl_shaped_rewards(batch["scores"], logp, ref, mask, 0.05, estimator=estimator,
                             allow_biased=True)


every_discount = pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
every_estimator = pytest.mark.parametrize("estimator", [k1, k3])


@every_estimator
@every_discount
def test_deviation_score_behind_the_eos(estimator, gamma, lam):
    """TRL adds the score one slot after the EOS, where the value model's answer to the EOS itself
    stands. A row that fills the budget has no such slot, and has the score on its last token.

    With a mask one slot longer than the completion, and no KL there, our rewards, advantages and
    returns are TRL's.
    """
    args = options(kl_estimator=estimator.__name__, gamma=gamma, lam=lam)
    batch, theirs = rollouts(args)
    for name in ("logprobs", "ref_logprobs"):
        batch[name] = batch[name].masked_fill(MASK == 0, 1.0)           # equal: the KL is 0
    rewards = our_rewards(batch, BEHIND, estimator)
    adv, returns = gae(rewards, batch["values"], BEHIND, gamma=gamma, lam=lam)
    assert_close(rewards, theirs.rewards)
    assert_close(adv, theirs.advantages)
    assert_close(returns, theirs.returns)


@every_estimator
@every_discount
def test_deviation_score_behind_the_eos_changes_the_advantages(estimator, gamma, lam):
    """With the score on the EOS, as ours has it, full rows are TRL's and all others differ. With
    γ = λ = 1 the place makes no difference to the completion's own tokens: the advantage is the
    score, minus the KL that follows, minus V."""
    args = options(kl_estimator=estimator.__name__, gamma=gamma, lam=lam)
    batch, theirs = rollouts(args)
    rewards = our_rewards(batch, MASK, estimator)
    on_eos, _ = gae(rewards, batch["values"], MASK, gamma=gamma, lam=lam)
    full = MASK.bool().all(1)
    assert_close(on_eos[full], theirs.advantages[full])
    difference = ((on_eos - theirs.advantages).abs() * MASK)[~full].amax(1)
    if gamma * lam == 1:
        assert difference.max() < 1e-10
    else:
        assert difference.min() > 1e-3


def test_deviation_score_behind_the_eos_by_hand():
    """Score 1, V = 0.5, 0.6, 0.8, γ = 1 and λ = 0.95. Ours, from the EOS back: 1 - 0.8 = 0.2, then
    0.8 - 0.6 + 0.95 * 0.2 = 0.39, then 0.6 - 0.5 + 0.95 * 0.39 = 0.4705.

    TRL, with V = 0.9 after the EOS: 1 - 0.9 = 0.1, then 0.9 - 0.8 + 0.95 * 0.1 = 0.195, then
    0.2 + 0.95 * 0.195 = 0.38525, then 0.1 + 0.95 * 0.38525 = 0.4659875. So in one batch, full rows
    and the others have two different problems.
    """
    values = torch.tensor([[0.5, 0.6, 0.8, 0.9]]).double()
    mask, zero = torch.tensor([[1, 1, 1, 0]]), torch.zeros(1, 4).double()
    score = torch.ones(1).double()
    _, theirs = rollouts(options(kl_coef=0.0), mask=mask, values=values, scores=score,
                         logprobs=zero, ref_logprobs=zero)
    assert theirs.advantages[0].tolist() == pytest.approx([0.4659875, 0.38525, 0.195, 0.1])
    ours, _ = gae(kl_shaped_rewards(score, zero, zero, mask, 0.0), values, mask)
    assert ours[0].tolist() == pytest.approx([0.4705, 0.39, 0.2, 0.0])


def test_whitened_advantages():
    """Mean 0 and Bessel's variance over the sampled tokens of the whole batch. Returns are of the
    advantages before."""
    _, raw = rollouts(options())
    _, white = rollouts(options(), names=(*TO_RETURNS, "whitened"))
    assert_close(masked_whiten(raw.advantages, MASK), white.advantages, atol=1e-7)
    assert_close(raw.returns, white.returns, atol=0)


def test_whitened_rewards():
    """Scaled, and not shifted."""
    _, raw = rollouts(options())
    _, scaled = rollouts(options(whiten_rewards=True), names=("rewards", "whitened rewards"))
    assert_close(masked_whiten(raw.rewards, BEHIND, shift_mean=False), scaled.rewards, atol=1e-7)


def update(args):
    """Return what an update starts from, log-probs and values that have moved since (leaves), and
    TRL's losses of them under its masks."""
    _, before = rollouts(args, names=(*TO_RETURNS, "whitened"))
    logp = (before.logprobs + normal(6, 6, seed=10, scale=0.4)).requires_grad_()
    values = (before.values + normal(6, 6, seed=11, scale=0.4)).requires_grad_()
    theirs = run(
        ("loss", "approxkl"),
        args=args,
        micro_batch_inds=slice(None),
        padding_mask=before.padding_mask,
        padding_mask_p1=before.padding_mask_p1,
        new_logprobs=logp.masked_fill(before.padding_mask, ppo.INVALID_LOGPROB),
        vpred=values.masked_fill(before.padding_mask_p1, 0),
        mb_values=before.values,
        mb_return=before.returns,
        mb_logprobs=before.logprobs,
        mb_advantage=before.advantages,
    )
    return before, logp, values, theirs


both_bounds = pytest.mark.parametrize("changes", [
    {},
    {"cliprange": 0.5, "cliprange_value": 0.05, "vf_coef": 1.0},
], ids=["defaults", "other bounds"])


@both_bounds
def test_policy_and_value_loss(changes):
    """The policy's is a mean over the sampled tokens. The value function's is half the larger
    square, a mean over the sampled tokens and the slot after them."""
    args = options(**changes)
    before, logp, values, theirs = update(args)
    surrogate = clipped_surrogate(logp, before.logprobs, before.advantages,
                                  clip_low=args.cliprange, clip_high=args.cliprange)
    errors = clipped_value_loss(values, before.values, before.returns, clip=args.cliprange_value)
    policy_loss = -aggregate(surrogate, MASK, "token_mean")
    value_loss = aggregate(errors, BEHIND, "token_mean")
    loss = policy_loss + args.vf_coef * value_loss
    assert_close(policy_loss, theirs.pg_loss)
    assert_close(value_loss, theirs.vf_loss)
    assert_close(loss, theirs.loss)

    ours = torch.autograd.grad(loss, (logp, values))
    for gradient, expected in zip(ours, torch.autograd.grad(theirs.loss, (logp, values)),
                                  strict=True):
        assert_close(gradient, expected)
        assert expected.abs().max() > 1e-3


@both_bounds
def test_the_update_is_clipped_somewhere(changes):
    """Otherwise the test above could agree without any clip."""
    args = options(**changes)
    before, logp, values, _ = update(args)
    ratio = (logp - before.logprobs).exp()
    above = (ratio > 1 + args.cliprange) & (before.advantages > 0)
    below = (ratio < 1 - args.cliprange) & (before.advantages < 0)
    assert ((above | below) & MASK.bool()).any()
    assert ((values - before.values).abs() > args.cliprange_value).any()


def test_deviation_approxkl_over_the_padding():
    """TRL logs half the mean squared log-ratio over all slots, with 0 in the padding. 25 of 36
    slots have a token, so it logs 25/36 of the mean over tokens."""
    before, logp, _, theirs = update(options())
    ours = masked_mean(k2(logp.detach(), before.logprobs), MASK)
    assert_close(theirs.approxkl.detach(), ours * 25 / 36)
