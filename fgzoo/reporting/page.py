"""The page of a run's report: one HTML file that needs nothing else, readable without scripts, too.

A content security policy forbids every request and every script but the page's own, as on the page of explanations, whose style
sheet this one extends. Scripts sort and search the classes and name the cells of the confusion matrix; all else is there without.
"""

from __future__ import annotations

import html
import inspect
import shlex
from collections.abc import Sequence

import numpy as np

from fgzoo.files import shown_folder, without_places
from fgzoo.interpret.page import fill, head, json_data, packaged, policy
from fgzoo.methods import method_name
from fgzoo.methods.evaluation import tail_classes
from fgzoo.reporting.findings import Copies, DoubtfulLabel
from fgzoo.reporting.markup import PARTS, percent
from fgzoo.reporting.photos import Photos
from fgzoo.reporting.pictured import classes_section, copies_section, doubts_section, mistakes_section
from fgzoo.reporting.plotted import confidence_section, confusion_section, matrix, training_section
from fgzoo.reporting.run import Run
from fgzoo.reporting.scores import HELD_OUT, Scores, at_share, calibration_error, coverage, interval, reliability
from fgzoo.version import __version__
from fgzoo.wording import first_five, plural


def page(run: Run, photos: Photos, doubts: Sequence[DoubtfulLabel] | None, copies: Copies | None, mistakes: int) -> str:
    """The page's text.

    Args:
        run: The run.
        photos: Its photos.
        doubts: Labels in doubt; `None` where nothing was scored.
        copies: Near-duplicates; `None` where they were not looked for.
        mistakes: How many of the worst mistakes to show.
    """
    scores = next(iter(run.scores.values()), None)
    found: dict[str, tuple[str, str]] = {}
    if scores is not None:
        found["mistakes"] = "Worst mistakes", mistakes_section(run, photos, scores, doubts or [], copies, mistakes)
        found["confusion"] = "Confusion", confusion_section(scores, run.card.class_names)
        found["confidence"] = "Confidence", confidence_section(run, scores)
        found["labels"] = f"Labels in doubt <b>{len(doubts or [])}</b>", doubts_section(run, photos, doubts or [])
    if copies is not None:
        found["duplicates"] = f"Near-duplicates <b>{len(copies.matter)}</b>", copies_section(run, photos, copies)
    if run.curves:
        found["training"] = "Training", training_section(run)
    if scores is not None:
        found["classes"] = "Classes", classes_section(run, photos, scores)
    found["run"] = "This run", _about(run)
    style = packaged("page.css") + packaged("report.css", "fgzoo.reporting")
    script = packaged("report.js", "fgzoo.reporting")
    cells = {} if scores is None else matrix(scores, run.card.class_names)
    values = {
        "head": head(html.escape(f"{_method(run)} on {run.card.dataset}: report"), style, policy(style, script)),
        "script": script,
        "headline": f'<span dir="auto">{html.escape(_method(run))}</span> on {html.escape(run.card.dataset)}',
        "about": _headline(run, scores),
        "figures": "" if scores is None else _figures(run, scores, copies),
        "notices": _notices(run),
        "contents": "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in found.items()),
        "sections": "\n".join(f'<section id="{name}">{content}</section>' for name, (_, content) in found.items()),
        "confusion": json_data(cells),
    }
    return fill(packaged("report.html", "fgzoo.reporting"), values)


def _method(run: Run) -> str:
    cls = type(run.model)
    return method_name(f"{cls.__module__}.{cls.__qualname__}", dict(run.model.hparams))


def _headline(run: Run, scores: Scores | None) -> str:
    if scores is None:
        return "This run has not been scored on images that it was not trained on."
    low, high = interval(int(scores.right.sum()), len(scores))
    return (
        f"<strong>{percent(scores.accuracy)} of {plural(len(scores), 'image', 'images')}</strong> of the "
        f"{HELD_OUT[scores.part]} part are right; with 95 % certainty it is between {percent(low)} and {percent(high)} of all "
        f"such images. {plural(run.model.num_classes, 'class', 'classes')}."
    )


