"""PPO-ptx: pretraining text beside every minibatch of reinforcement learning, so that the policy
keeps what it knew.

    Paper      InstructGPT, arXiv:2203.02155, eq. 2, second term; appendix C.4: both gradients are
               computed for every minibatch and added before the step
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Generator

from minirl.equations.reduce import aggregate
from minirl.lm import world
from minirl.lm.logprobs import token_logprobs
from minirl.lm.model import Transformer
from minirl.lm.rollouts import completion_batch, micro_batches
from minirl.lm.tokenizer import Tokenizer
from minirl.train.encoding import encode_texts
from minirl.train.metrics import Sums, check_finite
from minirl.train.state import TrainState


class PtxConfig(Protocol):
    """The fields of PPOConfig that are read here."""

    @property
    def ptx_coef(self) -> float: ...
    @property
    def ptx_batch_size(self) -> int: ...
    @property
    def token_budget(self) -> int: ...


class Pretraining:
    """Texts, and the gradient of γ E_pretrain[log π(x)]; nothing where ptx_coef is 0."""

    def __init__(self, state: TrainState, tokenizer: Tokenizer, texts: Sequence[str],
                 config: PtxConfig):
        self.state, self.texts, self.config, self.pad_id = state, texts, config, tokenizer.pad_id
        self.model = cast(Transformer, state.model)
        if config.ptx_coef:
            encoded = encode_texts(tokenizer, texts, self.model.config.max_seq_len)
            self.prompts, self.completions = encoded           # the first token, and all others

    def add_gradient(self, generator: Generator, sums: Sums, step: int) -> None:
        """Draw ptx_batch_size texts and add the gradient of -γ * mean log π(x_t) to the model's."""
        if not self.config.ptx_coef:
            return
        size = (self.config.ptx_batch_size,)
        batch = torch.randint(len(self.completions), size, generator=generator)
        lengths = torch.tensor([1 + len(self.completions[i]) for i in batch.tolist()])
        total = world.total(int(lengths.sum()) - len(batch))      # the first token is given
        for part in micro_batches(lengths, self.config.token_budget):
            rows = batch[part].tolist()
            tokens, mask = completion_batch([self.prompts[i] for i in rows],
                                            [self.completions[i] for i in rows],
                                            self.pad_id, self.model.device)  # (b, T)
            logp = token_logprobs(self.model, tokens, mask=mask)  # (b, T)
            loss = -self.config.ptx_coef * aggregate(logp, mask, "token_mean", total=total)
            check_finite(loss, step, rows, self.texts)
            self.state.backward(loss, rows, self.texts)
            sums.add("loss/pretraining", -logp, mask)
