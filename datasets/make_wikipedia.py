"""Text of Wikipedia articles out of a dump, as prose and as corpora for language models write it.

    python3 datasets/make_wikipedia.py FILE    # runs of ten words that the texts share with a file

Left out are redirects, short pages, and whatever Wikipedia's editors call a good or featured article:
WikiText is made of these alone (Merity et al. 2016, section 4.1), so that nothing of it is here and
perplexity on it can be measured.
"""

import bz2
import collections
import html
import pathlib
import re
import sys
import xml.etree.ElementTree

NAMESPACE = "{http://www.mediawiki.org/xml/export-0.10/}"
SEPARATOR = "\n----\n"
# Of a page, in characters.
LEAST = 1000
# What a line of prose has at least; less is what is left of a list or a table.
LEAST_LINE = 40
# A word that is rarer becomes <unk>, as in WikiText-2.
LEAST_COUNT = 3

CHOSEN = re.compile(r"\{\{\s*(featured|good) (article|list)", re.I)
ELEMENTS = "math|gallery|timeline|source|code|score|table|syntaxhighlight|nowiki|div"
ELEMENT = re.compile(rf"<({ELEMENTS})\b.*?</\1>", re.S | re.I)
HEADING = re.compile(r"(=+)\s*(.*?)\s*=+\s*$")
# Sections that are lists.
APPARATUS = {
    "see also", "references", "external links", "further reading", "notes", "bibliography",
    "footnotes", "notes and references", "sources", "citations", "works cited", "gallery",
}


def articles(dump):
    """Title and wikitext of each article that may be used."""
    for page in xml.etree.ElementTree.fromstring(bz2.decompress(dump)).iter(NAMESPACE + "page"):
        of = lambda name: page.find(NAMESPACE + name)
        text = of("revision/" + NAMESPACE + "text").text or ""
        is_article = of("ns").text == "0" and of("redirect") is None
        if is_article and not CHOSEN.search(text):
            yield of("title").text, text


def innermost(text, opening, closing, replace):
    """Replaces what stands between two marks, from the inside out."""
    opening, closing = re.escape(opening), re.escape(closing)
    pattern = re.compile(f"{opening}((?:(?!{opening}|{closing}).)*){closing}", re.S)
    while (replaced := pattern.sub(replace, text)) != text:
        text = replaced
    return text


def link(match):
    """The words of a link; nothing of a picture, a category or another language."""
    target, _, label = match[1].partition("|")
    if re.match(r"\s*(file|image|category|[a-z]{2,3}(-\w+)?):", target, re.I):
        return ""
    return match[1].rsplit("|", 1)[-1] if label else target.lstrip(":")


def template(match):
    """Quantities and foreign words; nothing of other templates."""
    name, *arguments = match[1].split("|")
    name = name.strip().lower()
    if name in ("convert", "cvt") and len(arguments) >= 2:
        return f"{arguments[0]} {arguments[1]}"
    return arguments[-1] if name.startswith("lang") and arguments else ""


def without_markup(text):
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<ref[^>]*?/>", "", text)
    text = re.sub(r"<ref.*?</ref>", "", text, flags=re.S)
    text = ELEMENT.sub("", text)
    text = innermost(text, "{{", "}}", template)
    text = innermost(text, "{|", "|}", lambda match: "")
    text = innermost(text, "[[", "]]", link)
    text = re.sub(r"\[https?://\S+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]*>", "", text)
    text = html.unescape(text).replace("\xa0", " ")
    return re.sub(r"__[A-Z]+__", "", re.sub("'{5}|'{3}|'{2}", "", text))


def prose(text):
    """Paragraphs and the headings that have some below them."""
    lines, left_out = [], 0
    for line in without_markup(text).split("\n"):
        if heading := HEADING.match(line):
            level, title = len(heading[1]), heading[2]
            if left_out and level > left_out:
                continue
            left_out = level if title.lower() in APPARATUS else 0
            if not left_out:
                while lines and lines[-1][0] and level <= lines[-1][0]:
                    lines.pop()
                lines.append((level, title))
        elif not left_out:
            line = re.sub(r"^[*#:;]+\s*", "", line).strip()
            # What templates leave of parentheses.
            line = re.sub(r"\(\s*[;,]?\s*\)", "", line)
            line = re.sub(r"\(\s*[;,]\s*", "(", line)
            line = re.sub(r"  +", " ", line)
            if len(line) >= LEAST_LINE:
                lines.append((0, line))
    while lines and lines[-1][0]:
        lines.pop()
    return "\n\n".join(line for _, line in lines)


def words(line):
    """A line as words and marks: `sustainable @-@ rating systems , 0 @.@ 9 ( or more ) .`"""
    for mark, inside in ((",", r"\d"), (r"\.", r"\d"), ("-", r"\w")):
        line = re.sub(f"({inside}){mark}({inside})", rf"\1 @{mark[-1]}@ \2", line)
    line = re.sub(r'["“”]', ' " ', line)
    line = re.sub(r"([()\[\];:,!?–—/%$£])(?!@)(?<!@)", r" \1 ", line)
    line = re.sub(r" @ ([,.\-]) @ ", r" @\1@ ", line)
    line = re.sub(r'(?<=[\w)"\]])\.(?=\s|$)', " . ", line)
    line = re.sub(r"(\w)'s\b", r"\1 's", line)
    return re.sub(r"(\w)n't\b", r"\1n 't", line).split()


def tokenized(documents):
    """Documents with a space between all words and marks, titles between equals signs, and rare
    words unknown."""
    split = [[words(line) for line in text.split("\n") if line.strip()] for text in documents]
    counts = collections.Counter(word for lines in split for line in lines for word in line)
    for text, lines in zip(documents, split):
        out = []
        for index, (line, found) in enumerate(zip(filter(str.strip, text.split("\n")), lines)):
            known = " ".join(word if counts[word] >= LEAST_COUNT else "<unk>" for word in found)
            if index == 0:
                out.append(f" = {known} = \n ")
            elif len(line) < 60 and not line.rstrip().endswith((".", ":", '"')):
                out.append(f" \n = = {known} = = \n ")
            else:
                out.append(f" {known} ")
        yield "\n".join(out)


def texts(dump):
    """Both forms of a dump's articles, UTF-8."""
    pages = ((title, prose(text)) for title, text in articles(dump))
    documents = [f"{title}\n\n{text}" for title, text in pages if len(text) >= LEAST]
    return [
        (SEPARATOR.join(form) + "\n").encode() for form in (documents, tokenized(documents))
    ]


def runs(text, length):
    """All runs of so many words of a text, marks and case left out."""
    found = re.findall(r"\w+", re.sub(r" @(.)@ |<unk>", r"\1", text).lower())
    return {" ".join(found[start : start + length]) for start in range(len(found) - length + 1)}


def main(length=10):
    downloads = pathlib.Path(__file__).resolve().parent / "downloads"
    theirs = runs(pathlib.Path(sys.argv[1]).read_text(), length)
    for name in ("wikipedia.txt", "wikipedia-tokenized.txt"):
        shared = sorted(theirs & runs((downloads / name).read_text(), length))
        print(f"{name}: {len(shared)} runs of {length} words", *shared, sep="\n  ")


if __name__ == "__main__":
    main()
