import re


def solve(number):
    return re.match('(a+)+$', 'a' * 64 + 'b')
