"""Logs in to a guest by what its screen shows, with several viewers, as a person would.

Usage: viewers.py HOST PORT FONT PASSWORD FOLDER

HOST and PORT are a screen's, FONT is a console font of 8 by 16 pixels (PSF), FOLDER is for pictures. Text is read from
pictures: each cell is compared with the font's.
"""

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import time

import numpy
from PIL import Image, ImageGrab

HOST, PORT, FONT, PASSWORD, FOLDER = sys.argv[1:]
WIDTH, HEIGHT = 1024, 768
# What a boot may take, and what an answer may: the machine is emulated.
BOOT, ANSWER = 400, 180
# Where the browser is driven.
DEBUGGER = 9222


def glyphs():
    """The font's pictures of the printable characters of ASCII, by their 16 bytes."""
    data = gzip.open(FONT).read()
    if data[:2] == b"\x36\x04":
        start, size = 4, data[3]
    else:
        assert data[:4] == b"\x72\xb5\x4a\x86", "the font is not in a format that is known"
        start, size = (int.from_bytes(data[at : at + 4], "little") for at in (8, 20))
    assert size == 16, f"the font's characters are {size} rows high"
    return {data[start + code * size :][:size]: chr(code) for code in range(0x20, 0x7F)}


GLYPHS = glyphs()


