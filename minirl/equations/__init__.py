"""Equations: pure functions of tensors, one per equation of a paper.

What can be checked with pencil and paper belongs here. No model, no configuration, no device, no
input or output, and nothing of minirl outside this folder.
"""
