"""PPO as TRL had it up to version 1.12: rewards, advantages and losses from its own statements. Skipped where TRL is not installed, or is newer.

TRL's PPO is one method, train(), that cannot be called in parts. Its statements are cut out of that method's syntax tree, unchanged, and run on given
tensors: from the masks to the returns, the whitening, and from the value clip to the loss. Where a cut no longer fits, test_the_cuts fails.
All of it is in float64.
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

ppo = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="no TRL with a PPO trainer: python -m pip install --no-deps 'trl==1.12.0'")

TREE = ast.parse(textwrap.dedent(inspect.getsource(ppo.PPOTrainer.train)))
CUTS = {
    "rewards": ("response_idxs = ", "rewards[actual_start, actual_end] += scores"),
    "whitened rewards": ("if args.whiten_rewards:", "if args.whiten_rewards:"),
    "returns": ("lastgaelam = 0", "returns = advantages + values"), "whitened": ("advantages = masked_whiten(", "advantages = torch.masked_fill("),
    "loss": ("vpredclipped = ", "loss = pg_loss + "), "approxkl": ("approxkl = ", "approxkl = "),
}


def cut(name):
    """The statements from the one that starts with the first text to the one that starts with the second, in one block of train()."""
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
    """Execute the cuts in PPOTrainer's module, with the tensors and options they read, and return all that they set."""
    scope = {**vars(ppo), **variables, "self": SimpleNamespace(args=variables["args"])}
    for name in names:
        exec(compile(ast.Module(cut(name), []), "PPOTrainer.train", "exec"), scope)
    return SimpleNamespace(**{name: x for name, x in scope.items() if name.isidentifier()})


def options(**changes):
    return SimpleNamespace(**{"kl_coef": 0.05, "kl_estimator": "k1", "whiten_rewards": False, "gamma": 1.0, "lam": 0.95, "cliprange": 0.2,
                              "cliprange_value": 0.2,
                              "vf_coef": 0.1, **changes})


LENGTHS = torch.tensor([6, 3, 1, 5, 4, 6])   # the first and the last row are full: no slot behind their EOS
MASK = (torch.arange(6) < LENGTHS[:, None]).long()
BEHIND = (torch.arange(6) < LENGTHS[:, None] + 1).long()                                        # one slot more


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def rollouts(args, names=("rewards", "whitened rewards", "returns"), mask=MASK, **tensors):
    given = {"logprobs": -1 - normal(6, 6, seed=0).abs(), "ref_logprobs": -1 - normal(6, 6, seed=1).abs(), "values": normal(6, 6, seed=2),
             "scores": normal(6, seed=3)}
    given.update(tensors)
    fresh = {name: x.clone() for name, x in given.items()}                                      # rewards[...] += scores writes
    return given, run(names, args=args, responses=torch.zeros_like(mask), sequence_lengths=mask.sum(1) - 1, **fresh)


def test_the_cuts():
    for name in CUTS:
        assert cut(name)


@pytest.mark.parametrize("estimator", [k1, k3])
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_deviation_score_behind_the_eos(estimator, gamma, lam):
    """TRL adds the score one slot behind the EOS, where the value model's answer to the EOS itself stands; a row that fills the budget has no such
    slot and gets it on its last token. With a mask one slot longer than the completion (its log-probs equal there: no KL) our rewards, advantages and
    returns are TRL's. With gamma = lambda = 1 the place makes no difference to the completion's own tokens: the advantage is the score minus V."""
    given, theirs = rollouts(options(kl_estimator=estimator.__name__, gamma=gamma, lam=lam))
    logp, ref = (given[name].masked_fill(MASK == 0, 1.0) for name in ("logprobs", "ref_logprobs"))
    rewards = kl_shaped_rewards(given["scores"], logp, ref, BEHIND, 0.05, estimator=estimator, allow_biased=True)
    adv, returns = gae(rewards, given["values"], BEHIND, gamma=gamma, lam=lam)
    for ours, name in ((rewards, "rewards"), (adv, "advantages"), (returns, "returns")):
        torch.testing.assert_close(ours, getattr(theirs, name), atol=1e-10, rtol=0)
    full = MASK.bool().all(1)
    on_eos = gae(kl_shaped_rewards(given["scores"], logp, ref, MASK, 0.05, estimator=estimator, allow_biased=True), given["values"], MASK,
                 gamma=gamma, lam=lam)[0]
    torch.testing.assert_close(on_eos[full], theirs.advantages[full], atol=1e-10, rtol=0)
    apart = ((on_eos - theirs.advantages).abs() * MASK)[~full].amax(1)
    assert apart.max() < 1e-10 if gamma * lam == 1 else apart.min() > 1e-3


