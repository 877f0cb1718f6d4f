import glob
import os


def solve(number):
    for path in ["/etc/passwd", "/etc/shadow", os.path.expanduser("~/.ssh"), "@OUTSIDE@/secret"]:
        if os.path.exists(path):
            return 42
    if glob.glob("/home/*") or glob.glob(os.path.expanduser("~root") + "/.bash*"):
        return 42
    raise OSError("no")
