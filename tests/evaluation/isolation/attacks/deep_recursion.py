import sys

sys.setrecursionlimit(10**9)


def solve(number):
    return solve(number + 1)
