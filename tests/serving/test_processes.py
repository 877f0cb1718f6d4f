"""Several processes behind one server: they write what one does, and none outlives the others."""

import json
import os
import signal

import pytest

pytest.importorskip("uvicorn", reason="needs uvicorn: requirements.txt")
from megatron.cli import EXIT_FAILURE, EXIT_LOST_PEER
from megatron.errors import LostPeer
from megatron.parallel.launch import Launch
from megatron.serving.channel import Channel, Orders
from tests.serving import attack
from tests.serving.conftest import LITTLE_PATIENCE, PROMPT
from tests.serving.process import PATIENCE_SECONDS, ServerProcess

LONG = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True, "stream": True}
SEED = 3
BY_LAYER = ("--tensor-model-parallel-size", "2")
BY_STACK = ("--pipeline-model-parallel-size", "2")


def stream(server: ServerProcess):
    """Begin a long answer; its events."""
    body = json.dumps(LONG).encode()
    connection = server.connect()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    lines = connection.makefile("rb")
    assert lines.readline().startswith(b"HTTP/1.1 200")
    return connection, (line for line in lines if line.startswith(b"data: "))


@pytest.mark.parametrize("flags", [BY_LAYER, BY_STACK], ids=["tp", "pp"])
def test_two_processes_write_what_one_does_and_end_when_asked(run, written, flags) -> None:
    with ServerProcess(run, *flags, *LITTLE_PATIENCE, num_processes=2) as server:
        status, answer = server.ask(prompt=PROMPT, max_tokens=12, temperature=0)
        assert status == 200 and answer["choices"][0]["text"] == written[0][0].text
        assert server.ask(prompt=PROMPT, max_tokens=99999)[0] == 400
        connection, events = stream(server)
        next(events)
        drawn = {"max_tokens": 9, "temperature": 0.8, "top_p": 0.9, "seed": 5, "n": 3}
        _, answer = server.ask(prompt=PROMPT, **drawn)
        assert [one["text"] for one in answer["choices"]] == [one.text for one in written[2]]
        events.close()
        connection.close()
        server.wait_for('requests_total{outcome="cancelled"}', lambda number: number == 1)
        text = attack.text_of(server)
        attacks = [attack.make_attack(SEED, number) for number in range(len(attack.KINDS))]
        attack.run(server, attacks, num_threads=len(attacks))
        attack.check_unharmed(server, text)
        server.terminate()
        assert server.wait() == [0, 0]


@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_process_is_lost_the_other_ends(run, lost) -> None:
    with ServerProcess(run, *BY_LAYER, num_processes=2) as server:
        connection, events = stream(server)
        next(events)
        server.processes[lost].kill()
        if lost == 1:
            assert b"the server has failed" in list(events)[-1]
        connection.close()
        codes = server.wait()
        assert codes.pop(lost) == -signal.SIGKILL and codes == [EXIT_LOST_PEER]
        if lost == 1:
            assert "another process of this model is gone" in "".join(server.log[-2:])


def test_a_server_that_waits_for_a_process_that_stands_still_can_be_ended(run) -> None:
    with ServerProcess(run, *BY_LAYER, "--grace", "0", num_processes=2) as server:
        _, events = stream(server)
        next(events)
        first, second = server.processes
        os.kill(second.pid, signal.SIGSTOP)
        first.terminate()
        first.join(PATIENCE_SECONDS)
        second.kill()  # as a launcher does after 30 s
        assert server.wait() == [EXIT_FAILURE, -signal.SIGKILL]
        assert any("a step of the engine does not end" in line for line in server.log)


def test_a_launcher_ends_both_with_the_answer_in_work(run) -> None:
    launcher = ("tools/launch.py", "--standalone", "--nproc-per-node", "2")
    with ServerProcess(run, *BY_LAYER, "--grace", "0", launcher=launcher) as server:
        _, events = stream(server)
        next(events)
        server.terminate()
        assert b"the server is stopping" in list(events)[-1]
        assert server.wait() == [0], server.log


def test_a_first_process_without_its_launcher_ends_all() -> None:
    orphan = Channel(Launch(world_size=2, parent_pid=os.getpid()))  # which is not its parent
    with pytest.raises(LostPeer, match="the launcher of these processes is gone"):
        orphan.tell(Orders())
