"""The figures of `benchmarks.load` as a plot: throughput against latency."""

from pathlib import Path

from benchmarks.load_levels import Level


def draw(levels: list[Level], path: Path) -> None:
    """Time to the first progress (left) and to the object (right) over requests per second; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True, constrained_layout=True)
    for panel, field, title in zip(
        panels, ("first_s", "total_s"), ("time to first progress", "time to the object"), strict=True
    ):
        for loop, marker in (("closed", "o"), ("open", "s")):
            chosen = [one for one in levels if (one.load.rate_hz is None) == (loop == "closed")]
            for percent, style in ((50, "-"), (95, "--")):
                seconds = [getattr(one, field)[percent] for one in chosen]
                rates_hz = [one.throughput_hz for one in chosen]
                panel.plot(rates_hz, seconds, style, marker=marker, label=f"{loop} loop, p{percent}")
        panel.set(title=title, xlabel="requests per second", ylabel="seconds", yscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0].legend()
    figure.savefig(path)
    pyplot.close(figure)
