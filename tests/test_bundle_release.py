"""What a bundle says of itself: ML-BOM, provenance, model card, licence; and its layouts for servers and registries."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from edgepress.bundle import license
from edgepress.bundle.digest import sha256, tree
from edgepress.bundle.layouts import LAYOUTS, SERVED
from edgepress.bundle.layouts.oci import parameter_size
from edgepress.bundle.provenance import LOCAL_BUILDER
from edgepress.bundle.release import Release
from edgepress.bundle.write import folders, write_bundle
from edgepress.config import load
from edgepress.config_models import BundleConfig
from edgepress.report.schema import load_schema
from edgepress.targets.errors import ConfigError
from tests.bundle_sample import full_run, report_of, shipments


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return full_run(tmp_path) / "bundle"


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("expression", ["Apache-2.0", "MIT OR Apache-2.0", "LicenseRef-ours", None])
def test_the_ml_bom_follows_the_official_schema(tmp_path: Path, expression: str | None) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    text = (full_run(tmp_path, license=expression) / "bundle/sbom.cdx.json").read_text("utf-8")
    checker = validation.JsonStrictValidator(SchemaVersion.V1_6)
    assert checker.validate_str(text) is None
    broken = json.loads(text)
    broken["components"][0]["type"] = "model"
    assert checker.validate_str(json.dumps(broken)) is not None


def test_the_ml_bom_has_measured_figures_hashes_licence_and_ancestry(bundle: Path) -> None:
    components = {item["bom-ref"]: item for item in read(bundle / "sbom.cdx.json")["components"]}
    model = components["artifact:onnxruntime"]
    metrics = {item["type"]: item for item in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["accuracy"]["value"] == "0.9148" and metrics["accuracy"]["slice"] == "10000 validation samples"
    assert metrics["accuracy_drop_pp"]["confidenceInterval"] == {"lowerBound": "-0.05", "upperBound": "0.31"}
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256(bundle / "onnxruntime/model.onnx")}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["pedigree"]["ancestors"][0]["hashes"][0]["content"] == "ab" * 32
    assert components["checkpoint"]["type"] == "machine-learning-model" and components["data:samples"]["type"] == "data"
    unmeasured = components["artifact:coreml"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert "latency_ratio" not in {item["type"] for item in unmeasured}


def test_the_provenance_names_recipe_data_and_the_builder_of_the_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = read(full_run(tmp_path / "a") / "bundle/provenance.intoto.jsonl")["predicate"]
    definition = local["buildDefinition"]
    assert local["runDetails"]["builder"]["id"] == LOCAL_BUILDER
    assert len(definition["externalParameters"]["recipe"]["digest"]["sha256"]) == 64
    assert {"name": "samples", "digest": {"sha256": "ef" * 32}} in definition["resolvedDependencies"]
    monkeypatch.setenv("EDGEPRESS_BUILDER_ID", "https://ci.example.org/runners/7")
    inside_ci = read(full_run(tmp_path / "b") / "bundle/provenance.intoto.jsonl")["predicate"]
    assert inside_ci["runDetails"]["builder"]["id"] == "https://ci.example.org/runners/7"


def test_a_builder_that_is_no_uri_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRESS_BUILDER_ID", "my runner")
    with pytest.raises(ConfigError, match="'my runner'"):
        full_run(tmp_path)
    assert not (tmp_path / "run/bundle").exists()


def test_the_hub_reads_the_model_card_and_its_results(bundle: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard((bundle / "README.md").read_text("utf-8")).data
    assert (data.license, data.library_name, data.metrics) == ("apache-2.0", "edgepress", ["accuracy"])
    values = {(result.metric_type, result.metric_value) for result in data.eval_results}
    assert ("accuracy", 0.9148) in values and data.model_name == read(bundle / "bundle.json")["project"]


@pytest.mark.parametrize(
    ("text", "canonical", "key"),
    [
        ("apache-2.0", "Apache-2.0", "apache-2.0"),
        ("gpl-3.0-or-later", "GPL-3.0-or-later", "gpl-3.0"),
        ("cc-by-nc-4.0", "CC-BY-NC-4.0", "cc-by-nc-4.0"),
        ("mit or apache-2.0", "MIT OR Apache-2.0", "other"),
        ("LicenseRef-house", "LicenseRef-house", "other"),
    ],
)
def test_licences_are_spdx_and_the_hub_gets_its_own_key(text: str, canonical: str, key: str) -> None:
    assert license.canonical(text) == canonical and license.hub_fields(canonical, [])["license"] == key


def test_a_licence_nobody_knows_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, license="friendly", layouts=[])
    with pytest.raises(ConfigError, match="'friendly' is no licence SPDX knows") as error:
        load(path)
    assert "Apache-2.0" in str(error.value)


@pytest.mark.parametrize(("layout", "target"), [("triton", "tflite"), ("ovms", "onnxruntime")])
def test_a_layout_without_a_target_is_an_error_of_the_recipe(tmp_path: Path, layout: str, target: str) -> None:
    with pytest.raises(ConfigError, match=f"layout '{layout}' has no target to serve"):
        load(recipe(tmp_path, license="mit", layouts=["oci", layout], target=target))


def recipe(folder: Path, license: str, layouts: list[str], target: str = "tflite") -> Path:
    content = {
        "project": "x",
        "model": {"factory": "model:net", "checkpoint": "net.safetensors", "license": license},
        "data": {"train": "data:train", "validation": "data:validation"},
        "metric": "accuracy",
        "targets": [target],
        "bundle": {"layouts": layouts},
    }
    path = folder / "edgepress.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_licence_texts_beside_the_checkpoint_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in ("LICENSE", "NOTICE.txt", "license.py", "model.py", "Copying.md"):
        (tmp_path / name).write_text(name)
    assert [path.name for path in license.texts(tmp_path / "net.safetensors")] == ["Copying.md", "LICENSE", "NOTICE.txt"]


def test_the_licence_travels_and_an_unknown_one_is_said_plainly(bundle: Path, tmp_path: Path) -> None:
    assert (bundle / "LICENSE").read_text() == "Terms of the sample.\n"
    assert read(bundle / "bundle.json")["license"] == {"expression": "Apache-2.0", "files": ["LICENSE"]}
    shipped = shipments(tmp_path / "other")
    write_bundle(tmp_path / "plain", report_of(shipped), shipped)
    card = (tmp_path / "plain/bundle/README.md").read_text("utf-8")
    assert "license: unknown" in card and "The licence of the checkpoint is unknown" in card


def test_a_full_bundle_follows_its_schema_and_repeats_to_the_byte(tmp_path: Path) -> None:
    first, second = (full_run(tmp_path / name) / "bundle" for name in ("a", "b"))
    assert list(Draft202012Validator(load_schema("bundle.v1")).iter_errors(read(first / "bundle.json"))) == []
    assert tree(first) == tree(second)


def test_the_recipe_names_the_layouts_there_are() -> None:
    known = BundleConfig.model_json_schema()["properties"]["layouts"]["items"]["enum"]
    assert known == list(LAYOUTS) and set(SERVED) < set(LAYOUTS)


def test_triton_gets_a_model_per_backend_with_its_shapes(bundle: Path) -> None:
    triton, name = bundle / "layouts/triton", read(bundle / "bundle.json")["project"].replace(" ", "-")
    assert sorted(path.name for path in triton.iterdir()) == [f"{name}-{target}" for target in ("onnxruntime", "openvino", "tensorrt")]
    config = (triton / f"{name}-onnxruntime/config.pbtxt").read_text()
    for line in (f'name: "{name}-onnxruntime"', 'backend: "onnxruntime"', "max_batch_size: 64", 'default_model_filename: "model.onnx"'):
        assert line in config.splitlines()
    assert '{ name: "image" data_type: TYPE_FP32 dims: [ 4 ] }' in config
    assert (triton / f"{name}-openvino/1/model.bin").read_bytes() == b"weights"
    engine = (triton / f"{name}-tensorrt/config.pbtxt").read_text()
    assert "max_batch_size: 16" in engine and '{ key: "8.6" value: "sm86.engine" }' in engine
    left_out = read(bundle / "bundle.json")["layouts"]["triton"]["left_out"]
    assert "TensorRT-RTX" in left_out["tensorrt:rtx"] and "no backend" in left_out["coreml"]


@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        ([3, 4], ["max_batch_size: 0", 'name: "x" data_type: TYPE_INT64 dims: [ 3, 4 ]']),
        ([None, None, 2], ["max_batch_size: 64", 'name: "x" data_type: TYPE_INT64 dims: [ -1, 2 ]']),
        ([None], ["max_batch_size: 64", "dims: [ 1 ] reshape: { shape: [ ] }"]),
    ],
)
def test_triton_is_told_of_fixed_open_and_missing_dimensions(shape: list[int | None], lines: list[str]) -> None:
    from edgepress.bundle.layouts.triton import config

    spec = {"name": "x", "dtype": "int64", "shape": shape}
    entry = {"runtime": "onnxruntime", "inputs": [spec], "outputs": [spec], "artifact": {"facts": {}}}
    text = config("m", entry, ["model.onnx"])
    assert all(line in text for line in lines)


def test_openvino_model_server_gets_only_what_openvino_ran(bundle: Path) -> None:
    listed = [item["config"] for item in read(bundle / "layouts/ovms/config.json")["model_config_list"]]
    assert len(listed) == 1 and listed[0]["name"].endswith("-openvino")
    assert sorted(path.name for path in (bundle / "layouts/ovms" / listed[0]["base_path"] / "1").iterdir()) == ["model.bin", "model.xml"]


def test_the_oci_layout_is_consistent_and_gives_every_file_back(bundle: Path) -> None:
    oci = bundle / "layouts/oci"
    assert read(oci / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = read(oci / "index.json")
    tags = {item["annotations"]["org.opencontainers.image.ref.name"]: item for item in index["manifests"]}
    assert set(tags) == {entry["folder"] for entry in read(bundle / "bundle.json")["artifacts"]}
    seen = {descriptor_of(oci, item) for item in index["manifests"]}
    for folder, item in tags.items():
        manifest = read(oci / "blobs/sha256" / item["digest"].removeprefix("sha256:"))
        assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
        config = read(oci / "blobs/sha256" / manifest["config"]["digest"].removeprefix("sha256:"))
        assert config["modelfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
        assert set(config) == {"descriptor", "config", "modelfs"} and config["descriptor"]["licenses"] == ["Apache-2.0"]
        files = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
        assert {f"{folder}/{name}" for name in files if not (bundle / name).is_file()} == {
            name for name in tree(bundle) if name.startswith(f"{folder}/")
        }
        assert {"README.md", "LICENSE", "sbom.cdx.json", "input_statistics.json"} < set(files)
        seen |= {descriptor_of(oci, part) for part in (manifest["config"], *manifest["layers"])}
    assert seen == {path.name for path in (oci / "blobs/sha256").iterdir()}
    onnx = read(oci / "blobs/sha256" / tags["onnxruntime"]["digest"].removeprefix("sha256:"))["layers"]
    assert {layer["mediaType"] for layer in onnx if layer["annotations"]["org.cncf.model.filepath"] == "model.onnx"} == {
        "application/vnd.cncf.model.weight.v1.raw"
    }


def descriptor_of(oci: Path, item: dict[str, Any]) -> str:
    """The blob's name, after its hash and size were checked."""
    name: str = item["digest"].removeprefix("sha256:")
    raw = (oci / "blobs/sha256" / name).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == name and len(raw) == item["size"]
    return name


