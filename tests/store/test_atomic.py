import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxinterp._errors import JaxinterpError, SaveError
from jaxinterp.store import atomic_file, atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_appears_whole_under_its_name(tmp_path):
    with atomic_file(tmp_path / "deep" / "a.json") as temporary:
        temporary.write_text("new")
        assert names(tmp_path / "deep") == [temporary.name]
        assert temporary.suffix == ".json"
    assert names(tmp_path / "deep") == ["a.json"]
    assert (tmp_path / "deep" / "a.json").read_text() == "new"


def test_file_is_replaced_only_at_the_end(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_file(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("mine")]
)
def test_an_error_leaves_the_old_content(tmp_path, error):
    file, folder = tmp_path / "a.txt", tmp_path / "f"
    file.write_text("old")
    folder.mkdir()
    expected = SaveError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic_file(file) as temporary:
        temporary.write_text("half")
        raise error
    if expected is SaveError:
        assert isinstance(caught.value, JaxinterpError) and isinstance(caught.value, OSError)
        assert str(file) in str(caught.value) and "No space left" in str(caught.value)
    with pytest.raises(expected), atomic_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert names(tmp_path) == ["a.txt", "f"]
    assert file.read_text() == "old"
    assert names(folder) == []


def test_a_file_the_block_forgot_to_write_is_an_error(tmp_path):
    with pytest.raises(SaveError, match=r"a\.txt"), atomic_file(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_folder_that_is_not_empty_is_kept_unless_replace(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(SaveError, match="not empty"), atomic_folder(folder):
        pytest.fail("the block must not run")
    assert names(folder) == ["mine"]
    with atomic_folder(folder, replace=True) as temporary:
        (temporary / "new").write_text("new")
        assert names(folder) == ["mine"]
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["f"]


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    rename = os.rename

    def fails(source, target):
        if Path(target) == folder and (Path(source) / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(SaveError, match="Input/output"), atomic_folder(folder, replace=True) as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["f"]
    assert names(folder) == ["mine"]


def test_a_place_that_cannot_hold_it(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match="is a folder"), atomic_file(tmp_path / "folder"):
        pytest.fail("the block must not run")
    with pytest.raises(SaveError, match="is a file"), atomic_folder(tmp_path / "file"):
        pytest.fail("the block must not run")
    with pytest.raises(SaveError, match="File exists|Not a directory"), atomic_file(tmp_path / "file" / "a"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SaveError, match="Permission denied"), atomic_folder(tmp_path / "f"):
            pytest.fail("the block must not run")
    finally:
        tmp_path.chmod(0o700)


def test_a_real_write_past_a_limit_of_the_system(tmp_path):
    pytest.importorskip("resource", reason="limits of file size are a thing of POSIX")
    code = f"""
import resource, signal
from jaxinterp.store import atomic_file
from jaxinterp import _errors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_file({str(tmp_path / "a.bin")!r}) as temporary:
        temporary.write_bytes(bytes(100_000))
except _errors.SaveError as error:
    print("refused:", error)
"""
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert result.stdout.startswith("refused: Could not write"), result.stderr
    assert names(tmp_path) == []
