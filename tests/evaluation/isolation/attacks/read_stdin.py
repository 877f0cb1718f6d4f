def solve(number):
    return int(input())
