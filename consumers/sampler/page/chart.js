// A curve over time with marks: an SVG of our own, as wide as its place.

import { clock, draw, make } from "./dom.js";

const HEIGHT = 150;
const TOP = 14;
const BOTTOM = 22;
const LEFT = 2;
const RIGHT = 46; // room for the labels of the axis
const MOST = 480; // points of a line

/** Appends a point; where there are too many, every other one of the older half goes. */
export function grow(points, point) {
  points.push(point);
  if (points.length > MOST) {
    const half = points.length >> 1;
    points.splice(0, points.length, ...points.filter((_, i) => i >= half || i % 2 === 0));
  }
}

/** Where the axis begins and ends: what is shown fills it, but a small change is not made to look large. */
function bounds(values, least, limits) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  const lacking = Math.max(0, least - (high - low)) / 2;
  const air = 0.08 * (high - low);
  [low, high] = [low - lacking - air, high + lacking + air];
  return [Math.max(low, limits[0]), Math.min(high, limits[1])];
}

/**
 * `show({ lines: [{ name, kind, points: [[ms, value]] }], marks: [{ ms, kind, text }], say, limits, least })`:
 * a line's `kind` is its class in the stylesheet, `say` makes a text of a value.
 */
export function chart(label) {
  const svg = draw("svg", { class: "chart", role: "img", height: HEIGHT, tabindex: 0 });
  const told = make("output", { className: "reading", attributes: { "aria-live": "off" } });
  const node = make("figure", { className: "curve" }, svg, told);
  let given = null;
  let at = null; // the moment that is pointed at

  const place = () => {
    const moments = given.lines.flatMap((line) => line.points.map(([ms]) => ms));
    const values = given.lines.flatMap((line) => line.points.map(([, value]) => value));
    const [first, last] = [Math.min(...moments), Math.max(...moments)];
    const [low, high] = bounds(values, given.least, given.limits);
    const width = Math.max(160, svg.clientWidth || 320);
    const x = (ms) => LEFT + ((width - LEFT - RIGHT) * (ms - first)) / Math.max(1, last - first);
    const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / Math.max(1e-9, high - low);
    return { first, last, low, high, width, x, y };
  };

  function paint() {
    if (!given) return;
    const axis = place();
    const { first, last, low, high, width, x, y } = axis;
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const grid = [low, (low + high) / 2, high].map((value) => [
      draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      Object.assign(draw("text", { class: "axis", x: width - RIGHT + 6, y: y(value) + 4 }), {
        textContent: given.say(value),
      }),
    ]);
    const times = [
      Object.assign(draw("text", { class: "axis", x: LEFT, y: HEIGHT - 4 }), { textContent: clock(first) }),
      Object.assign(draw("text", { class: "axis end", x: width - RIGHT, y: HEIGHT - 4 }), { textContent: clock(last) }),
    ];
    const marks = given.marks
      .filter((mark) => mark.ms >= first && mark.ms <= last)
      .map((mark) =>
        draw(
          "g",
          { class: `mark ${mark.kind}` },
          draw("line", { x1: x(mark.ms), x2: x(mark.ms), y1: TOP - 2, y2: HEIGHT - BOTTOM }),
          draw("path", { d: `M${x(mark.ms) - 4} ${TOP - 10}h8l-4 7z` }),
        ),
      );
    const lines = given.lines.map((line) => stroke(line, x, y));
    svg.replaceChildren(...grid.flat(), ...times, ...marks, ...lines.flat(), ...pointer(axis));
  }

  function stroke(line, x, y) {
    const d = line.points
      .map(([ms, value], i) => `${i ? "L" : "M"}${x(ms).toFixed(1)} ${y(value).toFixed(1)}`)
      .join("");
    const [ms, value] = line.points.at(-1);
    return [
      draw("path", { class: `line ${line.kind}`, d }),
      draw("circle", { class: `tip ${line.kind}`, cx: x(ms), cy: y(value), r: 3 }),
    ];
  }

  function pointer({ x }) {
    if (at === null) return [];
    return [draw("line", { class: "pointer", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM })];
  }

  function read(ms) {
    at = ms;
    if (ms === null) told.textContent = "";
    else {
      const near = (points) =>
        points.reduce((best, point) => (Math.abs(point[0] - ms) < Math.abs(best[0] - ms) ? point : best));
      at = near(given.lines[0].points)[0];
      const parts = given.lines.map((line) => `${line.name} ${given.say(near(line.points)[1])}`);
      const span = (place().last - place().first) / 60;
      const marked = given.marks.filter((mark) => Math.abs(mark.ms - at) < span).map((mark) => mark.text);
      told.textContent = [clock(at), ...parts, ...marked].join(" · ");
    }
    paint();
  }

  svg.addEventListener("pointermove", (event) => {
    if (!given) return;
    const { first, last, width } = place();
    const part = (event.offsetX - LEFT) / (width - LEFT - RIGHT);
    read(first + Math.min(1, Math.max(0, part)) * (last - first));
  });
  svg.addEventListener("pointerleave", () => given && read(null));
  svg.addEventListener("blur", () => given && read(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !given) return;
    event.preventDefault();
    const { first, last } = place();
    read(Math.min(last, Math.max(first, (at ?? last) + (step * (last - first)) / 24)));
  });
  new ResizeObserver(paint).observe(svg);

  return {
    node,
    show(what) {
      const lines = what.lines.filter((line) => line.points.length > 0);
      given = lines.length ? { ...what, lines } : null;
      node.hidden = !given;
      if (!given) return;
      const now = lines.map((line) => `${line.name} ${given.say(line.points.at(-1)[1])}`).join(", ");
      svg.setAttribute("aria-label", `${label}: ${now}. Arrow keys read the curve.`);
      paint();
    },
  };
}
