"""A backup with `gitignore` holds the files that git tracks or does not ignore: compared with git itself."""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from actors.node.errors import TreeError
from actors.node.ignore_rules import Rules, lines_of, text_of
from actors.node.survey import survey
from tests.support.git import LIMITS, Git, without_git
from tests.support.ignore_samples import PATHS, SAMPLES

NAMES = ["a", "b", "ab", "a.x", "d", "bin", "z", "z.x", "*", "c ", "!a", "#a", "a\\", "[z-a]", "n\nl", "\udce9", "ä",
         "t\t", "-"]  # fmt: skip
WORDS = ["a", "b", "ab", "*", "?", "a*", "*.x", "[ab]", "[!a]", "[^b]*", "**", "a**", "**b", "***", "a.x", "\\*", "!a",
         "\\!a", "#a", "\\#a", "b ", "c\\ ", "c ", "bin", "[z-a]", "[z-a]*", "[[:alpha:]]", "[[:nope:]]*", "[[:", "[a",
         "[]a]", "[!]a]", "[a-]", "[\\]a]", "a\\", "\\a", "\\", "", ".", "\udce9", "ä", "?\t", "[\udce0-\udcff]*", "d",
         "**\\", "z?x", "[a/b]", "n?l", "*\\\\"]  # fmt: skip
WHOLE = ["!", "/", "//", "!/", " ", "\\ ", "#", "", "*", "/*", "!*/", "**/", "!**/", "a/**/", "!a/**/", "/a/**", "!/a/",
         "!/a/b", "a/*", "!a/b", "d/**/a", "**/a/**", "!.gitignore", "a/b/", "bin\\", "\t", "a\r", "a\0b"]  # fmt: skip


