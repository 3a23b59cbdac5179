"use strict";
(() => {
  const AT_ONCE = 8; // cards added whenever the end of the list comes near
  const FIRST = 6; // maps shown unasked, where their shares of the evidence say which matter
  const STRENGTH = 0.6; // share of a map's colour where it is largest
  const PACE = 700; // milliseconds a map when they play

  const byId = (name) => document.getElementById(name);
  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const { colours, side, photos } = JSON.parse(byId("index").textContent);
  const heat = Uint8Array.from({ length: 768 }, (_, i) => parseInt(colours.slice(2 * i, 2 * i + 2), 16));
  const cards = new Map();

  /** An element with a class, text (never markup) and children. */
  function make(tag, className = "", text = null, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== null) element.textContent = text;
    element.append(...children);
    return element;
  }

  /** A name whose lines may end after an underscore. */
  function breakable(name) {
    return name.split(/(?<=_)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
  }

  // ------------------------------------------------------------------ pictures

  /** The text of an image's `noscript`, which may still be on its way: it is whole when something follows it. */
  async function arrived(name) {
    while (!byId(name)?.nextSibling) await new Promise(requestAnimationFrame);
    return byId(name).textContent;
  }

  function canvasOf(width, height) {
    const canvas = Object.assign(make("canvas"), { width, height });
    return canvas.getContext("2d", { willReadFrequently: true });
  }

  async function decode(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const context = canvasOf(image.naturalWidth, image.naturalHeight);
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.naturalWidth, image.naturalHeight);
  }

  /** One of a sheet's maps, as large as the image. */
  function enlarged(sheet, map, { width, height }) {
    const columns = sheet.width / side;
    const small = canvasOf(side, side);
    small.putImageData(sheet, -side * (map % columns), -side * Math.floor(map / columns));
    const large = canvasOf(width, height);
    large.drawImage(small.canvas, 0, 0, width, height);
    return large.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0);
  }

  /** The map over the image: dim grey where it is zero, coloured where it is one. */
  function paint(canvas, image, map) {
    const { width, height, data } = image;
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const drawn = context.createImageData(width, height);
    for (let p = 0; p < map.length; p++) {
      const a = map[p] / 255;
      const grey = 0.2 * (data[4 * p] + data[4 * p + 1] + data[4 * p + 2]);
      for (let c = 0; c < 3; c++) {
        const mixed = (1 - a) * grey + a * data[4 * p + c];
        drawn.data[4 * p + c] = (1 - STRENGTH * a) * mixed + STRENGTH * a * heat[3 * map[p] + c];
      }
      drawn.data[4 * p + 3] = 255;
    }
    context.putImageData(drawn, 0, 0);
  }

  // ------------------------------------------------------------------ one image

  class Card {
    constructor(number) {
      this.number = number;
      this.entry = photos[number];
      this.visible = false;
      this.pictures = null;
      const { maps = [], map_shares: shares = [] } = this.entry;
      // Maps without a share stand for all others, and come first.
      this.order = [...maps.keys()].sort((a, b) => (shares[b] ?? 2) - (shares[a] ?? 2));
      this.offered = shares.length ? Math.min(FIRST, maps.length) : maps.length;
      this.step = shares.length ? 0 : Math.max(0, maps.length - 1);
      const kind = this.entry.error ? "bad" : this.entry.accepted ? "" : "unknown";
      this.element = make("article", `photo ${kind}`, null, this.header());
      this.element.append(this.entry.error ? make("p", "error", this.entry.error) : this.body());
    }

    get name() {
      return this.entry.path.split(/[\\/]/).pop();
    }

    header() {
      const title = make("h2", "", this.name);
      title.dir = "auto";
      title.id = `title-${this.number}`;
      const path = make("p", "path", this.entry.path);
      path.dir = "auto";
      path.hidden = this.entry.path === this.name;
      return make("header", "", null, make("span", "number", `${this.number + 1}`), make("div", "", null, title, path));
    }

    body() {
      this.element.setAttribute("aria-labelledby", `title-${this.number}`);
      const references = make("div", "references", null, ...this.compared());
      const facts = make("div", "facts", null, this.unknown(), this.answers(), this.explains(), this.all(), references);
      this.grid = make("div", "grid");
      return make("div", "body", null, this.viewer(), facts, this.grid);
    }

    compared() {
      const image = this.figure(null, "Image");
      return this.entry.cam ? [image, this.figure("cam", "Grad-CAM, for comparison")] : [image];
    }

    /** The button that brings the maps that matter less, and takes them away again. */
    all() {
      const few = this.offered;
      const button = make("button", "all");
      button.type = "button";
      button.hidden = few === this.order.length;
      const offer = (count) => {
        const other = count === few ? this.order.length : few;
        this.offered = count;
        button.textContent = count === few ? `Show all ${other} maps` : `Show the first ${other} maps`;
        button.onclick = () => {
          offer(other);
          this.slider.max = other - 1;
          this.show(Math.min(this.step, other - 1));
        };
      };
      offer(few);
      return button;
    }

    /** The maps side by side, made when they are first asked for. */
    fill() {
      if (!this.grid.childElementCount) this.grid.append(...this.compared());
      const first = this.entry.cam ? 2 : 1;
      const made = this.grid.childElementCount - first;
      this.grid.append(...this.order.slice(made, this.offered).map((map) => this.figure(map, this.said(map))));
      if (this.address) this.grid.querySelectorAll("img").forEach((element) => (element.src = this.address));
      [...this.grid.children].forEach((figure, i) => (figure.hidden = i >= first + this.offered));
    }

    /** A map's name, and how much of the evidence it carries, where that is known. */
    said(map) {
      const share = this.entry.map_shares[map];
      return this.entry.maps[map] + (share === undefined ? "" : `, ${percent(share)} of the evidence`);
    }

    /** The image, and a map over it where there is one. */
    stage(map, name) {
      const image = make("img");
      image.alt = `${this.name} as the network saw it`;
      const stage = make("div", "stage", null, image);
      if (map === null) return stage;
      image.alt = ""; // the canvas over it says what it is
      const canvas = make("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${name}, over ${this.name}`);
      canvas.dataset.map = map;
      stage.append(canvas);
      return stage;
    }

    figure(map, name) {
      return make("figure", map === "cam" ? "compared" : "", null, this.stage(map, name), make("figcaption", "", name));
    }

    /** What a photo is called that looks like none of the classes. */
    unknown() {
      const likest = make("span", "", null, ...breakable(this.entry.classes[0]));
      likest.dir = "auto";
      const badge = make("p", "badge", null, make("strong", "", "unknown"), "; looks most like: ", likest);
      badge.hidden = this.entry.accepted;
      return badge;
    }

    answers() {
      const list = make("ol", "answers");
      list.setAttribute("aria-label", "Most probable classes");
      this.entry.classes.forEach((name, i) => {
        const filled = make("i");
        filled.style.width = `${100 * this.entry.shares[i]}%`;
        const bar = make("span", "bar", null, filled);
        bar.setAttribute("aria-hidden", "true");
        const label = make("span", "name", null, ...breakable(name));
        label.dir = "auto";
        label.title = name;
        list.append(make("li", "", null, label, make("span", "share", percent(this.entry.shares[i])), bar));
      });
      return list;
    }

    explains() {
      const { classes, explained, share } = this.entry;
      const note = make("p", "explains", "Explained class: ", make("strong", "", explained), ` (${percent(share)}), not the answer.`);
      note.hidden = explained === classes[0];
      return note;
    }

    viewer() {
      const { maps } = this.entry;
      const viewer = make("div", "viewer", null, this.stage(maps.length ? this.order[this.step] : null, maps[this.order[this.step]]));
      if (!maps.length) {
        viewer.append(make("p", "none", "This method draws no maps of its own."));
        return viewer;
      }
      this.canvas = viewer.querySelector("canvas");
      this.label = make("span", "map-name");
      this.place = make("span", "map-place");
      viewer.append(make("div", "caption", null, this.label, this.place));
      this.slider = make("input", "step");
      Object.assign(this.slider, { type: "range", min: 0, max: this.offered - 1, step: 1, value: this.step });
      this.slider.setAttribute("aria-label", `Map of ${this.name}`);
      this.slider.addEventListener("input", () => {
        this.play(false);
        this.show(Number(this.slider.value));
      });
      this.button = make("button", "play");
      this.button.type = "button";
      this.button.setAttribute("aria-label", `Play the maps of ${this.name}`);
      this.button.addEventListener("click", () => this.play(!this.timer));
      const steps = make("div", "steps", null, this.button, this.slider);
      steps.hidden = maps.length < 2;
      viewer.append(steps);
      this.show(this.step);
      return viewer;
    }

    /** Turn to one of the method's maps. */
    show(step) {
      const map = this.order[step];
      const said = this.said(map);
      const count = this.offered < this.order.length ? `${this.offered} of ${this.order.length}` : this.offered;
      this.step = step;
      this.slider.value = step;
      this.slider.setAttribute("aria-valuetext", said);
      this.label.textContent = said;
      this.place.textContent = this.order.length < 2 ? "" : `${step + 1} / ${count}`;
      this.canvas.dataset.map = map;
      this.canvas.setAttribute("aria-label", `${said}, over ${this.name}`);
      this.draw();
    }

    play(on) {
      clearInterval(this.timer);
      this.timer = on ? setInterval(() => this.show((this.step + 1) % this.offered), PACE) : null;
      this.button.setAttribute("aria-pressed", String(on));
    }

    async decoded() {
      const article = new DOMParser().parseFromString(await arrived(`photo-${this.number}`), "text/html");
      const [image, maps] = [...article.images].map((one) => one.src);
      this.address = image;
      this.element.querySelectorAll("img").forEach((element) => (element.src = image));
      const [pixels, sheet] = await Promise.all([decode(image), maps && decode(maps)]);
      return { pixels, sheet };
    }

    /** Draw what is in sight. */
    async draw() {
      if (!this.visible || this.entry.error) return;
      if (document.body.classList.contains("side")) this.fill();
      this.pictures ??= this.decoded();
      const { pixels, sheet } = await this.pictures;
      if (!this.visible) return;
      for (const canvas of this.element.querySelectorAll("canvas")) {
        const { map } = canvas.dataset;
        if (canvas.offsetParent === null || canvas.dataset.drawn === map) continue;
        paint(canvas, pixels, enlarged(sheet, map === "cam" ? this.order.length : Number(map), pixels));
        canvas.dataset.drawn = map;
      }
    }

    /** Give back the memory of what went out of sight. */
    forget() {
      this.pictures = null;
      if (this.timer) this.play(false);
      for (const canvas of this.element.querySelectorAll("canvas")) {
        canvas.width = canvas.height = 0;
        delete canvas.dataset.drawn;
      }
    }
  }

  // ------------------------------------------------------------------ all images

  const sight = new IntersectionObserver(
    (changes) => {
      for (const { target, isIntersecting } of changes) {
        const card = cards.get(Number(target.dataset.number));
        card.visible = isIntersecting;
        if (isIntersecting) card.draw();
        else card.forget();
      }
    },
    { rootMargin: "400px" },
  );
  const end = new IntersectionObserver((changes) => changes.at(-1).isIntersecting && more(), { rootMargin: "600px" });
  let chosen = [];
  let shown = 0;

  function card(number) {
    if (!cards.has(number)) {
      const made = new Card(number);
      made.element.dataset.number = number;
      cards.set(number, made);
      sight.observe(made.element);
    }
    return cards.get(number);
  }

  function more() {
    const next = chosen.slice(shown, shown + AT_ONCE);
    byId("photos").append(...next.map((number) => card(number).element));
    shown += next.length;
    byId("more").hidden = shown >= chosen.length;
    // Observed anew, it is told of again where it is still near.
    end.unobserve(byId("more"));
    end.observe(byId("more"));
  }

  /** The choice of the filter that an image belongs to. */
  const answerOf = ({ classes, accepted, error }) => (error ? "error" : accepted ? `class ${classes[0]}` : "unknown");

  function choose() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const answer = byId("filter").value;
    const order = byId("order").value;
    const certainty = (number) => (photos[number].error ? -1 : photos[number].shares[0]);
    chosen = [...photos.keys()].filter((number) => {
      const { path, classes = [], accepted = true, error = "" } = photos[number];
      const text = [path, accepted ? "" : "unknown", classes[0] ?? "", error].join(" ").toLowerCase();
      return (answer === "" || answer === answerOf(photos[number])) && words.every((word) => text.includes(word));
    });
    if (order !== "given") chosen.sort((a, b) => (order === "doubt" ? 1 : -1) * (certainty(a) - certainty(b)) || a - b);
    const count = (what) => chosen.filter((number) => answerOf(photos[number]) === what).length;
    const [unknown, bad] = [count("unknown"), count("error")];
    const all = chosen.length === photos.length ? "" : ` of ${photos.length}`;
    byId("count").textContent =
      `${chosen.length}${all} ${photos.length === 1 ? "image" : "images"}` +
      (unknown ? `, ${unknown} unknown` : "") +
      (bad ? `, ${bad} without an answer` : "");
    byId("photos").replaceChildren();
    shown = 0;
    more();
  }

  function option(value, text) {
    const made = make("option", "", text);
    made.value = value;
    return made;
  }

  function fillFilter() {
    const counts = new Map();
    for (const answer of photos.map(answerOf)) counts.set(answer, (counts.get(answer) ?? 0) + 1);
    const said = { unknown: "unknown", error: "without an answer" };
    const names = photos.filter(({ accepted }) => accepted).map(({ classes }) => classes[0]);
    const sorted = [...new Set(names)].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const others = Object.keys(said).filter((answer) => counts.has(answer));
    byId("filter").append(
      option("", "all"),
      ...sorted.map((name) => option(`class ${name}`, `${name} (${counts.get(`class ${name}`)})`)),
      ...others.map((answer) => option(answer, `${said[answer]} (${counts.get(answer)})`)),
    );
  }

  function view(side) {
    document.body.classList.toggle("side", side);
    byId("walk").setAttribute("aria-pressed", String(!side));
    byId("side").setAttribute("aria-pressed", String(side));
    for (const one of cards.values()) {
      if (side && one.timer) one.play(false);
      one.draw();
    }
  }

  byId("walk").addEventListener("click", () => view(false));
  byId("side").addEventListener("click", () => view(true));
  byId("opacity").addEventListener("input", ({ target }) => {
    document.documentElement.style.setProperty("--opacity", target.value / 100);
    byId("opacity-value").textContent = `${target.value}\u00a0%`;
  });
  byId("search").addEventListener("input", choose);
  byId("filter").addEventListener("change", choose);
  byId("order").addEventListener("change", choose);
  byId("more").addEventListener("click", more);
  byId("meaning").open = !matchMedia("(max-width: 760px)").matches;
  byId("controls").hidden = photos.length === 0;
  byId("find").hidden = photos.length < 2;
  fillFilter();
  choose();
})();
