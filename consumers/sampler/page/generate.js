// New drawings, the way from one to another, and variations of a picture.

import {
  asked,
  button,
  choice,
  dataOf,
  download,
  field,
  fill,
  make,
  newest,
  note,
  path,
  pngOf,
  posted,
  range,
  row,
} from "./dom.js";
import { droppable, picker } from "./pad.js";
import { MOST, decoded, describe, drawn, kept, labels, paint, picture, png, versionOptions } from "./sheets.js";

/** A sheet of any version: the same seed draws the same. */
export function sheet(state) {
  const canvas = picture(`Drawn by ${state.model}`);
  const said = make("output", { className: "hint" });
  const problem = note();
  const n = Math.min(36, MOST.samples);
  const seed = make("input", { type: "number", min: 0, value: 1, onchange: () => show() });
  let shown = null;

  const show = newest(async () => {
    try {
      const what = { n, seed: seed.value, label: label.value };
      const { version, images } = select.value === "latest" ? await ofNewest(what) : await ofVersion(what);
      paint(canvas, images);
      describe(canvas, `${n} drawings by version ${version} of ${state.model}, seed ${seed.value}`);
      said.textContent = `version ${version}`;
      shown = `${state.model}-v${version}-seed${seed.value}${label.value && `-${label.value}`}.png`;
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });
  async function ofNewest(what) {
    const told = await asked(path(state.model, "generate", { ...what, format: "json" }));
    return { version: told.version, images: await Promise.all(told.images.map(decoded)) };
  }
  async function ofVersion(what) {
    const [[version, images]] = await drawn(state.model, [select.value], what);
    return { version, images };
  }
  const others = () => {
    seed.value = Number(seed.value) + 1;
    show();
  };

  const label = labels(show);
  const select = choice([["latest", "newest"]], "latest", show);
  const save = async () => shown && download(shown, await dataOf(await png(canvas)));
  const tools = row(field("Version", select), label.node, field("Seed", seed));
  const more = row(button("Others", others, { className: "primary" }), button("Download", save));
  const node = make(
    "div",
    { className: "pair" },
    canvas,
    make("div", { className: "controls" }, tools, more, said, problem),
  );
  return {
    node,
    close() {},
    async refresh(now) {
      label.learn(now);
      if (select.value === "latest") show();
      try {
        fill(select, versionOptions(await kept(state.model)));
      } catch (error) {
        problem.say(error.message);
      }
    },
  };
}

/** From the drawing of one seed to that of another. */
export function walk(state) {
  const image = make("img", { alt: "", className: "sheet" });
  const problem = note();
  const last = Math.min(16, MOST.samples - 1);
  const seeds = [1, 2].map((value) => make("input", { type: "number", min: 0, value, onchange: () => show() }));
  let way = null;
  const place = range(last, 1, 0, () => step());
  function step() {
    if (!way) return;
    image.src = pngOf(way.images[place.value]);
    image.alt = `Step ${place.value} of ${last} from seed ${way.seed} to seed ${way.to}`;
  }
  const show = newest(async () => {
    try {
      const [seed, to] = seeds.map((box) => box.value);
      way = await asked(
        path(state.model, "interpolate", { seed, to, steps: last + 1, label: label.value, format: "json" }),
      );
      step();
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });
  const save = () =>
    way && download(`${state.model}-v${way.version}-seed${way.seed}-to${way.to}-step${place.value}.png`, image.src);
  const label = labels(show);
  const tools = row(field("From seed", seeds[0]), field("To seed", seeds[1]), label.node);
  const controls = make(
    "div",
    { className: "controls" },
    tools,
    field("Where between the two", place),
    row(button("Download", save)),
    problem,
  );
  return {
    node: make("div", { className: "pair" }, image, controls),
    close() {},
    refresh(now) {
      label.learn(now);
      show();
    },
  };
}

/** What the model makes of a picture, and others like it. */
export function variations(state) {
  const again = make("img", { alt: "What the model makes of it", className: "sheet", hidden: true });
  const many = make("img", { alt: "Variations of it", className: "sheet", hidden: true });
  const hint = make("p", { className: "hint", textContent: "Choose or drop a picture." });
  const problem = note();
  let file = null;
  let seed = 1;
  let name = null;
  const show = newest(async () => {
    if (!file) return;
    const ways = [
      [again, path(state.model, "reconstruct", { label: label.value })],
      [many, path(state.model, "vary", { strength: strength.value, seed, label: label.value })],
    ];
    try {
      for (const [image, url] of ways) {
        const reply = await posted(url, file, file.type || "application/octet-stream");
        image.src = await dataOf(await reply.blob());
        image.hidden = false;
        name = `${state.model}-v${reply.headers.get("X-Headrace-Version")}-seed${seed}-vary.png`;
      }
      hint.hidden = true;
      problem.say("");
    } catch (error) {
      problem.say(error.message);
    }
  });
  const pick = (picked) => {
    file = picked;
    show();
  };
  const label = labels(show);
  const strength = range(1, 0.05, 0.5);
  strength.onchange = show;
  const others = button("Others", () => (seed++, show()), { className: "primary" });
  const save = button("Download", () => name && download(name, many.src));
  const controls = make(
    "div",
    { className: "controls" },
    row(picker(pick), label.node),
    field("Strength: from the same to new", strength),
    row(others, save),
    problem,
  );
  const place = droppable(make("div", { className: "place twin" }, hint, again, many), pick);
  return {
    node: make("div", { className: "pair" }, place, controls),
    close() {},
    refresh(now) {
      label.learn(now);
      show();
    },
  };
}
