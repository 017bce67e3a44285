// Where a picture comes from: drawn, chosen, dropped, pasted or photographed.

import { button, id, make, note, row } from "./dom.js";

const SIDE = 280; // pixels of the canvas
const PEN = 24;

/** A button that chooses a picture, or `multiple`. */
export function picker(onpick, text = "Choose a picture …", multiple = false) {
  const attributes = { "aria-label": text.replace(" …", "") };
  const file = make("input", { type: "file", accept: "image/*", multiple, attributes });
  file.onchange = () => {
    if (file.files.length) onpick(file.files[0], [...file.files]);
    file.value = "";
  };
  return make(
    "span",
    { className: "file" },
    make("span", { textContent: text, attributes: { "aria-hidden": "true" } }),
    file,
  );
}

/** Takes pictures that are dropped on it: `onpick(first, all)`. */
export function droppable(node, onpick) {
  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    const files = [...event.dataTransfer.files];
    if (files.length) onpick(files[0], files);
  });
  return node;
}

/** Lines with the pointer on one canvas or several; `moved` and `ended` tell. */
export function drawing(canvas, pens, ended, moved = () => {}) {
  const at = (event) => [
    (event.offsetX * canvas.width) / canvas.clientWidth,
    (event.offsetY * canvas.height) / canvas.clientHeight,
  ];
  let is = false;
  const line = (event) => {
    for (const pen of pens) {
      pen.lineTo(...at(event));
      pen.stroke();
    }
    moved();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    is = true;
    for (const pen of pens) pen.beginPath();
    line(event);
  });
  canvas.addEventListener("pointermove", (event) => is && line(event));
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, () => {
      if (is) ended();
      is = false;
    });
  }
}

/** Takes one photograph of what the camera sees, where the browser lets us. */
function camera(onpick, problem) {
  const video = make("video", { muted: true, playsInline: true, hidden: true, className: "camera" });
  let stream = null;
  const close = () => {
    stream?.getTracks().forEach((track) => track.stop());
    video.srcObject = stream = null;
    video.hidden = true;
    toggle.textContent = "Camera";
  };
  const shoot = () => {
    const side = Math.min(video.videoWidth, video.videoHeight);
    const canvas = make("canvas", { width: side, height: side });
    const from = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2];
    canvas.getContext("2d").drawImage(video, ...from, side, side, 0, 0, side, side);
    canvas.toBlob((blob) => onpick(blob), "image/png");
    close();
  };
  const start = async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.srcObject = stream;
      video.hidden = false;
      await video.play(); // before that it has no size
      toggle.textContent = "Take it";
    } catch (error) {
      close();
      problem.say(`The camera cannot be used: ${error.message}.`);
    }
  };
  const toggle = button("Camera", () => (!stream ? start() : video.videoWidth && shoot()));
  return { video, toggle: navigator.mediaDevices ? toggle : null, close };
}

/**
 * A square to draw on. `changed(blob)` gets what is drawn or was chosen; null where it is empty.
 */
export function pad(name, changed) {
  const canvas = make("canvas", {
    width: SIDE,
    height: SIDE,
    className: "pad",
    attributes: { role: "img", "aria-label": name },
  });
  const pen = canvas.getContext("2d");
  const hint = make("p", { className: "hint", id: id("hint"), textContent: "Draw here, drop or paste a picture." });
  const problem = note();
  let chosen = null; // a file, as it came
  let empty = true;

  const send = () => canvas.toBlob((blob) => changed(blob), "image/png");
  function wipe() {
    Object.assign(pen, { fillStyle: "#000", strokeStyle: "#fff", lineWidth: PEN, lineCap: "round", lineJoin: "round" });
    pen.fillRect(0, 0, SIDE, SIDE);
    [chosen, empty] = [null, true];
    problem.say("");
  }
  function clear() {
    wipe();
    changed(null);
  }
  async function show(file) {
    wipe();
    [chosen, empty] = [file, false];
    try {
      const image = await createImageBitmap(file);
      const scale = Math.min(SIDE / image.width, SIDE / image.height);
      const [width, height] = [image.width * scale, image.height * scale];
      pen.drawImage(image, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
    } catch {
      // the sampler says what is wrong with it
    }
    changed(file);
  }
  const photo = camera(show, problem);
  const paste = (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) show(file);
  };
  drawing(canvas, [pen], send, () => {
    if (chosen) [chosen, empty] = [null, true];
    empty = false;
    send();
  });
  droppable(canvas, show);
  addEventListener("paste", paste);
  wipe();
  const tools = row(button("Clear", clear), picker(show), ...(photo.toggle ? [photo.toggle] : []));
  return {
    node: make("div", { className: "drawn" }, canvas, photo.video, hint, tools, problem),
    clear,
    show,
    again: () => (empty ? null : chosen ? changed(chosen) : send()),
    close() {
      photo.close();
      removeEventListener("paste", paste);
    },
  };
}
