"""`edgepress verify`: any byte that changed is found and named, and golden samples are replayed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepress.bundle import sign, sums
from edgepress.bundle.digest import tree
from edgepress.bundle.integrity import inspect
from edgepress.bundle.replay import compare
from edgepress.bundle.verify import Asked, replay_isolated, verify
from edgepress.bundle.write import write_bundle
from edgepress.targets.errors import IntegrityError, IsolationError
from tests.bundle_sample import WEIGHT, full_run, report_of, shipments
from tests.signing_keys import keys

MATCH = {"usable": True, "match": True, "problem": None, "max_abs_error": 0.01, "allowed": 0.1, "samples": 8, "executed_by": "x 1.0"}
NOT_HERE = {"usable": False, "missing": "no Mac", "install": None}


def matching(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    assert (folder / entry["path"]).exists()
    return dict(MATCH)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shipped = shipments(tmp_path / "store")
    data = report_of(shipped)
    write_bundle(tmp_path / "run", data, shipped)
    (tmp_path / "run/report.json").write_text(json.dumps(data))
    return tmp_path / "run"


def test_an_untouched_bundle_is_intact_by_either_path(run: Path) -> None:
    for path in (run, run / "bundle"):
        found = verify(path, matching)
        assert found.exit_code == 0 and found.damage == () and [replay.outcome for replay in found.replays] == ["match", "match"]
    assert json.dumps(found.to_json())


def test_each_of_100_random_flips_is_found_and_named(run: Path) -> None:
    bundle, dice = run / "bundle", random.Random(0)
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    assert len(names) >= 15
    for turn in range(100):
        name = names[turn % len(names)]
        raw = bytearray((bundle / name).read_bytes())
        place = dice.randrange(len(raw))
        raw[place] ^= 1 << dice.randrange(8)
        original = (bundle / name).read_bytes()
        (bundle / name).write_bytes(raw)
        damage = inspect(bundle)
        assert [item.path for item in damage] == [name], (name, place, damage)
        assert verify(bundle, matching).exit_code == 1
        (bundle / name).write_bytes(original)
    assert inspect(bundle) == []


def test_each_of_100_random_flips_in_a_signed_bundle_with_everything_is_found_and_named(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    bundle, dice = full_run(tmp_path) / "bundle", random.Random(1)
    sign.sign(bundle, private)
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    for _ in range(100):
        name = dice.choice(names)
        original = (bundle / name).read_bytes()
        raw = bytearray(original)
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        (bundle / name).write_bytes(raw)
        found = verify(bundle, matching, Asked(key=public))
        linked = {other for other in names if (bundle / other).samefile(bundle / name)}
        assert {item.path for item in found.damage} == linked and found.exit_code == 1
        (bundle / name).write_bytes(original)
    assert verify(bundle, matching, Asked(key=public)).damage == ()


def test_every_byte_of_a_signature_counts(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    shipped = shipments(tmp_path / "store")
    write_bundle(tmp_path, report_of(shipped), shipped)
    path = sign.sign(tmp_path / "bundle", private)
    original = path.read_bytes()
    for place in range(0, len(original), 11):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        found = verify(tmp_path / "bundle", matching, Asked(key=public))
        assert [item.path for item in found.damage] == [sign.NAME] and found.signature == "invalid"


def test_swapped_artifacts_are_both_named(tmp_path: Path) -> None:
    bundle = full_run(tmp_path) / "bundle"
    one, other = bundle / "onnxruntime/golden.json", bundle / "coreml/golden.json"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert {"onnxruntime/golden.json", "coreml/golden.json"} <= {item.path for item in inspect(bundle)}


def test_a_bundle_forged_with_all_its_records_is_caught_by_the_signature_alone(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    shipped = shipments(tmp_path / "store")
    write_bundle(tmp_path / "run", report_of(shipped), shipped)
    bundle = tmp_path / "run/bundle"
    sign.sign(bundle, private)
    signature = (bundle / sign.NAME).read_bytes()
    (tmp_path / "store/a/model.onnx").write_bytes(b"a model with a back door")
    write_bundle(tmp_path / "run", report_of(shipped), shipped)
    assert verify(bundle, matching).exit_code == 0
    assert [item.path for item in verify(bundle, matching, Asked(key=public)).damage] == [sign.NAME]
    (bundle / sign.NAME).write_bytes(signature)
    named = {item.path: item.what for item in verify(bundle, matching, Asked(key=public)).damage}
    assert named["onnxruntime/model.onnx"] == "disagrees with model.sig"


def test_a_renamed_blob_is_named_even_when_the_sums_were_made_again(tmp_path: Path) -> None:
    bundle = full_run(tmp_path) / "bundle"
    blob = next((bundle / "layouts/oci/blobs/sha256").iterdir())
    blob.rename(blob.with_name("0" * 64))
    (bundle / sums.NAME).write_text(sums.render(tree(bundle)))
    assert f"layouts/oci/blobs/sha256/{'0' * 64}" in {item.path for item in inspect(bundle) if item.what == "disagrees with its name"}


def test_every_byte_of_the_sums_file_counts(run: Path) -> None:
    path = run / "bundle" / sums.NAME
    original = path.read_bytes()
    for place in range(0, len(original), 7):
        raw = bytearray(original)
        raw[place] ^= 0x20
        path.write_bytes(raw)
        assert [item.path for item in inspect(run / "bundle")] == [sums.NAME]


@pytest.mark.parametrize(
    "name", ["bundle.json", "README.md", "SHA256SUMS", "onnxruntime/run.py", "coreml/model.mlpackage/Data/weights.bin"]
)
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / "bundle" / name).unlink()
    found = verify(run / "bundle", matching)
    assert (name, "missing") in [(item.path, item.what) for item in found.damage] and found.exit_code == 1


@pytest.mark.parametrize("name", ["extra.txt", "onnxruntime/.hidden", "coreml/model.mlpackage/more/x"])
def test_an_extra_file_is_named(run: Path, name: str) -> None:
    path = run / "bundle" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    assert [(item.path, item.what) for item in inspect(run / "bundle")] == [(name, "extra")]


def test_a_link_is_no_file(run: Path, tmp_path: Path) -> None:
    path = run / "bundle/onnxruntime/model.onnx"
    (tmp_path / "copy").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "copy")
    assert ("onnxruntime/model.onnx", "link") in [(item.path, item.what) for item in inspect(run / "bundle")]


@pytest.mark.parametrize("name", ["onnxruntime/model.onnx", "coreml/golden_outputs.npz", "README.md"])
def test_sums_made_again_by_hand_still_disagree_with_the_records(run: Path, name: str) -> None:
    bundle = run / "bundle"
    (bundle / name).write_bytes(b"forged")
    (bundle / sums.NAME).write_text(sums.render(tree(bundle)))
    damage = inspect(bundle)
    assert {item.path for item in damage} >= {name} and all("disagrees" in item.what for item in damage)


def test_another_bundle_in_the_run_is_not_the_one_its_report_speaks_of(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shipped = shipments(tmp_path / "other/store")
    (tmp_path / "other/store/a/model.onnx").write_bytes(b"another model")
    write_bundle(tmp_path / "other", report_of(shipped), shipped)
    shutil.rmtree(run / "bundle")
    shutil.copytree(tmp_path / "other/bundle", run / "bundle")
    assert verify(run / "bundle", matching).exit_code == 0
    assert [(item.path, item.what) for item in verify(run, matching).damage] == [("onnxruntime/model.onnx", "disagrees with report.json")]


def test_what_is_damaged_is_not_run(run: Path) -> None:
    (run / "bundle/onnxruntime/model.onnx").write_bytes(b"x")
    asked: list[str] = []

    def recording(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        asked.append(entry["target"])
        return matching(entry, folder)

    found = verify(run / "bundle", recording)
    assert asked == ["coreml"] and {replay.target: replay.outcome for replay in found.replays} == {
        "onnxruntime": "damaged",
        "coreml": "match",
    }


def crash(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    raise IsolationError("replay: the process was killed by SIGSEGV")


def wrong(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {**MATCH, "match": False, "max_abs_error": 9.0}


def absent_but_one(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return dict(MATCH) if entry["target"] == "onnxruntime" else dict(NOT_HERE)


@pytest.mark.parametrize(
    ("replayer", "outcomes", "code"),
    [
        (crash, ["failed", "failed"], 1),
        (wrong, ["mismatch", "mismatch"], 1),
        (absent_but_one, ["match", "not here"], 0),
        (lambda entry, folder: dict(NOT_HERE), ["not here", "not here"], 2),
    ],
)
def test_replays_decide_the_exit_code(run: Path, replayer: Any, outcomes: list[str], code: int) -> None:
    found = verify(run, replayer)
    assert [replay.outcome for replay in found.replays] == outcomes and found.exit_code == code


def test_no_bundle_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="holds no bundle"):
        verify(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": "edgepress/bundle/v2"}', '{"schema": "edgepress/bundle/v1"}'])
def test_a_strange_bundle_json_is_damage_and_no_crash(run: Path, content: str) -> None:
    (run / "bundle/bundle.json").write_text(content)
    assert "bundle.json" in [item.path for item in verify(run, matching).damage]
    (run / "bundle/SHA256SUMS").write_text(sums.render(tree(run / "bundle")))
    assert "bundle.json" in [item.path for item in verify(run, matching).damage]


def test_compare_allows_the_tolerance_and_no_more() -> None:
    want = {"y": np.array([1.0, 100.0], np.float32)}
    assert compare({"y": np.array([1.1, 100.2], np.float32)}, want, 1e-3, 0.11)["match"]
    assert not compare({"y": np.array([1.2, 100.0], np.float32)}, want, 1e-3, 0.11)["match"]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [({}, "missing"), ({"y": np.zeros((1, 2))}, "of shape (1, 2)"), ({"y": np.array([np.nan, 1.0])}, "not finite")],
)
def test_compare_says_what_is_wrong(outputs: dict[str, np.ndarray], words: str) -> None:
    found = compare(outputs, {"y": np.ones(2)}, 1.0, 1e9)
    assert not found["match"] and words in found["problem"]


def real_model(path: Path, scale: float) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMul", ["image", "w"], ["logits"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([node], "g", [image], [logits], [numpy_helper.from_array(WEIGHT * scale, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.mark.parametrize(("scale", "outcome"), [(1.0, "match"), (1.2, "mismatch")])
def test_a_real_artifact_is_replayed_in_its_runtime_in_a_process_of_its_own(tmp_path: Path, scale: float, outcome: str) -> None:
    pytest.importorskip("onnxruntime")
    shipped = shipments(tmp_path / "store")[:1]
    real_model(tmp_path / "store/a/model.onnx", np.float32(scale))
    write_bundle(tmp_path / "run", report_of(shipped), shipped)
    found = verify(tmp_path / "run/bundle", replay_isolated)
    assert [replay.outcome for replay in found.replays] == [outcome]
    assert (found.replays[0].executed_by or "").startswith("onnxruntime")


def test_an_artifact_its_runtime_refuses_fails_and_an_unknown_runtime_is_not_here(run: Path) -> None:
    found = verify(run / "bundle", replay_isolated)
    by_target = {replay.target: replay for replay in found.replays}
    assert by_target["onnxruntime"].outcome == "failed" and "model.onnx" in by_target["onnxruntime"].detail
    assert by_target["coreml"].outcome == "not here" and "a-runtime-nobody-has" in by_target["coreml"].detail
