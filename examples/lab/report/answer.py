"""The answer over all experiments, by rules from the verdicts of their comparisons."""

import math
import operator

from .comparing import per_cent, sentence
from .runs import LOSS
from .section import Table, counted, listed

# verdict -> what is said of the comparisons that have it
GROUPS = {
    "better": "**It helps:**",
    "worse": "**It does harm:**",
    "no difference seen": "**No difference is seen:**",
    "diverged": "**Runs diverged:**",
}


def answer(sections):
    """Paragraphs and lists of points.

    Args:
        sections: name of an experiment -> its ``Section``, of those that have stored runs.
    """
    if not sections:
        return ["Nothing can be said yet: no runs are stored."]
    settled, unsettled = sorted_out(sections)
    groups = by_verdict(settled)
    losses = [each for _, each in settled if each.measure is LOSS]
    said = [lead(groups), *rates(losses)]
    if losses:
        said.append(str(matrix(losses)))
    for verdict, heading in GROUPS.items():
        if groups[verdict]:
            points = [f"{sentence(each)} ({_link(name)})" for name, each in groups[verdict]]
            said += [heading, points]
    further = [
        f"{each} ({_link(name)})" for name, part in sections.items() for each in part.summary
    ]
    if further:
        said += ["**When, and how much:**", further]
    if unsettled:
        said.append(f"Not settled yet, as runs are missing: {listed(unsettled)}.")
    return said


def sorted_out(sections):
    """Settled comparisons with the name of their experiment, and labels of the others."""
    settled, others = [], {}
    for name, part in sections.items():
        for each in filter(looks_ahead, part.findings):
            if each.settled and each.difference.count:
                settled.append((name, each))
            else:
                others[each.runs.arm.label] = None
    return settled, list(others)


def by_verdict(settled):
    """Verdict -> its comparisons, the largest first."""
    groups = {verdict: [] for verdict in GROUPS}
    for name, each in sorted(settled, key=lambda item: -_size(item[1])):
        groups[each.difference.verdict].append((name, each))
    return groups


def looks_ahead(finding):
    """Whether an arm with a lookahead is compared with one without."""
    ours, theirs = (runs.arm.settings.get("lookahead") for runs in (finding.runs, finding.others))
    return ours is not None and theirs is None


def _size(finding):
    return 0.0 if math.isnan(finding.share.mean) else abs(finding.share.mean)


def lead(groups):
    """How often looking ahead helps, and by how much."""
    settled = sum(map(len, groups.values()))
    if not settled:
        return "No comparison is settled yet."
    said = [
        f"Looking ahead helps in {len(groups['better'])} of {counted(settled, 'comparison')} with "
        f"the base alone, each at its own best learning rate{_range(groups['better'], 'lower')}."
    ]
    if groups["worse"]:
        said.append(f"It does harm in {len(groups['worse'])}{_range(groups['worse'], 'higher')}.")
    if groups["no difference seen"]:
        said.append(f"No difference is seen in {len(groups['no difference seen'])}.")
    if groups["diverged"]:
        said.append(f"Runs diverged in {len(groups['diverged'])}.")
    return " ".join(said)


def rates(found):
    """A sentence on how the best learning rates differ."""
    pairs = [(each.runs.lr, each.others.lr) for each in found if len(each.others.cells) > 1]
    if not pairs:
        return []
    tests = operator.lt, operator.eq, operator.gt
    lower, same, higher = (sum(test(*pair) for pair in pairs) for test in tests)
    return [
        f"With a lookahead the best learning rate is lower in {lower}, the same in {same} and "
        f"higher in {higher} of {counted(len(pairs), 'comparison')}."
    ]


def matrix(found):
    """Each lookahead beside each base: the share of the loss, and the verdict."""
    cells, columns = {}, {}
    for each in found:
        base = f"{each.others.arm.label} ({each.runs.arm.settings['model']['name']})"
        columns[base] = None
        share, words = per_cent(each.share), each.difference.verdict
        label = each.runs.arm.at.get("lookahead", each.runs.arm.label)
        cells.setdefault(label, {})[base] = words if share == "-" else f"{share}, {words}"
    rows = [[label, *(row.get(base, "") for base in columns)] for label, row in cells.items()]
    caption = "The loss at the end beside that of the base alone; a minus: the lookahead is lower."
    return Table(caption, ("lookahead", *columns), rows)


def _range(found, way):
    """``: the loss ends 0.5 % to 1.4 % lower``, where there are such losses."""
    shares = sorted(abs(each.share.mean) for _, each in found if each.measure is LOSS)
    if not shares:
        return ""
    low, high = (f"{share:.2g} %" for share in (shares[0], shares[-1]))
    return f": the loss ends {low if low == high else f'{low} to {high}'} {way}"


def _link(name):
    return f"[{name}](#{name})"
