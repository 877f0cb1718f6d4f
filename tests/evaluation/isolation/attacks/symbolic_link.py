import os


def solve(number):
    os.symlink("@OUTSIDE@", "/tmp/link")
    for path in ("/tmp/link/escaped", "../../../../../../@OUTSIDE@/escaped"):
        try:
            open(path, "w").close()
            return 42
        except OSError:
            pass
    raise OSError("no")
