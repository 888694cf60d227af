# SPDX-License-Identifier: MIT
"""The answer over all experiments, by rules from the verdicts of their comparisons."""

import math
import operator

from emanest.tools.statistics import SEEDS, seeds

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
FEW = f"**Too few seeds for a verdict** ({SEEDS} are needed):"
MOST = 12  # points of a list
# how learning rates were found
BEST = "each at its own best learning rate"
AS_THEY_ARE = "at the learning rates of their settings, without a search"


def answer(sections):
    """Paragraphs and lists of points.

    Args:
        sections: name of an experiment -> its ``Section``, of those that have stored runs.
    """
    if not sections:
        return ["Nothing can be said yet: no runs are stored."]
    settled, few, unsettled = sorted_out(sections)
    found = [each for _, each in settled]
    searched, others = (
        [each for each in found if (each.runs.searched and each.others.searched) is wanted]
        for wanted in (True, False)
    )
    said = [lead(each, how) for each, how in ((searched, BEST), (others, AS_THEY_ARE)) if each]
    said = said or ["No comparison is settled yet."]
    said += rates(searched)
    ended = {id(each) for _, each in settled + few if each.measure is LOSS}
    losses = [each for part in sections.values() for each in part.findings if id(each) in ended]
    if losses:
        said.append(str(matrix(losses)))
    for verdict, heading in GROUPS.items():
        said += points(heading, [x for x in settled if x[1].difference.verdict == verdict])
    said += points(FEW, few)
    further = [
        f"{each} ({_link(name)})" for name, part in sections.items() for each in part.summary
    ]
    if further:
        said += ["**When, and how much:**", further]
    if unsettled:
        said.append(f"Not settled yet, as runs are missing: {listed(unsettled)}.")
    return said


def sorted_out(sections):
    """Comparisons with the name of their experiment, and labels of the rest.

    Returns:
        Those that have a verdict; those that are complete with too few seeds for one; and labels
        of those of which runs are missing.
    """
    settled, few, others = [], [], {}
    for name, part in sections.items():
        for each in filter(looks_ahead, part.findings):
            if not (each.settled and each.difference.count):
                others[each.runs.arm.label] = None
            elif each.difference.count < SEEDS and each.difference.verdict != "diverged":
                few.append((name, each))
            else:
                settled.append((name, each))
    return settled, few, list(others)


def points(heading, found):
    """A heading and a sentence for each comparison, the largest first; of many, for those."""
    if not found:
        return []
    largest = sorted(found, key=lambda item: -_size(item[1]))[:MOST]
    said = [f"{sentence(each)} ({_link(name)})" for name, each in largest]
    if len(found) > MOST:
        said.append(f"and {counted(len(found) - MOST, 'comparison')} that differ by less.")
    return [heading, said]


def looks_ahead(finding):
    """Whether an arm with a lookahead is compared with one without."""
    ours, theirs = (runs.arm.settings.get("lookahead") for runs in (finding.runs, finding.others))
    return ours is not None and theirs is None


def _size(finding):
    return 0.0 if math.isnan(finding.share.mean) else abs(finding.share.mean)


def lead(found, how):
    """How often looking ahead helps, and by how much."""
    groups = {verdict: [] for verdict in GROUPS}
    for each in found:
        groups[each.difference.verdict].append(each)
    said = [
        f"Looking ahead helps in {len(groups['better'])} of {counted(len(found), 'comparison')} "
        f"with the base alone, {how}{_range(groups['better'], 'lower')}."
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
    pairs = [(each.runs.lr, each.others.lr) for each in found if each.measure is LOSS]
    if not pairs:
        return []
    tests = operator.lt, operator.eq, operator.gt
    lower, same, higher = (sum(test(*pair) for pair in pairs) for test in tests)
    return [
        f"With a lookahead the best learning rate is lower in {lower}, the same in {same} and "
        f"higher in {higher} of {counted(len(pairs), 'comparison')}."
    ]


def matrix(found):
    """Each lookahead beside each base: the share of the loss, and the verdict.

    Of several, the one with most seeds, then with its own learning rate, then the lowest.
    """
    cells, columns = {}, {}
    for each in found:
        arm = each.runs.arm
        base = f"{each.others.arm.label} ({arm.settings['model']['name']})"
        columns[base] = None
        label = arm.at.get("lookahead") or arm.label.removeprefix(f"{arm.against} + ")
        row = cells.setdefault(label, {})
        row[base] = min(row.get(base, each), each, key=_rank)
    rows = [
        [label, *(_cell(row[base]) if base in row else "" for base in columns)]
        for label, row in cells.items()
    ]
    caption = "The loss at the end beside that of the base alone; a minus: the lookahead is lower."
    return Table(caption, ("lookahead", *columns), rows)


def _rank(finding):
    share = finding.share.mean
    searched = finding.runs.searched and finding.others.searched
    return -finding.difference.count, not searched, math.inf if math.isnan(share) else share


def _cell(finding):
    difference = finding.difference
    words = difference.verdict
    if difference.count < SEEDS and words != "diverged":
        words = seeds(difference.count)
    share = per_cent(finding.share)
    return words if share == "-" else f"{share}, {words}"


def _range(found, way):
    """``: the loss ends 0.5 % to 1.4 % lower``, where there are such losses."""
    shares = sorted(abs(each.share.mean) for each in found if each.measure is LOSS)
    if not shares:
        return ""
    low, high = (f"{share:.2g} %" for share in (shares[0], shares[-1]))
    return f": the loss ends {low if low == high else f'{low} to {high}'} {way}"


def _link(name):
    return f"[{name}](#{name})"
