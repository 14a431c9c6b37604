"""What the launcher reads from the server's metrics page, and when it calls a busy process hung."""

import os

import pytest

from diffsplat.serving.server.metrics import busy_instances, executions, requests_in_flight
from diffsplat.serving.server.processes import Stub
from diffsplat.serving.supervisor import stage_watch
from diffsplat.serving.supervisor.stage_watch import BusyWatch

PAGE = """\
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="decode",version="1"} 9
nv_inference_exec_count{model="decode",version="2"} 3
nv_inference_exec_count{gpu_uuid="GPU-1",model="denoise",version="1"} 3
nv_inference_count{model="decode",version="1"} 99
# TYPE diffsplat_stage_requests gauge
diffsplat_stage_requests{instance="decode_0_0",stage="decode",version="1"} 0
diffsplat_stage_requests{instance="decode_0_1",stage="decode",version="1"} 1
diffsplat_denoise_requests{state="active",version="1"} 2
diffsplat_denoise_requests{state="waiting",version="2"} 5
"""


def test_the_page_is_read() -> None:
    assert requests_in_flight(PAGE) == 8
    assert requests_in_flight(PAGE, "1") == 3 and requests_in_flight(PAGE, "2") == 5
    assert executions(PAGE) == {"decode": 12, "denoise": 3}
    assert busy_instances(PAGE) == {("1", "decode_0_1"), ("1", "denoise")}
    assert busy_instances(PAGE.replace('"active",version="1"} 2', '"active",version="1"} 0')) == {("1", "decode_0_1")}


def test_a_busy_process_hangs_if_it_uses_no_cpu_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [0.0], [1.0]
    monkeypatch.setattr(stage_watch, "cpu_seconds", lambda pid: used[0])
    watch = BusyWatch([Stub(os.getpid(), "denoise", "1", "denoise_0_0")], lambda: now[0])

    def look(at_s: float, cpu_s: float, busy: bool = True) -> str:
        now[0], used[0] = at_s, cpu_s
        fault = watch.find_fault({("1", "denoise")} if busy else set(), hang_after_s=5.0)
        assert fault is None or (fault.model, fault.pid) == ("denoise", os.getpid())
        return fault.reason if fault else ""

    assert not look(0, 1.0) and not look(4, 1.0)
    assert not look(5, 1.1), "it has computed"
    assert not look(9, 1.11), "10 ms in 4 s are not work, but 5 s are not over"
    assert "it has a request and does not compute" in look(10.5, 1.11)
    assert not look(11, 1.11, busy=False) and not look(12, 1.11), "it was idle in between"
    assert look(18, 1.11)
    watch.forgive()
    assert not look(19, 1.11)
