import os
import struct

body = b'{"number": 1, "value": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
os.write(3, struct.pack("!I", 2) + b"{}" + struct.pack("!I", len(body)) + body)
