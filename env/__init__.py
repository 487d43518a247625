"""The task families: their list of tasks, the only train/test split, and how to step them.

`env` in a config names a family of `FAMILIES` or a Gymnasium id. `module:id` imports the module that registers
the id. The tasks of an id are listed in `task_kwargs` or drawn from `task_ranges`. `n_tasks` takes a sample of
any list. Importing this package registers the families' ids.
"""

# ruff: noqa: F401, these are the names that others use
from env.checks import config_problems
from env.darkroom import DarkroomVecEnv
from env.families import FAMILIES, Family
from env.making import keys_read, make_env, make_source_env, make_vec_env, max_episode_steps, optimal_return
from env.probing import probe_tasks
from env.spaces import describe_spaces, spaces
from env.tasks import list_tasks, split_tasks, task_labels
