def solve(number):
    text = bytearray(10 << 30)
    text[:: 4096] = b'x' * len(text[:: 4096])
    return 42
