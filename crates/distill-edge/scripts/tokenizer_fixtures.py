#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer-*.gguf and .txt: small vocabularies with the encodings that
Hugging Face's tokenizers library gives, one pair for each pre-tokenizer.

Run:  pip install tokenizers==0.23.3 gguf==0.19.0 && python3 scripts/tokenizer_fixtures.py
A line of a .txt file is the text as UTF-8 in hexadecimal, a tab, and the token ids.
"""
import json
import pathlib
import random

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TRAIN = [
    "the quick brown fox isn't here, they're there; we've 12 apples and 345 pears. I'll go, I'd say!",
    "The Quick Brown Fox ISN'T HERE\n\n  def f(x):\n\treturn x ** 2  # done\r\n",
    "größer als élan, naïve café; привет мир, привет всем; 你好世界 你好; 안녕하세요; नमस्ते दुनिया; สวัสดี; مرحبا",
] * 3
TEXTS = [
    "", " ", "  ", "\n", " \n", "\t\n \r\n  ", "hello world", " hello  world ", "Hello\n\nworld\n", "I've I'VE i'Ve 'tis 're're",
    "don't won'T they'LL it's'", "'ſ'S", "a1b22c333d4444 55555", "1 12 123 1234 12345", "3.14 -1,000.5% $9", "x=1;y+=2//3\n\n\n#end",
    "    indented\n        twice\n", "tabs\t\tand  spaces\u00a0nbsp\u2003em\u3000wide", "é e\u0301 नमस्ते दुनिया ो ि", "你好世界!你好", "привет, МИР",
    "👍🏽 👨‍👩‍👧 🇩🇪 ok", "½ Ⅷ ² ٣ 四 ①", "\u200b\ufeff\u0085x", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>", "<|im_end|><|im_end|> <|im", "<|endoftext|>a<|endoftext|>",
    "...!!!???\r\n\r\n--\n-", "a\u0000b\u0007", "\U0001D7D8\U0001D538 \U00010400", "สวัสดี مرحبا 안녕하세요",
]


def pre_tokenizer(name):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
    if name == "gpt-2":
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    pattern = Regex(LLAMA % ("{1,3}" if name == "llama-bpe" else ""))
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), byte_level])


def write(name):
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TRAIN,
        trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.add_tokens([AddedToken("привет всем", special=False, normalized=False)])
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    types = [3 if t in SPECIAL else 4 if i >= len(model["vocab"]) else 1 for i, t in enumerate(tokens)]
    writer = gguf.GGUFWriter(OUT / f"tokenizer-{name}.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in model["merges"]])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    rng = random.Random(7)
    parts = list("aZé\u0301语1²٣'  \n\r\t.!-ſ\u00a0") + ["'s", "'LL", "the", " fox", "123", "привет", " всем", "<|im_end|>", "你好"]
    texts = TEXTS + ["".join(rng.choice(parts) for _ in range(rng.randint(1, 14))) for _ in range(120)]
    lines = []
    for text in texts:
        encoded = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(encoded, skip_special_tokens=False) == text, text
        lines.append(f"{text.encode().hex()}\t{' '.join(map(str, encoded))}\n")
    (OUT / f"tokenizer-{name}.txt").write_text("".join(lines))


OUT.mkdir(parents=True, exist_ok=True)
for name in ["gpt-2", "smollm", "llama-bpe", "qwen2"]:
    write(name)
