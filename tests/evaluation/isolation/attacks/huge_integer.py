def solve(number):
    return len(str(10 ** (10**8)))
