"""A stored result is found while all it depended on is unchanged, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepress.isolate import Outcome
from edgepress.store import Record, Store, fingerprint
from edgepress.targets.errors import IntegrityError


def made(store: Store, key: str, outcome: Outcome, text: str = "bytes") -> Record:
    space = store.workspace()
    (space / "files" / "out.txt").write_text(text)
    return store.put(key, outcome, space)


def test_a_result_is_found_again_with_its_value_and_files(tmp_path: Path) -> None:
    record = made(Store(tmp_path), "key", Outcome({"a": 1}, 0.5))
    found, reason = Store(tmp_path).find("key")
    assert found is not None and reason == ""
    assert (found.value, found.digest) == ({"a": 1}, record.digest)
    assert (found.folder / "out.txt").read_text() == "bytes"
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("what", ["file changed", "file gone", "folder changed", "package", "source"])
def test_a_changed_dependency_is_a_miss_that_names_it(tmp_path: Path, what: str) -> None:
    data = tmp_path / "user" / "data.py"
    data.parent.mkdir()
    data.write_text("x = 1")
    package = {"numpy": "0.0.0"} if what == "package" else {}
    outcome = Outcome(
        1, 0.1, files=(str(data),), folders=(str(data.parent),), packages=package, sources=(str(data),) if what == "source" else ()
    )
    store = tmp_path / "store"
    made(Store(store), "key", outcome)
    if what in ("file changed", "source"):
        data.write_text("x = 2")
    elif what == "file gone":
        data.unlink()
    elif what == "folder changed":
        (data.parent / "new.npz").write_text("")
    found, reason = Store(store).find("key")
    assert found is None
    named = {
        "file changed": "data.py changed",
        "file gone": "data.py is gone",
        "folder changed": "user/",
        "package": "numpy",
        "source": "data.py",
    }
    assert named[what] in reason


def test_a_file_that_is_gone_when_a_step_ends_is_no_dependency(tmp_path: Path) -> None:
    made(Store(tmp_path), "key", Outcome(1, 0.1, files=(str(tmp_path / "temporary.bin"),)))
    assert Store(tmp_path).find("key")[0] is not None


def test_a_flipped_byte_in_the_store_is_noticed_and_the_result_made_again(tmp_path: Path) -> None:
    record = made(Store(tmp_path), "key", Outcome(1, 0.1))
    (record.folder / "out.txt").write_text("bytEs")
    found, reason = Store(tmp_path).find("key")
    assert found is None and "out.txt" in reason
    made(Store(tmp_path), "key", Outcome(1, 0.1))
    assert Store(tmp_path).find("key")[0] is not None


@pytest.mark.parametrize("left", ["", "{}", "[]", '{"value"', "changed", "another version's", None])
def test_a_record_that_is_cut_or_changed_is_dropped_and_the_result_made_again(tmp_path: Path, left: str | None) -> None:
    record = made(Store(tmp_path), "key", Outcome({"a": 1}, 0.1))
    file = record.folder.parent / "record.json"
    if left is None:
        file.unlink()
    elif left == "changed":
        file.write_text(file.read_text().replace('"a": 1', '"a": 2'))
    elif left == "another version's":
        file.write_text(file.read_text().replace('"seconds"', '"wall_seconds"'))
    else:
        file.write_text(left)
    found, reason = Store(tmp_path).find("key")
    assert found is None and reason == "the stored record was damaged"
    assert not record.folder.exists()
    made(Store(tmp_path), "key", Outcome({"a": 1}, 0.1))
    assert Store(tmp_path).find("key")[0] == record


@pytest.mark.parametrize("damaged", ["record.json", "files/out.txt"])
def test_a_result_made_afresh_replaces_a_damaged_one(tmp_path: Path, damaged: str) -> None:
    record = made(Store(tmp_path), "key", Outcome(1, 0.1))
    (record.folder.parent / damaged).write_text("{")
    assert made(Store(tmp_path), "key", Outcome(1, 0.1)) == record
    assert Store(tmp_path).find("key") == (record, "")
    assert not list((tmp_path / "tmp").iterdir())


def test_the_second_of_two_runs_gets_the_bytes_of_the_first(tmp_path: Path) -> None:
    first = made(Store(tmp_path), "key", Outcome(1, 0.1), "one")
    second = made(Store(tmp_path), "key", Outcome(2, 0.1), "two")
    assert second.value == first.value == 1
    assert (second.folder / "out.txt").read_text() == "one"


def test_a_number_that_is_not_finite_has_no_fingerprint() -> None:
    with pytest.raises(IntegrityError, match="not finite"):
        fingerprint({"x": float("nan")})
