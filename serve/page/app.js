// Sends an image to the server and shows the answer over it; shows the load of the chosen model.

import { added, histogram, quantile, total } from "./metrics.js";

const SCRAPE_MS = 2000;
const WINDOW_MS = 30000;
const LONGEST_SIDE = 2048; // of what is drawn; a canvas has limits, and so has a screen

const element = (id) => document.getElementById(id);
const model = element("model");
let file = null;
let request = null;
let scrapes = [];

/** Why there is no answer, in words for whoever asked. */
class Refusal extends Error {}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("file").addEventListener("change", () => choose(element("file").files[0]));
element("opacity").addEventListener("input", showOpacity);
model.addEventListener("change", () => {
  scrapes = [];
  scrape();
});

const drop = element("form");
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  choose(event.dataTransfer.files[0]);
});

function choose(chosen) {
  if (!chosen) return;
  file = chosen;
  send();
}

async function send() {
  request?.abort();
  if (!file) {
    tell("", "Choose an image first.");
    return;
  }
  const mine = (request = new AbortController());
  tell(`Sending ${file.name} …`);
  element("result").hidden = true;
  try {
    const answer = await ask(model.value, file, mine.signal);
    const picture = await decoded(file);
    if (mine.signal.aborted) return;
    show(answer, picture);
    const rest = picture ? "" : " This browser cannot show the image itself.";
    tell(`${file.name}: ${answer.width} × ${answer.height} pixels.${rest}`);
  } catch (error) {
    if (mine.signal.aborted) return;
    // Such as a model that was replaced in between by one with other classes.
    tell("", error instanceof Refusal ? error.message : `This page cannot show the answer; load it again (${error}).`);
  }
}

async function ask(name, image, signal) {
  const base = encodeURIComponent(name);
  const described = await (await taken(fetch(`v2/models/${base}`, { signal }))).json();
  const begun = performance.now();
  const response = await taken(
    fetch(`v1/models/${base}/segment`, {
      method: "POST",
      body: image,
      headers: { Accept: "application/octet-stream", "Content-Type": image.type || "application/octet-stream" },
      signal,
    }),
  );
  const mask = new Uint8Array(await response.arrayBuffer());
  const milliseconds = performance.now() - begun;
  const [height, width] = response.headers.get("X-Mask-Shape").split(",").map(Number);
  const { classes, colours } = described.parameters;
  return { mask, height, width, classes, colours, milliseconds, stages: stagesOf(response) };
}

/** The response, unless it is a problem, which is told in words. */
async function taken(coming) {
  const response = await coming.catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Is it still running?");
  });
  if (response.ok) return response;
  const text = await response.text();
  let problem = {};
  if (response.headers.get("Content-Type") === "application/problem+json") problem = JSON.parse(text);
  const id = response.headers.get("X-Request-ID");
  const title = problem.title ?? response.statusText;
  throw new Refusal(
    `Not answered: ${problem.detail ?? "the answer does not say why"} (${response.status} ${title}` +
      `${id ? `, request ${id}` : ""}).`,
  );
}

function stagesOf(response) {
  const entries = (response.headers.get("Server-Timing") ?? "").split(",");
  return entries.map((entry) => entry.match(/^\s*([\w-]+);dur=([\d.]+)/)).filter(Boolean)
    .map(([, stage, milliseconds]) => [stage, Number(milliseconds)]);
}

/** As it is stored, which is how the server takes it; null for what this browser does not read, such as TIFF. */
async function decoded(image) {
  try {
    return await createImageBitmap(image, { imageOrientation: "none" });
  } catch {
    return null;
  }
}

function show(answer, picture) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(answer.width, answer.height));
  const width = Math.max(1, Math.round(answer.width * scale));
  const height = Math.max(1, Math.round(answer.height * scale));
  for (const id of ["picture", "overlay"]) Object.assign(element(id), { width, height });
  if (picture) element("picture").getContext("2d").drawImage(picture, 0, 0, width, height);
  element("overlay").getContext("2d").putImageData(coloured(answer, width, height), 0, 0);
  showOpacity();

  const pixels = new Array(answer.classes.length).fill(0);
  for (const index of answer.mask) pixels[index] += 1;
  const shares = answer.classes.map((name, index) => [index, name, percent(pixels[index] / answer.mask.length)]);
  element("stack").setAttribute(
    "aria-label",
    `The image with its classes over it: ${shares.map(([, name, share]) => `${name} ${share}`).join(", ")}`,
  );
  element("classes").replaceChildren(
    ...shares.map(([index, name, share]) => row([swatch(answer.colours[index]), `${index} ${name}`], share)),
  );
  element("stages").replaceChildren(
    ...answer.stages.map(([stage, milliseconds]) => row([stage], milliseconds.toFixed(1))),
    row(["whole request, as seen here"], answer.milliseconds.toFixed(1)),
  );
  element("result").hidden = false;
}

function coloured({ mask, colours, width, height }, shownWidth, shownHeight) {
  const image = new ImageData(shownWidth, shownHeight);
  for (let y = 0, at = 0; y < shownHeight; y++) {
    const line = Math.floor(((y + 0.5) * height) / shownHeight) * width;
    for (let x = 0; x < shownWidth; x++, at += 4) {
      const index = mask[line + Math.floor(((x + 0.5) * width) / shownWidth)];
      image.data.set(colours[index], at);
      image.data[at + 3] = 255;
    }
  }
  return image;
}

function swatch([red, green, blue]) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const square = document.createElementNS(space, "rect");
  const put = (node, attributes) => Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  put(svg, { class: "swatch", viewBox: "0 0 1 1", "aria-hidden": "true" });
  put(square, { width: 1, height: 1, fill: `rgb(${red}, ${green}, ${blue})` });
  svg.append(square);
  return svg;
}

function row(head, value) {
  const line = document.createElement("tr");
  const title = document.createElement("th");
  const cell = document.createElement("td");
  title.scope = "row";
  title.append(...head);
  cell.className = "number";
  cell.append(value);
  line.append(title, cell);
  return line;
}

function showOpacity() {
  const { value } = element("opacity");
  element("overlay").style.opacity = value / 100;
  element("percent").value = `${value} %`;
}

function tell(status, error = "") {
  element("status").textContent = status;
  element("error").textContent = error;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function inMilliseconds(seconds) {
  return Number.isNaN(seconds) ? "–" : `${(1000 * seconds).toPrecision(3)} ms`;
}

async function scrape() {
  if (document.hidden || !model.value) return;
  const name = model.value;
  let text;
  try {
    text = await (await taken(fetch("metrics"))).text();
  } catch {
    scrapes = [];
    showLoad(0, null);
    return;
  }
  if (name !== model.value) return;
  const now = { at: performance.now(), buckets: histogram(text, name) };
  scrapes = [...scrapes.filter(({ at }) => now.at - at < WINDOW_MS), now];
  const difference = added(scrapes[0].buckets, now.buckets);
  if (difference === null) scrapes = [now];
  showLoad((now.at - scrapes[0].at) / 1000, difference);
}

function showLoad(seconds, buckets) {
  const known = buckets !== null && seconds > 0;
  element("window").textContent = seconds.toFixed(0);
  element("qps").textContent = known ? (total(buckets) / seconds).toFixed(2) : "–";
  element("p50").textContent = known ? inMilliseconds(quantile(buckets, 0.5)) : "–";
  element("p99").textContent = known ? inMilliseconds(quantile(buckets, 0.99)) : "–";
}

setInterval(scrape, SCRAPE_MS);
scrape();
