"""Sections of the page that show plots: confusion, confidence, training."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from fgzoo.prediction.rejection import SCORES
from fgzoo.reporting import charts
from fgzoo.reporting.markup import class_name, few_below, percent
from fgzoo.reporting.run import Curve, Run
from fgzoo.reporting.scores import Scores, at_share, calibration_error, coverage, reliability
from fgzoo.wording import plural

#: Confused pairs beside the matrix.
PAIRS = 12
#: Shares of images that may be answered, for the table beside the coverage plot.
SHARES = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4)


def matrix(scores: Scores, names: Sequence[str]) -> dict[str, object]:
    """What the script needs to name the cells: class names, the counts above zero, and the cell to begin with."""
    rows, columns = np.nonzero(scores.confusion)
    counts = np.stack([rows, columns, scores.confusion[rows, columns]], axis=1).tolist()
    worst = scores.confused(1)
    return {"names": list(names), "counts": counts, "first": list(worst[0][:2]) if worst else [0, 0]}


def confusion_section(scores: Scores, names: Sequence[str]) -> str:
    """The confusion matrix and the pairs confused most often."""
    totals = scores.confusion.sum(axis=1)
    rows = "".join(
        f"<tr><td><strong>{class_name(names[true])}</strong> taken for <strong>{class_name(names[answer])}</strong></td>"
        f'<td class="number">{images} of {totals[true]}</td></tr>'
        for true, answer, images in scores.confused(PAIRS)
    )
    pairs = f'<table class="small pairs"><tbody>{rows}</tbody></table>' if rows else "<p>Nothing is confused.</p>"
    picture = charts.confusion_picture(scores.confusion)
    of = plural(len(names), "class", "classes")
    said = f"Confusion matrix of {of}; the arrow keys walk through its cells, and the text below names them"
    return (
        '<h2>What is confused with what</h2><p class="lead">A row is a true class, a column an answer, in the order of the '
        "classes; the stronger the colour, the larger the share of the row. Point at a cell, or tap it, to read it.</p>"
        f'<div class="card matrix"><div><div class="matrix-box" id="matrix" tabindex="0" role="application" aria-label="{said}">'
        f'<img alt="" src="{picture}"></div><div class="sides"><span>↓ true class</span><span>answer →</span></div>'
        '<p class="readout" id="readout" role="status"></p><p class="legend keys"><span class="key">right</span>'
        f'<span class="key wrong">wrong</span></p></div><div><h3>Confused most often</h3>{pairs}</div></div>'
    )


def confidence_section(run: Run, scores: Scores) -> str:
    """Calibration and coverage."""
    curve = coverage(scores)
    over = float(scores.confidence.mean()) - scores.accuracy
    sure = "surer than it is right" if over > 0 else "more often right than it is sure"
    rows = "".join(
        f'<tr><td class="number">{percent(one.share, 0)}</td><td class="number">{percent(one.threshold)}</td>'
        f'<td class="number">{percent(one.accuracy)}</td></tr>'
        for one in dict.fromkeys(at_share(curve, share) for share in SHARES)
    )
    known = run.model.calibration
    rule = "" if known is None else f" Probabilities are calibrated by the temperature {known.temperature:.3g}."
    if known is not None and known.score == "probability":
        reached = scores.confidence >= known.threshold()
        right = f", {percent(float(scores.right[reached].mean()))} of them right" if reached.any() else ""
        rule += (
            f" <code>fgzoo predict</code> says unknown below {percent(known.threshold())}: that leaves "
            f"{percent(float(reached.mean()))} of these images{right}."
        )
    elif known is not None:
        rule += (
            f" <code>fgzoo predict</code> says unknown by another measure, the {SCORES[known.score]}, below "
            f"{known.threshold():.4g}, {few_below(known)}."
        )
    return (
        '<h2>How far its confidence can be trusted</h2><p class="lead">'
        f"On average it is {sure}, by {100 * abs(over):.1f} points. Answering only where the largest probability is high leaves "
        f"fewer images answered and more of the answers right.{rule}</p>"
        f'<div class="two"><div class="card">{_calibration_charts(scores, known is not None)}'
        '<p class="legend keys"><span class="key">right answers</span><span class="key few">of fewer than 10 images</span>'
        '<span class="key wanted">confidence</span></p></div><div class="card"><h3>Coverage</h3>'
        f'{charts.coverage_chart(curve)}<table class="small"><thead><tr><th scope="col">answered</th><th scope="col">'
        f'with at least</th><th scope="col">right</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _calibration_charts(scores: Scores, calibrated: bool) -> str:
    """Right answers by confidence: as it is, and before it was calibrated."""
    shown = {"Calibration": reliability(scores)}
    if calibrated:
        shown["Before calibration"] = reliability(scores, calibrated=False)
    return "".join(
        f"<h3>{title}: expected error {percent(calibration_error(bins))}</h3>{charts.reliability_chart(bins)}"
        for title, bins in shown.items()
    )


def training_section(run: Run) -> str:
    """Curves."""
    drawn = []
    for label, kind, figure in (("loss", "loss", False), ("accuracy", "top1", True), ("negative log-likelihood", "nll", False)):
        lines = {
            f"{part}": run.curves[f"{key}/{kind}"]
            for key, part in (("val", "validation"), ("train", "training"))
            if f"{key}/{kind}" in run.curves
        }
        # One value is no curve; accuracies stand for themselves.
        if lines and (figure or max(map(len, lines.values())) > 1):
            drawn.append(_curve_card(label, lines, figure))
    cost = run.cost
    spent = ""
    if cost:
        minutes = cost["seconds"] / 60
        took = (
            f"{cost['seconds']:.0f} seconds"
            if minutes < 2
            else f"{minutes:.0f} minutes"
            if minutes < 120
            else f"{minutes / 60:.1f} hours"
        )
        spent = f"{plural(cost['epochs'], 'epoch', 'epochs')} in {took} on {html.escape(str(cost['device']))}. "
    return (
        f'<h2>Training</h2><p class="lead">{spent}Training accuracy is that of augmented images, while the network learns; '
        f'losses include what the method adds to classification.</p><div class="two">{"".join(drawn)}</div>'
    )


def _curve_card(label: str, lines: dict[str, Curve], shares: bool) -> str:
    keys = "".join(f'<span class="key series{number}">{name}</span>' for number, name in enumerate(lines))
    chart = charts.curves({name: list(points) for name, points in lines.items()}, label, shares)
    return f'<div class="card"><h3>{label.capitalize()}</h3>{chart}<p class="legend keys">{keys}</p></div>'
