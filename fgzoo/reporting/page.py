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
from PIL import Image

from fgzoo.interpret.page import fill, json_data, packaged, policy_hash
from fgzoo.methods import method_name
from fgzoo.methods.evaluation import tail_classes
from fgzoo.reporting import charts
from fgzoo.reporting.findings import Copies, CopyGroup, DoubtfulLabel
from fgzoo.reporting.photos import BESIDE, EXAMPLE, Looked, Photos, embedded, look
from fgzoo.reporting.run import Curve, Run
from fgzoo.reporting.scores import HELD_OUT, Scores, at_share, calibration_error, coverage, interval, reliability
from fgzoo.version import __version__

#: What people call the parts of a run's images.
PARTS: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
#: Entries of lists that the page shows, the CSV files hold all; and how many of them unasked, as of mistakes.
SHOWN, UNFOLDED = 48, 12
#: Photos of a class in its row, wrong answers among them at most; and of all classes, which each have one at least.
EXAMPLES, WRONG, ROWS = 3, 1, 900
#: Confused pairs beside the matrix.
PAIRS = 12
#: Shares of images that may be answered, for the table beside the coverage plot.
SHARES = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4)
#: More photos of a group of copies are not shown.
COPIES = 6


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
        found["mistakes"] = "Worst mistakes", _mistakes(run, photos, scores, doubts or [], copies, mistakes)
        found["confusion"] = "Confusion", _confusion(scores, run.card.class_names)
        found["confidence"] = "Confidence", _confidence(run, scores)
        found["labels"] = f"Labels in doubt <b>{len(doubts or [])}</b>", _doubts(run, photos, doubts or [])
    if copies is not None:
        count = sum(group.leaks for group in copies.groups)
        found["duplicates"] = f"Near-duplicates <b>{count}</b>", _copies(run, photos, copies)
    if run.curves:
        found["training"] = "Training", _training(run)
    if scores is not None:
        found["classes"] = "Classes", _classes(run, photos, scores)
    found["run"] = "This run", _about(run)
    style = packaged("page.css") + packaged("report.css", "fgzoo.reporting")
    script = packaged("report.js", "fgzoo.reporting")
    matrix = {} if scores is None else _matrix(scores, run.card.class_names)
    values = {
        "style": style,
        "script": script,
        "style_hash": policy_hash(style),
        "script_hash": policy_hash(script),
        "title": html.escape(f"{_method(run)} on {run.card.dataset}: report"),
        "headline": f'<span dir="auto">{html.escape(_method(run))}</span> on {html.escape(run.card.dataset)}',
        "about": _headline(run, scores),
        "figures": "" if scores is None else _figures(run, scores, copies),
        "notices": _notices(run),
        "contents": "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in found.items()),
        "sections": "\n".join(f'<section id="{name}">{content}</section>' for name, (_, content) in found.items()),
        "confusion": json_data(matrix),
    }
    return fill(packaged("report.html", "fgzoo.reporting"), values)


# ---------------------------------------------------------------------- words


def class_name(name: str) -> str:
    """A class's name: its own direction of writing, and lines may end after an underscore."""
    return f"<bdi>{html.escape(name).replace('_', '_<wbr>')}</bdi>"


def percent(share: float, digits: int = 1) -> str:
    """A share, or a dash where there is none."""
    return "–" if np.isnan(share) else f"{100 * share:.{digits}f}\u00a0%"


def _path(path: str) -> str:
    return f'<p class="path" dir="auto">{html.escape(path)}</p>'


def _method(run: Run) -> str:
    cls = type(run.model)
    return method_name(f"{cls.__module__}.{cls.__qualname__}", dict(run.model.hparams))


def _image(picture: Image.Image | None, said: str, style: str = "") -> str:
    if picture is None:
        return '<div class="nothing">This photo is not to be found, or cannot be read.</div>'
    size = f'width="{picture.width}" height="{picture.height}"'
    chosen = f'class="{style}" ' if style else ""
    return f'<img {chosen}loading="lazy" decoding="async" {size} alt="{html.escape(said)}" src="{embedded(picture)}">'


