"""Ground truth by enumeration: a world so small that every completion can be listed.

Every expectation is then a sum over the list.

    oracle = Oracle(vocab=3, length=2, eos=2)
    policy = oracle.table(seed=0)  # one free logit per prefix and token; or oracle.transformer()
    logp = oracle.logp(policy)  # (N, T), differentiable, through lm.logprobs.token_logprobs
    oracle.mean(logp, rewards)  # exact J = E[R], and J.backward() gives its exact gradient

Everything is float64. Each of the N completions has at most `length` tokens and is ended by `eos`
or truncated. Slot 0 holds the prompt, so T = length + 1. Per-token tensors have minirl's one
alignment: slot t is about emitting tokens[:, t].
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import ModelConfig, Transformer


class Table(nn.Module):
    """A policy with one row of logits per prefix.

    It looks like a language model: a hidden state (the one-hot vector of the prefix) times lm_head.
    """

    def __init__(self, vocab: int, length: int, *, scale: float, generator: torch.Generator):
        super().__init__()
        self.vocab = vocab
        prefixes = sum(vocab ** t for t in range(length))  # of 0 to length - 1 tokens
        self.lm_head = nn.Linear(prefixes, vocab, bias=False, dtype=torch.float64)
        weight = torch.randn(vocab, prefixes, generator=generator, dtype=torch.float64)
        self.lm_head.weight.data = scale * weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T), the prompt in slot 0 -> (B, T, prefixes)."""
        prefix, index = torch.zeros_like(tokens), torch.zeros_like(tokens[:, 0])
        for t in range(1, tokens.shape[1]):
            index = index * self.vocab + tokens[:, t] + 1  # prefixes numbered as a V-ary heap
            prefix[:, t] = index
        size = self.lm_head.in_features  # a whole completion is no prefix, and has no row
        return nn.functional.one_hot(prefix.clamp(max=size - 1), size).double()


class Oracle:
    """All completions of one prompt: `tokens` (N, T), `mask` (N, T) and `truncated` (N,).

    They are laid out as in minirl.lm.rollouts.Rollouts.
    """

    def __init__(self, vocab: int = 3, length: int = 2, eos: int | None = None, prompt: int = 0):
        self.vocab, self.length = vocab, length
        self.completions = [
            row
            for n in range(1, length + 1)
            for row in itertools.product(range(vocab), repeat=n)
            if eos not in row[:-1] and (n == length or row[-1] == eos)
        ]
        padding = [[0] * (length - len(row)) for row in self.completions]
        pairs = list(zip(self.completions, padding, strict=True))
        self.tokens = torch.tensor([(prompt, *row, *zeros) for row, zeros in pairs])  # (N, T)
        self.mask = torch.tensor([[0] + [1] * len(row) + zeros for row, zeros in pairs]).bool()
        self.truncated = torch.tensor([row[-1] != eos for row in self.completions])  # (N,)

    def __len__(self) -> int:
        return len(self.tokens)

    def table(self, *, seed: int = 0, scale: float = 1.0) -> Table:
        generator = torch.Generator().manual_seed(seed)
        return Table(self.vocab, self.length, scale=scale, generator=generator)

    def transformer(self, *, seed: int = 0) -> Transformer:
        torch.manual_seed(seed)
        config = ModelConfig(self.vocab, hidden_size=8, num_layers=1, num_heads=2,
                             max_seq_len=self.length + 1, initializer_range=0.5)
        return Transformer(config).double().eval()

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Return random numbers, one per completion unless a shape is given: rewards, say."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*(shape or (len(self),)), generator=generator, dtype=torch.float64)

    def logp(self, policy: Table | Transformer) -> Tensor:
        """(N, T): log-prob of every sampled token of every completion, 0 elsewhere."""
        return torch.where(self.mask, token_logprobs(cast(Transformer, policy), self.tokens), 0)

    def logits(self, policy: Table | Transformer) -> Tensor:
        """(N, T, V): the logits that slot t's token was drawn from."""
        return policy.lm_head(policy.hidden(self.tokens)).roll(1, dims=1)

    def prob(self, logp: Tensor) -> Tensor:
        """(N,): probability of each completion. They sum to 1."""
        return logp.sum(1).exp()

    def mean(self, logp: Tensor, x: Tensor) -> Tensor:
        """E[x] of one number per completion.

        With a differentiable logp and constant x, its gradient is the policy gradient.
        """
        return (self.prob(logp) * x).sum()

    def gradient(self, policy: Table | Transformer, objective: Tensor) -> Tensor:
        """All of the policy's gradient in one row."""
        parameters = list(policy.parameters())
        grads = torch.autograd.grad(objective, parameters, allow_unused=True, retain_graph=True)
        filled = [torch.zeros_like(p) if g is None else g
                  for p, g in zip(parameters, grads, strict=True)]
        return torch.cat([g.flatten() for g in filled])

    def scores(self, policy: Table | Transformer) -> Tensor:
        """(N, parameters): grad log pi of each completion, the score function."""
        return torch.stack([self.gradient(policy, row) for row in self.logp(policy).sum(1)])

    def kl(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        """KL(pi || ref) of whole completions."""
        return self.mean(logp, logp.sum(1) - ref_logp.sum(1))

    def entropy(self, logp: Tensor) -> Tensor:
        return -self.mean(logp, logp.sum(1))

    def values(self, logp: Tensor, rewards: Tensor, *, gamma: float = 1.0) -> Tensor:
        """V of the state before each token, (N, T), 0 outside the mask.

        It is the mean of the rewards (N, T) to come over all completions that share the prefix.
        """
        out = torch.zeros_like(rewards)
        for t in range(1, self.length + 1):
            discount = gamma ** (torch.arange(self.length + 1) - t).clamp(min=0).double()
            to_come = (rewards * self.mask * discount)[:, t:].sum(1)  # (N,)
            same_prefix = (self.tokens[:, None, :t] == self.tokens[None, :, :t]).all(-1)  # (N, N)
            same = same_prefix & self.mask[:, t] & self.mask[:, None, t]
            weight = same * logp[:, t:].sum(1).exp()  # of what follows the prefix
            out[:, t] = (weight * to_come).sum(1)
        return out

    def advantages(self, logp: Tensor, rewards: Tensor, *, gamma: float = 1.0) -> Tensor:
        """A = Q - V of each token, (N, T): Q is the immediate reward and the V of what follows."""
        values = self.values(logp, rewards, gamma=gamma)
        following = values.roll(-1, dims=1)  # slot 0 has no value: 0 follows the last one
        return torch.where(self.mask, rewards + gamma * following - values, 0)
