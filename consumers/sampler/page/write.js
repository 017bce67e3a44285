// How a text goes on, piece by piece.

import { ask, button, field, make, note, path, range, row } from "./dom.js";

/** The events of an answer, as [name, data]. */
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part; !(part = await reader.read()).done;) {
    const whole = (rest + part.value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) yield JSON.parse(event.slice(event.indexOf("data: ") + 6));
  }
}

export function writing(state) {
  const box = make("textarea", { rows: 4 });
  const heat = range(1.5, 0.05, 0.8);
  const begun = make("span", { className: "begun" });
  const piece = make("span");
  const text = make(
    "p",
    { className: "text", attributes: { "aria-label": "The text", role: "region", tabindex: 0 } },
    begun,
    piece,
  );
  const problem = note();
  let stop = null;

  async function write() {
    stop = new AbortController();
    go.textContent = "Stop";
    problem.say("");
    begun.textContent = box.value;
    piece.textContent = "";
    try {
      const body = JSON.stringify({ prompt: box.value, temperature: Number(heat.value) });
      const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
      const options = { method: "POST", signal: stop.signal, headers, body };
      for await (const data of events(await ask(path(state.model, "complete"), options))) {
        if (data.text) piece.textContent += data.text;
        if (data.error) problem.say(data.detail);
        text.scrollTop = text.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") problem.say(error.message);
    }
    stop = null;
    go.textContent = "Write";
  }

  const go = button("Write", () => (stop ? stop.abort() : write()), { className: "primary" });
  const temperature = field("Temperature: from sure to daring", heat);
  temperature.classList.add("grows");
  const controls = make("div", { className: "controls" }, field("A text begins", box), row(temperature, go), problem);
  return { node: make("div", { className: "pair" }, controls, text), refresh() {}, close: () => stop?.abort() };
}
