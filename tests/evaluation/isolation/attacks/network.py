import socket


def solve(number):
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", int("@PORT@"))),
        (socket.AF_INET, ("8.8.8.8", 53)),
    ):
        try:
            socket.create_connection(address, timeout=0.3)
            return 42
        except OSError:
            pass
    raise OSError("no")
