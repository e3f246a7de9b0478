"""Sample .gitignore files of several kinds of projects, with the constructs that such templates use."""

from __future__ import annotations

SAMPLES = {
    "python": """\
# Bytecode
__pycache__/
*.py[cod]
*$py.class
*.so
/dist/
.eggs/
*.egg-info/
.coverage.*
htmlcov/
.venv
env.bak/
!important.egg-info/
docs/_build/
# a trailing comment that is a pattern #no
*.mo
""",
    "pipeline with data": """\
# keeps the folders of data, and what explains them, but no data
data/**
!data/**/
!data/**/.gitkeep
!data/**/README.md
conf/**/*local*
conf/local/**
!conf/local/.gitkeep
!.gitkeep
logs/**
!logs/*.md
""",
    "c and cmake": """\
*.[oa]
*.so.*
*.l[ao]
Debug*/
[Bb]uild-*/
CMakeFiles
CMakeCache.txt
/Testing/
!CMakeLists.txt
*.dSYM/
.deps/
""",
    "dotnet": """\
[Dd]ebug/
[Rr]elease*/
x64/
[Bb]in/
[Oo]bj/
*.user
**/[Pp]ackages/*
!**/[Pp]ackages/build/
*.[Cc]ache
!?*.[Cc]ache/
~$*
*~
[Tt]est[Rr]esult*/
Generated\\ Files/
_[Uu]pgrade*/
$tf/
ecf/
""",
    "node": """\
node_modules/
jspm_packages/
logs
*.log
npm-debug.log*
.env
.env.*
!.env.example
.cache
dist
.yarn/*
!.yarn/patches
!.yarn/plugins
.pnp.*
report.[0-9]*.[0-9]*.json
""",
    "only some": """\
# everything is ignored, but
/*
!/.gitignore
!/src/
/src/*
!/src/keep/
!*.md
""",
    "ide": """\
.idea/**/workspace.xml
.idea/**/tasks.xml
.idea/*
!.idea/codeStyles
.vscode/*
!.vscode/settings.json
*.iml
[._]*.s[a-v][a-z]
[._]*.sw[a-p]
!*.svg
Session*.vim
\\#*\\#
.\\#*
*_flymake.*
Icon\r\r
._*
.Trash-*
Thumbs.db:encryptable
""",
    "tex and game": """\
*.aux
*.t[1-9]
*-converted-to.*
## a heading
/[Ll]ibrary/
/[Aa]ssets/[Pp]lugins/[Ee]ditor/**
![Aa]ssets/**/*.meta
sysinfo.txt
/*.pdf
**/figures/*.eps
/build
**/*.bak\x20\x20\x20
foo\\ \\\x20
""",
}  # fmt: skip

_PATHS = """
__pycache__/a.pyc a.py a.pyc a$py.class lib/x.so dist/x sub/dist/x .eggs/x p.egg-info/x important.egg-info/x
.coverage.1 htmlcov/i .venv/x docs/_build/x docs/x de.mo
data/.gitkeep data/raw/.gitkeep data/raw/a.csv data/raw/deep/README.md data/raw/deep/x data/x conf/local/x conf/base/x
conf/local/.gitkeep conf/base/my-local.yml conf/base/local/x logs/x logs/a.md logs/deep/b.md logs/.gitkeep
a.o b.a lib.so.1 x.la Debug/x Debug1/x Debug-file Build-x/y CMakeFiles/x sub/CMakeFiles CMakeCache.txt CMakeLists.txt
Testing/x sub/Testing/x a.dSYM/x .deps/x
debug/x release1/x x64/x bin/x Bin/x obj/x x.user packages/a packages/build/x sub/Packages/a sub/Packages/build/x
a.cache b.Cache/x .cache/x ~$x x~ TestResults/x Generated_Files/x _UpgradeReport/x $tf/x ecf/x
node_modules/a/b.js npm-debug.log.1 x.log .env .env.local .env.example .yarn/x .yarn/patches/x .yarn/plugins/x .pnp.js
report.1.2.json report.x.json
src/a src/keep/a src/keep/deep/a src/b.md README.md other/a.md
.idea/workspace.xml .idea/a/workspace.xml .idea/x .idea/codeStyles/x .vscode/x .vscode/settings.json x.iml .x.swp
_a.swo x.svg .a.sab Session1.vim #a# .#a a_flymake.x ._a .Trash-1/x Thumbs.db:encryptable sub/Thumbs.db:encryptable
a.aux a.t1 a.t0 a-converted-to.b Library/x sub/library/x Assets/Plugins/Editor/x/y Assets/x.meta
Assets/Plugins/Editor/x/y.meta sysinfo.txt a.pdf sub/a.pdf sub/figures/a.eps figures/a.eps build/x sub/build/x a.bak
"""
PATHS = _PATHS.split()
"""Paths that the samples match, and others that they do not."""
