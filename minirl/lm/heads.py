"""ScalarHead: one number per token. The same head is a value function (every token) and a reward model (the last token)."""

from __future__ import annotations

from torch import Tensor, nn


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
