// A picture of any size, before and after: mended, or in another style.

import { button, choice, dataOf, download, field, make, newest, note, path, posted, row } from "./dom.js";
import { drawing, droppable, picker } from "./pad.js";

const SIDE = 512; // the longest of the canvas
const FRESH = "#1a8fb4"; // of what is painted over

/** `masked`: what is painted over is missing. */
export function retouch(state, route, masked) {
  const before = make("canvas", {
    width: 320,
    height: 240,
    className: "smooth",
    attributes: { role: "img", "aria-label": "Before" },
  });
  const after = make("img", { className: "smooth", alt: "After", hidden: true });
  const mask = make("canvas");
  const pens = { mask: mask.getContext("2d"), view: before.getContext("2d") };
  const problem = note();
  let file = null;
  let image = null;
  let painted = false;
  let name = null;

  const send = newest(async () => {
    if (!file) return;
    let [body, type] = [file, file.type || "application/octet-stream"];
    if (painted) {
      [body, type] = [new FormData(), ""];
      body.append("image", file);
      body.append("mask", await new Promise((done) => mask.toBlob(done)), "mask.png");
    }
    try {
      const reply = await posted(path(state.model, route, { kind: kind.value }), body, type);
      after.src = await dataOf(await reply.blob());
      after.hidden = false;
      name = `${state.model}-v${reply.headers.get("X-Headrace-Version")}-${route}.png`;
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });

  function clear() {
    painted = false;
    if (!image) return;
    pens.view.drawImage(image, 0, 0, before.width, before.height);
    pens.mask.fillStyle = "#000";
    pens.mask.fillRect(0, 0, mask.width, mask.height);
    for (const [pen, strokeStyle] of [
      [pens.mask, "#fff"],
      [pens.view, FRESH],
    ]) {
      Object.assign(pen, { lineWidth: before.width / 24, lineCap: "round", lineJoin: "round", strokeStyle });
    }
  }

  async function pick(picked) {
    [file, image] = [picked, null];
    try {
      image = await createImageBitmap(picked);
      const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
      for (const canvas of [before, mask])
        Object.assign(canvas, { width: image.width * scale, height: image.height * scale });
    } catch {
      // the sampler says what is wrong with it
    }
    clear();
    send();
  }

  if (masked) {
    drawing(
      before,
      [pens.mask, pens.view],
      () => painted && send(),
      () => (painted = image !== null),
    );
  }
  droppable(before, pick);
  const kind = choice([["", "any damage"], ...(masked ? state.kinds : []).map((one) => [one, one])], "", send);
  const undo = button("Unpaint", () => (clear(), send()));
  const save = button("Download", () => name && download(name, after.src));
  const hint = masked ? "Choose or drop a picture. Paint over what is missing." : "Choose or drop a picture.";
  const tools = row(picker(pick), ...(masked ? [field("Damage", kind), undo] : []), save);
  const node = make(
    "div",
    { className: "controls" },
    make("p", { className: "hint", textContent: hint }),
    tools,
    problem,
    make("div", { className: "twin" }, before, after),
  );
  return { node, refresh: send, close() {} };
}
