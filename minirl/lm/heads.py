"""One number per state of a sequence.

The same model is a value function, which reads the state before every token, and a reward model,
which reads the state after the last one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minirl.lm.config import ModelConfig
from minirl.lm.distinct import take
from minirl.lm.logprobs import check_mask, fill_slots, last_slot, state_before, states
from minirl.lm.model import Transformer, hidden_alone, with_head
from minirl.lm.rollouts import TOKEN_BUDGET, Rollouts, completion_batch, micro_batches
from minirl.lm.seeds import seeded


class ScalarHead(nn.Module):
    """h -> w·h + b over a Transformer's hidden states.

    Paper      InstructGPT, arXiv:2203.02155, section 3.5: the unembedding layer is replaced by a
               projection to a scalar.
    Shapes     forward(hidden (B, T, d)) -> (B, T);  reward(hidden (B, T, d), last (B,)) -> (B,)
    Raises     ValueError if `last` is not one index per row, inside the row.

    The weight starts from Normal with variance 1 / (d + 1), the bias at 0, as in Stiennon et al.
    (arXiv:2009.01325). `reward` reads the slot that the caller names, and never looks for a padding
    token. So padding on either side changes nothing.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.linear.weight, std=1 / (hidden_size + 1) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden).squeeze(-1)  # (B, T)

    def reward(self, hidden: Tensor, last: Tensor) -> Tensor:
        B, T, _ = hidden.shape
        if last.shape != (B,) or bool(((last < 0) | (last >= T)).any()):
            raise ValueError(f"last is {last.tolist()} for hidden states {tuple(hidden.shape)}: "
                             f"expected one slot index in [0, {T}) per row")
        rows = hidden[range(B), last]  # (B, d)
        return self.linear(rows).squeeze(-1)  # (B,)


class ScalarModel(nn.Module):
    """A Transformer with a ScalarHead: V(s) for the states s of a sequence.

    Trained on rankings it is a reward model, trained on returns a value function. A value function
    that starts as a copy of the reward model gives a prefix the score that the reward model would
    give it as a whole completion (InstructGPT, arXiv:2203.02155, appendix C.4), as both read the
    same state through the same head.
    """

    def __init__(self, backbone: Transformer) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ScalarHead(backbone.config.hidden_size)

    @property
    def config(self) -> ModelConfig:
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def compiled(self) -> bool:
        return self.backbone.compiled

    @compiled.setter
    def compiled(self, choice: bool) -> None:
        self.backbone.compiled = choice

    def set_dropout(self, p: float) -> None:
        self.backbone.set_dropout(p)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the values before the sampled tokens, and the value after the last of them.

        Shapes     tokens, mask (B, T) -> values (B, T), end (B,)
        Raises     ValueError if shapes differ, the mask is set at slot 0, or a row has no token
                   under the mask.

        values[b, t] is V(tokens[b, :t]), 0 outside the mask. `end` is V of the row up to its last
        token under the mask: a reward model's score, or the V of the state in which a completion
        was cut off.
        """
        mask = mask.bool()
        check_mask(tokens, mask)
        if not bool(mask.any(1).all()):
            raise ValueError("a row of the mask has nothing under it: each row must be a prompt "
                             "(or a BOS) with at least one token after it")
        ids, options, place = states(self.backbone, tokens, mask, ends=True)
        hidden = with_head(self.backbone, ids, hidden_alone, **options).flatten(0, -2)  # (N, d)
        linear = self.head.linear
        # in float32: bfloat16 keeps only two digits of a score
        with torch.autocast(hidden.device.type, enabled=False):
            v = linear(hidden.to(linear.weight.dtype)).squeeze(-1)  # (N,)
        before = place[state_before(mask)]  # (n,)
        last = last_slot(mask).to(place.device)  # (B,)
        end = place[torch.arange(len(tokens), device=place.device), last]  # (B,)
        return fill_slots(take(v[:, None], before).squeeze(1), mask), v[end]

    def scores(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return a reward model's score of each row's completion, (B,)."""
        return self(tokens, mask)[1]

    def shift(self, bias: Tensor) -> None:
        """Add a constant to every score and value: see equations.rewards.reward_bias."""
        with torch.no_grad():
            self.head.linear.bias.add_(bias)


def value_model_from(start: ScalarModel | None, policy: Transformer, *, seed: int) -> ScalarModel:
    """Return a value function to train: a copy of `start`, or of the policy with a new head.

    `seed` decides the head's weights.
    """
    with seeded(seed, policy.device):
        model = copy.deepcopy(start or ScalarModel(policy).to(policy.device))
    model.eval().requires_grad_(True)
    model.set_dropout(0.0)
    return model


@torch.no_grad()
def rollout_values(model: ScalarModel, rollouts: Rollouts, *, token_budget: int = TOKEN_BUDGET
                   ) -> tuple[Tensor, Tensor]:
    """Return ScalarModel.forward of all rows, without a gradient: values (B, T), end (B,).

    It is computed in micro-batches of about token_budget tokens.
    """
    B, T = rollouts.tokens.shape
    values = torch.zeros(B, T, device=rollouts.tokens.device)
    end = torch.zeros(B, device=rollouts.tokens.device)
    for rows in micro_batches(rollouts.lengths, token_budget):
        part = rollouts.rows(rows)
        v, e = model(part.tokens, part.mask)
        values[rows, :part.tokens.shape[1]], end[rows] = v.float(), e.float()
    return values, end


@torch.no_grad()
def score_ids(model: ScalarModel, prompts: Sequence[Sequence[int]],
              completions: Sequence[Sequence[int]], pad_id: int, *,
              token_budget: int = TOKEN_BUDGET) -> Tensor:
    """Return a reward model's scores of N completions, (N,), on the CPU.

    The ids of a completion include its EOS, where it has one.
    """
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    scores = torch.zeros(len(lengths))
    for rows in micro_batches(torch.tensor(lengths, dtype=torch.long), token_budget):
        tokens, mask = completion_batch([prompts[i] for i in rows], [completions[i] for i in rows],
                                        pad_id, model.device)
        scores[rows] = model.scores(tokens, mask).float().cpu()
    return scores
