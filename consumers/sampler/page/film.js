// All kept versions of a model that draws: one slider through them, and two of them under a wipe.

import { animated } from "./apng.js";
import { button, choice, dataOf, download, field, fill, make, newest, note, range, row } from "./dom.js";
import { MOST, codes, codesBy, describe, drawn, kept, labels, paint, picture, png, versionOptions } from "./sheets.js";

const STEP_MS = 160; // between two pictures of the film
const HOLD = 6; // times as long on the last one

/** A slider over all kept versions, which plays them. */
export function film(state) {
  const canvas = picture(`The same codes by every version of ${state.model}`);
  const where = make("output", { className: "hint" });
  const problem = note();
  const slider = range(0, 1, 0, () => show());
  const n = codes();
  const together = Math.max(1, Math.min(MOST.versions, Math.floor(MOST.samples / n))); // versions in one request
  let versions = []; // numbers, oldest first
  let frames = new Map(); // version → images
  let seed = 1;
  let playing = null;
  let following = true; // the newest one

  /** Draws what is lacking, from this version on; those that are kept no more are left out. */
  async function load(index) {
    const asked = [...versions.slice(index), ...versions.slice(0, index)]
      .filter((one) => !frames.has(one))
      .slice(0, together);
    try {
      for (const [version, images] of await drawn(state.model, asked, { n, seed, label: label.value }))
        frames.set(version, images);
    } catch (error) {
      if (error.status !== 404) throw error;
      await look();
    }
  }

  async function look() {
    const at = versions[slider.value];
    versions = (await kept(state.model)).map((one) => one.version);
    frames = new Map([...frames].filter(([version]) => versions.includes(version)));
    slider.max = Math.max(0, versions.length - 1);
    const found = versions.indexOf(at);
    slider.value = following || found < 0 ? slider.max : found;
  }

  const show = newest(async () => {
    try {
      if (!versions.length) await look();
      following = Number(slider.value) === Number(slider.max);
      for (let tries = 0; tries < 3 && !frames.has(versions[slider.value]); tries++) await load(Number(slider.value));
      const version = versions[slider.value];
      const images = frames.get(version);
      if (!images) return;
      paint(canvas, images);
      describe(canvas, `${n} drawings by version ${version} of ${state.model}`);
      where.textContent = `version ${version}, ${Number(slider.value) + 1} of ${versions.length} kept`;
      slider.setAttribute("aria-valuetext", `version ${version}`);
      problem.say("");
    } catch (error) {
      stop();
      problem.say(error.message);
    }
  });

  function stop() {
    clearTimeout(playing);
    playing = null;
    play.textContent = "Play";
  }

  async function advance() {
    const end = Number(slider.value) >= Number(slider.max);
    slider.value = end ? 0 : Number(slider.value) + 1;
    await show();
    const last = Number(slider.value) >= Number(slider.max);
    if (playing !== null) playing = setTimeout(advance, last ? HOLD * STEP_MS : STEP_MS);
  }

  async function save() {
    try {
      await look();
      while (versions.some((one) => !frames.has(one))) await load(0);
      const page = make("canvas");
      const pictures = [];
      for (const version of versions) {
        paint(page, frames.get(version));
        pictures.push(new Uint8Array(await (await png(page)).arrayBuffer()));
      }
      const file = animated(pictures, STEP_MS, HOLD * STEP_MS);
      download(`${state.model}-v${versions[0]}-v${versions.at(-1)}-seed${seed}.png`, await dataOf(file));
    } catch (error) {
      problem.say(error.message);
    }
  }

  function anew() {
    frames = new Map();
    show();
  }

  const label = labels(anew);
  const play = button(
    "Play",
    () => {
      if (playing !== null) return stop();
      playing = 0;
      play.textContent = "Pause";
      advance();
    },
    { className: "primary" },
  );
  const tools = row(
    play,
    label.node,
    button("Other codes", () => (seed++, anew())),
    button("Download the film", save),
  );
  const node = make(
    "div",
    { className: "pair" },
    canvas,
    make("div", { className: "controls" }, field("Version", slider, where), tools, problem),
  );
  return {
    node,
    close: stop,
    async refresh(now) {
      label.learn(now);
      try {
        await look();
      } catch (error) {
        problem.say(error.message);
      }
      if (playing === null) show();
    },
  };
}

/** The same codes by two versions, one over the other. */
export function wipe(state) {
  const below = picture("Left");
  const above = picture("Right");
  const edge = make("div", { className: "edge" });
  const problem = note();
  let seed = 1;
  const slide = () => {
    above.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    edge.style.left = `${slider.value}%`;
  };
  const slider = range(100, 1, 50, slide);

  const show = newest(async () => {
    try {
      for (const [select, canvas] of [
        [left, below],
        [right, above],
      ])
        await codesBy(canvas, state.model, select.value, { seed, label: label.value });
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });

  const label = labels(show);
  const left = choice([["latest", "newest"]], "latest", show);
  const right = choice([["latest", "newest"]], "latest", show);
  let begun = false;
  slide();
  const stack = make("div", { className: "stack" }, below, above, edge);
  const tools = row(
    field("Left", left),
    field("Right", right),
    label.node,
    button("Other codes", () => (seed++, show())),
  );
  const node = make(
    "div",
    { className: "pair" },
    stack,
    make("div", { className: "controls" }, tools, field("Wipe", slider), problem),
  );
  return {
    node,
    close() {},
    async refresh(now) {
      label.learn(now);
      try {
        const versions = await kept(state.model);
        const options = versionOptions(versions);
        fill(left, options, begun ? left.value : String(versions[0].version));
        fill(right, options);
        begun = true;
        show();
      } catch (error) {
        problem.say(error.message);
      }
    },
  };
}
