"""Tables out of raw figures: medians, ranges, ratios to Penstock, latency added to the direct path.

A `run` here is a peer, once through a scenario's points:
{"kind", "peer", "repeat", "error"} or {"kind", "peer", "repeat", "points": {name: {"result" | "error"}}}
"""

import statistics
from dataclasses import dataclass, field

from peers import Peer
from scenarios import TOOL_BOUND, Figure, Scenario, marks

OURS = "penstock"
DIRECT = "direct"


@dataclass(frozen=True)
class Summary:
    """Several values of one figure."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: list[float | None]) -> "Summary | None":
        known = [value for value in values if value is not None]
        if not known:
            return None
        return Summary(statistics.median(known), min(known), max(known), len(known))

    def overlaps(self, other: "Summary") -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass
class Row:
    """A peer at one point."""

    peer: Peer
    # By the title of the figure.
    figures: dict[str, Summary] = field(default_factory=dict)
    # What is left of a figure when the direct path's of the same repeat is taken off.
    added: dict[str, Summary] = field(default_factory=dict)
    # To Penstock's median; below 1 is less.
    ratios: dict[str, float] = field(default_factory=dict)
    # Better than Penstock's median, and what speaks against making much of it, if anything.
    wins: dict[str, str] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    # Why there is nothing to show.
    failure: str = ""


def rows_of(scenario: Scenario, point: str, peers: list[Peer], runs: list[dict]) -> list[Row]:
    """A row for each of the peers, in their order."""
    results: dict[str, dict[int, dict]] = {}
    rows = []
    for peer in peers:
        row = Row(peer)
        mine = [run for run in runs if (run["peer"], run["kind"]) == (peer.name, peer.kind)]
        found, errors, told = {}, [], []
        for run in mine:
            cell = {"error": run["error"]} if "error" in run else run["points"].get(point, {})
            if "result" in cell:
                found[run["repeat"]] = cell["result"]
                told.extend(marks(cell["result"]))
            else:
                errors.append(cell.get("error", "not measured"))
        results[peer.name] = found
        if not found:
            row.failure = errors[0] if errors else "not run"
        elif errors:
            row.marks.append(f"{len(errors)} of {len(mine)} failed: {errors[0]}")
        row.marks.extend(counted(told, len(found)))
        for figure in scenario.figures:
            summary = Summary.of([figure.read(result) for result in found.values()])
            if summary is not None:
                row.figures[figure.title] = summary
        rows.append(row)
    for row in rows:
        add_differences(row, scenario, results)
        compare(row, scenario, rows)
    return rows


def counted(told: list[str], of: int) -> list[str]:
    """Marks, each once; with how many of the repeats have it when not all do."""
    kinds: dict[str, list[str]] = {}
    for mark in told:
        words = mark.rstrip("0123456789,").rstrip()
        kinds.setdefault(words, []).append(mark)
    texts = []
    for words, marks_of_kind in kinds.items():
        text = marks_of_kind[0] if len(set(marks_of_kind)) == 1 else f"{words} up to " + max(
            (mark.removeprefix(words).strip() for mark in marks_of_kind),
            key=lambda number: int(number.replace(",", "") or 0))
        count = len(marks_of_kind)
        texts.append(text if count == of else f"{text} ({count} of {of})")
    return texts


def add_differences(row: Row, scenario: Scenario, results: dict[str, dict[int, dict]]) -> None:
    if row.peer.name == DIRECT:
        return
    direct = results.get(DIRECT, {})
    for figure in (figure for figure in scenario.figures if figure.is_added):
        differences = []
        for repeat, result in results[row.peer.name].items():
            through, past = figure.read(result), figure.read(direct.get(repeat, {}))
            differences.append(None if through is None or past is None else through - past)
        summary = Summary.of(differences)
        if summary is not None:
            row.added[figure.title] = summary


def compare(row: Row, scenario: Scenario, rows: list[Row]) -> None:
    """Sets the row's ratios to Penstock and what it wins."""
    ours = next((other for other in rows if other.peer.name == OURS), None)
    if ours is None or ours is row:
        return
    for figure in scenario.figures:
        mine, theirs = row.figures.get(figure.title), ours.figures.get(figure.title)
        if mine is None or theirs is None or not figure.better:
            continue
        if theirs.median:
            row.ratios[figure.title] = mine.median / theirs.median
        lower = mine.median < theirs.median
        better = lower if figure.better == "lower" else mine.median > theirs.median
        if better and not row.peer.is_reference and not row.peer.is_ours:
            row.wins[figure.title] = ", ".join(doubts(row, mine, ours, theirs))


