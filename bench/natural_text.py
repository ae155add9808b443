"""English prose from Debian's packages: a second corpus, where nothing but Debian's mirrors can be reached.

    python -m bench.natural_text FOLDER
    python prepare.py --source FOLDER

Downloads dictionaries, handbooks and documentation with `apt-get download` (no root is needed, nothing is installed),
strips markup, code and tables, keeps paragraphs that read like English, and writes one .txt a page to FOLDER/PACKAGE.
The same packages give the same files. The licences are the packages' own (GPL, GFDL, PostgreSQL, PSF and the like: see
usr/share/doc/PACKAGE/copyright in each); the text is to be trained on and measured here, not to be passed on.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

PACKAGES = """
    dict-gcide dict-foldoc dict-jargon wordnet-base
    linux-doc-6.1 manpages manpages-dev debian-handbook debian-reference-en debian-policy developers-reference
    installation-guide-amd64 debian-faq harden-doc
    postgresql-doc-15 postgis-doc sqlite3-doc apache2-doc haproxy-doc exim4-doc-html
    python3.11-doc python-django-doc python-sqlalchemy-doc python-scipy-doc perl-doc erlang-doc nodejs-doc cmake-doc
    swi-prolog-doc r-doc-html octave-doc maxima-doc gap-doc ruby3.1-doc tcl8.6-doc
    git-doc vim-doc emacs-common zsh-doc gnuplot-doc
    libreoffice-help-en-us gnucash-docs gimp-help-en kicad-doc-en freeciv-data
""".split()  # noqa: SIM905
COMMON = set("""
    a about all also an and any are as at be been both but by can do does each for from has have he his if in
    into is it its may more most must no not of on one only or other should so some such than that the their
    then there these they this to use used using was were when which who will with would you your
""".split())  # noqa: SIM905
SHORTEST_PARAGRAPH, SHORTEST_PAGE, LONGEST_PAGE = 60, 400, 60_000  # characters
WORDNET = re.compile(r"data\.(noun|verb|adj|adv)$")
ENTRIES = 4000  # characters of dictionary entries that make a page
# Another language's copy, by its path: index.html.de, /fr/, book.ja.html, es.txt
FOREIGN = re.compile(r"(?:^|[./_-])(?!en)(?:[a-z]{2}|[a-z]{2}[-_][a-zA-Z]{2,4})(?:\.html|\.txt|\.utf8|/|$)")
DROPPED = re.compile(r"(?is)<(script|style|pre|table|nav|head|footer|svg|math)\b.*?</\1\s*>|<!--.*?-->")
BLOCK = re.compile(r"(?i)</?(?:p|li|dd|dt|dl|ul|ol|div|section|blockquote|h[1-6]|br\s*/?|hr|body|td|tr)\b[^>]*>")


def reads_like_english(paragraph: str) -> bool:
    """Long enough, of letters, in ASCII for the most part, and with its share of the words that all English has."""
    words = re.findall(r"[A-Za-z']+", paragraph)
    if len(paragraph) < SHORTEST_PARAGRAPH or not words:
        return False
    letters = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    common = sum(word.lower() in COMMON for word in words)
    return letters > 0.85 * len(paragraph) and sum(map(str.isascii, paragraph)) > 0.97 * len(paragraph) and (
        common > 0.2 * len(words)
    )


def paragraphs(path: Path, text: str) -> Iterator[str]:
    """The paragraphs of a file, without markup, each on one line."""
    name = path.name.removesuffix(".gz")
    if re.search(r"\.x?html?(\.en)?$", name):
        parts = [html.unescape(re.sub(r"<[^>]+>", "", part)) for part in BLOCK.split(DROPPED.sub(" ", text))]
    elif re.search(r"\.[1-8][a-z]*$", name) and "/man" in str(path):
        text = re.sub(r"(?m)^[.'](?:[BI]|[BIR]{2}) +", "", text)  # a line in bold or italic type
        text = re.sub(r"(?m)^\.(?:PP|TP|IP|LP|P|SH|SS|nf|fi|RS|RE|EX|EE).*$", "\n", text)
        text = re.sub(r"(?m)^[.'].*\n", "", text)
        parts = re.sub(r"\\f[A-Z(]+|\\[&/,|^]|\\(?=[-e])|\"", "", text).split("\n\n")
    elif name.endswith(".pod"):
        parts = [re.sub(r"[A-Z]<+([^<>]*)>+", r"\1", part) for part in text.split("\n\n") if part[:1] not in "= \t"]
    else:
        parts = re.split(r"\n\s*\n", text)
    for part in parts:
        part = " ".join(part.split())
        if reads_like_english(part):
            yield part


def dictionary(path: Path, text: str) -> Iterator[str]:
    """The entries of a dictionary in dictd's form (indented under their words) or WordNet's (words | gloss)."""
    if WORDNET.match(path.name):
        for line in text.splitlines():
            head, bar, gloss = line.partition(" | ")
            if bar and line[0].isdigit():  # not the licence above them
                words = head.split()[4 : 4 + 2 * int(head.split()[3], 16) : 2]
                yield f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"
        return
    for entry in re.split(r"\n(?=\S)", text):
        entry = re.sub(r"[{}]|\\\S*\\", "", " ".join(entry.split()))
        if reads_like_english(entry):
            yield entry


def pages(path: Path) -> Iterator[str]:
    """The texts that a file gives: one, or for a dictionary one for every few thousand characters."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", errors="replace")
    if WORDNET.match(path.name) or ".dict" in path.name:
        gathered: list[str] = []
        for entry in dictionary(path, text):
            gathered.append(entry)
            if sum(map(len, gathered)) > ENTRIES:
                yield "\n\n".join(gathered) + "\n"
                gathered = []
        return
    page, size = [], 0
    for paragraph in paragraphs(path, text):
        page.append(paragraph)
        size += len(paragraph)
        if size > LONGEST_PAGE:
            break
    if size >= SHORTEST_PAGE:
        yield "\n\n".join(page) + "\n"


