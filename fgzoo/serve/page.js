"use strict";
(() => {
  const MOST = {{most}}; // bytes that the server takes
  const byId = (name) => document.getElementById(name);
  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const [drop, shot, video, result] = ["drop", "shot", "video", "result"].map(byId);
  let asked = 0;

  function make(tag, className, text, ...children) {
    const element = Object.assign(document.createElement(tag), { className, textContent: text });
    element.append(...children);
    return element;
  }

  function say(text, kind = "") {
    byId("state").className = `state ${kind}`;
    byId("state").textContent = text;
  }

  /** Send a photo, and show what comes back; a later one overtakes it. */
  async function ask(photo) {
    const mine = ++asked;
    result.hidden = true;
    if (photo.size > MOST) return say(`This file has ${(photo.size / 2 ** 20).toFixed(0)} MB; at most ${MOST / 2 ** 20} are taken.`, "bad");
    say("Looking …", "busy");
    let answer;
    try {
      const reply = await fetch("answer", { method: "POST", body: photo, headers: { "Content-Type": "application/octet-stream" } });
      answer = reply.ok ? await reply.json() : { error: `The server refused the photo (${reply.status} ${reply.statusText}).` };
    } catch {
      answer = { error: "The server does not answer; is `fgzoo serve` still running?" };
    }
    if (mine !== asked) return;
    if (answer.error) return say(answer.error, "bad");
    say("");
    show(answer);
  }

  function show({ classes, shares, accepted, pictures }) {
    result.className = accepted ? "photo" : "photo unknown";
    byId("verdict").textContent = accepted ? classes[0] : "Unknown";
    byId("sure").textContent = accepted
      ? `probability ${percent(shares[0])}`
      : `It does not look like any class that this model knows. Nearest: ${classes[0]}, ${percent(shares[0])}`;
    byId("answers").replaceChildren(...classes.map((name, i) => {
      const filled = make("i", "", "");
      filled.style.width = `${100 * shares[i]}%`;
      const label = Object.assign(make("span", "name", name), { dir: "auto" });
      return make("li", "", "", label, make("span", "share", percent(shares[i])), make("span", "bar", "", filled));
    }));
    const buttons = pictures.map(([name, source]) => {
      const button = make("button", "", "", Object.assign(make("img", "", ""), { src: source, alt: name }));
      button.type = "button";
      button.title = name;
      button.onclick = () => {
        Object.assign(byId("big"), { src: source, alt: name });
        byId("caption").textContent = name;
        for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
      };
      return button;
    });
    byId("strip").replaceChildren(...buttons);
    buttons[Math.min(1, buttons.length - 1)].click();
    result.hidden = false;
  }

  /** The camera's picture in the page, where browsers allow that; else the phone's own camera. */
  async function film() {
    stop();
    byId("camera").disabled = true;
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      return say(`The camera cannot be used: ${error.message}.`, "bad");
    } finally {
      byId("camera").disabled = false;
    }
    say("");
    drop.hidden = true;
    shot.hidden = false;
    byId("take").focus();
  }

  function stop() {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
    drop.hidden = false;
    shot.hidden = true;
  }

  byId("take").onclick = () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    const taken = (photo) => (photo ? ask(photo) : say("The camera had no picture yet; try again.", "bad"));
    canvas.toBlob(taken, "image/jpeg", 0.95);
    stop();
  };
  byId("stop").onclick = stop;
  byId("camera").onclick = film;
  byId("camera").hidden = !navigator.mediaDevices;
  byId("capture").hidden = Boolean(navigator.mediaDevices);
  for (const input of document.querySelectorAll("input[type=file]")) {
    input.onchange = () => {
      if (input.files.length) ask(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    };
  }
  const first = (transfer) => [...transfer.files].find((file) => file.type.startsWith("image/")) ?? transfer.files[0];
  addEventListener("paste", ({ clipboardData }) => clipboardData.files.length && ask(first(clipboardData)));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) ask(first(event.dataTransfer));
    });
  }
})();
