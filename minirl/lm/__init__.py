"""The language model as a policy: model, heads, tokenizer, sampling, log-probs, rollouts, checkpoints, precision. Here belongs what makes
it fast, so that pages above need not; no objective, no reward, no training loop.
"""
