#!/usr/bin/env bash
# One would guess that a VNC client library takes a server's clipboard: RFB has the same numbers for messages since 1998, Bell is 2
# and ServerCutText is 3 (RFC 6143 §7.6.3, §7.6.4).
# asyncvnc has them the other way round: a clipboard arrives as a bell, its text is then read as messages, and the next read
# raises ValueError. So a screenshot fails as soon as something is copied in the guest.
# Versions: asyncvnc 1.3.0 (numpy 1.26.4, cryptography 43.0.3) from PyPI.
# Hurt: screenshots and tests by asyncvnc of any server that sends its clipboard, and servers that are blamed for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q --disable-pip-version-check install asyncvnc==1.3.0 numpy==1.26.4 cryptography==43.0.3 keysymdef==1.2.0
"$folder/venv/bin/python" - <<'PY'
import asyncio
import struct
from importlib.metadata import version

import asyncvnc

FORMAT = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
TEXT = b"words copied in the guest"


async def serve(reader, writer):
    """Serves a screen of 2 x 2 pixels without a password, and a clipboard."""
    writer.write(b"RFB 003.008\n")
    await reader.readexactly(12)
    writer.write(b"\1\1")
    await reader.readexactly(1)
    writer.write(struct.pack(">I", 0))
    await reader.readexactly(1)
    writer.write(struct.pack(">HH", 2, 2) + FORMAT + struct.pack(">I", 4) + b"name")
    writer.write(struct.pack(">B3xI", 3, len(TEXT)) + TEXT)
    await reader.read()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with asyncvnc.connect(host, port) as client:
        first = await asyncio.wait_for(client.read(), 10)
        print(f"asyncvnc {version('asyncvnc')}: a ServerCutText is read as {first.name}")
        try:
            while True:
                await asyncio.wait_for(client.read(), 10)
        except ValueError as error:
            print(f"the next read: ValueError: {error}")
            failed = True
        print(f"clipboard: {client.clipboard.text!r}")
    return first.name == "BELL" and failed and client.clipboard.text == ""


raise SystemExit(0 if asyncio.run(main()) else 1)
PY
