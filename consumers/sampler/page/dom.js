// Makes elements, asks the sampler, and says numbers as people do.

const SVG = "http://www.w3.org/2000/svg";

export function make(tag, fields = {}, ...children) {
  const node = document.createElement(tag);
  const { data, attributes, ...own } = fields;
  Object.assign(node, own);
  Object.assign(node.dataset, data);
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children.filter((child) => child != null));
  return node;
}

export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

let made = 0;
export const id = (prefix) => `${prefix}-${++made}`;

/** A control under its name. */
export function field(name, control, ...more) {
  control.id ||= id("field");
  return make(
    "div",
    { className: "field" },
    make("label", { htmlFor: control.id, textContent: name }),
    control,
    ...more,
  );
}

export const button = (textContent, onclick, fields = {}) =>
  make("button", { type: "button", textContent, onclick, ...fields });
export const row = (...nodes) => make("div", { className: "row" }, ...nodes);

export function choice(options, chosen, onchange) {
  const select = make("select", { onchange: () => onchange?.(select.value) });
  fill(select, options, chosen);
  return select;
}

/** Options as [value, text]; what was chosen stays chosen where it is still there. */
export function fill(select, options, chosen = select.value) {
  const key = JSON.stringify(options);
  if (select.dataset.key === key) return;
  select.dataset.key = key;
  select.replaceChildren(...options.map(([value, textContent]) => make("option", { value, textContent })));
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

export function range(max, step, value, oninput) {
  return make("input", { type: "range", min: 0, max, step, value, oninput });
}

/** A sentence about what went wrong; empty, it is not there. */
export function note() {
  const node = make("p", { className: "problem", hidden: true, attributes: { role: "alert" } });
  node.say = (text) => {
    if (node.textContent === (text ?? "")) return;
    node.textContent = text ?? "";
    node.hidden = !text;
  };
  return node;
}

/** A question before something is done: `ask(text, work)` does the work after a yes. */
export function question(yes) {
  const text = make("p", { id: id("question") });
  const node = make("dialog", { attributes: { "aria-labelledby": text.id } });
  const agree = button(yes, null, { className: "primary" });
  const cancel = button("Cancel", () => node.close());
  node.append(text, row(cancel, agree));
  const ask = (textContent, work) => {
    text.textContent = textContent;
    agree.onclick = () => (node.close(), work());
    node.showModal();
  };
  return { node, ask };
}

// --- asking ---

export const path = (model, route, asked = {}) => {
  const each = Object.entries(asked).flatMap(([name, values]) => [values].flat().map((value) => [name, value]));
  const given = each.filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(given).toString();
  return `/models/${encodeURIComponent(model)}${route && `/${route}`}${query && `?${query}`}`;
};

/** The answer, or an error with the sampler's own sentence. */
export async function ask(url, options = {}) {
  let reply;
  try {
    reply = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The sampler does not answer.");
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({}));
  throw Object.assign(new Error(told.detail ?? `The sampler answers ${reply.status}.`), { status: reply.status });
}

export const asked = async (url, options) => (await ask(url, options)).json();

export const posted = (url, body, type) =>
  ask(url, { method: "POST", body, headers: type ? { "Content-Type": type } : {} });

/** A file as the data of an <img>: the page's policy lets pictures come from nowhere else. */
export const dataOf = (blob) =>
  new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });

export const pngOf = (base64) => `data:image/png;base64,${base64}`;

/** Does the newest work alone: while one is under way, later ones replace each other. */
export function newest(work) {
  let next = null;
  let busy = false;
  return async (...given) => {
    next = given;
    if (busy) return;
    busy = true;
    while (next) {
      const now = next;
      next = null;
      await work(...now);
    }
    busy = false;
  };
}

export function download(name, href) {
  make("a", { href, download: name }).click();
}

// --- saying ---

export const percent = (x) => `${(100 * x).toFixed(1)} %`;
export const whole = (x) => Math.round(x).toLocaleString("en");
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

export function age(s) {
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

export function rate(x) {
  return x >= 10 ? whole(x) : x.toFixed(1);
}

/** What a figure of this name looks like. */
export function figure(name, value) {
  if (value == null) return "–";
  if (/records$/.test(name)) return whole(value);
  if (/accuracy|ratio|fill/.test(name)) return percent(value);
  return Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3);
}
