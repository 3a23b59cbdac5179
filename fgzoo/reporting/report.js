"use strict";
(() => {
  const byId = (name) => document.getElementById(name);

  // ------------------------------------------------------------------ the confusion matrix

  const { names = [], counts = [], first = null } = JSON.parse(byId("confusion-data").textContent || "{}");
  const box = byId("matrix");
  if (box) {
    const size = names.length;
    const cells = new Map(counts.map(([truth, answer, images]) => [truth * size + answer, images]));
    const totals = names.map(() => 0);
    for (const [truth, , images] of counts) totals[truth] += images;
    const cross = document.createElement("i");
    cross.className = "cross";
    box.append(cross);
    let place = first ?? [0, 0];

    function isolated(name) {
      const element = document.createElement("bdi");
      element.append(...name.split(/(?<=_)/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
      const strong = document.createElement("strong");
      strong.append(element);
      return strong;
    }

    function show([truth, answer]) {
      place = [truth, answer];
      const images = cells.get(truth * size + answer) ?? 0;
      const share = totals[truth] ? ` (${((100 * images) / totals[truth]).toFixed(0)} %)` : "";
      const said = truth === answer ? [" recognised: "] : [" taken for ", isolated(names[answer]), ": "];
      byId("readout").replaceChildren(isolated(names[truth]), ...said, `${images} of ${totals[truth]} images${share}`);
      const percent = (value) => `${(100 * value) / size}%`;
      Object.assign(cross.style, { left: percent(answer), top: percent(truth), width: percent(1), height: percent(1) });
    }

    function pointed(event) {
      const area = box.getBoundingClientRect();
      const at = (value, start, length) => Math.min(size - 1, Math.max(0, Math.floor(((value - start) / length) * size)));
      show([at(event.clientY, area.top, area.height), at(event.clientX, area.left, area.width)]);
    }

    box.addEventListener("pointermove", pointed);
    box.addEventListener("pointerdown", pointed);
    box.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      show(place.map((value, i) => Math.min(size - 1, Math.max(0, value + step[i]))));
    });
    show(place);
  }

  // ------------------------------------------------------------------ the classes

  const table = byId("class-table");
  if (table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const value = (row, column) => row.cells[column].dataset.value;
    const compare = {
      text: (a, b) => a.localeCompare(b, undefined, { numeric: true }),
      number: (a, b) => (a === "" ? 1 : b === "" ? -1 : Number(a) - Number(b)),
    };
    table.querySelectorAll("th[aria-sort]").forEach((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sorting";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("th[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const by = compare[head.dataset.kind];
        const column = head.cellIndex;
        rows.sort((a, b) => {
          const empty = (row) => value(row, column) === "";
          // What is not known comes last either way.
          if (empty(a) || empty(b)) return empty(a) - empty(b);
          return (down ? -1 : 1) * by(value(a, column), value(b, column));
        });
        body.append(...rows);
      });
    });
    const search = byId("class-search");
    byId("class-find").hidden = false;
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !value(row, 0).toLowerCase().includes(wanted);
    });
  }
})();
