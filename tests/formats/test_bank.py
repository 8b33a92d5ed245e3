from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_bank import add_version, build_bank, chunk_rows

from m3build_formats import errors
from m3build_formats.bank import is_bank, list_versions, open_bank, read_manifest
from m3build_formats.errors import (
    BusyError,
    CorruptError,
    InputError,
    M3Error,
    MismatchError,
    NewerFormatError,
    ResourceError,
    UsageError,
)


def test_the_error_classes_carry_the_exit_codes_of_the_table() -> None:
    codes = {kind.__name__: kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert codes == {
        "M3Error": 1,
        "UsageError": 2,
        "InputError": 3,
        "MismatchError": 4,
        "NewerFormatError": 4,
        "CorruptError": 5,
        "ResourceError": 6,
        "GateError": 7,
        "BusyError": 8,
    }
    assert all(issubclass(kind, M3Error) for kind in (BusyError, InputError, NewerFormatError))


def test_a_manifest_is_read_without_numpy_or_pyarrow(shared_bank: Path) -> None:
    code = (
        "import sys\n"
        "from m3build_formats.bank import read_manifest, list_versions, is_bank\n"
        "from m3build_formats.info import describe\n"
        f"describe(read_manifest({os.fspath(shared_bank)!r}))\n"
        "bad = {'numpy', 'pyarrow', 'zstandard', 'torch', 'faiss'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_place_without_a_bank_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert not is_bank(place)
        for call in (read_manifest, open_bank, list_versions):
            with pytest.raises(UsageError, match="no bank there"):
                call(place)


def test_a_bank_without_a_version_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    with pytest.raises(UsageError, match="no version yet"):
        read_manifest(tmp_path)
    assert list_versions(tmp_path) == []


def test_the_highest_number_is_current_and_other_names_are_ignored(bank: Path) -> None:
    add_version(bank)
    for name in (
        "9.json",
        "00000009.json~",
        "00000009.JSON",
        ".tmp-00000009.json",
        "00000000.json",
        "٠٠٠٠٠٠٠٩.json",
    ):
        (bank / "versions" / name).write_text("junk")
    assert list_versions(bank) == [1, 2]
    assert read_manifest(bank).version == 2


def test_a_version_that_is_not_there_is_a_usage_error_that_lists_them(bank: Path) -> None:
    with pytest.raises(UsageError, match="no version 7; it has 1"):
        read_manifest(bank, 7)


def test_a_digest_pins_a_version_whatever_is_current(bank: Path) -> None:
    first = read_manifest(bank)
    second = add_version(bank)
    assert read_manifest(bank, expect=f"sha256:{first.sha256}") == first
    assert read_manifest(bank, expect=f"sha256:{second.sha256}") == second
    assert read_manifest(bank, 1, f"sha256:{first.sha256}") == first
    with open_bank(bank, expect=f"sha256:{first.sha256}") as opened:
        assert opened.manifest == first


def test_a_digest_that_no_version_has_is_a_mismatch(bank: Path) -> None:
    first = read_manifest(bank)
    add_version(bank)
    with pytest.raises(MismatchError, match="none of its 2 versions"):
        read_manifest(bank, expect="sha256:" + "0" * 64)
    with pytest.raises(MismatchError, match="version 2 is"):
        read_manifest(bank, 2, f"sha256:{first.sha256}")


@pytest.mark.parametrize("expect", ["", "sha256:", "sha256:abc", "md5:" + "0" * 64, "sha256:" + "A" * 64])
def test_a_digest_in_another_form_is_a_usage_error(bank: Path, expect: str) -> None:
    with pytest.raises(UsageError, match="64 lower-case hex digits"):
        read_manifest(bank, expect=expect)


def test_a_manifest_under_another_number_is_corrupt(bank: Path) -> None:
    shutil.copy(bank / "versions/00000001.json", bank / "versions/00000002.json")
    with pytest.raises(CorruptError, match="says that it is version 1"):
        read_manifest(bank)
    assert read_manifest(bank, 1).version == 1


def test_an_unreadable_manifest_is_a_resource_error(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("m3build_formats.bank.open_regular", denied)
    with pytest.raises(ResourceError, match="Permission denied"):
        read_manifest(bank)


def test_too_many_open_files_is_a_resource_error(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_many(*arguments: object, **options: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("m3build_formats.mapped_file.open_regular", too_many)
    with pytest.raises(ResourceError, match="ulimit"):
        open_bank(bank)


def test_a_bank_of_more_files_than_the_soft_limit_opens(tmp_path: Path) -> None:
    build_bank(tmp_path, rows=(1,) * 25)
    code = (
        "import resource; from m3build_formats.bank import open_bank\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        f"assert len(open_bank({os.fspath(tmp_path)!r}).shards) == 25"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_every_file_is_opened_at_once_so_that_the_bank_outlives_its_directory(bank: Path) -> None:
    opened = open_bank(bank)
    shutil.rmtree(bank)
    shard = opened.shards[0]
    assert shard.memories([39]).shape[0] == 1
    assert shard.chunk(39).text.startswith("chunk 39")
    assert shard.document(1).id == "second-0"
    assert sum(len(block) for block in shard.embeddings()) == 40
    assert shard.index_bytes()[:4] == b"IxFI"
    assert opened.codec_arrays()["means"].shape == (2, 3)
    assert list(opened.embedder_arrays()) == ["frequencies"]
    assert [reject.kind for reject in opened.rejects()] == ["reject", "unsupported"]
    assert opened.evaluation() == {"loss": 1.25}


def test_arrays_outlive_the_bank_they_came_from(bank: Path) -> None:
    with open_bank(bank) as opened:
        arrays = opened.codec_arrays()
        block = next(opened.shards[0].memory_batches())
    del opened
    gc.collect()
    assert arrays["means"].sum() == 15
    assert block.shape[0] == 40


def test_a_missing_data_file_is_corrupt_and_named(bank: Path) -> None:
    name = read_manifest(bank).shards[1].embeddings.name
    (bank / "data" / name).unlink()
    with pytest.raises(CorruptError, match=name):
        open_bank(bank)


def test_a_missing_data_directory_is_corrupt(bank: Path) -> None:
    shutil.rmtree(bank / "data")
    with pytest.raises(CorruptError, match="data"):
        open_bank(bank)


def test_opening_retries_when_the_version_was_collected_in_between(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3build_formats import open_bank as module

    first = read_manifest(bank)
    real = module.BankFiles
    calls = []

    def collected_once(path: Path, manifest: object) -> object:
        calls.append(manifest)
        if len(calls) == 1:
            add_version(bank)
            raise CorruptError("gone")
        return real(path, manifest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "BankFiles", collected_once)
    opened = open_bank(bank)
    assert calls[0] == first
    assert opened.manifest.version == 2


def test_a_chunk_is_found_by_any_unambiguous_prefix(shared_bank: Path) -> None:
    with open_bank(shared_bank) as opened:
        ids = [chunk.id.hex() for shard in opened.shards for chunk in shard.chunks()]
        places = [(shard, row) for shard in range(2) for row in range(opened.shards[shard].rows)]
        for identity, place in zip(ids, places, strict=True):
            for length in (64, 40, 17, 16, 15, 9):
                assert opened.find(identity[:length]) == [place]
            assert opened.find(identity.upper()) == [place]
        shared = next(prefix for prefix in "0123456789abcdef" if sum(i.startswith(prefix) for i in ids) > 1)
        with pytest.raises(UsageError, match="ambiguous"):
            opened.find(shared)
        with pytest.raises(UsageError, match="no chunk has"):
            opened.find("0" * 64)
        for wrong in ("", "xyz", "0" * 65, "٠", "0x12"):
            with pytest.raises(UsageError, match="no chunk id"):
                opened.find(wrong)


def test_a_chunk_in_several_shards_is_found_in_each(tmp_path: Path) -> None:
    from sample_bank import bank_files, contents, write_shard

    from m3build_formats.commit import BankWriter

    chunks = chunk_rows(10)
    with BankWriter(tmp_path) as writer:
        shards = [write_shard(writer, chunks), write_shard(writer, chunks[3:4], documents=[])]
        writer.commit(contents(shards, bank_files(writer)), None)
    with open_bank(tmp_path) as opened:
        assert opened.find(chunks[3].id.hex()[:20]) == [(0, 3), (1, 0)]
        assert opened.locate([chunks[3].id, bytes(32), chunks[9].id]) == {
            chunks[3].id: (0, 3),
            chunks[9].id: (0, 9),
        }


def test_a_bank_of_empty_shards_or_none_opens(tmp_path: Path) -> None:
    build_bank(tmp_path / "none", rows=())
    build_bank(tmp_path / "empty", rows=(0, 0))
    with open_bank(tmp_path / "none") as none, open_bank(tmp_path / "empty") as empty:
        assert none.rows == empty.rows == 0
        assert empty.shards[0].memories([]).shape[0] == 0
        assert list(empty.shards[0].chunks()) == []
        with pytest.raises(UsageError, match="no chunk has"):
            empty.find("ab")


def test_a_bank_without_memories_says_so(bank: Path) -> None:
    from dataclasses import replace

    from m3build_formats.commit import BankWriter

    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        shards = tuple(replace(shard, memories=None) for shard in base.shards)
        memory = {**base.memory, "memory_layers": [], "memory_heads": []}
        plain = replace(base.contents, shards=shards, memory=memory, row_codes_bytes=0, row_positions_bytes=0)
        writer.commit(plain, base)
    with open_bank(bank) as opened:
        assert not opened.shards[0].has_memories
        with pytest.raises(MismatchError, match="no memories"):
            opened.shards[0].memories([0])


def test_messages_are_one_or_two_lines_that_name_the_place(bank: Path) -> None:
    (bank / "versions/00000001.json").chmod(0o644)
    (bank / "versions/00000001.json").write_bytes(b"{}\n")
    with pytest.raises(CorruptError) as caught:
        read_manifest(bank)
    assert re.fullmatch(r"versions/00000001\.json: [^\n]+", str(caught.value))
