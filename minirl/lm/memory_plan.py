"""What a run will hold in memory at its peak, before it begins; each part with its formula.

Numbers: W weights, L layers, width d, H query heads and K key/value heads of width D, feed-forward
width f, vocabulary V; s bytes for a number that is computed (4 in float32, else 2). Weights, their
gradient and the optimizer's moments are in float32. What is not here, such as ids and masks, is
small.

A run has three phases, of which one makes the peak; the rest of the memory is there all the time:

    measuring     completions of held-out problems, before training and after it
    sampling      the completions of a step
    learning      micro-batch by micro-batch; the gradient is there until the weights have changed
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from minirl.lm.attention import SHORT
from minirl.lm.config import ModelConfig
from minirl.lm.logprobs import chunk_rows
from minirl.lm.memory import parameters_of, sampling_bytes
from minirl.lm.model import WIDE
from minirl.lm.panels import worth_panels
from minirl.lm.text import table

FLOAT = 4                     # bytes
LIBRARIES = 64 * 2 ** 20      # that torch and its libraries add at their first use
SHOWN_FROM = 10 ** 9          # bytes: the plan of a smaller run is not worth a table


@dataclass(frozen=True)
class Work:
    """What a step does, as far as memory depends on it.

    rows                    completions that are sampled in a step
    prompt, completion      tokens of each
    group                   completions that share a prompt
    measured                completions of held-out problems that are sampled together
    token_budget            tokens of a micro-batch
    copies                  of the weights that the run holds beside the model that it trains
    trained                 models that are trained: with a value function 2
    device, dtype           where, and in what
    gradient_checkpointing  whether blocks are computed again in the backward pass
    """

    rows: int
    prompt: int
    completion: int
    group: int = 1
    measured: int = 0
    token_budget: int = 8192
    copies: int = 0
    trained: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    gradient_checkpointing: bool = False

    @property
    def size(self) -> int:
        """Bytes of a number that is computed."""
        return FLOAT if self.dtype == "float32" else 2

    @property
    def micro_batch(self) -> int:
        """Rows of a micro-batch, as rollouts.micro_batches makes them of rows of one length."""
        length = self.prompt + self.completion
        parts = -(-self.rows * length // max(self.token_budget, length))
        return -(-self.rows // parts)


@dataclass(frozen=True)
class Plan:
    """Bytes by what they hold: all the time, and in each phase."""

    always: dict[str, float]
    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The peak: what is always there, and the phase that takes most."""
        return sum(self.always.values()) + sum(self.phases[self.peak].values())

    @property
    def peak(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """What is held at the peak."""
        return {**self.always, **{f"{self.peak}: {name}": x
                                  for name, x in self.phases[self.peak].items()}}

    def table(self) -> str:
        """Return the parts of the peak, one a line, and their sum."""
        rows = [(name, f"{x / 1e9:.2f}") for name, x in self.parts.items() if x >= 5e6]
        return table([("memory, as planned", "GB"), *rows,
                      ("at the peak", f"{self.total / 1e9:.2f}")])


def memory_plan(config: ModelConfig, work: Work, *, process: float = 0.0) -> Plan:
    """Return the plan of a run that samples and learns; `process` is what the process held before
    the model was there."""
    W = FLOAT * parameters_of(config)
    always = {"the process, with torch": process + LIBRARIES if process else 0.0,
              "weights": float(work.trained * W), "other copies of the weights": work.copies * W}
    moments = 2.0 * work.trained * W
    learning = {"moments of the optimizer": moments, **learning_bytes(config, work)}
    phases = {"sampling": {"moments of the optimizer": moments,
                           **sampler_bytes(config, work, work.rows)}, "learning": learning}
    if work.measured:
        phases["measuring"] = sampler_bytes(config, work, work.measured)
    return Plan(always, phases)


def sampler_bytes(config: ModelConfig, work: Work, rows: int) -> dict[str, float]:
    """Keys, values and logits of `rows` completions, and the sampler's copy of the weights.

    Formula    cache    FLOAT 2 L K D (rows (prompt + completion) + rows / group prompt)
               logits   FLOAT 3 V rows: logits, their exponentials, sums
               weights  the joined ones, or all in panels; all, cast, in less than float32; and on
                        CUDA, where a recorded sampler owns what it reads, one more in float32
    """
    c = config
    per_token = 2 * c.num_layers * c.num_kv_heads * c.head_dim
    cache = sampling_bytes(c, rows, work.prompt + work.completion)
    logits = FLOAT * 3.0 * c.vocab_size * rows
    prompts = FLOAT * per_token * work.prompt * rows / work.group
    in_panels = worth_panels(c, rows, work.completion, torch.device(work.device), torch.float32)
    copy = work.size * (parameters_of(c) if in_panels or work.size < FLOAT else joined(c))
    if work.device == "cuda":
        copy += FLOAT * parameters_of(c)
    return {"key-value cache": cache - logits + prompts, "logits": logits,
            "its own weights": float(copy)}


def joined(config: ModelConfig) -> int:
    """Weights that the sampler copies to join them: of the queries, keys and values, and of the two
    halves of the feed-forward layer."""
    c = config
    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    return c.num_layers * c.hidden_size * (qkv + 2 * c.intermediate_size)


def learning_bytes(config: ModelConfig, work: Work) -> dict[str, float]:
    """The gradient, the activations of a micro-batch, and the logits of a chunk of it.

    As the activations of a block are freed when its gradient is computed, a step of one micro-batch
    never holds all of both: its peak is before the backward pass, or after it.
    """
    W = parameters_of(config)
    gradient, head = float(FLOAT * W * work.trained), FLOAT * config.vocab_size * config.hidden_size
    activations = work.trained * activation_bytes(config, work)
    logits = logit_bytes(config, work) + head
    if work.micro_batch < work.rows:      # the first micro-batch leaves a gradient
        return {"gradient": gradient, "activations of a micro-batch": activations,
                "logits of a chunk, gradient of the head": logits}
    if activations + logits > gradient + head:
        return {"gradient": 0.0, "activations of a micro-batch": activations,
                "logits of a chunk, gradient of the head": logits}
    return {"gradient": gradient, "logits of a chunk, gradient of the head": float(head)}


def activation_bytes(config: ModelConfig, work: Work) -> float:
    """What a forward pass keeps for the backward pass, N tokens of a micro-batch.

    Formula    N = rows completion + rows / group prompt: a prompt is computed once for its group
               a block    the residual stream twice, in float32; its two norms and what attention
                          read, 3 d; gate, up and their product, 3 f; see also attention_bytes
               in all     L blocks, and the cast weights where s is 2
               or         L residual streams and one block, with gradient checkpointing
    """
    c, s = config, work.size
    rows, groups = work.micro_batch, -(-work.micro_batch // work.group)
    N = rows * work.completion + groups * work.prompt
    streams = FLOAT * N * c.hidden_size
    block: float = 2 * streams + s * N * (3 * c.hidden_size + 3 * c.intermediate_size)
    block += attention_bytes(c, work, rows, groups)
    embeddings = (1 if c.tie_embeddings else 2) * c.vocab_size * c.hidden_size
    cast = s * (parameters_of(c) - embeddings) / c.num_layers if s < FLOAT else 0.0
    if c.hidden_size < WIDE and s == FLOAT:
        cast = FLOAT * joined(c) / c.num_layers
    working = s * N * (4 * c.intermediate_size + 4 * c.hidden_size)     # of one backward pass
    if work.gradient_checkpointing:
        return c.num_layers * streams + block + cast + working
    return c.num_layers * (block + cast) + working


def attention_bytes(config: ModelConfig, work: Work, rows: int, groups: int) -> float:
    """Queries, keys, values and what is read, laid out in rows with padding (distinct.Distinct).

    Formula    s (2 H D queries + 2 K D keys) of rows + groups rows; on a CPU, up to SHORT queries,
               the probabilities, too: H queries keys
    """
    c, s = config, work.size
    keys, queries = work.prompt + work.completion, max(work.prompt, work.completion)
    if work.device == "cuda":
        queries = keys
    numbers = 2 * c.num_heads * c.head_dim * queries + 2 * c.num_kv_heads * c.head_dim * keys
    if work.device == "cpu" and queries <= SHORT:
        numbers += c.num_heads * queries * keys
    return float(s * (rows + groups) * numbers)


def logit_bytes(config: ModelConfig, work: Work) -> float:
    """The logits of a chunk of a micro-batch, and what one pass over them makes (logprobs.py).

    Formula    (s + 2 FLOAT) V chunk_rows
    """
    rows = chunk_rows(work.micro_batch * work.completion, config.vocab_size, work.device)
    return (work.size + 2.0 * FLOAT) * config.vocab_size * rows
