"""deploy/kubernetes and deploy/monitoring: they fit the code, the command line and each other. No cluster is asked."""

import argparse
import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from diffsplat_client import cli

from diffsplat.serving.edge.server import Edge
from diffsplat.serving.server.guarded_process import KILL_AFTER_S
from diffsplat.serving.server.metrics import read_metrics
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from tests.serving.edge.scripted import Away

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES, MONITORING = DEPLOY / "kubernetes", DEPLOY / "monitoring"
DENOISE = (DEPLOY.parent / "model_repository" / "denoise" / "config.pbtxt").read_text()
OF_THE_COLLECTOR = {"up"}  # Prometheus makes it itself
OF_PROMQL = set("sum avg max by rate resets increase histogram_quantile unless and or".split())
OF_A_GPU = re.compile(r"nv_gpu_")  # not on the page of a server without one


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def rendered() -> dict[str, Any]:
    """What `kubectl apply -k` would send, by kind."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    pod: dict[str, Any] = load(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]
    return pod


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return container


def defaults(*arguments: str) -> argparse.Namespace:
    """What `diffsplat serve` means in the container."""
    command = ["serve", "DIR", *arguments]
    return cli._parser(command).parse_args(command)


def denoise_parameter(name: str) -> int:
    (value,) = re.findall(rf'key: "{name}", value: {{ string_value: "(\d+)" }}', DENOISE)
    return int(value)


def names_of(expression: str) -> set[str]:
    """Metrics of a PromQL expression; ValueError if it is none."""
    promql_parser.parse(expression)
    without = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring) \([^)]*\)", "", expression)
    words = set(re.findall(r"\b[a-z_][a-z0-9_]*(?!\s*\()\b", without))
    return {re.sub(r"(_seconds|_size)_(?:bucket|sum|count)$", r"\1", name) for name in words - OF_PROMQL}


def expressions() -> dict[str, str]:
    """Every expression of alerts and board, by what it is for; the board's variables match everything."""
    rules = {
        rule["alert"]: rule["expr"] for group in load(MONITORING / "alerts.yaml")["groups"] for rule in group["rules"]
    }
    board = json.loads((MONITORING / "board.json").read_text())
    panels = {
        f"{panel['title']} {target['refId']}": re.sub(r"\$\w+", ".*", target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
    return rules | panels


def test_kustomize_renders_every_file(rendered: dict[str, Any]) -> None:
    listed = set(load(KUBERNETES / "kustomization.yaml")["resources"])
    assert listed == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert len(rendered) == len(listed)
    name = {"app.kubernetes.io/name": "diffsplat"}
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert rendered[kind]["spec"]["selector"]["matchLabels"] == name
    assert rendered["Service"]["spec"]["selector"] == name
    assert rendered["NetworkPolicy"]["spec"]["podSelector"] == {}, "every pod of the namespace"
    assert rendered["Deployment"]["spec"]["template"]["metadata"]["labels"] == name
    assert {one["metadata"]["namespace"] for kind, one in rendered.items() if kind != "Namespace"} == {"diffsplat"}


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_what_is_rendered_fits_the_schemas_of_kubernetes(rendered: dict[str, Any], version: str) -> None:
    """From the oldest release that it is for to the newest whose schemas are installed; no unknown fields."""
    for document in rendered.values():
        kubernetes_validate.validate(document, version, strict=True)
    misspelt = copy.deepcopy(rendered["Service"])
    misspelt["spec"]["sessionAfinity"] = misspelt["spec"].pop("sessionAffinity")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, version, strict=True)


def test_a_stop_leaves_time_to_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed_s = float(seconds) + SupervisorPolicy.drain_timeout_s + KILL_AFTER_S
    assert pod["terminationGracePeriodSeconds"] > needed_s


def test_arguments_and_ports_are_those_of_the_command(container: dict[str, Any]) -> None:
    served = defaults(*container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert served.edge_metrics_port is None, "one above --metrics-port"
    metrics = served.metrics_port
    assert ports == {"grpc": served.grpc_port, "metrics": metrics, "edge-metrics": metrics + 1}
    assert container["startupProbe"]["grpc"]["port"] == container["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert Path(mounts["tokens"]) == served.tokens.parent
    policy = load(KUBERNETES / "network.yaml")["spec"]["ingress"]
    assert {port["port"] for rule in policy for port in rule["ports"]} == set(ports)


def test_a_restart_of_triton_does_not_end_the_pod(container: dict[str, Any]) -> None:
    """The edge answers "not serving" meanwhile: good for readiness, wrong for liveness."""
    assert "grpc" in container["readinessProbe"] and container["livenessProbe"]["tcpSocket"] == {"port": "grpc"}


def test_shared_memory_is_memory_and_within_the_limit(pod: dict[str, Any], container: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
    shared = mounts["/dev/shm"]["emptyDir"]
    assert shared["medium"] == "Memory" and shared["sizeLimit"] == "2Gi"
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) > 2


def test_the_pod_has_the_images_user_and_no_rights(pod: dict[str, Any], container: dict[str, Any]) -> None:
    (uid,) = re.findall(r"useradd --uid (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(uid)
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_autoscaler_reads_the_engines_gauge() -> None:
    spec = load(KUBERNETES / "autoscaler.yaml")["spec"]
    (metric,) = spec["metrics"]
    (rule,) = load(MONITORING / "adapter-rule.yaml")
    gauge = metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith(f"{gauge}{{")
    assert int(metric["pods"]["target"]["averageValue"]) == denoise_parameter("max_batch")
    deployment = load(KUBERNETES / "deployment.yaml")
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"] and "replicas" not in deployment["spec"]


def test_the_queue_alert_comes_before_requests_are_refused() -> None:
    (limit,) = re.findall(r"> (\d+)$", expressions()["DiffSplatQueueLong"])
    assert 0 < int(limit) < denoise_parameter("max_queue")


def test_alerts_say_what_and_how_bad() -> None:
    rules = [rule for group in load(MONITORING / "alerts.yaml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 4
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_names_are_found_in_expressions() -> None:
    found = names_of('sum by (pod, a) (rate(nv_x{model!="b", pod=~".*"}[5m])) / on (pod) up > 0.05 * max(nv_y)')
    assert found == {"nv_x", "up", "nv_y"}
    with pytest.raises(ValueError):
        names_of("sum by (pod) (rate(nv_x[5m])")


def test_the_boards_panels_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "board.json").read_text())["panels"]
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.triton
def test_every_metric_is_on_the_page_of_a_server(server: TritonServer) -> None:
    with Edge(Away(), server.grpc_url, metrics_port=0) as edge:
        assert edge.metrics_url is not None
        page = read_metrics(server.metrics_url) + read_metrics(edge.metrics_url)
    known = set(re.findall(r"^# TYPE (\w+)", page, re.M))
    assert {"diffsplat_denoise_requests", "diffsplat_edge_running"} <= known
    for what, expression in expressions().items():
        names = {name for name in names_of(expression) - OF_THE_COLLECTOR if not OF_A_GPU.match(name)}
        assert names <= known, f"{what}: {sorted(names - known)}"
