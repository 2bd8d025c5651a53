#!/usr/bin/env python3
"""Writes src/tokenizer/unicode_tables.rs: the code points of \\p{L}, \\p{N}, \\p{M} and
\\s as sorted ranges.

Run:  pip install unicodedata2==16.0.0 && python3 scripts/unicode_tables.py
The version is the one of the regex-syntax crate that the training side's tokenizer uses, so that
both sides of the parity gate cut text at the same places.
"""
import pathlib

import unicodedata2

# White_Space is a property of its own, not a general category; it has been stable since Unicode 6.3.
WHITE_SPACE = [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]


def ranges(code_points):
    out = []
    for c in code_points:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def table(name, doc, code_points):
    cells = [f"(0x{a:04X}, 0x{b:04X})," for a, b in ranges(code_points)]
    lines = [" ".join(cells[i:i + 5]) for i in range(0, len(cells), 5)]
    body = "\n".join("    " + line for line in lines)
    return f"/// {doc}, as inclusive ranges in ascending order.\n#[rustfmt::skip]\npub(super) const {name}: &[(u32, u32)] = &[\n{body}\n];\n"


category = [unicodedata2.category(chr(c)) if not 0xD800 <= c < 0xE000 else "Cs" for c in range(0x110000)]
text = f"""//! Unicode {unicodedata2.unidata_version}: the character classes of the pre-tokenizers.
//! Written by `scripts/unicode_tables.py`; do not edit.

"""
text += "\n".join([
    table("LETTERS", "`\\p{L}`: general categories Lu, Ll, Lt, Lm, Lo", [c for c, k in enumerate(category) if k[0] == "L"]),
    table("NUMBERS", "`\\p{N}`: general categories Nd, Nl, No", [c for c, k in enumerate(category) if k[0] == "N"]),
    table("MARKS", "`\\p{M}`: general categories Mn, Mc, Me", [c for c, k in enumerate(category) if k[0] == "M"]),
    table("WHITE_SPACE", "`\\s`: the White_Space property", WHITE_SPACE),
])
path = pathlib.Path(__file__).resolve().parent.parent / "src" / "tokenizer" / "unicode_tables.rs"
path.write_text(text, encoding="utf-8")
