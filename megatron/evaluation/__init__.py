"""Scores of a model by what its code does: tasks, samples, an isolated place to run them, and pass@k.

`benchmark` names the kinds of `task`; `sample` is what a model wrote of them; `score` has it run where `isolation` says, with
verdicts kept in a `journal`, and `report` counts. `perplexity` and `forgetting` need no code to run.
"""
