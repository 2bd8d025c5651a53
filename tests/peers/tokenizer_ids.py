#!/usr/bin/env python3
"""Token ids of awkward strings, by Hugging Face `tokenizers` and llama.cpp, as a fixture for distill's tokenizers.

    tests/peers/.venv/bin/python tests/peers/tokenizer_ids.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes tests/fixtures/smollm2-tokenizer.json: texts, and the ids of each with special tokens parsed and none added.
The two peers are independent (one builds its tokenizer from the vocabulary and merges in the file by the published
recipe of SmolLM2, the other knows the pre-tokenizer `smollm` by name); the script fails where they disagree, except
for the texts listed under KNOWN_DIFFERENCES, whose ids are Hugging Face's.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import llama_cpp

from gguf_llama import GgufLlama, sha256

ROOT = Path(__file__).resolve().parents[2]

TEXTS = [
    # Plain words, case, contractions.
    "Hello",
    "Hello world",
    " Hello world",
    "hello, World!",
    "I'm you're he'd she'll we've it's don't",
    "I'M YOU'RE HE'D SHE'LL WE'VE IT'S DON'T",
    "rock'n'roll 'quoted' \"double\"",
    "O'Neill's o'clock’s ’tis",
    "antidisestablishmentarianism",
    "CamelCaseAndsnake_case_and-kebab-case",
    # Digits: every one is a token of its own.
    "0",
    "123",
    " 123",
    "1234567890",
    "3.14159",
    "1,000,000.50",
    "in 1863, 34 states",
    "v1.2.3-rc4",
    "a1b2c3",
    "٣٤٥ ४५६ ７８９",
    "½ ² Ⅷ ①",
    # Whitespace.
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\n\n\n",
    "\r\n",
    " \n",
    "a  b",
    "a   b    c",
    "trailing space ",
    "trailing spaces   ",
    "\tindented\n\t\ttwice",
    "line one\nline two\n\nparagraph\r\nwindows",
    "1 2  3   4",
    "a\u00a0b\u3000c\u2003d",
    "\u200bzero\u200dwidth\ufeff",
    # Punctuation and code.
    "...!?;:—–…",
    "(a+b)*c/d-e%f^g&h|i~j",
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < 10; ++i) {\n\tsum += a[i];\n}",
    "https://example.org/path?q=1&r=%20#top",
    "<html><body class=\"x\">&nbsp;</body></html>",
    "{\"key\": [1, 2.5, null, true]}",
    "$100 €200 £300 ¥400 50%",
    # Other scripts, combining marks, emoji.
    "Être ou ne pas être",
    "naïve café façade",
    "cafe\u0301",
    "Größe Straße ẞ",
    "Привет, мир!",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "東京は日本の首都です。",
    "中文分词测试",
    "안녕하세요 세계",
    "🙂",
    "🙂🙃 👍🏽 👩‍👩‍👧‍👦 🇫🇷",
    "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛",
    "\u0000\u0001\u007f",
    "\ufffd",
    # Special tokens, whole, broken, touching.
    "<|endoftext|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b",
    "a <|im_end|> b",
    "<|im_start|><|im_start|>",
    "<|im_start",
    "<|unknown|>",
    "<repo_name>x<file_sep>y<jupyter_code>z",
    "[INST] <<SYS>> </s> <s>",
    # Long runs.
    "a" * 40,
    " " * 40 + "x",
    "=" * 33 + "\n" + "-" * 17,
    "ab" * 30,
]

# text -> why the peers differ there. Hugging Face is the reference: it is what the model was trained with.
KNOWN_DIFFERENCES: dict[str, str] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a SmolLM2 GGUF")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/smollm2-tokenizer.json")
    arguments = parser.parse_args()

    source = GgufLlama(arguments.model)
    tokenizer = source.tokenizer()
    peer = llama_cpp.Llama(str(arguments.model), vocab_only=True, verbose=False)

    cases, disagreements = [], []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        other = peer.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        if ids != other and text not in KNOWN_DIFFERENCES:
            disagreements.append(f"{text!r}\n  tokenizers {ids}\n  llama.cpp  {other}")
        case = {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}
        if case["decoded"] == text:
            del case["decoded"]
        cases.append(case)
    if disagreements:
        raise SystemExit("the peers disagree:\n" + "\n".join(disagreements))

    header = {
        "about": "Token ids, special tokens parsed, none added; `decoded` only where decoding does not give the text "
        "back. Made by tests/peers/tokenizer_ids.py",
        "model": {"file": arguments.model.name, "sha256": sha256(arguments.model)},
        "versions": {name: version(name) for name in ("tokenizers", "gguf", "llama-cpp-python")},
        "known_differences": KNOWN_DIFFERENCES,
    }
    lines = ",\n".join("  " + json.dumps(case) for case in cases)
    body = json.dumps(header, indent=1).removesuffix("\n}")
    arguments.out.write_text(f'{body},\n "cases": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"{arguments.out}: {len(cases)} texts, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
