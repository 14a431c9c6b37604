"""docs/api.md is what the contract makes."""

import importlib.util
from pathlib import Path

from diffsplat_client.contract import MODELS

SCRIPT = Path(__file__).resolve().parents[2] / "client" / "api_page.py"


def test_the_page_is_that_of_the_contract(capsys) -> None:
    spec = importlib.util.spec_from_file_location("api_page", SCRIPT)
    assert spec is not None and spec.loader is not None
    api_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api_page)
    assert api_page.main([]) == 0, capsys.readouterr().err
    page = api_page.PAGE.read_text()
    for model in ("diffsplat", "diffsplat_reconstruct"):
        for tensor in (*MODELS[model].inputs, *MODELS[model].outputs):
            assert f"`{tensor.name}`" in page