def _figure(picture: Image.Image | None, said: str, caption: str, style: str = "") -> str:
    chosen = f' class="{style}"' if style else ""
    return f"<figure{chosen}>{_image(picture, said)}<figcaption>{caption}</figcaption></figure>"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


# ---------------------------------------------------------------------- top


def _headline(run: Run, scores: Scores | None) -> str:
    if scores is None:
        return "This run has not been scored on images that it was not trained on."
    low, high = interval(int(scores.right.sum()), len(scores))
    return (
        f"<strong>{percent(scores.accuracy)} of {_plural(len(scores), 'image', 'images')}</strong> of the "
        f"{HELD_OUT[scores.part]} part are right; with 95 % certainty it is between {percent(low)} and {percent(high)} of all "
        f"such images. {_plural(run.model.num_classes, 'class', 'classes')}."
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
        figures.append(("Tail", percent(float(np.mean(by_class[tail]))), f"mean over the {len(tail)} rarest classes"))
    error = calibration_error(reliability(scores))
    figures += [
        ("Calibration error", percent(error), "how far confidence is from accuracy"),
        (
            f"Surest {percent(surest.share, 0)}",
            percent(surest.accuracy),
            f"right, from a confidence of {percent(surest.threshold, 0)} on",
        ),
    ]
    leaked = set() if copies is None else copies.leaked(scores.part)
    clean = np.array([name not in leaked for name in scores.names])
    if leaked and clean.any():
        note = f"without the {_plural(int((~clean).sum()), 'image', 'images')} that have a copy in training"
        figures.append(("Accuracy on new images", percent(float(scores.right[clean].mean())), note))
    for part, other in run.scores.items():
        if part != scores.part:
            figures.append(
                (f"Accuracy, {HELD_OUT[part]}", percent(other.accuracy), f"of {_plural(len(other), 'image', 'images')}")
            )
    drawn = (
        f'<div class="figure"><dt>{what}</dt><dd class="value">{value}</dd><dd class="note">{note}</dd></div>'
        for what, value, note in figures
    )
    return f'<dl class="figures">{"".join(drawn)}</dl>'


def _notices(run: Run) -> str:
    folder = html.escape(shlex.quote(str(run.folder)))
    said = []
    if run.data is None:
        said.append(
            f"Photos, examples and near-duplicates are missing, because the run's images are not to be found: "
            f"{html.escape(run.trouble)}. If they lie elsewhere: <code>fgzoo report {folder} --root PATH</code>"
        )
    if "test" not in run.scores:
        if run.data is None or run.data.splits["test"]:
            said.append(
                f"The test part has not been scored: <code>fgzoo test --ckpt_path {folder}</code>, then this report again."
            )
        else:
            said.append("No test part was set apart: <code>--data.test_fraction 0.2</code> at the next <code>fgzoo fit</code>.")
    if not run.scores:
        said.append("Nothing was held out for validation, either: <code>--data.val_fraction 0.1</code>.")
    return f'<ul class="notices">{"".join(f"<li>{one}</li>" for one in said)}</ul>' if said else ""


# ---------------------------------------------------------------------- mistakes


def _mistakes(run: Run, photos: Photos, scores: Scores, doubts: Sequence[DoubtfulLabel], copies: Copies | None, most: int) -> str:
    worst = scores.worst(most)
    wrong = int((~scores.right).sum())
    doubtful = {one.name for one in doubts if one.part == scores.part}
    leaked = set() if copies is None else copies.leaked(scores.part)
    cards = []
    for number, (index, looked) in enumerate(zip(worst, look(run, photos, scores, worst), strict=True), start=1):
        tags = ['<span class="tag">label in doubt</span>'] * (scores.names[index] in doubtful)
        tags += ['<span class="tag bad">has a copy in training</span>'] * (scores.names[index] in leaked)
        cards.append(_mistake(run, photos, scores, index, number, looked, "".join(tags)))
    if not wrong:
        return '<h2>Worst mistakes</h2><p class="lead">There is none: every answer is right.</p>'
    lead = (
        f"The {_plural(len(worst), 'wrong answer', 'wrong answers')} given with most confidence, of {wrong:,}: the photo as the "
        f"network saw it, where it looked when it gave its answer, and an example of the class that it was taken for beside one "
        f"of its own. <strong>Colour shows where it looked</strong>; see <code>fgzoo explain --help</code> for all maps."
    )
    return f'<h2>Worst mistakes</h2><p class="lead">{lead}</p>{_folded(cards, "div", "mistakes")}'


def _mistake(run: Run, photos: Photos, scores: Scores, index: int, number: int, looked: Looked | None, tags: str) -> str:
    names = run.card.class_names
    true, answer, name = int(scores.targets[index]), int(scores.predicted[index]), scores.names[index]
    shares = [percent(float(scores.probabilities[index, target])) for target in (true, answer)]
    path = photos.path(scores.part, name)
    figures = [
        _figure(None if looked is None else looked.photo, f"{path} as the network saw it", f"labelled {class_name(names[true])}")
    ]
    if looked is not None and looked.map is not None:
        figures.append(_figure(looked.map, f"Where it looked in {path}", f"where it looked: {html.escape(looked.map_name)}"))
    for target, what in ((answer, "taken for"), (true, "is labelled")):
        example = photos.example(target, scores, besides=name)
        picture = None if example is None else photos.picture(*example, BESIDE)
        caption = f"{what} <strong>{class_name(names[target])}</strong>, as here"
        figures.append(_figure(picture, f"An example of {names[target]}", caption, "beside" if target == answer else ""))
    strip = [
        f"<figure>{_image(picture, f'{title} over {path}')}<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, picture in (looked.others if looked is not None else [])
    ]
    said = _plural(len(strip), "more map", "more maps")
    more = f'<details><summary>{said}</summary><div class="strip">{"".join(strip)}</div></details>' if strip else ""
    return (
        f'<article class="card mistake"><header><h3>{number}. <span class="taken">Taken for</span> <span class="answer">'
        f'{class_name(names[answer])}</span> <span class="taken">({shares[1]}), labelled</span> {class_name(names[true])} '
        f'<span class="taken">({shares[0]})</span></h3>{_path(path)}{tags}</header><div class="quad">{"".join(figures)}</div>'
        f"{more}</article>"
    )


# ---------------------------------------------------------------------- confusion and classes


def _matrix(scores: Scores, names: Sequence[str]) -> dict[str, object]:
    """What the script needs to name the cells: class names, the counts above zero, and the cell to begin with."""
    rows, columns = np.nonzero(scores.confusion)
    counts = np.stack([rows, columns, scores.confusion[rows, columns]], axis=1).tolist()
    worst = scores.confused(1)
    return {"names": list(names), "counts": counts, "first": list(worst[0][:2]) if worst else [0, 0]}


def _confusion(scores: Scores, names: Sequence[str]) -> str:
    totals = scores.confusion.sum(axis=1)
    rows = "".join(
        f"<tr><td><strong>{class_name(names[true])}</strong> taken for <strong>{class_name(names[answer])}</strong></td>"
        f'<td class="number">{images} of {totals[true]}</td></tr>'
        for true, answer, images in scores.confused(PAIRS)
    )
    pairs = f'<table class="small pairs"><tbody>{rows}</tbody></table>' if rows else "<p>Nothing is confused.</p>"
    picture = charts.confusion_picture(scores.confusion)
    said = f"Confusion matrix of {len(names)} classes; the arrow keys walk through its cells, and the text below names them"
    return (
        '<h2>What is confused with what</h2><p class="lead">A row is a true class, a column an answer, in the order of the '
        "classes; the stronger the colour, the larger the share of the row. Point at a cell, or tap it, to read it.</p>"
        f'<div class="card matrix"><div><div class="matrix-box" id="matrix" tabindex="0" role="application" aria-label="{said}">'
        f'<img alt="" src="{picture}"></div><div class="sides"><span>↓ true class</span><span>answer →</span></div>'
        '<p class="readout" id="readout" role="status"></p><p class="legend keys"><span class="key">right</span>'
        f'<span class="key wrong">wrong</span></p></div><div><h3>Confused most often</h3>{pairs}</div></div>'
    )


def _classes(run: Run, photos: Photos, scores: Scores) -> str:
    names, counts = run.card.class_names, run.class_counts
    totals, by_class = scores.confusion.sum(axis=1), scores.class_accuracy
    wrong = scores.confusion - np.diag(scores.confusion.diagonal())
    # The worst classes are what one looks for.
    order = np.argsort(np.nan_to_num(by_class, nan=2.0), kind="stable").tolist()
    rows = []
    for target in order:
        share, other = by_class[target], int(wrong[target].argmax())
        low, high = interval(int(scores.confusion[target, target]), int(totals[target])) if totals[target] else (0.0, 1.0)
        title = f"95 % interval {percent(low, 0)} to {percent(high, 0)}"
        likely = f"{class_name(names[other])} ({wrong[target, other]})" if wrong[target, other] else ""
        trained = "" if counts is None else str(counts[target])
        bar = "" if np.isnan(share) else charts.meter(float(share))
        rows.append(
            f'<tr><th scope="row" data-value="{html.escape(names[target])}">{class_name(names[target])}</th>'
            f'<td class="accuracy" data-value="{"" if np.isnan(share) else share}" title="{title}">'
            f"{percent(float(share), 0)}{bar}</td>"
            f'<td class="number" data-label="{HELD_OUT[scores.part]} images" data-value="{totals[target]}">{totals[target]}</td>'
            f'<td class="number" data-label="trained on" data-value="{trained}">{trained or "–"}</td>'
            f'<td class="likely"{" data-label=" + chr(34) + "taken for" + chr(34) if likely else ""}>{likely}</td>'
            f'<td class="shown"><div class="thumbs">{_examples(photos, scores, target, names)}</div></td></tr>'
        )
    heads = [
        ("Class", "text"),
        ("Right", "number"),
        (f"{HELD_OUT[scores.part].capitalize()} images", "number"),
        ("Trained on", "number"),
    ]
    sortable = "".join(
        f'<th scope="col" aria-sort="{"ascending" if head == "Right" else "none"}" data-kind="{kind}">{head}</th>'
        for head, kind in heads
    )
    return (
        f'<h2>Every class</h2><p class="lead">{HELD_OUT[scores.part].capitalize()} images and examples of them, the surest right '
        "answers first, the surest wrong one last with a red frame. Of few images a class's accuracy is a rough guess: point at "
        'it for its interval.</p><div class="find one" id="class-find" hidden><label class="field"><span>Search</span>'
        '<input type="search" id="class-search" placeholder="class" autocomplete="off" spellcheck="false"></label></div>'
        f'<div class="card"><table class="classes" id="class-table"><thead><tr>{sortable}<th scope="col">Mostly taken for</th>'
        f'<th scope="col">Examples</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _examples(photos: Photos, scores: Scores, target: int, names: Sequence[str]) -> str:
    most = max(1, min(EXAMPLES, ROWS // len(names)))
    members = np.flatnonzero(scores.targets == target)
    surest = members[np.argsort(-scores.confidence[members], kind="stable")]
    wrong = surest[~scores.right[surest]][: min(WRONG, most - 1)].tolist()
    chosen = [*surest[scores.right[surest]][: most - len(wrong)].tolist(), *wrong]
    shown = []
    for index in chosen:
        picture = photos.picture(scores.part, scores.names[index], EXAMPLE, square=True)
        if picture is not None:
            right = bool(scores.right[index])
            said = names[target] if right else f"{names[target]}, taken for {names[int(scores.predicted[index])]}"
            shown.append(_image(picture, said, "" if right else "wrong"))
    return "".join(shown)


# ---------------------------------------------------------------------- lists


def _doubts(run: Run, photos: Photos, doubts: Sequence[DoubtfulLabel]) -> str:
    names = run.card.class_names
    parts = " and ".join(HELD_OUT[part] for part in run.scores)
    lead = (
        f"Of the {parts} images, these may be labelled wrongly, the most suspect first, by confident learning (arXiv "
        "1911.00068): their label is "
        "unlikely for what such images get, another class is likely. Look at each; where the label is wrong, move the file, "
        "and train again. All of them: <code>label_errors.csv</code>. Labels of training images cannot be judged by a model that "
        "learnt them; <code>--data.folds 5 --data.fold 0</code> to <code>4</code> hold out each once."
    )
    cards = []
    for one in doubts[:SHOWN]:
        picture = photos.picture(one.part, one.name, BESIDE // 2)
        cards.append(
            f'<li class="card">{_image(picture, one.path)}<div><p>labelled <strong>{class_name(names[one.label])}</strong> '
            f"({percent(one.label_share)})</p><p>looks like <strong>{class_name(names[one.likely])}</strong> "
            f"({percent(one.likely_share)})</p>{_path(one.path)}</div></li>"
        )
    listed = _folded(cards, "ul", "doubts") if cards else "<p>There is none.</p>"
    return f'<h2>Labels in doubt</h2><p class="lead">{lead}</p>{listed}{_rest(len(doubts), "label_errors.csv")}'


def _copies(run: Run, photos: Photos, copies: Copies) -> str:
    matter = [group for group in copies.groups if group.leaks or group.contradicts]
    leaking = sum(group.leaks for group in matter)
    held = sum(len(copies.leaked(part)) for part in HELD_OUT)
    others = len(copies.groups) - len(matter)
    said = ["No image that was held out shows the same picture as one that was trained on."]
    if leaking:
        said = [
            f"{_plural(held, 'image that was held out shows', 'images that were held out show')} the same picture as one "
            "that was trained on, and tests nothing: leave one side out."
        ]
    if contradicting := sum(group.contradicts for group in matter):
        where = _plural(contradicting, "group", "groups")
        said.append(f"In {where} the same picture is labelled as several classes, of which one at most is right.")
    if others:
        said.append(f"{_plural(others, 'more group lies', 'more groups lie')} within a part and a class.")
    lead = f"{' '.join(said)} All of them: <code>near_duplicates.csv</code>."
    if copies.unreadable:
        name, reason = next(iter(copies.unreadable.items()))
        count = _plural(len(copies.unreadable), "image", "images")
        lead += f" {count} could not be compared, e.g. {html.escape(name)}: {html.escape(reason)}"
    listed = _folded([_copy_group(run, photos, group) for group in matter[:SHOWN]], "ul", "groups")
    return f'<h2>Near-duplicates across parts</h2><p class="lead">{lead}</p>{listed}{_rest(len(matter), "near_duplicates.csv")}'


def _copy_group(run: Run, photos: Photos, group: CopyGroup) -> str:
    tags = ['<span class="tag bad">across parts</span>'] * group.leaks
    tags += ['<span class="tag bad">several classes</span>'] * group.contradicts
    tags += ['<span class="tag">same file</span>'] * group.identical
    # Of many copies some of each part.
    some = (
        sorted(group, key=lambda copy: [other.part for other in group].index(copy.part))
        if len(group) <= COPIES
        else [
            *[copy for copy in group if copy.part == "train"][: COPIES // 2],
            *[copy for copy in group if copy.part != "train"][: COPIES // 2],
        ]
    )
    figures = "".join(
        _figure(
            photos.picture(copy.part, copy.record.name, BESIDE), copy.path,
            f"<strong>{PARTS[copy.part]}</strong>: {class_name(run.card.class_names[copy.record.target])}{_path(copy.path)}",
        )
        for copy in some
    )  # fmt: skip
    more = f'<p class="more-below">and {len(group) - len(some)} more</p>' if len(group) > len(some) else ""
    return f'<li class="card">{"".join(tags)}<div class="group">{figures}</div>{more}</li>'


def _folded(cards: Sequence[str], tag: str, style: str) -> str:
    """Cards in an element; all but the first are shown when they are asked for."""
    first, rest = (f'<{tag} class="{style}">{"".join(some)}</{tag}>' for some in (cards[:UNFOLDED], cards[UNFOLDED:]))
    more = len(cards) - UNFOLDED
    return first + (f'<details class="folded"><summary>{more} more</summary>{rest}</details>' if more > 0 else "")


def _rest(count: int, file: str) -> str:
    return f'<p class="more-below">The first {SHOWN} of {count:,}; <code>{file}</code> holds all.</p>' if count > SHOWN else ""


# ---------------------------------------------------------------------- confidence, training, the run


def _confidence(run: Run, scores: Scores) -> str:
    bins, curve = reliability(scores), coverage(scores)
    error = calibration_error(bins)
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
        rule += (
            f" <code>fgzoo predict</code> says unknown below {percent(known.threshold())}: that leaves "
            f"{percent(float(reached.mean()))} of these images, {percent(float(scores.right[reached].mean()))} of them right."
        )
    return (
        '<h2>How far its confidence can be trusted</h2><p class="lead">'
        f"On average it is {sure}, by {100 * abs(over):.1f} points. Answering only where the largest probability is high leaves "
        f"fewer images answered and more of the answers right.{rule}</p>"
        f'<div class="two"><div class="card"><h3>Calibration: expected error {percent(error)}</h3>'
        f"{charts.reliability_chart(bins)}"
        '<p class="legend keys"><span class="key">right answers</span><span class="key few">of fewer than 10 images</span>'
        '<span class="key wanted">confidence</span></p></div><div class="card"><h3>Coverage</h3>'
        f'{charts.coverage_chart(curve)}<table class="small"><thead><tr><th scope="col">answered</th><th scope="col">'
        f'with at least</th><th scope="col">right</th></tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _training(run: Run) -> str:
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
        spent = f"{_plural(cost['epochs'], 'epoch', 'epochs')} in {took} on {html.escape(str(cost['device']))}. "
    return (
        f'<h2>Training</h2><p class="lead">{spent}Training accuracy is that of augmented images, while the network learns; '
        f'losses include what the method adds to classification.</p><div class="two">{"".join(drawn)}</div>'
    )


def _curve_card(label: str, lines: dict[str, Curve], shares: bool) -> str:
    keys = "".join(f'<span class="key series{number}">{name}</span>' for number, name in enumerate(lines))
    chart = charts.curves({name: list(points) for name, points in lines.items()}, label, shares)
    return f'<div class="card"><h3>{label.capitalize()}</h3>{chart}<p class="legend keys">{keys}</p></div>'


def _about(run: Run) -> str:
    card, model = run.card, run.model
    sizes = [f"{len(records):,} {PARTS[part]}" for part, records in run.data.splits.items() if records] if run.data else []
    facts = {
        "Method": _method(run),
        "What it is": (inspect.getdoc(type(model)) or "").partition("\n")[0],
        "Backbone": model.backbone,
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
        "Data": f"{card.dataset}, {len(card.class_names)} classes",
        "Images": ", ".join(sizes) or "not to be found",
        "Input": f"{card.image_size} × {card.image_size} pixels",
        "Seed": str(run.settings["seed_everything"]),
        "Folder": str(run.folder),
        "fgzoo": __version__,
    }
    rows = "".join(
        f'<tr><th scope="row">{what}</th><td dir="auto">{html.escape(said)}</td></tr>' for what, said in facts.items() if said
    )
    folder = shlex.quote(str(run.folder))
    commands = {
        "How it was trained": run.command,
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