def random_pattern(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(WHOLE)
    pattern = "/".join(rng.choice(WORDS) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    return rng.choice(["", "", "/", "!"]) + pattern + rng.choice(["", "", "/", " "])


def random_ignore_file(rng: random.Random, patterns: int = 6) -> bytes:
    lines = [os.fsencode(random_pattern(rng)) for _ in range(rng.randint(1, patterns))]
    text = rng.choice((b"\n", b"\n", b"\r\n")).join(lines) + rng.choice((b"\n", b"", b"\r\n"))
    return rng.choice((b"", b"", b"", b"\xef\xbb\xbf")) + text


def random_tree(rng: random.Random, top: Path) -> None:
    """Makes some files in folders, with .gitignore files, some of which are directories and symbolic links."""
    top.mkdir(parents=True)
    names = rng.sample(NAMES, rng.randint(3, 7))
    for _ in range(rng.randint(5, 25)):
        path = top.joinpath(*(rng.choice(names) for _ in range(rng.choice((1, 2, 2, 3, 4)))))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if rng.random() < 0.1:
                path.symlink_to(rng.choice(names))
            elif not path.exists():
                path.touch()
        except OSError:  # a file is in the place of a folder
            continue
    folders = [top, *(path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in {top, *rng.sample(folders, min(len(folders), 2))}:
        file = folder / ".gitignore"
        match rng.random():
            case chance if chance < 0.04:
                file.mkdir()
                (file / "a").touch()
            case chance if chance < 0.08:
                (folder / "rules").write_bytes(random_ignore_file(rng))
                file.symlink_to("rules")
            case _:
                file.write_bytes(random_ignore_file(rng))


@pytest.mark.parametrize("version", ["2", "4"])
@pytest.mark.parametrize("seed", range(6))
def test_thousands_of_random_trees_are_backed_up_as_git_would(tmp_path: Path, seed: int, version: str) -> None:
    rng = random.Random(f"{seed} {version}")
    git = Git.at(tmp_path)
    git("init", "-q")
    git("config", "index.version", version)
    for number in range(200):
        random_tree(rng, git.work / f"{number}")
    (git.work / ".git" / "info" / "exclude").write_bytes(random_ignore_file(rng, 2))
    (git.work / ".gitignore").write_bytes(rng.choice((b"", b"/?7\n*.x\n", b"/1*/a\n/1?/\n!/13/\n")))
    files = sorted(without_git(os.fsdecode(path) for path in _paths(git.work)))
    tracked = rng.sample(files, len(files) // 10)
    git("update-index", "--add", "-z", "--stdin", stdin=b"\0".join(map(os.fsencode, tracked)))

    expected = git.kept()

    _assert_same(git, without_git(git.backed_up()), expected)
    for path in rng.sample([path for path in git.work.rglob("*") if path.is_dir() and not path.is_symlink()], 25):
        inside = str(path.relative_to(git.work))
        if ".git" not in inside.split("/"):
            below = {file.removeprefix(inside + "/") for file in expected if file.startswith(inside + "/")}
            _assert_same(git, git.backed_up(f"/workspace/{inside}"), below, inside)


def _paths(top: Path) -> list[bytes]:
    found = []
    for folder, _, files in os.walk(os.fsencode(top)):
        found += [os.path.relpath(os.path.join(folder, file), os.fsencode(top)) for file in files]
    return found


def _assert_same(git: Git, found: set[str], expected: set[str], inside: str = "") -> None:
    wrong = sorted(found ^ expected)[:5]
    rules = {
        (git.work / inside / path).parent: str(list((git.work / inside / path).parent.glob(".gitignore")))
        for path in wrong
    }
    assert not wrong, ([("kept" if path in found else "lost", inside, path) for path in wrong], rules)


@pytest.mark.parametrize("kind", SAMPLES)
def test_gitignore_templates_of_projects_are_applied_as_git_does(tmp_path: Path, kind: str) -> None:
    git = Git.at(tmp_path)
    git("init", "-q")
    for path in [*PATHS, "Generated Files/x", "Icon\r", "foo  ", "sub/foo  /x"]:
        put(git.work / path)
        put(git.work / "in" / "a folder" / path)
    put(git.work / ".gitignore", SAMPLES[kind])
    put(git.work / "in" / "a folder" / ".gitignore", SAMPLES[kind])

    _assert_same(git, without_git(git.backed_up()), git.kept())


def put(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, newline="")


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """A repository in /workspace that ignores *.log, build/ and .env, with files of each kind in it."""
    git = Git.at(tmp_path)
    git("init", "-q")
    put(git.work / ".gitignore", "*.log\nbuild/\n.env\n")
    for path in ("a", "a.log", "build/a", "build/sub/a", ".env", "sub/a", "sub/a.log", "sub/build/a"):
        put(git.work / path)
    return git


def kept(git: Git, directory: str = "/workspace", **options: Any) -> set[str]:
    return without_git(git.backed_up(directory, **options))


UNIGNORED = {".gitignore", "a", "sub/a"}


def test_files_that_git_tracks_are_kept_though_a_pattern_matches(git: Git) -> None:
    assert kept(git) == UNIGNORED
    git("add", "-f", ".env", "build/sub/a", "sub/a.log")
    assert kept(git) == git.kept() == UNIGNORED | {".env", "build/sub/a", "sub/a.log"}
    assert kept(git, "/workspace/build") == {"sub/a"}


def test_the_git_folder_is_kept_whatever_the_patterns_are(git: Git) -> None:
    put(git.work / ".gitignore", "*\n.*\n.git\n.git/\n/.git/**\nlogs/\nHEAD\nobjects/\n")
    git("add", "-f", "a")
    git("commit", "-q", "-m", "one", "-m", "*.log")
    git("branch", "build/x")
    put(git.work / ".git" / ".gitignore", "*\n")
    put(git.work / "sub" / ".git" / "x", "no repository")
    own = {f".git/{path.relative_to(git.work / '.git')}" for path in (git.work / ".git").rglob("*") if path.is_file()}
    assert {path for path in git.backed_up() if path.startswith(".git/")} == own
    assert kept(git) == {"a"}
    assert git.backed_up("/workspace/.git") == {path.removeprefix(".git/") for path in own}


def test_rules_above_a_directory_apply_up_to_the_root_of_its_repository(git: Git) -> None:
    put(git.work / "sub" / ".gitignore", "*.x\n!keep.log\n")
    put(git.work / ".git" / "info" / "exclude", "*.y\n/sub/only\n")
    for name in ("b.x", "b.y", "b.log", "keep.log", "only", "deep/only", "deep/keep.log", "deep/b.x", "c"):
        put(git.work / "sub" / "in" / name)
        put(git.work / "sub" / name)
    below = {"keep.log", "only", "deep/only", "deep/keep.log", "c"}
    assert kept(git, "/workspace/sub/in") == below
    assert kept(git, "/workspace/sub") == {f"in/{path}" for path in below} | below - {"only"} | {"a", ".gitignore"}
    shutil.rmtree(git.work / ".git")
    assert kept(git, "/workspace/sub/in") == below | {"b.x", "b.y", "b.log", "deep/b.x"}
    assert kept(git, "/workspace/sub/build") == {"a"}


def test_an_ignored_directory_holds_only_what_git_tracks(git: Git) -> None:
    put(git.work / "build" / ".gitignore", "!*\n")
    git("add", "-f", "build/sub/a")
    assert kept(git, "/workspace/build") == {"sub/a"}
    assert kept(git, "/workspace/sub/build") == set()


def test_a_gitignore_that_is_not_a_regular_file_is_skipped(git: Git) -> None:
    put(git.work / "rules", "*\n")
    (git.work / "sub" / ".gitignore").symlink_to("../rules")
    (git.work / "directory" / ".gitignore").mkdir(parents=True)
    put(git.work / "directory" / ".gitignore" / "a")
    expected = UNIGNORED | {"rules", "sub/.gitignore", "directory/.gitignore/a"}
    assert kept(git) == git.kept() == expected
    (git.work / "fifo").mkdir()
    os.mkfifo(git.work / "fifo" / ".gitignore")  # git would wait for a writer
    put(git.work / "fifo" / "a")
    assert kept(git) == expected | {"fifo/.gitignore", "fifo/a"}
    (git.work / ".gitignore").unlink()
    (git.work / ".gitignore").symlink_to("/etc/passwd")
    assert kept(git) >= {"a.log", ".env", "build/a"}


def test_excludes_override_gits_rules_also_for_tracked_files(git: Git) -> None:
    git("add", "-f", ".env", "build/a")
    assert kept(git, excludes=[".env", "!/a.log", "/sub/"]) == {".gitignore", "a", "a.log", "build/a"}
    assert kept(git, excludes=["!build"]) == UNIGNORED | {".env", "build/a", "build/sub/a", "sub/build/a"}
    assert kept(git, excludes=["!sub/build/a"]) == UNIGNORED | {".env", "build/a"}
    assert not [path for path in git.backed_up(excludes=[".git/"]) if path.startswith(".git/")]


def test_each_repository_within_another_has_its_own_rules(git: Git) -> None:
    inner = git.work / "sub" / "inner"
    inner.mkdir()
    git("init", "-q", cwd=inner)
    put(inner / ".gitignore", "*.x\n")
    for path in ("a.x", "a.log", "build/a", "forced.x"):
        put(inner / path)
    git("add", "-f", "forced.x", cwd=inner)
    expected = {".gitignore", "a.log", "build/a", "forced.x"}
    assert git.kept(inner) == expected
    assert kept(git) == UNIGNORED | {f"sub/inner/{path}" for path in expected}
    assert kept(git, "/workspace/sub/inner/build") == {"a"}
    put(git.work / ".gitignore", "inner/\nbuild/\n.env\n*.log\n")
    assert kept(git) == UNIGNORED


@pytest.mark.parametrize("seed", range(6))
def test_random_nested_repositories_are_backed_up_as_git_would(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    git = Git.at(tmp_path)
    for number in range(25):
        random_tree(rng, git.work / f"{number}")
    folders = [path for path in git.work.rglob("*") if path.is_dir() and not path.is_symlink()]
    roots = [git.work, *rng.sample([path for path in folders if ".gitignore" not in path.parts], 12)]
    for root in roots:
        git("init", "-q", f"--object-format={rng.choice(('sha1', 'sha1', 'sha256'))}", cwd=root)
        (root / ".git" / "info" / "exclude").write_bytes(random_ignore_file(rng, 2))
    (git.work / ".gitignore").write_bytes(rng.choice((b"", b"/?7\n*.x\n", b"/1*/a\n/1?/\n!/13/\n")))

    def within(root: Path) -> list[Path]:
        return [path for path in roots if path != root and path.is_relative_to(root)]

    def own(root: Path, paths: Iterable[str]) -> set[str]:
        return {path for path in paths if not any((root / path).is_relative_to(other) for other in within(root))}

    def expected(root: Path) -> set[str]:
        found = own(root, git.kept(root))
        for other in within(root):
            inside = str(other.relative_to(root))
            nearest = not any(other in within(between) for between in within(root))
            if nearest and not git("check-ignore", "--no-index", "--stdin", "-z", cwd=root, stdin=os.fsencode(inside)):
                found |= {f"{inside}/{path}" for path in expected(other)}
        return found

    for root in roots:
        files = sorted(own(root, without_git(os.fsdecode(path) for path in _paths(root))))
        tracked = rng.sample(files, len(files) // 5)
        git("update-index", "--add", "-z", "--stdin", stdin=b"\0".join(map(os.fsencode, tracked)), cwd=root)
    _assert_same(git, without_git(git.backed_up()), expected(git.work))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_submodule_and_a_worktree_have_their_index_elsewhere(git: Git, absolute: bool) -> None:
    other = git.work.parent / "home" / "other"
    other.mkdir(parents=True)
    git("init", "-q", cwd=other)
    for path in ("a", "b.x"):
        put(other / path)
    put(other / ".gitignore", "*.x\n")
    git("add", "-f", ".", "b.x", cwd=other)
    git("commit", "-q", "-m", "one", cwd=other)
    git("submodule", "--quiet", "add", "--force", str(other), "build/module")
    git("worktree", "add", "-q", str(git.work / "tree"), cwd=other)
    for folder, place in ((git.work / "build" / "module", "/workspace/.git/modules/build/module"),
                          (git.work / "tree", "/home/other/.git/worktrees/tree")):  # fmt: skip
        put(folder / "c.x")
        put(folder / "d.log")
        real = git.tree.root / place.removeprefix("/")
        assert (real / "HEAD").exists()
        pointer = place if absolute else os.path.relpath(real, folder)
        (folder / ".git").write_text(f"gitdir: {pointer}\n")
    put(other / ".git" / "info" / "exclude", "e\n")
    put(git.work / "tree" / "e")
    inside = {".gitignore", "a", "b.x", "d.log"}
    found = kept(git)
    assert {path for path in found if path.startswith("build/")} == {f"build/module/{path}" for path in inside}
    assert {path for path in found if path.startswith("tree/")} == {f"tree/{path}" for path in inside}
    assert kept(git, "/workspace/tree") == inside
    (git.work / "tree" / ".git").write_text("gitdir: /nowhere\n")  # a broken pointer makes no repository
    assert {path for path in kept(git) if path.startswith("tree/")} == {
        "tree/" + path for path in (".gitignore", "a", "e")
    }


@pytest.mark.parametrize("version", ["2", "3", "4"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_every_kind_of_index_is_read(tmp_path: Path, version: str, split: bool, algorithm: str) -> None:
    git = Git.at(tmp_path)
    git("init", "-q", f"--object-format={algorithm}")
    put(git.work / ".gitignore", "*.log\n")
    names = [f"{'d' * (number % 7)}e{'/x' * (number % 3)}{number}.log" for number in range(300)]
    names += ["n" * 250 + ".log", "/".join(["y" * 200] * 15) + "/long.log", "é.log", "a\nb.log"]
    for name in names:
        put(git.work / name)
    if version != "3":
        git("config", "index.version", version)
    git("add", "-f", *names[:150])
    if split:
        git("config", "splitIndex.maxPercentChange", "100")
        git("update-index", "--split-index")
    git("add", "-f", *names[250:])
    git("rm", "-q", "--cached", *names[20:40])
    put(git.work / names[50], "changed")
    git("add", "-f", names[50])
    if version == "3":
        git("add", "-f", "--intent-to-add", names[200])
    else:
        git("update-index", "--force-write-index")
    assert bool(list((git.work / ".git").glob("sharedindex.*"))) is split
    assert (git.work / ".git" / "index").read_bytes()[4:8] == int(version).to_bytes(4, "big")
    assert kept(git) == git.kept()


def test_conflicted_files_and_those_beyond_a_sparse_checkout_are_tracked(git: Git) -> None:
    git("add", "-f", ".")
    git("commit", "-q", "-m", "one")
    git("checkout", "-q", "-b", "other")
    put(git.work / ".env", "theirs")
    git("add", "-f", ".env")
    git("commit", "-q", "-m", "two")
    git("checkout", "-q", "main")
    put(git.work / ".env", "ours")
    git("add", "-f", ".env")
    git("commit", "-q", "-m", "three")
    subprocess.run(["git", "-c", "safe.directory=*", "merge", "other"], cwd=git.work, capture_output=True,
                   env={"PATH": os.environ["PATH"], "HOME": str(git.home)}, check=False)  # fmt: skip
    assert len(git("ls-files", "--unmerged").splitlines()) == 3
    assert ".env" in kept(git)
    assert kept(git) == git.kept()


def test_a_sparse_index_is_read_unless_one_of_its_sparse_directories_exists(git: Git) -> None:
    for path in ("in/a.log", "out/a.log", "out/deep/a.log"):
        put(git.work / path)
    git("add", "-f", ".gitignore", "in/a.log", "out/a.log", "out/deep/a.log")
    git("commit", "-q", "-m", "one")
    git("sparse-checkout", "set", "--cone", "--sparse-index", "in")
    assert b"sdir" in (git.work / ".git" / "index").read_bytes()
    assert not (git.work / "out").exists()
    assert kept(git) == UNIGNORED | {"in/a.log"}
    put(git.work / "out" / "b.log")
    with pytest.raises(TreeError, match="sparse directory") as raised:
        kept(git)
    assert "no-sparse-index" in str(raised.value.hint)
    git("sparse-checkout", "reapply", "--no-sparse-index")
    assert kept(git) == git.kept()


def test_each_byte_is_matched_as_git_matches_it(tmp_path: Path) -> None:
    git = Git.at(tmp_path)
    git("init", "-q")
    classes = "alnum alpha blank cntrl digit graph lower print punct space upper xdigit"
    patterns = [f"[[:{name}:]]" for name in classes.split()]
    patterns += ["[![:alnum:]]", "?", "[!a]", "[^a-y]", "[ -~]", "[+--]", "[a\\-z]", "[[:digit:]-z]", "[]-a]"]
    patterns += ["[\\[-\\]]", "[[-a]", "[--/]", "*"]
    for number, pattern in enumerate(patterns):
        for prefix in ("", "x"):
            folder = git.work / f"{number}{prefix}"
            put(folder / ".gitignore", f"{'/x' if prefix else ''}{pattern}\n")
            for code in (*range(1, ord("/")), *range(ord("/") + 1, 256)):
                name = os.fsencode(prefix) + bytes((code,))
                if name != b".":
                    (folder / os.fsdecode(name)).touch()
    _assert_same(git, without_git(git.backed_up()), git.kept())


def test_random_patterns_give_the_same_verdicts_as_git_check_ignore(tmp_path: Path) -> None:
    rng = random.Random(7)
    git = Git.at(tmp_path)
    git("init", "-q")
    asked, rules = [], {}
    for number in range(3000):
        content = random_ignore_file(rng, 3)
        (git.work / f"{number}").mkdir()
        (git.work / f"{number}" / ".gitignore").write_bytes(content)
        rules[number] = Rules(lines_of(content), lambda: None)
        for _ in range(5):
            asked.append((number, "/".join(rng.choice(NAMES) for _ in range(rng.choice((1, 1, 2, 3))))))
    said = git("check-ignore", "--no-index", "--verbose", "--non-matching", "--stdin", "-z",
               stdin=b"".join(os.fsencode(f"{number}/{path}") + b"\0" for number, path in asked))  # fmt: skip
    fields = said.split(b"\0")
    for (number, path), pattern in zip(asked, fields[2::4], strict=False):
        expected = None if not pattern else not pattern.startswith(b"!")
        assert _decided(rules[number], path) is expected, (rules[number], path, pattern)


def _decided(rules: Rules, path: str) -> bool | None:
    """Returns the verdict on a path: that of its outermost excluded directory, else its own."""
    parts = text_of(path).split("/")
    for depth in range(1, len(parts)):
        if rules.verdict("/".join(parts[:depth]), is_directory=True):
            return True
    return rules.verdict("/".join(parts), is_directory=False)


def index_of(*entries: tuple[bytes, int], version: int = 2, extensions: bytes = b"", count: int | None = None) -> bytes:
    """An index as git writes it, with names and modes."""
    made = struct.pack(">4sII", b"DIRC", version, len(entries) if count is None else count)
    for name, mode in entries:
        head = struct.pack(">6I", *[0] * 6) + struct.pack(">I", mode) + bytes(12) + bytes(20)
        flags = struct.pack(">H", min(len(name), 0xFFF))
        entry = head + flags + name
        made += entry + bytes(8 - len(entry) % 8)
    return made + extensions + bytes(20)


LINK = b"link" + struct.pack(">I", 20) + b"\x01" * 20
HOSTILE_INDEXES = {
    "empty": b"",
    "no index": b"DIRT" + bytes(40),
    "version 5": index_of(version=5),
    "four billion entries": index_of((b"a", 0o100644), count=2**32 - 1),
    "cut off": index_of((b"a" * 100, 0o100644))[:90],
    "a name of 8 KiB": index_of((b"a" * 8192, 0o100644)),
    "an extension that must be known": index_of(extensions=b"zzzz" + struct.pack(">I", 0)),
    "an extension beyond the end": index_of(extensions=b"TREE" + struct.pack(">I", 2**31)),
    "a shared index that is missing": index_of(extensions=LINK),
    "a shared index that is itself": index_of(extensions=LINK),
    "names that grow without an end": struct.pack(">4sII", b"DIRC", 4, 200_000)
    + (bytes(60) + struct.pack(">H", 0xFFF) + b"\0" + b"a" * 4000 + b"\0")
    + (bytes(60) + struct.pack(">H", 0xFFF) + b"\0" + b"\0") * 199_999
    + bytes(20),
    "a name that rests on nothing": struct.pack(">4sII", b"DIRC", 4, 1) + bytes(62) + b"\x05a\0" + bytes(20),
    "a number without an end": struct.pack(">4sII", b"DIRC", 4, 1) + bytes(62) + b"\xff" * 100 + bytes(20),
}


@pytest.mark.parametrize("kind", HOSTILE_INDEXES)
def test_an_invalid_index_is_refused_with_a_sentence(git: Git, kind: str) -> None:
    put(git.work / ".git" / "index")
    (git.work / ".git" / "index").write_bytes(HOSTILE_INDEXES[kind])
    if "itself" in kind:
        (git.work / ".git" / f"sharedindex.{'01' * 20}").write_bytes(HOSTILE_INDEXES[kind])
    tracemalloc.start()
    with pytest.raises(TreeError, match="index"):
        kept(git)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("word", [0xFFFFFFFFFFFFFFFF, 0x1FFFFFFFF, 2**63])
def test_a_bitmap_that_sets_bits_without_an_end_is_bounded(git: Git, word: int) -> None:
    bitmap = struct.pack(">IIQI", 64, 1, word, 0)
    link = b"\x01" * 20 + bitmap * 2
    extension = b"link" + struct.pack(">I", len(link)) + link
    (git.work / ".git" / "index").write_bytes(index_of((b"a.log", 0o100644), extensions=extension))
    (git.work / ".git" / f"sharedindex.{'01' * 20}").write_bytes(index_of((b".env", 0o100644)))
    assert kept(git) >= UNIGNORED | {"a.log"}


def test_a_too_large_file_of_git_is_refused(git: Git) -> None:
    with open(git.work / ".git" / "index", "wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(TreeError, match=r"index' is larger"):
        kept(git)
    (git.work / ".git" / "index").unlink()
    put(git.work / "sub" / ".gitignore", "#" * (2**20 + 1))
    with pytest.raises(TreeError, match=r"\.gitignore' is larger"):
        kept(git)
    put(git.work / "sub" / ".gitignore", "a\n" * 10_001)
    with pytest.raises(TreeError, match="More than 10000 patterns"):
        kept(git)
    put(git.work / "sub" / ".gitignore", "a" * 4097)
    with pytest.raises(TreeError, match="longer than 4096"):
        kept(git)


@pytest.mark.parametrize("where", ["outside", "index", "git directory", "pointer", "fifo", "device", "loop"])
def test_links_and_special_files_are_not_followed(git: Git, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    git("init", "-q", cwd=outside)
    for name in ("a.log", ".env"):
        put(outside / name)
    git("add", ".", cwd=outside)
    own = git.work / ".git"
    match where:
        case "outside" | "git directory":
            shutil.rmtree(own)
            own.symlink_to(outside / ".git" if where == "outside" else "/outside/.git")
        case "index":
            (own / "index").symlink_to(outside / ".git" / "index")
        case "pointer":
            shutil.rmtree(own)
            put(own, f"gitdir: {outside / '.git'}\n")
        case "fifo":
            os.mkfifo(own / "index")
        case "device":
            os.mknod(own / "index", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        case "loop":
            (own / "index").symlink_to("index")
    try:
        assert kept(git) - {".git"} == UNIGNORED
    except TreeError:
        assert where == "loop"


def test_costly_patterns_end_with_the_time_limit(git: Git) -> None:
    put(git.work / "sub" / ".gitignore", "".join(f"{'*a' * 40}{number}\n" for number in range(2000)))
    for number in range(300):
        put(git.work / "sub" / f"{'a' * 240}{number}")
    began = time.monotonic()
    with git.tree.directory("/workspace") as fd, pytest.raises(TreeError, match="in the time"):
        survey(fd, limits=LIMITS, gitignore=git.tree, timeout_s=0.2)
    assert time.monotonic() - began < 20


def test_a_deep_tree_of_repositories_is_walked_within_its_limit(git: Git) -> None:
    folder = git.work
    for _ in range(60):
        folder /= "d"
        shutil.copytree(git.work / ".git", folder / ".git")
    put(folder / "a.log")
    assert f"{'d/' * 60}a.log" in kept(git)
