import mmap


def solve(number):
    mmap.mmap(-1, 64 << 20)  # shared: a limit of what a process may write to does not see it
    return 42
