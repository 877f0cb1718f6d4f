import os
import sys

sys.excepthook = lambda *rest: os._exit(0)
raise ValueError
