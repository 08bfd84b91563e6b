"""What is learnt and how it is scored: problems, their splits, and reward functions over text. Here
belongs what knows no model and no tokenizer; whoever asks a model stands in inference/ or train/.
"""

from minirl.tasks.problem import Problem

__all__ = ["Problem"]
