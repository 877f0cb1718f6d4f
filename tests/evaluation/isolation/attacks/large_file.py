def solve(number):
    with open("/tmp/large", "wb") as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
    return 42