def doubts(row: Row, mine: Summary, ours: Row, theirs: Summary) -> list[str]:
    """Why one median may be better than another by chance, or not by the peers' doing."""
    found = []
    if min(mine.count, theirs.count) == 1:
        found.append("one run")
    elif mine.overlaps(theirs):
        found.append("ranges touch")
    if any(mark.startswith(TOOL_BOUND) for mark in row.marks + ours.marks):
        found.append(TOOL_BOUND)
    return found


def number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def told(summary: Summary | None, digits: int, sign: str = "") -> str:
    """A median, with its range behind when it has one."""
    if summary is None:
        return "–"
    text = f"{summary.median:{sign},.{digits}f}"
    if summary.count == 1:
        return text
    return f"{text} ({number(summary.low, digits)}–{number(summary.high, digits)})"


def columns(scenario: Scenario, rows: list[Row]) -> list[tuple[str, callable]]:
    """The table's columns: a heading, and what stands there for a row."""
    found = []
    here = {title for row in rows for title in row.figures}
    for figure in (figure for figure in scenario.figures if figure.title in here):
        def value(row: Row, figure: Figure = figure) -> str:
            text = told(row.figures.get(figure.title), figure.digits)
            return f"**{text}**" if is_best(row, figure, rows) else text

        def ratio(row: Row, figure: Figure = figure) -> str:
            if row.peer.name == OURS:
                return "1"
            if figure.title not in row.ratios:
                return "–"
            verdict = ""
            if figure.title in row.wins:
                doubt = row.wins[figure.title]
                verdict = f" wins, {doubt}" if doubt else " **wins**"
            return f"{row.ratios[figure.title]:.2f}{verdict}"

        found.append((figure.title, value))
        if figure.decides:
            found.append(("ratio to penstock", ratio))
        if figure.is_added and any(figure.title in row.added for row in rows):
            def added(row: Row, figure: Figure = figure) -> str:
                return told(row.added.get(figure.title), figure.digits, "+")

            found.append(("added to direct", added))
    found.append(("marks", lambda row: "; ".join(row.marks)))
    return found


def is_best(row: Row, figure: Figure, rows: list[Row]) -> bool:
    """Whether it is the best of those that compete: references do not."""
    medians = [other.figures[figure.title].median for other in rows
               if figure.title in other.figures and not other.peer.is_reference]
    if not figure.better or row.peer.is_reference or figure.title not in row.figures or len(medians) < 2:
        return False
    best = min(medians) if figure.better == "lower" else max(medians)
    return row.figures[figure.title].median == best


def wins_text(scenario: Scenario, rows: list[Row]) -> str:
    """Who is better than Penstock, and in what: a sentence under each table."""
    if not any(row.peer.name == OURS and not row.failure for row in rows):
        return "Penstock has no figures here."
    texts = []
    for row in rows:
        parts = [f"{title} ({', '.join(filter(None, [f'{row.ratios[title]:.2f}', doubt]))})"
                 for title, doubt in row.wins.items() if title in row.ratios]
        if parts:
            texts.append(f"{row.peer.name} in {', '.join(parts)}")
    if not texts:
        return "No peer is better than Penstock in any judged figure here."
    return "Better than Penstock: " + "; ".join(texts) + "."


def cell_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def table(scenario: Scenario, rows: list[Row]) -> str:
    heads = columns(scenario, rows)
    lines = ["| peer | " + " | ".join(head for head, _ in heads) + " |",
             "| --- |" + " --- |" * len(heads)]
    for row in rows:
        name = f"*{row.peer.name}*" if row.peer.is_reference else row.peer.name
        if row.failure:
            cells = ["–"] * (len(heads) - 1) + [row.failure]
        else:
            cells = [text(row) for _, text in heads]
        lines.append(f"| {name} | " + " | ".join(map(cell_text, cells)) + " |")
    return "\n".join(lines)


def markdown(scenario: Scenario, points: list[str], peers: list[Peer], runs: list[dict],
             heading: list[tuple[str, str]]) -> str:
    """The whole report."""
    parts = [f"# Scenario {scenario.number}: {scenario.title}",
             "\n".join(f"- {name}: {value}" for name, value in heading),
             f"Decided by: {scenario.decided_by}. Median (range) of the repeats; ratios are to "
             "Penstock's median, below 1 is less. Bold is the best of the products; rows in italics "
             "are references, which neither win nor lose. \"tool-bound\": the figure shows the limit "
             "of the load tool or the machine, not of the peer."]
    for kind in scenario.kinds:
        of_kind = [peer for peer in peers if peer.kind == kind]
        if not of_kind:
            continue
        for point in points:
            rows = rows_of(scenario, point, of_kind, runs)
            what = f"{kind}: {point}" if len(scenario.kinds) > 1 else point
            parts += [f"## {what}", table(scenario, rows), wins_text(scenario, rows)]
    return "\n\n".join(parts) + "\n"