def test_layouts_take_no_room_twice_and_keep_scripts_executable(bundle: Path) -> None:
    name = read(bundle / "bundle.json")["project"].replace(" ", "-")
    copy = bundle / "layouts/triton" / f"{name}-onnxruntime/1/model.onnx"
    assert copy.stat().st_ino == (bundle / "onnxruntime/model.onnx").stat().st_ino
    assert (bundle / "onnxruntime/run.py").stat().st_mode & 0o111


def test_layouts_are_copies_where_the_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    linked = tree(full_run(tmp_path / "a") / "bundle")
    monkeypatch.setattr("os.link", refuse)
    assert tree(full_run(tmp_path / "b") / "bundle") == linked


def test_a_layout_nothing_has_a_place_in_is_named_and_not_written(tmp_path: Path) -> None:
    shipped = shipments(tmp_path / "store")[1:]
    write_bundle(tmp_path, report_of(shipped), shipped, Release(layouts=("triton",)))
    assert not (tmp_path / "bundle/layouts").exists()
    assert read(tmp_path / "bundle/bundle.json")["layouts"]["triton"]["targets"] == []


def test_no_target_takes_the_folder_of_the_layouts() -> None:
    assert folders(["layouts"]) == {"layouts": "layouts-2"}


@pytest.mark.parametrize(("count", "text"), [(272_474, "272.5k"), (22_700_000, "22.7m"), (1_500_000_000, "1.5b"), (40, "0.0k")])
def test_parameters_are_counted_as_modelpack_writes_them(count: int, text: str) -> None:
    assert parameter_size(count) == text
