"""Every `config.pbtxt` of the templates, parsed as Triton does, against the contract; and the wiring."""

import dataclasses
from pathlib import Path

import pytest
from diffsplat_client.contract import CONTRACT_VERSION, ENSEMBLE, ENSEMBLES, MODELS, RECONSTRUCTION, TensorSpec
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from diffsplat.serving.engine.policy import EnginePolicy

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"
COMPOSING = [stage for stage in MODELS if stage not in ENSEMBLES]
BEHIND_DENOISE = ("decode", "rasterize", "package")


def read_config(stage: str) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig()
    text_format.Parse((TEMPLATES / stage / "config.pbtxt").read_text(), config)
    return config


def described(tensors, with_optional: bool) -> list[tuple]:
    """(name, type, dims[, optional]) of a config's tensors, in the contract's words."""
    names = model_config_pb2.DataType.Name
    return [
        (t.name, names(t.data_type).removeprefix("TYPE_").replace("STRING", "BYTES"), tuple(t.dims))
        + ((t.optional,) if with_optional else ())
        for t in tensors
    ]


def expected(tensors: tuple[TensorSpec, ...], with_optional: bool) -> list[tuple]:
    return [(t.name, t.datatype, t.dims) + ((t.optional,) if with_optional else ()) for t in tensors]


def test_the_repository_holds_just_the_models_of_the_contract() -> None:
    assert {path.name for path in TEMPLATES.iterdir() if path.is_dir()} == set(MODELS)


@pytest.mark.parametrize("stage", MODELS)
def test_tensors_are_those_of_the_contract(stage: str) -> None:
    config = read_config(stage)
    assert config.name == stage
    assert described(config.input, True) == expected(MODELS[stage].inputs, True)
    assert described(config.output, False) == expected(MODELS[stage].outputs, False)
    assert config.model_transaction_policy.decoupled == MODELS[stage].decoupled
    assert config.max_batch_size == 0


@pytest.mark.parametrize("stage", COMPOSING)
def test_a_model_is_one_import(stage: str) -> None:
    text = (TEMPLATES / stage / "1" / "model.py").read_text()
    class_name = f"{stage.capitalize()}Model"
    module = "diffsplat.serving.stage_models." + ("denoise" if stage == "denoise" else "models")
    assert text == f"from {module} import {class_name} as TritonPythonModel  # noqa: F401\n"
    assert read_config(stage).backend == "python"


def test_the_client_can_read_the_contract_version() -> None:
    assert read_config(ENSEMBLE).parameters["contract_version"].string_value == str(CONTRACT_VERSION)


def test_the_engine_policy_can_be_read_and_denoise_is_one_instance() -> None:
    config = read_config("denoise")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    policy = {field.name for field in dataclasses.fields(EnginePolicy)}
    assert set(parameters) == {"threads", "max_answer_mb", "sync_debug", *policy}
    assert parameters["sync_debug"] == "default"
    assert EnginePolicy.from_parameters(parameters) == EnginePolicy()
    assert [group.count for group in config.instance_group] == [1], "STOP must reach the engine that runs the request"


@pytest.mark.parametrize("stage", BEHIND_DENOISE)
def test_progress_messages_pass_the_later_stages(stage: str) -> None:
    """Each message runs them with nothing in it, also while another request keeps one instance busy."""
    config = read_config(stage)
    assert all(tensor.optional for tensor in config.input)
    assert sum(group.count for group in config.instance_group) >= 2


# stage of an ensemble, in order -> where its inputs come from
WIRING = {
    ENSEMBLE: {
        "encode": "client",
        "denoise": "encode",
        "decode": "denoise",
        "rasterize": "decode",
        "package": "decode",
    },
    RECONSTRUCTION: {"reconstruct": "client", "rasterize": "reconstruct", "package": "reconstruct"},
}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
class TestWiring:
    """The ensembles' maps of tensors."""

    @pytest.fixture
    def config(self, ensemble: str) -> model_config_pb2.ModelConfig:
        return read_config(ensemble)

    def test_every_stage_runs_once_in_order(self, config, ensemble: str) -> None:
        assert [step.model_name for step in config.ensemble_scheduling.step] == list(WIRING[ensemble])

    def test_every_input_is_fed_by_a_tensor_of_its_type_and_every_output_goes_somewhere(
        self, config, ensemble: str
    ) -> None:
        carried = {tensor.name: tensor for tensor in MODELS[ensemble].inputs}  # ensemble tensor -> what it carries
        consumed = set()
        for step in config.ensemble_scheduling.step:
            inputs = {tensor.name: tensor for tensor in MODELS[step.model_name].inputs}
            outputs = {tensor.name: tensor for tensor in MODELS[step.model_name].outputs}
            assert set(step.input_map) == set(inputs) - {"STOP"}  # STOP never comes through the ensemble
            assert set(step.output_map) == set(outputs) - {"STOP_ANSWER"}
            for name, source in step.input_map.items():
                assert (carried[source].datatype, carried[source].dims) == (inputs[name].datatype, inputs[name].dims)
                consumed.add(source)
            for name, target in step.output_map.items():
                assert target not in carried, f"{target} is written twice"
                carried[target] = outputs[name]
        asked_for = {tensor.name for tensor in MODELS[ensemble].outputs}
        assert asked_for <= set(carried)
        assert set(carried) == consumed | asked_for, "a tensor goes nowhere"

    def test_each_stage_behind_the_first_reads_from_one_other_stage(self, config, ensemble: str) -> None:
        """So all its inputs share one decoupled origin (Triton's rule), and belong to the same message."""
        writer = {
            target: step.model_name for step in config.ensemble_scheduling.step for target in step.output_map.values()
        }
        sources = {
            step.model_name: {writer.get(source, "client") for source in step.input_map.values()}
            for step in config.ensemble_scheduling.step
        }
        assert sources == {stage: {source} for stage, source in WIRING[ensemble].items()}
