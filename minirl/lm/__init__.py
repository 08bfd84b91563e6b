"""The language model as a policy: model, heads, tokenizer, sampling, log-probs, rollouts,
checkpoints, precision, tiny models, several processes; and, for people, text that is safe to show,
progress and figures.

Here belongs what makes the model fast and safe to keep, so that training pages need not. No
objective, no reward and no training loop belongs here.
"""
