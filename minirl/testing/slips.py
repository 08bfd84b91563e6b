"""The slips that the field keeps making, as functions: what each of them computes.

`check` looks here for what came. A slip has the equation's argument names, and returns what the
equation returns. It is wrong on purpose: nothing may train with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirl.lm.logprobs import linear_logprobs, token_logprobs
from minirl.testing.further_slips import FURTHER


class Slip(NamedTuple):
    """What is wrong, in words, and the function that is wrong in this way.

    choice      another convention, which some paper or project has: no mistake
    reduces     the function returns the mean, and takes `mask_`
    """

    text: str
    function: Callable[..., Any]
    choice: bool = False
    reduces: bool = False


def _clips(logp: Tensor, old_logp: Tensor, adv: Tensor, clip_low: float, clip_high: float
           ) -> tuple[Tensor, Tensor]:
    ratio = (logp - old_logp).exp()
    return ratio * adv, ratio.clamp(1 - clip_low, 1 + clip_high) * adv


def inverted_clip(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
                  clip_high: float = 0.2) -> Tensor:
    plain, clipped = _clips(logp, old_logp, adv, clip_low, clip_high)
    return torch.where(adv < 0, torch.maximum(plain, clipped), torch.minimum(plain, clipped))


def clip_alone(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
               clip_high: float = 0.2) -> Tensor:
    return _clips(logp, old_logp, adv, clip_low, clip_high)[1]


def no_clip(logp: Tensor, old_logp: Tensor, adv: Tensor) -> Tensor:
    return (logp - old_logp).exp() * adv


def detached_ratio(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
                   clip_high: float = 0.2) -> Tensor:
    plain, clipped = _clips(logp.detach(), old_logp, adv, clip_low, clip_high)
    return torch.minimum(plain, clipped)


def reversed_ratio(logp: Tensor, old_logp: Tensor, adv: Tensor, *, clip_low: float = 0.2,
                   clip_high: float = 0.2) -> Tensor:
    return torch.minimum(*_clips(old_logp, logp, adv, clip_low, clip_high))


def reversed_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    return (logp - ref_logp).exp() - (logp - ref_logp) - 1


def k1_as_a_loss(logp: Tensor, ref_logp: Tensor) -> Tensor:
    return logp - ref_logp


# advantages

def _centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(1, keepdim=True)


def eps_in_the_root(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    return _centred(rewards) / (rewards.var(1, keepdim=True, correction=ddof) + eps).sqrt()


def other_ddof(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    adv = _centred(rewards) / (rewards.std(1, keepdim=True, correction=1 - ddof) + eps)
    return torch.where(rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True), 0, adv)


def rounding_over_eps(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    return _centred(rewards) / (rewards.std(1, keepdim=True, correction=ddof) + eps)


def rounding_over_a_tiny_eps(rewards: Tensor, *, ddof: int = 1) -> Tensor:
    return _centred(rewards) / (rewards.std(1, keepdim=True, correction=ddof) + 1e-8)


def eps_of_verl(rewards: Tensor, *, ddof: int = 1) -> Tensor:
    return _centred(rewards) / (rewards.std(1, keepdim=True, correction=ddof) + 1e-6)


def whole_batch(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    return (rewards - rewards.mean()) / (rewards.std(correction=ddof) + eps)


def not_centred(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    return rewards / (rewards.std(1, keepdim=True, correction=ddof) + eps)


def _others(rewards: Tensor) -> Tensor:
    """The rewards of the other samples, (P, G, G - 1)."""
    size = rewards.shape[1]
    others = [[j for j in range(size) if j != i] for i in range(size)]
    return rewards[:, torch.tensor(others, dtype=torch.long)]


def leave_one_out_std(rewards: Tensor) -> Tensor:
    others = _others(rewards)
    std = others.std(2)
    return torch.where(std > 0, (rewards - others.mean(2)) / std, 0)


def own_reward_in_the_mean(rewards: Tensor) -> Tensor:
    return _centred(rewards)


def _gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, *,
         decays: bool = False, last_value: bool = False) -> tuple[Tensor, Tensor]:
    """GAE that does not step over gaps (decays), or whose last state has its own value again."""
    adv = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])
    value = values[:, -1].clone() if last_value else torch.zeros_like(ahead)
    for t in reversed(range(values.shape[1])):
        sampled = mask[:, t].bool()
        present = torch.where(sampled, values[:, t], 0)
        reward = torch.where(sampled, rewards[:, t], 0)
        now = reward + gamma * value - present + gamma * lam * ahead
        ahead = now if decays else torch.where(sampled, now, ahead)
        value = present if decays else torch.where(sampled, values[:, t], value)
        adv[:, t] = torch.where(sampled, now, 0)
    return adv, torch.where(mask.bool(), adv + values, 0)


def gae_over_padding(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0,
                     lam: float = 0.95) -> tuple[Tensor, Tensor]:
    return _gae(rewards, values, mask, gamma, lam, decays=True)


def gae_with_a_value_after_the_end(rewards: Tensor, values: Tensor, mask: Tensor, *,
                                   gamma: float = 1.0, lam: float = 0.95
                                   ) -> tuple[Tensor, Tensor]:
    return _gae(rewards, values, mask, gamma, lam, last_value=True)


def returns_without_values(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0,
                           lam: float = 0.95) -> tuple[Tensor, Tensor]:
    adv, _ = _gae(rewards, values, mask, gamma, lam)
    return adv, adv


# the KL in the reward

def _shaped(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float, *,
            sign: float = 1.0, late: bool = False, everywhere: bool = False) -> Tensor:
    mask = mask.bool()
    out = torch.where(mask, -sign * kl_coef * (logp - ref_logp), 0)
    slots = torch.arange(mask.shape[1])
    last = (slots * mask).amax(1)                      # (B,)
    if everywhere:
        return out + torch.where(mask, scores[:, None], 0)
    position = (last + 1).clamp(max=mask.shape[1] - 1) if late else last
    out[torch.arange(len(out)), position] += scores
    return out


def score_one_slot_late(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor,
                        kl_coef: float) -> Tensor:
    return _shaped(scores, logp, ref_logp, mask, kl_coef, late=True)


def kl_with_the_wrong_sign(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor,
                           kl_coef: float) -> Tensor:
    return _shaped(scores, logp, ref_logp, mask, kl_coef, sign=-1)


def score_on_every_token(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor,
                         kl_coef: float) -> Tensor:
    return _shaped(scores, logp, ref_logp, mask, kl_coef, everywhere=True)


# sequences

def product_of_ratios(logp: Tensor, old_logp: Tensor, mask: Tensor, *, length_normalised: bool
                      ) -> Tensor:
    return torch.where(mask.bool(), logp - old_logp, 0).sum(1).exp()


def mean_over_padding(logp: Tensor, old_logp: Tensor, mask: Tensor, *, length_normalised: bool
                      ) -> Tensor:
    log_ratio = torch.where(mask.bool(), logp - old_logp, 0)
    return (log_ratio.mean(1) if length_normalised else log_ratio.sum(1)).exp()


def _log_ratio(logp: Tensor, old_logp: Tensor, mask: Tensor, length_normalised: bool) -> Tensor:
    log_ratio = torch.where(mask.bool(), logp - old_logp, 0).sum(1)
    return log_ratio / mask.sum(1).clamp(min=1) if length_normalised else log_ratio


def counted_per_token(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *,
                      clip_low: float, clip_high: float, length_normalised: bool) -> Tensor:
    ratio = _log_ratio(logp, old_logp, mask, length_normalised).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return mask.sum(1) * torch.minimum(ratio * adv, clipped * adv)


def clip_without_min(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor, *,
                     clip_low: float, clip_high: float, length_normalised: bool) -> Tensor:
    log_ratio = _log_ratio(logp, old_logp, mask, length_normalised)
    return log_ratio.exp().clamp(1 - clip_low, 1 + clip_high) * adv


# means

def _rows(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), x, 0).sum(1)


def own_count(x: Tensor, mask: Tensor, how: str, *, total: float | None = None) -> Tensor:
    """Divides by what it sees itself: a micro-batch by its own number, not by the batch's."""
    count = mask.sum(1).clamp(min=1)
    rows = _rows(x, mask)
    if how == "sequence_mean":
        return (rows / count).mean()
    numbers = {"token_mean": int(mask.sum()), "sequence_sum": len(x), "constant": mask.numel()}
    return rows.sum() / numbers[how]


