"""Which Debian packages m3-mini reads, and which families it never sees in training.

A family is what belongs together: the manuals of one project, or what one language has. Licences are those
that Debian's copyright files name for the documentation. Manual pages in Chinese and Japanese carry licences
page by page; there is no larger body of technical text in these languages among the packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """A documentation package: the family and licence of its text, and where that is below the package's
    root, as globs of files. HTML is read as it is, man pages and POD are rendered first."""

    name: str
    family: str
    licence: str
    globs: tuple[str, ...]


def _html(name: str, family: str, licence: str, *places: str) -> Package:
    return Package(name, family, licence, tuple(f"usr/share/doc/{place}/**/*.html" for place in places))


HELD_OUT: Sequence[Package] = (
    _html("postgresql-doc-15", "postgresql", "PostgreSQL", "postgresql-doc-15/html"),
    _html("git-doc", "git", "GPL-2.0", "git-doc"),
)

RUST = tuple(
    f"rust-doc/html/{book}"
    for book in ("book", "reference", "rust-by-example", "nomicon", "edition-guide", "unstable-book", "rustc")
)
RUST_STD = tuple(f"rust-doc/html/std/{part}" for part in ("collections", "io", "iter", "fs", "path", "sync"))
APACHE = "apache2-doc/manual"

TRAINING: Sequence[Package] = (
    _html("python3.11-doc", "python", "PSF-2.0", "python3.11/html"),
    _html("nodejs-doc", "nodejs", "MIT", "nodejs/api"),
    _html("rust-doc", "rust", "MIT or Apache-2.0", *RUST, *RUST_STD),
    _html("apache2-doc", "apache", "Apache-2.0", f"{APACHE}/en"),
    _html("apache2-doc", "japanese", "Apache-2.0", f"{APACHE}/ja"),
    _html("apache2-doc", "chinese", "Apache-2.0", f"{APACHE}/zh-cn"),
    _html("cmake-doc", "cmake", "BSD-3-Clause", "cmake-data/html"),
    _html("sqlite3-doc", "sqlite", "public domain", "sqlite3"),
    _html("python-django-doc", "django", "BSD-3-Clause", "python-django-doc/html"),
    _html("python-sqlalchemy-doc", "sqlalchemy", "MIT", "python-sqlalchemy-doc/html"),
    _html("python-scipy-doc", "scipy", "BSD-3-Clause", "python-scipy-doc/html"),
    _html("python-pandas-doc", "pandas", "BSD-3-Clause", "python-pandas-doc/html"),
    Package("tcl8.6-doc", "tcl", "TCL", ("usr/share/man/man*/*.gz",)),
    Package("perl-doc", "perl", "Artistic or GPL-1.0+", ("usr/share/perl/*/pod/*.pod",)),
    _html("debian-reference-zh-cn", "chinese", "GPL-2.0+", "debian-reference-zh-cn"),
    _html("debian-reference-ja", "japanese", "GPL-2.0+", "debian-reference-ja"),
    _html("debian-faq-zh-cn", "chinese", "GPL-2.0+", "debian/FAQ/zh-cn"),
    _html("debian-faq-ja", "japanese", "GPL-2.0+", "debian/FAQ/ja"),
    _html("maint-guide-zh-cn", "chinese", "GPL-2.0+", "maint-guide-zh-cn"),
    _html("maint-guide-ja", "japanese", "GPL-2.0+", "maint-guide-ja"),
    Package("manpages-zh", "chinese", "GFDL-1.2+ and others", ("usr/share/man/zh_CN/man*/*.gz",)),
    Package("manpages-ja", "japanese", "by page, free", ("usr/share/man/ja/man*/*.gz",)),
)
