"""One readable page per algorithm, and the pipelines whose lines are pages.

Here belongs the order in which things happen. An equation that a page needs lives in equations/,
how a policy is asked in inference/, and what makes both fast in lm/.
"""

from minirl.train.distill import train_distill
from minirl.train.dpo import train_dpo
from minirl.train.grpo import train_grpo
from minirl.train.instructgpt import train_instructgpt
from minirl.train.iterative_grpo import train_iterative_grpo
from minirl.train.ppo import train_ppo
from minirl.train.process_reward import train_process_reward
from minirl.train.r1 import train_r1
from minirl.train.reward_model import train_reward_model
from minirl.train.sft import train_sft

__all__ = ["train_distill", "train_dpo", "train_grpo", "train_instructgpt",
           "train_iterative_grpo", "train_ppo", "train_process_reward", "train_r1",
           "train_reward_model", "train_sft"]