def sum_of_tokens(x: Tensor, mask: Tensor, how: str, *, total: float | None = None) -> Tensor:
    return _rows(x, mask).sum()


def padded_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    x = torch.where(mask.bool(), x, 0)
    return x.mean() if dim is None else x.mean(dim)


# preferences and values

def _pairs(scores: Tensor) -> Tensor:
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    return -torch.nn.functional.logsigmoid(scores[:, better] - scores[:, worse])


def pairs_are_summed(scores: Tensor) -> Tensor:
    return _pairs(scores).sum(1)


def divided_by_k(scores: Tensor) -> Tensor:
    return _pairs(scores).sum(1) / scores.shape[1]


def swapped_pair(chosen: Tensor, rejected: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(rejected - chosen)


def without_a_reference(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor,
                        ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    return -torch.nn.functional.logsigmoid(beta * (logp_chosen - logp_rejected))


def swapped_reference(logp_chosen: Tensor, logp_rejected: Tensor, ref_chosen: Tensor,
                      ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    margin = (logp_chosen - ref_rejected) - (logp_rejected - ref_chosen)
    return -torch.nn.functional.logsigmoid(beta * margin)


def smaller_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float = 0.2
                       ) -> Tensor:
    near = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    return 0.5 * torch.minimum((values - returns).square(), (near - returns).square())


def without_the_half(values: Tensor, returns: Tensor) -> Tensor:
    return (values - returns).square()


# log-probs and masks

def without_a_shift(model: Any, tokens: Tensor, *, mask: Tensor, temperature: float = 1.0
                    ) -> Tensor:
    logp = (model.lm_head(model.hidden(tokens)) / temperature).log_softmax(-1)
    return torch.where(mask, logp.gather(2, tokens.unsqueeze(2)).squeeze(2), 0)


def temperature_after_the_softmax(model: Any, tokens: Tensor, *, mask: Tensor,
                                  temperature: float = 1.0) -> Tensor:
    return token_logprobs(model, tokens, mask=mask) / temperature


def no_temperature(hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0
                   ) -> Tensor:
    return linear_logprobs(hidden, weight, targets)


def eos_left_out(tokens: Tensor, prompt_lengths: Tensor, eos_id: int) -> Tensor:
    return (torch.arange(tokens.shape[1]) >= prompt_lengths[:, None]) & (tokens != eos_id)


SLIPS: dict[str, list[Slip]] = {
    "token_logprobs": [
        Slip("the shift by one is missing: the logits at t score token t + 1, not token t",
             without_a_shift),
        Slip("the temperature divides log-probs: it must divide the logits, before the softmax",
             temperature_after_the_softmax),
    ],
    "linear_logprobs": [
        Slip("the temperature is forgotten: the ratio to the sampler starts away from 1",
             no_temperature),
    ],
    "completion_mask": [
        Slip("every token with the EOS's id is masked: stopping is never trained, and what comes "
             "after it is", eos_left_out),
    ],
    "clipped_surrogate": [
        Slip("for A < 0 this takes the maximum: gradient 0 at ratio 1.5, where 1.5 A is right, "
             "and a gradient at ratio 0.5, where 0 is right; seen in reasoning-from-scratch's "
             "chapter 7", inverted_clip),
        Slip("the clip alone, without the min: a token that went the wrong way is not brought back",
             clip_alone),
        Slip("there is no clip: the same as long as each batch is used for one update", no_clip,
             choice=True),
        Slip("the ratio is detached: the value is right, and no gradient flows", detached_ratio),
        Slip("the ratio is turned over: old / new", reversed_ratio),
    ],
    "k3": [
        Slip("the ratio is turned over: its mean is not the KL; seen in rlhf-book", reversed_k3),
        Slip("this is k1: as a loss its mean gradient is 0; seen in reasoning-from-scratch's "
             "7_5_plus_kl.py", k1_as_a_loss),
    ],
    "k2": [
        Slip("this is k1: as a loss its mean gradient is 0; seen in reasoning-from-scratch's "
             "7_5_plus_kl.py", k1_as_a_loss),
    ],
    "kl_shaped_rewards": [
        Slip("the score stands one slot after the last token; seen in TRL's PPO",
             score_one_slot_late),
        Slip("the KL has the wrong sign: it rewards leaving the reference", kl_with_the_wrong_sign),
        Slip("the score stands on every token: a long answer collects it many times",
             score_on_every_token),
    ],
    "group_advantages": [
        Slip("the other ddof: std divides by n where n - 1 was asked for, or the other way round",
             other_ddof, choice=True),
        Slip("eps stands inside the root: sqrt(var + eps) is sqrt(eps) = 0.01 where eps is 1e-4",
             eps_in_the_root),
        Slip("equal rewards have advantages: rounding of the mean, divided by eps; compare max "
             "and min first", rounding_over_eps),
        Slip("eps is 1e-8, and equal rewards have advantages: rounding of the mean, divided by "
             "it; seen in tiny-grpo", rounding_over_a_tiny_eps),
        Slip("eps is 1e-6, as in verl; equal rewards get small advantages", eps_of_verl,
             choice=True),
        Slip("mean and std are the whole batch's: easy prompts are all good, hard ones all bad",
             whole_batch),
        Slip("the mean is not taken off: everything sampled is made likelier", not_centred),
    ],
    "leave_one_out_advantages": [
        Slip("it divides by the std of the others, which is 0 for the one right answer of a "
             "group: 1, 0, 0, 0 teaches nothing about it; seen in NeMo-RL", leave_one_out_std),
        Slip("the mean holds the sample's own reward: (G - 1) / G of what is right, Dr. GRPO's",
             own_reward_in_the_mean, choice=True),
    ],
    "gae": [
        Slip("it decays over padding and tool tokens: a gap in the mask is no step; seen in miles",
             gae_over_padding),
        Slip("after the last token it goes on with a value: the episode is over, V is 0",
             gae_with_a_value_after_the_end),
        Slip("the returns are the advantages: add the values", returns_without_values),
    ],
    "sequence_ratio": [
        Slip("it sums the log-ratios where their mean is asked for: the ratio grows with length",
             product_of_ratios),
        Slip("the mean counts padding: divide by the number of tokens", mean_over_padding),
    ],
    "sequence_clipped_surrogate": [
        Slip("it counts once per token: GSPO's objective counts once per sequence",
             counted_per_token),
        Slip("the clip alone, without the min", clip_without_min),
    ],
    "aggregate": [
        Slip("it divides by its own number: a mean of micro-batch means; pass the batch's total; "
             "seen in TRL's bnpo", own_count),
        Slip("it is a sum where a mean is meant: the step size grows with the batch",
             sum_of_tokens),
    ],
    "masked_mean": [
        Slip("it divides by all slots: padding makes entropy and KL look small; seen in TRL's PPO",
             padded_mean),
    ],
    "ranking_loss": [
        Slip("the pairs are summed: divide by C(K, 2)", pairs_are_summed),
        Slip("it divides by K: there are C(K, 2) pairs", divided_by_k),
    ],
    "bradley_terry_loss": [
        Slip("chosen and rejected are swapped", swapped_pair),
    ],
    "dpo_loss": [
        Slip("there is no reference: that is a loss of the log-prob margin alone",
             without_a_reference),
        Slip("the reference's log-probs are swapped between chosen and rejected",
             swapped_reference),
    ],
    "clipped_value_loss": [
        Slip("it takes the smaller loss: the larger one is the pessimistic one",
             smaller_value_loss),
    ],
    "value_loss": [
        Slip("the factor 1/2 is missing, as in the paper's L^VF", without_the_half, choice=True),
    ],
}
SLIPS |= {name: [Slip(*row) for row in rows] for name, rows in FURTHER.items()}
