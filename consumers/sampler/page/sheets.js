// Drawings of any version, on a canvas.

import { asked, choice, field, fill, make, path } from "./dom.js";

const main = document.querySelector("main").dataset;
/** Of one request. */
export const MOST = { samples: Number(main.samples), versions: Number(main.versions) };
const LEAST = 320; // pixels of a file's side: a drawing of 16 pixels is enlarged

/** base64 of a PNG → an image that can be painted. */
export const decoded = (base64) =>
  createImageBitmap(new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/png" }));

/** What versions draw from the same codes: version → n images. One that is not kept any more is an error. */
export async function drawn(model, versions, { n, seed, label }) {
  const told = await asked(path(model, "strip", { versions: versions.join(","), n, seed, label, format: "json" }));
  const images = await Promise.all(told.images.map(decoded));
  const columns = told.versions.length;
  return new Map(told.versions.map((version, k) => [version, images.filter((_, i) => i % columns === k)]));
}

/** Paints images as a sheet that is as square as it can be. */
export function paint(canvas, images, columns = Math.ceil(Math.sqrt(images.length))) {
  const { width, height } = images[0];
  const rows = Math.ceil(images.length / columns);
  const gap = images.length > 1 ? Math.ceil(width / 28) : 0;
  Object.assign(canvas, { width: columns * (width + gap) - gap, height: rows * (height + gap) - gap });
  const pen = canvas.getContext("2d");
  images.forEach((image, i) =>
    pen.drawImage(image, (i % columns) * (width + gap), Math.floor(i / columns) * (height + gap)),
  );
}

/** How many codes a version is shown by. */
export const codes = () => Math.max(1, Math.min(16, MOST.samples));

/** Paints what one version draws from the codes of a seed. */
export async function codesBy(canvas, model, asked, { seed = 1, label } = {}) {
  const [[version, images]] = await drawn(model, [asked], { n: codes(), seed, label });
  paint(canvas, images);
  describe(canvas, `${images.length} drawings by version ${version}`);
}

/** The canvas as a PNG, enlarged where it is small. */
export function png(canvas) {
  const scale = Math.max(1, Math.ceil(LEAST / Math.min(canvas.width, canvas.height)));
  const large = make("canvas", { width: scale * canvas.width, height: scale * canvas.height });
  const pen = large.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(canvas, 0, 0, large.width, large.height);
  return new Promise((done) => large.toBlob(done, "image/png"));
}

export const picture = (label) =>
  make("canvas", { className: "sheet", width: 1, height: 1, attributes: { role: "img", "aria-label": label } });

export function describe(canvas, text) {
  if (canvas.getAttribute("aria-label") !== text) canvas.setAttribute("aria-label", text);
}

/** Which class is drawn. */
export function labels(onchange) {
  const select = choice([["", "any"]], "", onchange);
  const node = field("Class", select);
  return {
    node,
    get value() {
      return select.value;
    },
    learn(state) {
      fill(select, [["", "any"], ...state.classes.map((label) => [label, label])]);
      node.hidden = !state.classes.length;
    },
  };
}

/** The versions that are kept, oldest first: { version, aliases }. */
export const kept = async (model) => (await asked(path(model, "versions"))).reverse();

/** As options of a choice: the newest, aliases, numbers. */
export function versionOptions(versions) {
  const named = versions.flatMap((one) => one.aliases.map((alias) => [alias, `${alias} (version ${one.version})`]));
  const numbers = versions.map((one) => [String(one.version), `version ${one.version}`]).reverse();
  return [["latest", "newest"], ...named, ...numbers];
}
