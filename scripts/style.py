#!/usr/bin/env python3
"""Measures the prose of comments and Markdown, and fails beyond the limits that follow.

    scripts/style.py                prints the figures, exits with 1 beyond a limit
    scripts/style.py --list PATH    prints each finding below PATH as file:line

It counts doc blocks that open with a clause ("Whether it ..." instead of "Returns true if ..."),
vague words (who, whoever, anew, ...) in a thousand words, and lines wider than 100 columns.
"""

import pathlib
import re
import subprocess
import sys

MAX_CLAUSE_OPENINGS_PERCENT = 6.0
MAX_VAGUE_WORDS_PER_1000 = 2.0
MAX_COLUMNS = 100

CLAUSE = re.compile(r"(What|Whether|Who|Whom|Whose|Whoever|How|Where|Which|Why)\b")
VAGUE = re.compile(
    r"\b(who|whom|whose|whoever|nobody|somebody|anybody|he|his|anew|told|heard|let in|turned away"
    r"|aboard|in vain|of which|what there is|rooms?|desks?|seats?|passengers?|journals?|ledgers?)\b",
    re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
CODE = re.compile(r"`[^`]*`")


class Figures:
    """Counts and findings of one kind of file."""

    def __init__(self):
        self.words = self.blocks = 0
        self.clauses, self.vague, self.wide = [], [], []

    def add_line(self, place, text, whole, wrapped=True):
        """Counts one line of prose; `whole` is the line of the file that it stands in."""
        text = CODE.sub("", text)
        self.words += len(WORD.findall(text))
        self.vague += [f"{place}: {word.group()}" for word in VAGUE.finditer(text)]
        if wrapped and len(whole.rstrip("\n")) > MAX_COLUMNS:
            self.wide.append(f"{place}: {len(whole)} columns")


def read_rust(path, lines, figures):
    """Counts the comments of a Rust file."""
    previous, fenced = "", False
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        whole_line = re.match(r"^\s*(//[/!]?)(?: (.*))?$", line)
        if not whole_line:
            previous = ""
            # A comment behind code: not the two slashes of an address or a string.
            tail = re.search(r"[;,{})] // (.*)$", line)
            if tail:
                figures.add_line(place, tail.group(1), line, wrapped=False)
            continue
        marker, text = whole_line.group(1), whole_line.group(2) or ""
        if text.startswith("```"):
            fenced = not fenced
        elif not fenced:
            if marker != "//" and previous != marker:
                figures.blocks += 1
                if CLAUSE.match(text):
                    figures.clauses.append(f"{place}: {text[:60]}")
            table = text.startswith("|") or "://" in text
            figures.add_line(place, text, line, wrapped=not table)
        previous = marker


def read_script(path, lines, figures):
    """Counts the comments of a shell or Python script, and Python's docstrings."""
    in_docstring = False
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        quotes = line.count('"""') if path.suffix == ".py" else 0
        if in_docstring or (quotes and line.strip().startswith(('"""', 'r"""'))):
            figures.add_line(place, line, line, wrapped="://" not in line)
            in_docstring = in_docstring != (quotes == 1)
        elif (comment := re.match(r"^\s*#(?!!) ?(.*)$", line)) or (comment := re.search(r"\s# (.*)$", line)):
            figures.add_line(place, comment.group(1), line, wrapped="://" not in line)


def read_markdown(path, lines, figures):
    """Counts the prose of a Markdown file; tables, code and lines with links may be wider."""
    fenced = False
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            free = line.lstrip().startswith("|") or "](" in line or "://" in line
            figures.add_line(f"{path}:{number}", line, line, wrapped=not free)


READERS = {".rs": read_rust, ".sh": read_script, ".py": read_script, ".md": read_markdown}


def measure(below):
    """Reads all files that git tracks below a path: those with comments, and those of Markdown."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", below],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")
    comments, markdown = Figures(), Figures()
    for path in map(pathlib.Path, filter(None, listed)):
        reader = READERS.get(path.suffix)
        if reader and path.is_file():
            lines = path.read_text().split("\n")
            reader(path, lines, markdown if reader is read_markdown else comments)
    return {"comments": comments, "Markdown": markdown}


def main():
    """Prints the figures and returns the exit code."""
    below = sys.argv[2] if sys.argv[1:2] == ["--list"] else "."
    measured, failed = measure(below), False
    for kind, figures in measured.items():
        if below != "." or len(sys.argv) > 1:
            print("\n".join(figures.clauses + figures.vague + figures.wide))
        vague = 1000 * len(figures.vague) / max(figures.words, 1)
        print(f"{kind}: {figures.words} words, {vague:.1f} vague words per 1,000 "
              f"(at most {MAX_VAGUE_WORDS_PER_1000:g}), {len(figures.wide)} lines over {MAX_COLUMNS} columns (none)")
        failed |= vague > MAX_VAGUE_WORDS_PER_1000 or bool(figures.wide)
        if figures.blocks:
            clauses = 100 * len(figures.clauses) / figures.blocks
            print(f"{kind}: {figures.blocks} doc blocks, {clauses:.1f} % open with a clause word "
                  f"(at most {MAX_CLAUSE_OPENINGS_PERCENT:g} %)")
            failed |= clauses > MAX_CLAUSE_OPENINGS_PERCENT
    if failed:
        print(f"beyond a limit: scripts/style.py --list {below} shows where", file=sys.stderr)
    return int(failed)


sys.exit(main())