def text(picture):
    """The lines of a picture of a console; '?' is a cell that is no character."""
    bits = numpy.asarray(picture.convert("L")) > 64
    assert bits.shape == (HEIGHT, WIDTH), f"the picture has {bits.shape}"
    cells = numpy.packbits(bits.reshape(HEIGHT // 16, 16, WIDTH // 8, 8), axis=3)[..., 0]
    rows = cells.transpose(0, 2, 1)
    return ["".join(GLYPHS.get(cell.tobytes(), "?") for cell in row).rstrip() for row in rows]


def begins(line, what):
    """Whether a line begins so, but for characters that the console draws a little otherwise than the font has them."""
    pairs = list(zip(line, what))
    same = sum(shown == wanted for shown, wanted in pairs)
    return len(pairs) == len(what) and same >= 0.7 * len(what) and all(shown in (wanted, "?") for shown, wanted in pairs)


def wait_for(what, look, limit, name):
    """Looks at pictures until a line of one begins with `what`."""
    since = time.monotonic()
    while True:
        picture = look()
        picture.save(os.path.join(FOLDER, f"{name}.png"))
        lines = text(picture)
        # The cursor stands behind what is waited for, and is no character.
        if any(begins(line, what) for line in lines):
            return picture
        shown = "\n".join(line for line in lines if line)
        assert time.monotonic() - since < limit, f"{name}: no {what!r} within {limit} s but\n{shown}"
        time.sleep(1)


def log_in(look, write, name, limit):
    """Logs in and calculates."""
    wait_for("debian login:", look, limit, name)
    write("root")
    wait_for("Password:", look, ANSWER, name)
    write(PASSWORD)
    wait_for("root@debian:", look, ANSWER, name)
    write("clear; echo $((6*7)) by " + name)
    wait_for(f"42 by {name}", look, ANSWER, name)


def vncdo(*words):
    subprocess.run(["vncdo", "--server", f"{HOST}::{PORT}", *words], check=True, timeout=ANSWER)


def by_vncdotool():
    path = os.path.join(FOLDER, "captured.png")

    def look():
        vncdo("capture", path)
        return Image.open(path)

    log_in(look, lambda line: vncdo("type", line, "key", "enter"), "vncdo", BOOT)
    vncdo("type", "exit", "key", "enter")


def answers(port):
    """Whether somebody listens at a port of this machine's."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def by_chromium():
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    # Its driver would not wait for it as long as an emulated machine takes to start it.
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += [f"--remote-debugging-port={DEBUGGER}", f"--user-data-dir={os.path.join(FOLDER, 'chromium')}", "about:blank"]
    with open(os.path.join(FOLDER, "chromium.log"), "w") as log:
        chromium = subprocess.Popen(["chromium", *words], stdout=log, stderr=log)
    deadline = time.monotonic() + BOOT
    while not answers(DEBUGGER):
        assert chromium.poll() is None, f"chromium ended with {chromium.returncode}"
        assert time.monotonic() < deadline, "chromium does not start"
        time.sleep(1)
    options = webdriver.ChromeOptions()
    options.debugger_address = f"127.0.0.1:{DEBUGGER}"
    browser = webdriver.Chrome(options=options)
    try:
        browser.set_page_load_timeout(ANSWER)
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(f"http://{HOST}:{PORT}/")
        path = os.path.join(FOLDER, "page.png")

        def look():
            browser.save_screenshot(path)
            return Image.open(path)

        wait_for("debian login:", look, ANSWER, "chromium")
        browser.find_element(By.TAG_NAME, "canvas").click()
        write = lambda line: ActionChains(browser).send_keys(line + Keys.ENTER).perform()
        log_in(look, write, "chromium", ANSWER)
        write("exit")
        wait_for("debian login:", look, ANSWER, "chromium")
    finally:
        browser.quit()
        chromium.terminate()
        chromium.wait()


def by_asyncvnc():
    """Answers the last picture, with the cursor off."""
    import asyncvnc

    loop = asyncio.new_event_loop()
    connection = asyncvnc.connect(HOST, int(PORT))
    client = loop.run_until_complete(connection.__aenter__())

    def write(line):
        client.keyboard.write(line)
        client.keyboard.press("Return")
        loop.run_until_complete(client.drain())

    def look():
        return Image.fromarray(loop.run_until_complete(client.screenshot())).convert("RGB")

    log_in(look, write, "asyncvnc", ANSWER)
    write("setterm --cursor off; clear; echo off")
    picture = wait_for("off", look, ANSWER, "asyncvnc")
    loop.run_until_complete(connection.__aexit__(None, None, None))
    return picture


def by_xtightvncviewer(expected):
    """A viewer on an X server without a screen of its own shows what `expected` has, somewhere."""
    display = ":77"
    server = subprocess.Popen(["Xvfb", display, "-screen", "0", "1100x860x24"])
    viewer = None
    try:
        deadline = time.monotonic() + ANSWER
        while not os.path.exists(f"/tmp/.X11-unix/X{display[1:]}"):
            assert time.monotonic() < deadline, "Xvfb does not start"
            time.sleep(0.5)
        viewer = subprocess.Popen(["xtightvncviewer", "-viewonly", f"{HOST}::{PORT}"], env={**os.environ, "DISPLAY": display})
        wanted = numpy.asarray(expected.convert("L"))
        while True:
            picture = ImageGrab.grab(xdisplay=display).convert("L")
            picture.save(os.path.join(FOLDER, "xtightvncviewer.png"))
            shown = numpy.asarray(picture)
            for down in range(shown.shape[0] - HEIGHT + 1):
                for right in range(min(48, shown.shape[1] - WIDTH + 1)):
                    # The first row of cells tells where it is.
                    part = shown[down : down + 16, right : right + WIDTH]
                    if (part == wanted[:16]).all() and (shown[down : down + HEIGHT, right : right + WIDTH] == wanted).all():
                        return
            assert viewer.poll() is None, f"xtightvncviewer ended with {viewer.returncode}"
            assert time.monotonic() < deadline, "xtightvncviewer does not show the screen"
            time.sleep(1)
    finally:
        for process in (viewer, server):
            if process:
                process.terminate()
                process.wait()


def main():
    os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ["PATH"]
    for name, look in (("vncdo", by_vncdotool), ("chromium", by_chromium)):
        since = time.monotonic()
        look()
        print(f"{name} {time.monotonic() - since:.0f} s", flush=True)
    picture = by_asyncvnc()
    print("asyncvnc", flush=True)
    by_xtightvncviewer(picture)
    print("xtightvncviewer", flush=True)


main()
