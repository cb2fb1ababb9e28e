"""What is shipped: layout, records, and the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from edgepress.bundle.digest import digest, size_bytes, tree
from edgepress.bundle.manifest import artifact_of
from edgepress.bundle.npz import load_npz, save_npz
from edgepress.bundle.write import folders, shipped_artifacts, write_bundle
from edgepress.report.schema import load_schema
from edgepress.targets.errors import IntegrityError
from tests.bundle_sample import report_of, shipments


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shipped = shipments(tmp_path / "store")
    write_bundle(tmp_path / "run", report_of(shipped), shipped)
    return tmp_path / "run"


def listing(bundle: Path) -> dict[str, object]:
    return json.loads((bundle / "bundle.json").read_text("utf-8"))


def test_layout(run: Path) -> None:
    common = {"golden_inputs.npz", "golden_outputs.npz", "golden.json", "run.py"}
    records = {"bundle.json", "README.md", "sbom.cdx.json", "provenance.intoto.jsonl", "SHA256SUMS"}
    folder = {"model.mlpackage/Manifest.json", "model.mlpackage/Data/weights.bin", "graph.onnx"}
    expected = records | {f"onnxruntime/{name}" for name in common | {"model.onnx"}} | {f"coreml/{name}" for name in common | folder}
    assert set(tree(run / "bundle")) == expected
    assert [path.name for path in run.iterdir()] == ["bundle"]


def test_bundle_json_follows_its_schema_and_says_where_everything_came_from(run: Path) -> None:
    data = listing(run / "bundle")
    assert list(Draft202012Validator(load_schema("bundle.v1")).iter_errors(data)) == []
    entry = next(item for item in data["artifacts"] if item["target"] == "onnxruntime")
    assert entry["parents"] == {"checkpoint": "ab" * 32, "program": "cd" * 32}
    assert entry["runtime_minimum"] == "1.20" and entry["inputs"][0]["shape"] == [None, 4]
    assert [gate["verdict"] for gate in entry["verdicts"]] == ["pass", "pass", "pass"]
    assert entry["sha256"] == digest(run / "bundle/onnxruntime/model.onnx")


def test_the_card_gives_the_size_that_one_device_loads(tmp_path: Path) -> None:
    first, *others = shipments(tmp_path / "store")
    first = replace(first, artifact=replace(first.artifact, facts={**first.artifact.facts, "device_bytes": 1_300_000}))
    write_bundle(tmp_path, report_of([first, *others]), [first, *others])
    rows = (tmp_path / "bundle" / "README.md").read_text("utf-8").splitlines()
    assert "| 1.30 MB |" in next(row for row in rows if row.startswith("| onnxruntime |"))


def test_card_and_provenance_say_what_was_done_to_the_model(tmp_path: Path) -> None:
    shipped = shipments(tmp_path / "store")
    report = report_of(shipped)
    smaller = {"metric": 0.86, "parameters": 1234, "macs": 56789, "seconds": 3.0, "cached": False, "drop": 2.5, "interval": [1.0, 4.0]}
    report["stages"][1:1] = [{"name": "prune 2.00x MACs", **smaller}, {"name": "distill kd", **smaller}]
    write_bundle(tmp_path, report, shipped)
    card = (tmp_path / "bundle" / "README.md").read_text("utf-8")
    assert "| distill kd | 86.00 % | +2.50 pp | 1,234 | 56,789 |" in card
    statement = json.loads((tmp_path / "bundle" / "provenance.intoto.jsonl").read_text("utf-8"))
    stages = statement["predicate"]["buildDefinition"]["internalParameters"]["stages"]
    assert stages == [stage["name"] for stage in report["stages"]]


def test_an_entry_gives_the_artifact_back(run: Path, tmp_path: Path) -> None:
    entries = {item["target"]: item for item in listing(run / "bundle")["artifacts"]}
    for shipment in shipments(tmp_path / "again"):
        assert artifact_of(entries[shipment.target]) == shipment.artifact


def test_the_report_names_what_is_there(run: Path, tmp_path: Path) -> None:
    for entry in shipped_artifacts(shipments(tmp_path / "again")).values():
        assert digest(run / entry["path"]) == entry["sha256"] and size_bytes(run / entry["path"]) == entry["size_bytes"]


def test_the_same_run_gives_the_same_bytes_wherever_and_whenever(run: Path, tmp_path: Path) -> None:
    shipped = shipments(tmp_path / "elsewhere/store")
    later = report_of(shipped, started="2031-01-01T00:00:00+00:00", seconds=9999.0)
    for target in later["targets"]:
        target["seconds"] = 4321.0
        target["error"] = target["error"] and f"{target['error']} (pid 4711, {tmp_path})"
    for stage in later["stages"]:
        stage |= {"seconds": 77.0, "cached": True}
    value = write_bundle(tmp_path / "other", later, shipped)
    assert tree(tmp_path / "other/bundle") == tree(run / "bundle") and value == digest(run / "bundle")


def test_no_path_of_this_machine_is_shipped(run: Path, tmp_path: Path) -> None:
    for path in (run / "bundle").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_source_date_epoch_sets_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    shipped = shipments(tmp_path / "store")
    write_bundle(tmp_path, report_of(shipped), shipped)
    assert {path.stat().st_mtime for path in (tmp_path / "bundle").rglob("*")} == {1700000000.0}
    assert json.loads((tmp_path / "bundle/sbom.cdx.json").read_text())["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"


def test_editing_a_bundle_leaves_the_store_alone(tmp_path: Path) -> None:
    shipped = shipments(tmp_path / "store")
    before = tree(tmp_path / "store")
    write_bundle(tmp_path / "run", report_of(shipped), shipped)
    for path in (tmp_path / "run/bundle").rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                file.write(b"edited")
    assert tree(tmp_path / "store") == before


def test_a_failure_leaves_the_old_bundle_and_no_half_one(run: Path, tmp_path: Path) -> None:
    before = tree(run / "bundle")
    shipped = shipments(tmp_path / "changed")
    data = report_of(shipped)
    (tmp_path / "changed/b/graph.onnx").unlink()
    with pytest.raises(FileNotFoundError):
        write_bundle(run, data, shipped)
    assert tree(run / "bundle") == before and [path.name for path in run.iterdir()] == ["bundle"]


def test_an_artifact_that_changed_after_it_was_judged_is_not_shipped(tmp_path: Path) -> None:
    shipped = shipments(tmp_path / "store")
    data = report_of(shipped)
    (tmp_path / "store/a/model.onnx").write_bytes(b"another")
    with pytest.raises(IntegrityError, match="'onnxruntime'"):
        write_bundle(tmp_path / "run", data, shipped)


def test_a_second_bundle_replaces_the_first(run: Path, tmp_path: Path) -> None:
    shipped = shipments(tmp_path / "again")[:1]
    write_bundle(run, report_of(shipped), shipped)
    assert not (run / "bundle/coreml").exists() and [path.name for path in run.iterdir()] == ["bundle"]


def test_sums_are_those_of_sha256sum(run: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run / "bundle", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(tree(run / "bundle")) - 1


def test_the_sbom_lists_packages_and_every_shipped_file(run: Path) -> None:
    data = json.loads((run / "bundle/sbom.cdx.json").read_text("utf-8"))
    assert (data["bomFormat"], data["specVersion"]) == ("CycloneDX", "1.6")
    assert "pkg:pypi/torch@2.13.0" in {item.get("purl") for item in data["components"]}
    files = {file["name"]: file["hashes"][0]["content"] for item in data["components"] for file in item.get("components", [])}
    assert files == {name: value for name, value in tree(run / "bundle").items() if "/" in name}
    references = [item["bom-ref"] for item in data["components"]]
    assert len(references) == len(set(references)) and data["dependencies"][0]["dependsOn"] == references


def test_the_provenance_is_a_statement_over_every_file(run: Path) -> None:
    data = json.loads((run / "bundle/provenance.intoto.jsonl").read_text("utf-8"))
    assert data["_type"] == "https://in-toto.io/Statement/v1" and data["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {item["name"]: item["digest"]["sha256"] for item in data["subject"]}
    left_out = ("provenance.intoto.jsonl", "SHA256SUMS")
    assert subjects == {name: value for name, value in tree(run / "bundle").items() if name not in left_out}
    assert {"buildDefinition", "runDetails"} == set(data["predicate"])
    checkpoint = next(item for item in data["predicate"]["buildDefinition"]["resolvedDependencies"] if item.get("name") == "checkpoint")
    assert len(checkpoint["digest"]["sha256"]) == 64


def test_the_model_card_has_the_measured_numbers(run: Path) -> None:
    text = (run / "bundle/README.md").read_text("utf-8")
    for fact in ("+0.12 pp (-0.05 to 0.31)", "0.31x", "pixels / 255", "iOS18", "image: float32", "not measured", "91.60 %"):
        assert fact in text


def test_a_runtime_without_a_script_gets_one_that_says_how(run: Path) -> None:
    done = subprocess.run([sys.executable, run / "bundle/coreml/run.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "input image: float32 (8, 4)" in done.stdout and "a-runtime-nobody-has" in done.stderr
    assert os.access(run / "bundle/coreml/run.py", os.X_OK)


def test_golden_json_says_how_close_is_close_enough(run: Path) -> None:
    data = json.loads((run / "bundle/onnxruntime/golden.json").read_text("utf-8"))
    largest = np.abs(load_npz(run / "bundle/onnxruntime/golden_outputs.npz")["logits"]).max()
    assert data["artifact"] == "model.onnx" and (data["inputs"], data["outputs"]) == ("golden_inputs.npz", "golden_outputs.npz")
    assert data["atol"] == pytest.approx(0.05 * largest, rel=1e-2) and data["rtol"] > 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tflite", "coreml"], ["tflite", "coreml"]),
        (["tflite:a", "tflite:b", "tflite"], ["tflite", "tflite-b", "tflite-2"]),
        (["../x", "..", "a/b"], ["-x", "target", "a-b"]),
    ],
)
def test_folders_are_short_unique_and_inside_the_bundle(names: list[str], expected: list[str]) -> None:
    assert list(folders(names).values()) == expected


def test_npz_bytes_depend_on_the_arrays_alone(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1], "a": np.float32(3.5), "empty": np.zeros((0, 2), np.uint8)}
    save_npz(tmp_path / "1.npz", arrays)
    os.utime(tmp_path / "1.npz", (0, 0))
    save_npz(tmp_path / "2.npz", {name: np.array(value) for name, value in arrays.items()})
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    loaded = load_npz(tmp_path / "1.npz")
    assert list(loaded) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].dtype == np.asarray(value).dtype and loaded[name].shape == np.asarray(value).shape


def test_npz_never_pickles(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        save_npz(tmp_path / "x.npz", {"a": np.array([object()])})


def test_digest_of_a_folder_is_that_of_its_sorted_lines(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "f/sub").mkdir(parents=True)
    (tmp_path / "f/sub/a").write_bytes(b"1")
    (tmp_path / "f/z").write_bytes(b"2")
    (tmp_path / "f/sub-b").write_bytes(b"3")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in (("sub/a", b"1"), ("z", b"2"), ("sub-b", b"3"))}
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    assert digest(tmp_path / "f") == hashlib.sha256(lines.encode()).hexdigest()
    assert digest(tmp_path / "f/z") == hashes["z"]
    with pytest.raises(FileNotFoundError):
        digest(tmp_path / "none")
