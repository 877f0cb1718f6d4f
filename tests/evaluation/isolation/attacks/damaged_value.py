import os
import struct

body = b'{"number": 1, "value": {"s": [[1]]}}'
os.write(3, struct.pack("!I", 2) + b"{}" + struct.pack("!I", len(body)) + body)
