import os


def solve(number):
    for path in ("@OUTSIDE@", "/usr", "/usr/lib", "/", "/dev", os.path.dirname(os.__file__)):
        try:
            with open(path + "/escaped", "w") as file:
                file.write("escaped")
            return 42
        except OSError:
            pass
    raise OSError("no")
