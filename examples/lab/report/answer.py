"""The answer over all experiments, by rules from the verdicts of their comparisons."""

import math

from .comparing import sentence
from .runs import LOSS
from .section import counted, listed

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
    groups, unsettled = sorted_out(sections)
    said = [lead(groups)]
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
    """Verdict -> settled comparisons, the largest first; and labels of the others."""
    groups, unsettled = {verdict: [] for verdict in GROUPS}, []
    for name, part in sections.items():
        for each in filter(looks_ahead, part.findings):
            if each.settled and each.difference.count:
                groups[each.difference.verdict].append((name, each))
            else:
                unsettled.append(each.runs.arm.label)
    for found in groups.values():
        found.sort(key=lambda item: -_size(item[1]))
    return groups, list(dict.fromkeys(unsettled))


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


def _range(found, way):
    """``: the loss ends 0.5 % to 1.4 % lower``, where there are such losses."""
    shares = sorted(abs(each.share.mean) for _, each in found if each.measure is LOSS)
    if not shares:
        return ""
    low, high = (f"{share:.2g} %" for share in (shares[0], shares[-1]))
    return f": the loss ends {low if low == high else f'{low} to {high}'} {way}"


def _link(name):
    return f"[{name}](#{name})"
