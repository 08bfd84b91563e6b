"""Asking a policy without training it. Here belongs what samples, decodes and judges completions in
one call, what searches for a good one with a verifier, and what turns completions into an
evaluation, a vote, a choice, or text that shows them. No gradient, no optimizer and no file:
training pages stand above and call this room, equations stand below.
"""
