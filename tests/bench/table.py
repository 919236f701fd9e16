"""The record of a benchmark as Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from tests.bench.code import in_words

LEFT_OUT = "left out: "


def markdown(record: Mapping) -> str:
    """Returns the tables of all that was measured, as a file."""
    lines = ["# Speed", "", _machine(record), ""]
    sections = {"start": _start, "slices": _slices}
    for name, measured in record["measured"].items():
        lines += [f"## {name}", "", measured["about"], "", *sections.get(name, _sides)(measured), ""]
        lines += [f"Measured with {in_words(measured.get('code'))}.", ""]
    return "\n".join(lines)


def _machine(record: Mapping) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    work = ", ".join(f"{name} {value}" for name, value in record["work"].items() if value != "")
    return f"On {record['machine']}, {packages}. {work}. Rates are medians over turns."


def _sides(measured: Mapping) -> Iterator[str]:
    share = measured.get("share_of_ceiling", {})
    rows = []
    for name, side in measured["sides"].items():
        times = measured["times"].get(name)
        rows.append(
            (
                name,
                _rate(side["per_s"], side["unit"]),
                f"{min(side['seconds']):.3g} to {max(side['seconds']):.3g} s",
                f"{times:.2f} x" if times else "",
                f"{share[name]:.1%}" if name in share else "",
                f"{side['warm_up_s']:.3g} s",
                f"{side['peak_bytes'] / 2**20:,.0f} MiB",
            )
        )
    yield from _table(("side", "rate", "a turn", "ours is", "of the ceiling", "first call", "memory"), rows)
    if "ceiling_flops_per_s" in measured:
        yield ""
        yield f"Ceiling: {measured['ceiling_flops_per_s']:.3g} FLOP/s, {measured['ceiling']}."
    for name, difference in measured["largest_difference"].items():
        yield ""
        yield f"{name}: figures agree with ours to {difference:.1e}."
    for name, why in measured["left_out"].items():
        yield ""
        yield f"{name}: {LEFT_OUT}{why}."


def _start(measured: Mapping) -> Iterator[str]:
    fastest, slowest = min(measured["seconds"]), max(measured["seconds"])
    row = (measured["config"], f"{measured['median_s']:.2f} s", f"{fastest:.2f} to {slowest:.2f} s")
    yield from _table(("config", "median", "starts", "first of all"), [(*row, f"{measured['first_s']:.1f} s")])


def _slices(measured: Mapping) -> Iterator[str]:
    if "left_out" in measured:
        yield f"{LEFT_OUT}{measured['left_out']}."
        return
    rows = [
        (
            f"{each['config']} on {each['topology']}",
            f"{each['chips']}",
            *(f"{1e3 * each['seconds'][part]:.3g} ms" for part in ("arithmetic", "memory", "links")),
            f"{each['tokens_per_s']:,.0f} tokens/s, {each['bound_by']}",
        )
        for each in measured["slices"]
    ]
    yield from _table(("slice", "chips", "arithmetic", "memory", "links", "at most, bound by"), rows)
    for generation, chips in measured["links_take_over"].items():
        yield ""
        yield f"{generation}: links are the limit " + (f"from {chips} chips on." if chips else "on no slice above.")


def _rate(per_s: float, unit: str) -> str:
    return f"{per_s / 1e9:,.1f} GFLOP/s" if unit == "FLOP" else f"{per_s:,.1f} {unit}/s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