def _figures(run: Run, scores: Scores, copies: Copies | None) -> str:
    low, high = interval(int(scores.right.sum()), len(scores))
    by_class = scores.class_accuracy
    curve = coverage(scores)
    surest = at_share(curve, 0.8)
    figures = [
        (f"Accuracy, {HELD_OUT[scores.part]}", percent(scores.accuracy), f"95 % interval {percent(low)} to {percent(high)}"),
        ("Macro accuracy", percent(float(np.nanmean(by_class))), "mean over classes"),
    ]
    tail = [target for target in tail_classes(run.class_counts) if not np.isnan(by_class[target])]
    if tail:
        rarest = f"mean over the {len(tail)} rarest classes" if len(tail) > 1 else "of the rarest class"
        figures.append(("Tail", percent(float(np.mean(by_class[tail]))), rarest))
    error, before = (calibration_error(reliability(scores, calibrated=how)) for how in (True, False))
    was = "" if run.model.calibration is None else f"; {percent(before)} before calibration"
    figures += [
        ("Calibration error", percent(error), f"how far confidence is from accuracy{was}"),
        (
            f"Surest {percent(surest.share, 0)}",
            percent(surest.accuracy),
            f"right, from a confidence of {percent(surest.threshold, 0)} on",
        ),
    ]
    leaked = set() if copies is None else copies.leaked(scores.part)
    clean = np.array([name not in leaked for name in scores.names])
    if leaked and clean.any():
        note = f"{plural(int((~clean).sum()), 'image', 'images')} with a copy in training left out"
        figures.append(("Accuracy on new images", percent(float(scores.right[clean].mean())), note))
    for part, other in run.scores.items():
        if part != scores.part:
            figures.append(
                (f"Accuracy, {HELD_OUT[part]}", percent(other.accuracy), f"of {plural(len(other), 'image', 'images')}")
            )
    drawn = (
        f'<div class="figure"><dt>{what}</dt><dd class="value">{value}</dd><dd class="note">{note}</dd></div>'
        for what, value, note in figures
    )
    return f'<dl class="figures">{"".join(drawn)}</dl>'


def _notices(run: Run) -> str:
    folder = html.escape(shlex.quote(str(shown_folder(run.folder))))
    said = []
    if run.data is None:
        why = html.escape(without_places(run.trouble)).rstrip(".")
        said.append(
            f"Photos, examples and near-duplicates are missing, because the run's images are not to be found: {why}. "
            f"If they lie elsewhere: <code>fgzoo report {folder} --root PATH</code>"
        )
    elif gone := run.data.gone("train", "val", "test"):
        said.append(f"{plural(len(gone), 'image is', 'images are')} gone, and not shown: {html.escape(first_five(gone))}.")
    if not run.cost:
        done = max((int(curve[-1][0]) for name, curve in run.curves.items() if name.startswith("train/")), default=0)
        epochs = run.settings["trainer"]["max_epochs"]
        of = f"{done} of " if (epochs or -1) > 0 else ""
        length = f"{of}{plural(epochs if of else done, 'epoch', 'epochs')}"
        said.append(f"This training ended after {length}, before its end. <code>fgzoo fit --resume {folder}</code> goes on.")
    elif "test" not in run.scores and (run.data is None or run.data.splits["test"]):
        said.append(f"The test part has not been scored: <code>fgzoo test --ckpt_path {folder}</code>, then this report again.")
    if "test" not in run.scores and run.data is not None and not run.data.splits["test"]:
        said.append("No test part was set apart: <code>--data.test_fraction 0.2</code> at the next <code>fgzoo fit</code>.")
        if not run.scores and not run.data.splits["val"]:
            said.append("Nothing was held out for validation, either: <code>--data.val_fraction 0.1</code>.")
    return f'<ul class="notices">{"".join(f"<li>{one}</li>" for one in said)}</ul>' if said else ""


def _about(run: Run) -> str:
    card, model = run.card, run.model
    sizes = [f"{len(records):,} {PARTS[part]}" for part, records in run.data.splits.items() if records] if run.data else []
    facts = {
        "Method": _method(run),
        "What it is": (inspect.getdoc(type(model)) or "").partition("\n")[0],
        "Backbone": without_places(model.backbone),
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
        "Data": f"{card.dataset}, {plural(len(card.class_names), 'class', 'classes')}",
        "Images": ", ".join(sizes) or "not to be found",
        "Input": f"{card.image_size} × {card.image_size} pixels",
        "Seed": str(run.settings["seed_everything"]),
        "Folder": str(shown_folder(run.folder)),
        "fgzoo": __version__,
    }
    rows = "".join(
        f'<tr><th scope="row">{what}</th><td dir="auto">{html.escape(said)}</td></tr>' for what, said in facts.items() if said
    )
    folder = shlex.quote(str(shown_folder(run.folder)))
    commands = {
        "How it was trained": without_places(run.command),
        "Classes of new photos": f"fgzoo predict {folder} PHOTOS --output answers.csv",
        "Where it looks in them": f"fgzoo explain {folder} PHOTOS --output looked",
        "A file that runs without fgzoo": f"fgzoo export {folder} --output model.onnx",
    }
    listed = "".join(
        f"<div><dt>{what}</dt><dd><code>{html.escape(said)}</code></dd></div>" for what, said in commands.items() if said
    )
    return (
        f'<h2>This run</h2><div class="two"><div class="card"><table class="small facts"><tbody>{rows}</tbody></table></div>'
        f'<div class="card"><h3>What to type</h3><dl class="commands">{listed}</dl></div></div>'
    )
