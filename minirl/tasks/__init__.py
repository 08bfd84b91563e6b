"""What is learnt and how it is scored: problems, their splits, and reward functions over text. Knows no model and no tokenizer."""

from minirl.tasks.problem import Problem

__all__ = ["Problem"]