def is_text(path: Path, below: Path) -> bool:
    """Whether a file of a package is one of the kinds that hold prose, in English."""
    place = re.sub(r"\.[gd]z$", "", path.relative_to(below).as_posix())
    name = place.rpartition("/")[2]
    wanted = re.search(r"\.(x?html?|html?\.en|txt|pod|info(-\d+)?|dict|rst|[1-8][a-z]*)$", name) or WORDNET.match(name)
    plain = re.search(r"\.html?\.[a-z-]+$", name)  # Apache's way: .html.de, .html.en
    return bool(wanted) and not path.is_symlink() and path.is_file() and not FOREIGN.search(place) and not (
        plain and not name.endswith(".en")
    ) and not re.search(r"(^|/)(changelog|copyright|NEWS|genindex|search|locale/(?!en))", place)  # fmt: skip


def extract(package: Path, folder: Path) -> tuple[str, int, int]:
    """Unpack a .deb and write its pages; its name, and how many pages and bytes it gave."""
    name = package.name.split("_")[0]
    count = size = 0
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
        below = Path(unpacked)
        files = sorted(path for path in below.rglob("*") if is_text(path, below))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in files:
            for text in pages(path):
                (folder / name / f"{count:05}.txt").write_text(text)
                count, size = count + 1, size + len(text.encode())
    return name, count, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    parser.add_argument("--debs", type=Path, help="where the downloaded packages are kept (default: FOLDER/.debs)")
    args = parser.parse_args()
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        sys.exit("natural_text: this needs Debian's or Ubuntu's apt-get and dpkg-deb")
    debs = args.debs or args.folder / ".debs"
    debs.mkdir(parents=True, exist_ok=True)
    for name in args.packages:
        if not list(debs.glob(f"{name}_*.deb")):
            done = subprocess.run(["apt-get", "download", "-qq", name], cwd=debs, capture_output=True, text=True)
            if done.returncode:
                print(f"left out, not to be had here: {name}", file=sys.stderr)
    found = sorted(deb for name in args.packages for deb in debs.glob(f"{name}_*.deb"))
    if not found:
        sys.exit("natural_text: no package could be downloaded: run `apt-get update` first")
    rows = []
    with ProcessPoolExecutor() as pool:
        for row in pool.map(extract, found, [args.folder] * len(found)):
            rows.append(row)
            print(f"{row[0]:28} {row[1]:6} pages {row[2] / 1e6:8.2f} MB", flush=True)
    total = {"packages": len(rows), "pages": sum(row[1] for row in rows), "bytes": sum(row[2] for row in rows)}
    print(json.dumps({**total, "versions": [deb.name for deb in found]}))


if __name__ == "__main__":
    main()
