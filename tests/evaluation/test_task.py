"""A task without a way to judge it is none."""

import pytest

from megatron.evaluation.task import Task


def test_a_kind_of_task_must_say_how_it_is_judged() -> None:
    class Unjudged(Task):
        pass

    with pytest.raises(TypeError, match="abstract method"):
        Unjudged(name="a", model_prompt="")
