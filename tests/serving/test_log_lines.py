"""No text of a request can pass for a log record."""

import io
import logging

from diffsplat.serving.stage_models.log_lines import LineFormatter


def test_records_stay_one_line_and_tracebacks_are_indented() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.Logger("stage")
    logger.addHandler(handler)
    forged = "ERROR stage: forged"
    logger.warning("request %s: stop asked for, ü", f"a\n{forged}\r{forged}\x1b[31m\u2028{forged}")
    try:
        raise ValueError(f"b\n{forged}\x0b{forged}")
    except ValueError:
        logger.exception("failed")
    lines = stream.getvalue().split("\n")
    assert lines[0] == rf"WARNING stage: request a\n{forged}\r{forged}\x1b[31m\u2028{forged}: stop asked for, ü"
    assert lines[1] == "ERROR stage: failed"
    assert all(line.startswith("    ") for line in lines[2:-1]) and lines[-1] == ""
    assert sum(line.strip() == forged for line in lines) == 2
    assert not any(line.startswith(forged) for line in lines)
