"""One number per state of a sequence. The same model is a value function (in front of every token) and a reward model (behind the last)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minirl.lm.attention import take
from minirl.lm.logprobs import states_around
from minirl.lm.rollouts import TOKEN_BUDGET, Rollouts, completion_batch, micro_batches
from minirl.lm.seeds import seeded


class ScalarHead(nn.Module):
    """h -> w.h + b over a Transformer's hidden states.

    Shapes     forward(hidden (B, T, d)) -> (B, T);  reward(hidden (B, T, d), last (B,)) -> (B,)
    Paper      InstructGPT, arXiv:2203.02155, section 3.5: the unembedding layer replaced by a projection to a scalar.
    Raises     ValueError if `last` is not one index per row, inside the row.

    The weight starts at Normal with variance 1 / (d + 1), the bias at 0, as in Stiennon et al. (arXiv:2009.01325). `reward` reads the
    slot that the caller names, by position and never by looking for a padding token, so padding on either side changes nothing.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.linear.weight, std=1 / (hidden_size + 1) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden).squeeze(-1)                             # (B, T)

    def reward(self, hidden: Tensor, last: Tensor) -> Tensor:
        B, T, _ = hidden.shape
        if last.shape != (B,) or bool(((last < 0) | (last >= T)).any()):
            raise ValueError(f"last is {last.tolist()} for hidden states {tuple(hidden.shape)}: one slot index in [0, {T}) per row is wanted")
        rows = hidden[range(B), last]                                      # (B, d): only the slots that count
        return self.linear(rows).squeeze(-1)                               # (B,)


class ScalarModel(nn.Module):
    """A Transformer with a ScalarHead: V(s) for the states s of a sequence. Trained on rankings it is a reward model, on returns a value function.

    A value function that starts as a copy of the reward model says of a prefix what the reward model would say if the prefix were all
    (InstructGPT, arXiv:2203.02155, appendix C.4): both read the same state through the same head.
    """

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = ScalarHead(backbone.config.hidden_size)

    @property
    def config(self):
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def set_dropout(self, p: float) -> None:
        self.backbone.set_dropout(p)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        r"""Values in front of the sampled tokens, and behind the last of them.

        Shapes     tokens, mask (B, T) -> values (B, T), V(tokens[:t]) at slot t, 0 where the mask is; end (B,), V of the row up to its last
                   token under the mask: a reward model's score, and the V of a state in which a completion was cut off
        Raises     ValueError if shapes differ, the mask asks for slot 0, or a row has nothing under the mask.
        """
        hidden, before, end = states_around(self.backbone, tokens, mask.bool())                # (N, d), (slots,), (B,)
        with torch.autocast(hidden.device.type, enabled=False):                                 # a reward in bfloat16 has two digits
            v = self.head.linear(hidden.to(self.head.linear.weight.dtype)).squeeze(-1)          # (N,)
        return v.new_zeros(tokens.shape).masked_scatter(mask.bool(), take(v[:, None], before).squeeze(1)), v[end]

    def scores(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B,): what a reward model says of each row's completion."""
        return self(tokens, mask)[1]

    def shift(self, bias: Tensor) -> None:
        """Add a constant to every score and value: see equations.rewards.reward_bias."""
        with torch.no_grad():
            self.head.linear.bias += bias


def value_model_from(start: ScalarModel | None, policy: nn.Module, *, seed: int) -> ScalarModel:
    """Return a value function that can be trained: a copy of `start`, or of the policy with a fresh
    head, drawn with `seed`."""
    with seeded(seed, policy.device):
        model = copy.deepcopy(start or ScalarModel(policy).to(policy.device))
    model.eval().requires_grad_(True)
    model.set_dropout(0.0)
    return model


@torch.no_grad()
def rollout_values(model: ScalarModel, rollouts: Rollouts, *, token_budget: int = TOKEN_BUDGET) -> tuple[Tensor, Tensor]:
    """ScalarModel.forward over all rows, without a gradient and a micro-batch at a time: values (B, T), end (B,)."""
    values, end = (torch.zeros(shape, device=rollouts.tokens.device) for shape in (rollouts.tokens.shape, rollouts.tokens.shape[:1]))
    for rows in micro_batches(rollouts.lengths, token_budget):
        part = rollouts.rows(rows)
        v, e = model(part.tokens, part.mask)
        values[rows, :part.tokens.shape[1]], end[rows] = v.float(), e.float()
    return values, end


@torch.no_grad()
def score_ids(model: ScalarModel, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, *, token_budget: int = TOKEN_BUDGET) -> Tensor:
    """A reward model's scores of completions, (N,). The ids of a completion hold its EOS, where it has one."""
    lengths = torch.tensor([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], dtype=torch.long)
    scores = torch.zeros(len(lengths))
    for rows in micro_batches(lengths, token_budget):
        tokens, mask = completion_batch([prompts[i] for i in rows], [completions[i] for i in rows], pad_id, model.device)
        scores[rows] = model.scores(tokens, mask).float().cpu()
    return scores
