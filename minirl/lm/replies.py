"""Replies: tokens that a row is given while it grows, such as the answer of a tool.

A row that samples a stop id, the end of a call, asks for a reply. The reply's ids take the place of
the next draws, one in each step, while the other rows of the batch draw: nobody waits, and nothing
is read twice. No reply means that the row has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (row, the ids after its prompt so far) -> the ids that follow; none: the row has ended
Reply = Callable[[int, list[int]], Sequence[int]]
DRAWN = -1


class Replies:
    """What each of B rows is given, and where it ends.

    Shapes     given (B, max_new_tokens): ids, or DRAWN where the row draws;
               ends (B,): how many tokens an ended row has, 0 for one that still grows
    """

    def __init__(self, rows: int, max_new_tokens: int, vocab_size: int, device: torch.device
                 ) -> None:
        self.vocab_size = vocab_size
        self.given = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
        self.ends = torch.zeros(rows, dtype=torch.long, device=device)

    def begin(self) -> None:
        self.given.fill_(DRAWN)
        self.ends.zero_()

    def put(self, row: Tensor, t: Tensor, ids: Tensor, logp: Tensor
            ) -> tuple[Tensor, Tensor, Tensor]:
        """Put what rows are given in step t in the place of what they drew.

        Shapes     row, ids, logp (n,), t (1,) -> ids, logp, whether the id was drawn (n,)
        """
        given = self.given[row, t]  # (n,)
        drawn = given == DRAWN
        return torch.where(drawn, ids, given), torch.where(drawn, logp, 0), drawn

    def ask(self, reply: Reply, row: Tensor, ended: Tensor, tokens: Tensor, t: int) -> None:
        """Ask for the reply to each row that has sampled a stop id, and let it go on if it gets
        one. What does not fit in max_new_tokens is left out.

        Shapes     row, ended (n,), tokens (B, max_new_tokens), t of them sampled. Writes to ended.
        """
        asking = ended & (self.ends[row] == 0)  # (n,)
        for place in asking.nonzero().flatten().tolist():
            i = int(row[place])
            ids = list(reply(i, tokens[i, :t].tolist()))
            wrong = [id for id in ids if not 0 <= id < self.vocab_size]
            if wrong:
                raise ValueError(f"the reply to row {i} holds the id {wrong[0]}, unknown to the "
                                 f"model: expected whole numbers in [0, {self.vocab_size})")
            if ids:
                room = self.given[i, t:t + len(ids)]
                room.copy_(torch.tensor(ids[:len(room)]))
                ended[place] = False
            else:
                self.ends[i] = t