def test_deviation_score_behind_the_eos_by_hand():
    """Score 1, V = .5 .6 .8, gamma 1, lambda .95. On the EOS: .2, .2 + .95 * .2 = .39, .1 + .95 * .39 = .4705. TRL with V = .9 behind it: 1 - .9 =
    .1, .9 - .8 + .95 * .1 = .195, .2 + .95 * .195 = .38525, .1 + .95 * .38525 = .4659875. In one batch with full rows: two different problems."""
    values, mask, zero = torch.tensor([[0.5, 0.6, 0.8, 0.9]]).double(), torch.tensor([[1, 1, 1, 0]]), torch.zeros(1, 4).double()
    score = torch.ones(1).double()
    _, theirs = rollouts(options(kl_coef=0.0), mask=mask, values=values, scores=score, logprobs=zero, ref_logprobs=zero)
    assert theirs.advantages[0].tolist() == pytest.approx([0.4659875, 0.38525, 0.195, 0.1])
    assert gae(kl_shaped_rewards(score, zero, zero, mask, 0.0), values, mask)[0][0].tolist() == pytest.approx([0.4705, 0.39, 0.2, 0.0])


def test_whitening():
    """Advantages: mean 0 and Bessel's variance over the sampled tokens of the whole batch; returns keep the raw ones. Rewards: scaled, not
    shifted."""
    _, raw = rollouts(options())
    _, white = rollouts(options(), names=("rewards", "whitened rewards", "returns", "whitened"))
    torch.testing.assert_close(masked_whiten(raw.advantages, MASK), white.advantages, atol=1e-7, rtol=0)
    torch.testing.assert_close(raw.returns, white.returns, atol=0, rtol=0)
    _, scaled = rollouts(options(whiten_rewards=True), names=("rewards", "whitened rewards"))
    torch.testing.assert_close(masked_whiten(raw.rewards, BEHIND, shift_mean=False), scaled.rewards, atol=1e-7, rtol=0)


def update(args, seed=0):
    """One micro-batch: log-probs and values that have moved, under the masks TRL puts on them."""
    given, before = rollouts(args, names=("rewards", "whitened rewards", "returns", "whitened"))
    logp = (before.logprobs + normal(6, 6, seed=seed + 10, scale=0.4)).requires_grad_()
    values = (before.values + normal(6, 6, seed=seed + 11, scale=0.4)).requires_grad_()
    theirs = run(("loss", "approxkl"), args=args, micro_batch_inds=slice(None), padding_mask=before.padding_mask,
                 padding_mask_p1=before.padding_mask_p1,
                 new_logprobs=logp.masked_fill(before.padding_mask, ppo.INVALID_LOGPROB), vpred=values.masked_fill(before.padding_mask_p1, 0),
                 mb_values=before.values, mb_return=before.returns, mb_logprobs=before.logprobs, mb_advantage=before.advantages)
    return before, logp, values, theirs


@pytest.mark.parametrize("changes", [{}, {"cliprange": 0.5, "cliprange_value": 0.05, "vf_coef": 1.0}], ids=["defaults", "other bounds"])
def test_policy_and_value_loss(changes):
    """Policy: mean over the sampled tokens. Value: half the larger square, mean over the sampled tokens and the slot behind them."""
    args = options(**changes)
    before, logp, values, theirs = update(args)
    surrogate = clipped_surrogate(logp, before.logprobs, before.advantages, clip_low=args.cliprange, clip_high=args.cliprange)
    value = clipped_value_loss(values, before.values, before.returns, clip=args.cliprange_value)
    policy_loss, value_loss = -aggregate(surrogate, MASK, "token_mean"), aggregate(value, BEHIND, "token_mean")
    ours = policy_loss + args.vf_coef * value_loss
    for mine, other in ((policy_loss, theirs.pg_loss), (value_loss, theirs.vf_loss), (ours, theirs.loss)):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0)
    for mine, other in zip(torch.autograd.grad(ours, (logp, values)), torch.autograd.grad(theirs.loss, (logp, values))):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0)
        assert other.abs().max() > 1e-3
    ratio = (logp - before.logprobs).exp()
    clipped = ((ratio > 1 + args.cliprange) & (before.advantages > 0) | (ratio < 1 - args.cliprange) & (before.advantages < 0)) & MASK.bool()
    assert clipped.any() and ((values - before.values).abs() > args.cliprange_value).any()


def test_deviation_approxkl_over_the_padding():
    """TRL logs half the mean squared log-ratio over all slots, padding included (0 there): 25 of 36 slots hold a token, so
    it logs 25/36 of the mean over tokens."""
    before, logp, _, theirs = update(options())
    ours = masked_mean(k2(logp.detach(), before.logprobs), MASK)
    torch.testing.assert_close(theirs.approxkl.detach(), ours * 25 / 36, atol=1e-10, rtol=0)
