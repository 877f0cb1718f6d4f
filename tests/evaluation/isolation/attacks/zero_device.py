import mmap
import os


def solve(number):
    mmap.mmap(os.open("/dev/zero", os.O_RDWR), 64 << 20)
    return 42
