"""What the server's metrics page says about its load."""

import re
import urllib.request

_REQUESTS = re.compile(r"^diffsplat_(stage|denoise)_requests\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_EXECUTIONS = re.compile(r'^nv_inference_exec_count\{(?:.*,)?model="(\w+)".*\} (\S+)$', re.MULTILINE)


def read_metrics(url: str, timeout_s: float = 2.0) -> str:
    """The page; OSError if the server does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business with loopback
    with opener.open(url, timeout=timeout_s) as response:
        text: str = response.read().decode()
    return text


def requests_in_flight(page: str, version: str | None = None) -> int:
    """Requests that a stage works on, or that wait for `denoise`; in one version, or (None) in all."""
    return round(sum(value for _, labels, value in _gauges(page) if version in (None, labels.get("version"))))


def busy_instances(page: str) -> set[tuple[str, str]]:
    """Version and name of the model instances that work on a request; that of `denoise` is its model's name."""
    busy = set()
    for gauge, labels, value in _gauges(page):
        if value > 0 and labels.get("state", "active") == "active":
            busy.add((labels.get("version", ""), labels["instance"] if gauge == "stage" else gauge))
    return busy


def _gauges(page: str) -> list[tuple[str, dict[str, str], float]]:
    """Our gauges of requests: "stage" or "denoise", labels, value."""
    return [(gauge, dict(_LABEL.findall(labels)), float(value)) for gauge, labels, value in _REQUESTS.findall(page)]


def executions(page: str) -> dict[str, float]:
    """Calls that each model has finished in all its versions since the server started."""
    calls: dict[str, float] = {}
    for model, value in _EXECUTIONS.findall(page):
        calls[model] = calls.get(model, 0.0) + float(value)
    return calls
