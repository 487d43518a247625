"""The task families: their list of tasks, the only train/test split, and how to step them.

`env` in a config names a family of `FAMILIES` or a Gymnasium id. `module:id` imports the module that registers
the id. The tasks of an id are listed in `task_kwargs` or drawn from `task_ranges`. `n_tasks` takes a sample of
any list. Importing this package registers the families' ids.
"""

# ruff: noqa: F401, I001, these are the names that others use
from env.checks import check_horizon, config_problems, no_episode_ended, probe_tasks, stepped_problems, unread_notes
from env.darkroom import DarkroomVecEnv
from env.families import FAMILIES, Family, differing_arguments, list_tasks, split_tasks, task_labels, why_no_tasks
from env.making import make_env, make_source_env, make_vec_env
from env.making import describe_spaces, keys_read, max_episode_steps, optimal_return, optimal_returns, spaces
from env.watching import entry_sizes, is_finite
