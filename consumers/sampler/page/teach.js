// The view Teach: show a model something, say what it is, and watch it learn that.

import { asking, route, verdict } from "./classify.js";
import { button, dataOf, field, id, make, note, path, posted, row } from "./dom.js";
import { listen, models, service } from "./live.js";

export const TITLE = "Teach";
const LESSONS = 12; // that are listed
const TRIES = 10; // times that a version is waited for, half a minute each

const teachable = (name) => models.get(name)?.answers.includes("classify");

export function open(view) {
  const picks = make("nav", { className: "picks", attributes: { "aria-label": "Models" } });
  const place = make("div");
  view.append(make("h1", { textContent: "Teach a model" }), picks, place);
  let wanted = null;
  let shown = null; // { name, node, update, close }

  function update(kind, changed) {
    const names = service.models.filter(teachable);
    const name = names.includes(wanted) ? wanted : names[0];
    if (picks.textContent !== names.join("") || picks.dataset.name !== name) {
      picks.replaceChildren(
        ...names.map((one) => {
          const link = make("a", { href: `#teach/${encodeURIComponent(one)}`, textContent: one });
          if (one === name) link.setAttribute("aria-current", "true");
          return link;
        }),
      );
    }
    picks.dataset.name = name;
    if (name === undefined) {
      shown?.close();
      shown = null;
      const text = service.up === null ? "" : "No model here has a version that classifies yet.";
      place.replaceChildren(make("p", { className: "empty", textContent: text }));
    } else if (shown?.name !== name) {
      shown?.close();
      shown = { name, ...lesson(models.get(name)) };
      place.replaceChildren(shown.node);
    } else if (kind === "model" && changed === name) shown.update(models.get(name));
  }

  const stop = listen(update);
  return {
    go([name]) {
      wanted = name;
      update();
    },
    close() {
      stop();
      shown?.close();
    },
  };
}

/** One model: what it is shown, what it answers, and what it was taught. */
function lesson(state) {
  const topic = Object.keys(state.standing.watermark)[0];
  const version = make("span", { className: "version" });
  const labels = make("datalist", { id: id("labels") });
  const label = make("input", { type: "text", maxLength: 200, autocomplete: "off", attributes: { list: labels.id } });
  const right = button("Right", () => teach(answer?.label), { disabled: true });
  const other = button("Teach", () => teach(label.value.trim()), { className: "primary" });
  const problem = note();
  const list = make("ul", { className: "lessons", attributes: { "aria-label": "What was taught", "aria-live": "polite" } });
  let body = null;
  let answer = null;
  let open = true;

  const ask = asking(state, (given, about) => {
    [answer, body] = [given, about];
    right.disabled = answer?.label == null;
    right.textContent = answer?.label == null ? "Right" : `Right: ${answer.label}`;
  });
  label.addEventListener("keydown", (event) => event.key === "Enter" && other.click());

  async function teach(name) {
    if (body === null) return problem.say("Draw, choose or type something first.");
    if (!name) return problem.say("Say what it is.");
    problem.say("");
    const [taught, before] = [body, answer];
    const type = taught.type || "text/plain; charset=utf-8";
    try {
      const url = `/topics/${encodeURIComponent(topic)}?${new URLSearchParams({ label: name })}`;
      const told = await (await posted(url, taught, type)).json();
      follow(taught, type, name, before, told.after);
    } catch (error) {
      problem.say(error.message);
    }
  }

  /** Lists a record, and says when a version has learned it and what that changed. */
  async function follow(taught, type, name, before, after) {
    const said = make("span", { textContent: `published at ${after.join(", ")}` });
    const thumb = typeof taught === "string" ? make("q", { textContent: taught }) : make("img", { alt: "", src: await dataOf(taught) });
    list.prepend(make("li", {}, thumb, make("strong", { textContent: name }), said));
    while (list.children.length > LESSONS) list.lastChild.remove();
    for (let tries = 0; open && tries < TRIES; tries++) {
      try {
        const now = await (await posted(path(state.model, route(state), { after: after.at(-1) }), taught, type)).json();
        const was = before === null ? "" : before.label === now.label ? ", as before" : `, was ${verdict(before)}`;
        said.textContent = `learned by version ${now.version}: ${verdict(now)}${was}`;
        return;
      } catch (error) {
        said.textContent = error.message;
        if (error.status !== 504) return;
      }
    }
  }

  function update(now) {
    version.textContent = `version ${now.standing?.version ?? "–"}`;
    labels.replaceChildren(...now.classes.map((value) => make("option", { value })));
    ask.refresh();
  }

  update(state);
  const heading = make("header", {}, make("h2", { textContent: state.model }), version);
  const hint = make("p", { className: "kind", textContent: `What you teach is published to ${topic}, for all that learn from it.` });
  const say = row(right, field("It is …", label), other);
  return {
    node: make("section", { className: "card", attributes: { "aria-label": state.model } }, heading, hint, ask.node, say, labels, problem, list),
    update,
    close() {
      open = false;
      ask.close();
    },
  };
}
