"""What no client should send: the server neither fails nor keeps anything in work, and writes as before."""

from tests.serving import attack
from tests.serving.process import ServerProcess

NUM_REQUESTS = 60
SEED = 7


def test_a_server_stands_what_no_client_should_send(server: ServerProcess) -> None:
    text = attack.text_of(server)
    attacks = [attack.make_attack(SEED, number) for number in range(NUM_REQUESTS)]
    ends = attack.run(server, attacks, num_threads=6)
    assert len(ends) == len(attack.KINDS)
    attack.check_unharmed(server, text)
