import time


def solve(number):
    time.sleep(1000)
