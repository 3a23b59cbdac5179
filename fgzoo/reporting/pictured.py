"""Sections of the page that show photos: mistakes, classes, labels in doubt, near-duplicates."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from fgzoo.files import without_places
from fgzoo.reporting import charts
from fgzoo.reporting.findings import Copies, CopyGroup, DoubtfulLabel
from fgzoo.reporting.markup import PARTS, SHOWN, class_name, figure, folded, image, path_line, percent, rest_line
from fgzoo.reporting.photos import BESIDE, EXAMPLE, Looked, Photos, look
from fgzoo.reporting.run import Run
from fgzoo.reporting.scores import HELD_OUT, Scores, interval
from fgzoo.wording import plural

#: Photos of a class in its row, wrong answers among them at most; and of all classes, which each have one at least.
EXAMPLES, WRONG, ROWS = 3, 1, 900
#: More photos of a group of copies are not shown.
COPIES = 6


def mistakes_section(
    run: Run, photos: Photos, scores: Scores, doubts: Sequence[DoubtfulLabel], copies: Copies | None, most: int
) -> str:
    """The most confident wrong answers."""
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
        f"The {plural(len(worst), 'wrong answer', 'wrong answers')} given with most confidence, of {wrong:,}: the photo as the "
        f"network saw it, where it looked when it gave its answer, and an example of the class that it was taken for beside one "
        f"of its own. <strong>Colour shows where it looked</strong>; see <code>fgzoo explain --help</code> for all maps."
    )
    return f'<h2>Worst mistakes</h2><p class="lead">{lead}</p>{folded(cards, "div", "mistakes")}'


def _mistake(run: Run, photos: Photos, scores: Scores, index: int, number: int, looked: Looked | None, tags: str) -> str:
    names = run.card.class_names
    true, answer, name = int(scores.targets[index]), int(scores.predicted[index]), scores.names[index]
    shares = [percent(float(scores.probabilities[index, target])) for target in (true, answer)]
    figures = [
        figure(None if looked is None else looked.photo, f"{name} as the network saw it", f"labelled {class_name(names[true])}")
    ]
    if looked is not None and looked.map is not None:
        figures.append(figure(looked.map, f"Where it looked in {name}", f"where it looked: {html.escape(looked.map_name)}"))
    for target, what in ((answer, "taken for"), (true, "is labelled")):
        example = photos.example(target, scores, besides=name)
        picture = None if example is None else photos.picture(*example, BESIDE)
        caption = f"{what} <strong>{class_name(names[target])}</strong>, as here"
        figures.append(
            figure(picture, f"An example of {names[target]}", caption, "example beside" if target == answer else "example")
        )
    strip = [
        f"<figure>{image(picture, f'{title} over {name}')}<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, picture in (looked.others if looked is not None else [])
    ]
    said = plural(len(strip), "more map", "more maps")
    more = f'<details><summary>{said}</summary><div class="strip">{"".join(strip)}</div></details>' if strip else ""
    return (
        f'<article class="card mistake"><header><h3>{number}. <span class="taken">Taken for</span> <span class="answer">'
        f'{class_name(names[answer])}</span> <span class="taken">({shares[1]}), labelled</span> {class_name(names[true])} '
        f'<span class="taken">({shares[0]})</span></h3>{path_line(name)}{tags}</header><div class="quad">{"".join(figures)}</div>'
        f"{more}</article>"
    )


def classes_section(run: Run, photos: Photos, scores: Scores) -> str:
    """A row a class."""
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
            shown.append(image(picture, said, "" if right else "wrong"))
    return "".join(shown)


def doubts_section(run: Run, photos: Photos, doubts: Sequence[DoubtfulLabel]) -> str:
    """Labels in doubt."""
    names = run.card.class_names
    parts = " and ".join(HELD_OUT[part] for part in run.scores)
    share = np.concatenate([scores.right for scores in run.scores.values()]).mean()
    lead = (
        f"Of the {parts} images, these may be labelled wrongly, the most suspect first, by confident learning (arXiv "
        "1911.00068): another class is likely for what such images get, and their label is not. Answers are right for "
        f"{percent(share)}, so many of these are the network's mistakes; look at the first ones, and where a label is wrong, "
        "move the file. All of them: <code>label_errors.csv</code>. A network cannot judge the labels that it learnt; "
        "<code>--data.folds 5 --data.fold 0</code> to <code>4</code> hold out every training image once."
    )
    cards = []
    for one in doubts[:SHOWN]:
        picture = photos.picture(one.part, one.name, BESIDE // 2)
        cards.append(
            f'<li class="card">{image(picture, one.name)}<div><p>labelled <strong>{class_name(names[one.label])}</strong> '
            f"({percent(one.label_share)})</p><p>looks like <strong>{class_name(names[one.likely])}</strong> "
            f"({percent(one.likely_share)})</p>{path_line(one.name)}</div></li>"
        )
    listed = folded(cards, "ul", "doubts") if cards else "<p>There is none.</p>"
    return f'<h2>Labels in doubt</h2><p class="lead">{lead}</p>{listed}{rest_line(len(doubts), "label_errors.csv")}'


def copies_section(run: Run, photos: Photos, copies: Copies) -> str:
    """Near-duplicates across parts, and of several classes."""
    matter = copies.matter
    leaking = sum(group.leaks for group in matter)
    held = sum(len(copies.leaked(part)) for part in HELD_OUT)
    others = len(copies.groups) - len(matter)
    said = ["No image that was held out shows the same picture as one that was trained on."]
    if leaking:
        said = [
            f"{plural(held, 'image that was held out shows', 'images that were held out show')} the same picture as one "
            "that was trained on, and tests nothing: leave one side out."
        ]
    if contradicting := sum(group.contradicts for group in matter):
        where = plural(contradicting, "group", "groups")
        said.append(f"In {where} the same picture is labelled as several classes, of which one at most is right.")
    if others:
        said.append(f"{plural(others, 'more group lies', 'more groups lie')} within a part and a class.")
    lead = f"{' '.join(said)} All of them: <code>near_duplicates.csv</code>."
    if copies.unreadable:
        name, reason = next(iter(copies.unreadable.items()))
        count = plural(len(copies.unreadable), "image", "images")
        lead += f" {count} could not be compared, e.g. {html.escape(name)}: {html.escape(without_places(reason))}"
    listed = folded([_copy_group(run, photos, group) for group in matter[:SHOWN]], "ul", "groups")
    return f'<h2>Near-duplicates</h2><p class="lead">{lead}</p>{listed}{rest_line(len(matter), "near_duplicates.csv")}'


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
        figure(
            photos.picture(part, record.name, BESIDE),
            record.name,
            f"<strong>{PARTS[part]}</strong>: {class_name(run.card.class_names[record.target])}{path_line(record.name)}",
        )
        for part, record, _ in some
    )
    more = f'<p class="more-below">and {len(group) - len(some)} more</p>' if len(group) > len(some) else ""
    return f'<li class="card">{"".join(tags)}<div class="group">{figures}</div>{more}</li>'
