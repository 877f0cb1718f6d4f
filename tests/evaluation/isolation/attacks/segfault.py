import ctypes


def solve(number):
    ctypes.string_at(0)
