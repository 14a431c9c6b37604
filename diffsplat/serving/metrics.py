"""What the server's metrics page says about its load."""

import re
import urllib.request

_IN_FLIGHT = re.compile(r"^diffsplat_(?:stage|denoise)_requests\{.*\} (\S+)$", re.MULTILINE)
_STAGE_REQUESTS = re.compile(r'^diffsplat_stage_requests\{.*instance="(\w+)".*\} (\S+)$', re.MULTILINE)
_ACTIVE = re.compile(r'^diffsplat_denoise_requests\{state="active"\} (\S+)$', re.MULTILINE)
_EXECUTIONS = re.compile(r'^nv_inference_exec_count\{(?:.*,)?model="(\w+)".*\} (\S+)$', re.MULTILINE)


def read_metrics(url: str, timeout_s: float = 2.0) -> str:
    """The page; OSError if the server does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business with loopback
    with opener.open(url, timeout=timeout_s) as response:
        text: str = response.read().decode()
    return text


def requests_in_flight(page: str) -> int:
    """Requests that a stage works on, or that wait for `denoise`."""
    return round(sum(float(value) for value in _IN_FLIGHT.findall(page)))


def busy_instances(page: str) -> set[str]:
    """Names of the model instances that work on a request; that of `denoise` is its model's name."""
    busy = {name for name, value in _STAGE_REQUESTS.findall(page) if float(value) > 0}
    return busy | ({"denoise"} if any(float(value) > 0 for value in _ACTIVE.findall(page)) else set())


def executions(page: str) -> dict[str, float]:
    """Calls that each model has finished since the server started."""
    return {model: float(value) for model, value in _EXECUTIONS.findall(page)}
