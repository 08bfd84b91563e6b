"""Who computes which paper's equation, and where projects differ by choice or by slip.

    python -m pip install -c constraints.txt -e '.[test,parity]' && python benchmarks/conformance.py

TRL's own methods run here. Of the other projects the formula is made again from what is known of
them, in minirl's names; none of their code is here. A row says what `check` finds: the equation
holds, another convention, or a slip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl import __version__ as trl_version

from common import heading, row, table_head
from minirl.equations.objectives import clipped_surrogate
from minirl.testing import slips
from minirl.testing.conformance import check
from tests.parity.test_trl_policy import L_MAX, Variant, trl_grpo
from tests.parity.test_trl_preferences import trl_reward_loss


class Peer(NamedTuple):
    """One function of a project, and what it is held against."""

    project: str
    what: str
    function: Callable[..., Any]
    against: str
    options: dict[str, Any] = {}


LOSS = {"sign": "minimise", "per_sequence": ["adv"]}


def trl_loss(loss_type: str, variant: Variant, level: str = "token") -> Callable[..., Tensor]:
    """Return TRL's loss of (logp, old_logp, adv, mask), with one advantage per completion."""
    def loss(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
        value = trl_grpo(loss_type, logp, adv[:, None].expand(logp.shape), variant, old=old_logp,
                         mask=mask.long(), level=level)
        if loss_type == "dr_grpo":                     # its constant is the longest completion
            return value * L_MAX / mask.shape[1]
        return value

    return loss


def trl_pairs(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return TRL's reward-model loss of each pair alone, as it returns the mean."""
    return torch.stack([trl_reward_loss(torch.stack(pair))
                        for pair in zip(chosen, rejected, strict=True)])


def normalised(ddof: int, eps: float) -> Callable[[Tensor], Tensor]:
    """Return group-relative advantages without a rule for equal rewards."""
    def advantages(rewards: Tensor) -> Tensor:
        centred = rewards - rewards.mean(1, keepdim=True)
        return centred / (rewards.std(1, keepdim=True, correction=ddof) + eps)

    return advantages


def batch_mean(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
    """GRPO-Zero and nano-aha-moment: no ratio in the first update, all tokens of the batch."""
    terms = torch.where(mask, (logp - old_logp.detach()).exp() * adv[:, None], 0)
    return -terms.sum() / mask.sum()


def constant_mean(logp: Tensor, old_logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
    terms = clipped_surrogate(logp, old_logp, adv[:, None].expand(logp.shape).clone())
    return -torch.where(mask, terms, 0).sum() / mask.numel()


PEERS = [
    Peer("TRL", "loss_type grpo", trl_loss("grpo", Variant()), "grpo", LOSS),
    Peer("TRL", "loss_type dapo, epsilon_high 0.28", trl_loss("dapo", Variant((0.2, 0.28))),
         "dapo", LOSS),
    Peer("TRL", "loss_type bnpo", trl_loss("bnpo", Variant()), "ppo", LOSS),
    Peer("TRL", "loss_type dr_grpo", trl_loss("dr_grpo", Variant()), "dr_grpo", LOSS),
    Peer("TRL", "loss_type cispo, epsilon_high 5", trl_loss("cispo", Variant((0.2, 5.0))), "cispo",
         {**LOSS, "reduced": "token_mean", "fixed": {"cap": 5.0}}),
    Peer("TRL", "importance_sampling_level sequence", trl_loss(
        "grpo", Variant((3e-4, 4e-4)), "sequence"), "gspo", {"sign": "minimise"}),
    Peer("TRL", "reward model, pairs", trl_pairs, "bradley_terry_loss"),
    Peer("TRL", "advantages: ddof 1, eps 1e-4", normalised(1, 1e-4), "group_advantages"),
    Peer("TRL (PPO, to 1.12)", "score one slot behind the EOS", slips.score_one_slot_late,
         "kl_shaped_rewards"),
    Peer("TRL (PPO, to 1.12)", "entropy and KL over padding", slips.padded_mean, "masked_mean"),
    Peer("verl", "advantages: ddof 1, eps 1e-6", normalised(1, 1e-6), "group_advantages"),
    Peer("tiny-grpo", "advantages: ddof 1, eps 1e-8", normalised(1, 1e-8), "group_advantages"),
    Peer("GRPO-Zero, nano-aha", "advantages: ddof 0, eps 1e-4", normalised(0, 1e-4),
         "group_advantages"),
    Peer("GRPO-Zero, nano-aha", "no clip, all tokens", batch_mean, "ppo", LOSS),
    Peer("understand-r1-zero", "sum over a constant", constant_mean, "dr_grpo", LOSS),
    Peer("tiny-grpo, simple_GRPO", "EOS lost where it pads", slips.eos_left_out,
         "completion_mask"),
    Peer("rlhf-book", "kl3 with the ratio turned over", slips.reversed_k3, "k3"),
    Peer("reasoning-from-scratch", "chapter 7: max where A < 0", slips.inverted_clip,
         "clipped_surrogate"),
    Peer("reasoning-from-scratch", "chapter 7: k1 in the loss", slips.k1_as_a_loss, "k3"),
    Peer("NeMo-RL", "leave-one-out std", slips.leave_one_out_std, "leave_one_out_advantages"),
    Peer("miles", "GAE decays over tool tokens", slips.gae_over_padding, "gae"),
]


def verdict(peer: Peer) -> tuple[str, str]:
    """Return "holds", "all but one" property, "choice" or "slip", and what `check` says."""
    report = check(peer.function, peer.against, **peer.options)
    if report.ok:
        return "holds", f"{sum(v == 'holds' for v in report.properties.values())} properties"
    if len(report.failures) == 1 and not report.failures[0].choice:
        only = report.failures[0]
        return "all but one", f"{only.property}: {only.diagnosis}"
    reasons = dict.fromkeys(failure.diagnosis or f"differs in: {failure.property}"
                            for failure in report.failures)
    kinds = {"choice" if failure.choice else "slip" for failure in report.failures}
    return " and ".join(sorted(kinds)), " / ".join(reasons)


def main() -> None:
    print(f"{heading()}, TRL {trl_version}\n")
    print(table_head("project", "what", "against", "verdict", "what `check` says"))
    for peer in PEERS:
        print(row(peer.project, peer.what, f"`{peer.against}`", *verdict(peer)), flush=True)


if __name__ == "__main__":
    main()
