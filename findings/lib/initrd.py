"""Writes an initial RAM disk: a program as the first process, and kvm_amd with the modules that it needs. Run by findings.

Its arguments are the root folder that has the kernel's modules, the program and the file to write.
"""

import glob
import gzip
import lzma
import os
import re
import sys

root, program, disk = sys.argv[1:]
files = {os.path.basename(path).split(".")[0].replace("-", "_"): path
         for path in glob.glob(f"{root}/usr/lib/modules/*/kernel/**/*.ko.xz", recursive=True)}
order = []


def add(name):
    """The module's content, behind those that it needs."""
    content = lzma.open(files[name]).read()
    for needed in re.search(rb"\0depends=([^\0]*)", content).group(1).decode().split(","):
        if needed and needed.replace("-", "_") not in [done for done, _ in order]:
            add(needed.replace("-", "_"))
    order.append((name, content))


def entry(name, mode, content=b""):
    """One of a newc archive."""
    numbers = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


add("kvm_amd")
archive = b"".join(entry(name, 0o40755) for name in ("dev", "proc", "modules"))
archive += entry("init", 0o100755, open(program, "rb").read())
archive += b"".join(entry(f"modules/{index:02}-{name}", 0o100644, content) for index, (name, content) in enumerate(order))
with gzip.open(disk, "wb", compresslevel=1) as file:
    file.write(archive + entry("TRAILER!!!", 0))
