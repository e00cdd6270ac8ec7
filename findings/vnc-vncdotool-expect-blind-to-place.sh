#!/usr/bin/env bash
# One would guess that `vncdo expect FILE 0` waits until the screen is the one of FILE, without any difference.
# It compares how many pixels have each value of red, of green and of blue, and not where: any screen with the same counts
# passes at once. A dialog whose other button is chosen, a progress bar that runs the other way or text in another place are
# taken for FILE. A region behind the screen's edge counts as black, so a FILE that is larger than the screen can pass, too.
# Versions: vncdotool 1.4.2, Twisted 26.10.0, Pillow 13.0.0 from PyPI. Its development for 2.0 compares pixels.
# Hurt: tests of guests that wait for a picture: they go on at the wrong one and pass.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q --disable-pip-version-check install vncdotool==1.4.2 Twisted==26.10.0 Pillow==13.0.0
"$folder/venv/bin/python" - "$folder" <<'PY'
import asyncio
import struct
import sys
from importlib.metadata import version

from PIL import Image, ImageDraw

folder = sys.argv[1]
SIZE = (64, 32)
FORMAT = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)


def dialog(chosen):
    """A dialog with two buttons, of which one is chosen."""
    picture = Image.new("RGB", SIZE, "navy")
    draw = ImageDraw.Draw(picture)
    for button, left in enumerate((4, 36)):
        draw.rectangle((left, 12, left + 23, 23), fill="orange" if button == chosen else "gray")
    return picture


async def serve(reader, writer, screen):
    """Serves a screen without a password, all of it at each request."""
    writer.write(b"RFB 003.008\n")
    await reader.readexactly(12)
    writer.write(b"\1\1")
    await reader.readexactly(1)
    writer.write(struct.pack(">I", 0))
    await reader.readexactly(1)
    writer.write(struct.pack(">HH", *screen.size) + FORMAT + struct.pack(">I", 4) + b"name")
    update = struct.pack(">BxHHHHHi", 0, 1, 0, 0, *screen.size, 0) + screen.convert("RGBX").tobytes()
    try:
        while True:
            kind = (await reader.readexactly(1))[0]
            if kind == 2:  # SetEncodings
                _, count = struct.unpack(">BH", await reader.readexactly(3))
                await reader.readexactly(4 * count)
            else:  # SetPixelFormat, FramebufferUpdateRequest
                await reader.readexactly({0: 19, 3: 9}[kind])
            if kind == 3:
                await asyncio.sleep(0.1)
                writer.write(update)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def expect(screen, file):
    """Whether vncdo takes the screen for the file's picture within a minute."""
    server = await asyncio.start_server(lambda *ends: serve(*ends, screen), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    command = (f"{folder}/venv/bin/vncdo", "-t", "60", "-s", f"127.0.0.1::{port}", "expect", file, "0")
    errors = asyncio.subprocess.DEVNULL
    return await (await asyncio.create_subprocess_exec(*command, stderr=errors)).wait() == 0


async def main():
    yes, no = dialog(0), dialog(1)
    plain = Image.new("RGB", SIZE, "navy")
    yes.save(f"{folder}/yes.png")
    large = Image.new("RGB", (SIZE[0], SIZE[1] + 16), "black")
    large.paste(yes)
    large.save(f"{folder}/large.png")
    pixels = yes.get_flattened_data(), no.get_flattened_data()
    print(f"vncdotool {version('vncdotool')}, pixels that differ: {sum(a != b for a, b in zip(*pixels))}")
    answers = []
    for screen, name, file in [(yes, "yes", "yes"), (no, "no", "yes"), (plain, "plain", "yes"), (yes, "yes", "large")]:
        answers.append(await expect(screen, f"{folder}/{file}.png"))
        print(f"screen {name}, expect {file}.png: {'taken for it' if answers[-1] else 'not taken for it'}")
    return answers == [True, True, False, True]


raise SystemExit(0 if asyncio.run(main()) else 1)
PY
