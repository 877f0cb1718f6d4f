"""Agreement on errors: every process raises the one that a user can cause, whatever process found it."""

import pytest

from megatron.errors import CheckpointError, ConfigError, DataError, LostPeer, MegatronError
from megatron.parallel.agreement import gather_on_first, on_first_rank, scatter_from_first
from megatron.parallel.launch import Launch
from megatron.parallel.lost_peer import is_lost_peer


def act(rank, failures):
    """Fail if a failure is given for this rank."""
    if rank in failures:
        raise failures[rank]
    return f"of rank {rank}"


def catch(rank, agree, failures):
    """Give the type and text of what was raised, and whether this process is the one that says it."""
    try:
        return agree(lambda: act(rank, failures))
    except MegatronError as error:
        launch = Launch(rank=rank, local_rank=rank)
        return type(error), str(error), launch.has_to_say(error)
    except ZeroDivisionError as error:
        return type(error), str(error), True


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_an_error_on_rank_0_is_raised_as_what_it_is_by_all_and_said_by_one(world, kind):
    first, *others = world(3).run(catch, on_first_rank, {0: kind("a.bin is short")})
    assert first == (kind, "a.bin is short", True)
    assert others == [(kind, "a.bin is short", False)] * 2


def test_the_first_of_several_errors_is_raised_by_all(world):
    failures = {1: DataError("a.bin is short"), 2: ConfigError("--a is 0")}
    first, *others = world(3).run(catch, gather_on_first, failures)
    assert first == (DataError, "a.bin is short (on rank 1, and 1 more)", True)
    assert others == [(*first[:2], False)] * 2


@pytest.mark.parametrize("agree", [on_first_rank, gather_on_first])
def test_an_error_of_the_system_is_raised_by_all_with_its_file(world, agree):
    failure = PermissionError(13, "Permission denied", "a.bin")
    found = world(2).run(catch, agree, {0: failure})
    assert [one[:2] for one in found] == [(CheckpointError, "a.bin: Permission denied")] * 2


@pytest.mark.parametrize("agree", [on_first_rank, gather_on_first, scatter_from_first])
def test_a_bug_on_rank_0_is_its_own_and_no_mistake_of_the_user_on_others(world, agree):
    first, *others = world(3).run(catch, agree, {0: ZeroDivisionError("a bug")})
    assert first == (ZeroDivisionError, "a bug", True)
    assert {one[0] for one in others} == {LostPeer}
    assert is_lost_peer(LostPeer("rank 0 failed"))


def test_results_come_back_where_nothing_fails(world):
    assert world(2).run(catch, on_first_rank, {}) == ["of rank 0"] * 2
    assert world(2).run(catch, gather_on_first, {}) == [["of rank 0", "of rank 1"], []]
