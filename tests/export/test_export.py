"""The finished artifacts: names, dtypes, shapes, graph rules, options, reproducibility, and the bundle around them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mobileclip.errors import GateError, InputError
from mobileclip.export import runtimes
from mobileclip.export.bundle import PRECISIONS, TARGETS, TOWERS, Bundle
from mobileclip.export.exporter import exporter
from mobileclip.export.verify.gate import image_inputs, text_inputs, verify
from mobileclip.export.verify.mil import MilProgram
from mobileclip.files import sha256_file
from mobileclip.specs import get_spec

NANO = "untrained:mobileclip_nano"
CONTEXT = get_spec("mobileclip_nano").text.context


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request, bundle_of) -> Bundle:
    return Bundle.open(bundle_of(NANO, precision=request.param))


def test_every_artifact_was_verified(bundle):
    manifest = bundle.manifest
    assert {(a.target, a.tower) for a in manifest.artifacts} == {(t, w) for t in TARGETS for w in TOWERS}
    assert [(p.target, p.tower) for p in manifest.parity] == [(t, w) for t in TARGETS for w in TOWERS]
    assert all(p.passed and p.inputs >= 64 for p in manifest.parity)
    bar = {"fp32": 0.99999, "fp16": 0.999}[manifest.options.precision]
    assert min(p.cosine_min for p in manifest.parity) >= bar


def test_interfaces_are_as_promised(bundle):
    for artifact in bundle.manifest.artifacts:
        given, result = exporter(artifact.target).interface(bundle.path / artifact.path)
        assert (given, result) == (artifact.input, artifact.output)
        assert result.name == "embedding"
        assert result.dtype == "float32"
        image = artifact.tower == "image"
        assert (given.name, given.dtype) == (("image", "float32") if image else ("tokens", "int32"))
        assert given.shape == ((1, 3, 64, 64) if image else (1, CONTEXT))


def test_graph_rules_hold_on_the_artifacts(bundle):
    for artifact in bundle.manifest.artifacts:
        assert exporter(artifact.target).broken_rules(bundle.path / artifact.path) == []


def test_token_ids_stay_integers_in_coreml(bundle):
    program = MilProgram.load(bundle.path / "text.mlpackage")
    users = [op for op in program.walk() if any(v.name == "tokens" for values in op.inputs.values() for v in values)]
    assert users
    assert not any(o.dtype.startswith("float") for op in users if op.type != "gather" for o in op.outputs)
    assert "reduce_argmax" not in program.operator_counts()


def test_fp16_is_really_fp16(bundle):
    fp16 = bundle.manifest.options.precision == "fp16"
    wanted = "float16" if fp16 else "float32"
    for tower in TOWERS:
        weights = [
            v.dtype
            for op in MilProgram.load(bundle.path / f"{tower}.mlpackage").walk()
            if op.type in {"conv", "linear"}
            for name, values in op.inputs.items()
            if name == "weight"
            for v in values
        ]
        counts = {dtype: weights.count(dtype) for dtype in set(weights)}
        assert counts[wanted] >= len(weights) - 1, counts  # pooling's triangular matrix may stay fp32


def test_onnx_is_one_checked_file(bundle):
    import onnx

    for tower in TOWERS:
        model = onnx.load(str(bundle.path / f"{tower}.onnx"), load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
        assert not model.metadata_props
        assert not any(n.metadata_props or n.doc_string for n in model.graph.node)


def test_coreml_is_an_ml_program_for_ios_17(bundle):
    from mobileclip.export.verify.mil_storage import read_model

    model, _ = read_model(bundle.path / "image.mlpackage")
    assert model.WhichOneof("Type") == "mlProgram"
    assert model.specificationVersion == 8  # iOS 17


def test_undelegated_operators_are_listed(bundle):
    image = bundle.artifact("executorch", "image")
    assert image.backend == "xnnpack"
    assert sum(image.not_delegated.values()) <= (30 if bundle.manifest.options.precision == "fp16" else 3)
    text = bundle.artifact("executorch", "text").not_delegated
    assert text["native_layer_norm"] == 5
    assert text["embedding"] == 1


def test_golden_inputs_reproduce(bundle):
    golden = load_file(bundle.path / bundle.manifest.golden.path)
    for tower in TOWERS:
        session = runtimes.load(bundle, "onnx", tower)
        got = runtimes.embed(session, golden[f"{tower}.input"], 1)
        assert np.abs(got - golden[f"{tower}.embedding"]).max() < 5e-3


def test_verify_repeats_the_parity(bundle):
    again = verify(bundle, ["onnx"])
    stored = [p for p in bundle.manifest.parity if p.target == "onnx"]
    assert [p.passed for p in again] == [True, True]
    assert [p.cosine_min for p in again] == pytest.approx([p.cosine_min for p in stored], abs=1e-6)


EITHER = [("onnx",), pytest.param(TARGETS, marks=pytest.mark.slow)]


@pytest.mark.parametrize("targets", EITHER)
def test_exporting_twice_gives_the_same_bytes(bundle_of, tmp_path, targets):
    """Another process-wide state and another folder, the same files; the manifest differs in nothing either."""
    from mobileclip.export.export import export_bundle
    from mobileclip.sources import load_model

    first = Bundle.open(bundle_of(NANO, targets))
    second = export_bundle(load_model(NANO), first.manifest.options, tmp_path / "again", lambda step: None)
    assert {f.path: f.sha256 for f in second.manifest.files} == {f.path: f.sha256 for f in first.manifest.files}
    assert not any(a.unhashed for a in second.manifest.artifacts)


def test_a_bundle_that_is_there_is_kept_until_asked(bundle_of):
    from mobileclip.export.export import export_bundle
    from mobileclip.sources import load_model

    path = bundle_of(NANO, ("onnx",))
    before = (path / "manifest.json").stat().st_mtime_ns
    steps: list[str] = []
    export_bundle(load_model(NANO), Bundle.open(path).manifest.options, path, steps.append)
    assert steps == [f"{path} is up to date"]
    assert (path / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("targets", EITHER)
def test_baked_preprocessing_takes_pixels(bundle_of, targets):
    bundle = Bundle.open(bundle_of(NANO, targets, bake_preprocessing=True))
    for target in targets:
        artifact = bundle.artifact(target, "image")
        assert (artifact.input.dtype, artifact.input.shape) == ("uint8", (1, 64, 64, 3))
    assert image_inputs(bundle.manifest.preprocess).dtype == np.uint8
    assert all(p.passed for p in bundle.manifest.parity)


def test_options_reach_the_artifacts(bundle_of):
    bundle = Bundle.open(bundle_of(NANO, ("onnx", "executorch"), towers=("text",), batch=4, normalize=False))
    assert [a.tower for a in bundle.manifest.artifacts] == ["text", "text"]
    ids = text_inputs(bundle.tokenizer())[:5]
    for target in ("onnx", "executorch"):
        assert bundle.artifact(target, "text").input.shape == (4, CONTEXT)
        got = runtimes.embed(runtimes.load(bundle, target, "text"), ids, 4)
        length = np.linalg.norm(got, axis=1)
        assert np.abs(length - 1).min() > 1e-2
        assert np.abs(got / length[:, None] - bundle.reference("text")[:5]).max() < 1e-5


def test_absent_tower_is_named(bundle_of):
    bundle = Bundle.open(bundle_of(NANO, ("onnx", "executorch"), towers=("text",), batch=4, normalize=False))
    with pytest.raises(InputError, match="has no onnx image tower; it holds: onnx text, executorch text"):
        runtimes.load(bundle, "onnx", "image")


def test_manifest_is_plain_json_without_machine_paths(bundle):
    text = (bundle.path / "manifest.json").read_text()
    assert json.loads(text)["schema_version"] == 1
    assert str(bundle.path) not in text
    assert bundle.manifest.model.trained is False
    for entry in bundle.manifest.files:
        assert sha256_file(bundle.path / entry.path) == entry.sha256


def test_fp16_ids_are_refused_by_the_graph_rules(tmp_path):
    from mobileclip.export.bundle import Options, PreprocessInfo
    from mobileclip.export.export import plan_for
    from mobileclip.export.exporter import write
    from mobileclip.export.graph import fold_affine
    from mobileclip.export.verify.mutants import MUTANTS, healthy

    model, _ = healthy()
    options = Options(towers=("text",))
    info = PreprocessInfo(**model.preprocess.__dict__, baked=False)
    plan = plan_for("text", model.embed_dim, options, info, text_inputs(model.tokenizer))
    net = MUTANTS["ids through fp16"].net(fold_affine(model.text))
    for target in ("onnx", "coreml"):
        with pytest.raises(GateError, match="token ids pass through floating point"):
            write(target, net, plan, tmp_path)
