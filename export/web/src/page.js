import { Chat } from "./chat.js";
import { Engine } from "./engine.js";
import { fetchModel } from "./model.js";
import { language, words } from "./words.js";

const MODEL = new URLSearchParams(location.search).get("model") ?? "model_int8.litertlm";
const at = (id) => document.getElementById(id);
let engine = null;
let chat = null;

document.documentElement.lang = language;
for (const element of document.querySelectorAll("[data-word]")) element.textContent = words[element.dataset.word];
at("prompt").placeholder = words.prompt;
at("prompt").setAttribute("aria-label", words.prompt);

/** Shows a line of the chat and returns it. Text is only ever set as text: what a model writes is no markup. */
function show(kind, text) {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text;
  at("log").append(line);
  line.scrollIntoView({ block: "end" });
  return line;
}

function enable(busy) {
  at("prompt").disabled = at("send").disabled = at("fresh").disabled = busy || !chat;
  at("file").disabled = busy;
}

async function open(blob, name) {
  enable(true);
  at("status").textContent = words.starting;
  engine?.stop();
  chat = null;
  engine = new Engine(blob);
  await engine.start();
  chat = new Chat(engine);
  at("log").replaceChildren();
  at("status").textContent = words.ready(name);
}

/** Runs one of the page's jobs; what goes wrong is shown. */
async function attempt(job) {
  try {
    await job();
  } catch (error) {
    show("error", words.failed(error.message ?? error));
  } finally {
    at("progress").hidden = true;
    at("stop").hidden = true;
    enable(false);
  }
}

async function answer(text) {
  enable(true);
  at("stop").hidden = false;
  show("user", text);
  const line = show("model", "");
  const number = (id) => Number(at(id).value);
  const settings = { temperature: number("temperature"), topK: number("top-k"), topP: number("top-p"), most: number("most") };
  const sent = performance.now();
  let first = 0;
  let count = 0;
  await chat.send(text, settings, (piece) => {
    first ||= performance.now();
    count += 1;
    line.textContent += piece;
    line.scrollIntoView({ block: "end" });
  });
  const rest = (performance.now() - first) / 1000;
  if (count) at("figures").textContent = words.figures((first - sent) / 1000, (count - 1) / Math.max(rest, 0.001));
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("prompt").value.trim();
  if (!text || at("send").disabled) return;
  at("prompt").value = "";
  attempt(() => answer(text)).then(() => at("prompt").focus());
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Korean is composed; that Enter is no send
  event.preventDefault();
  at("form").requestSubmit();
});
at("stop").addEventListener("click", () => chat.stop());
at("fresh").addEventListener("click", () =>
  attempt(async () => {
    chat.restart();
    at("log").replaceChildren();
  }),
);
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) attempt(() => open(file, file.name));
});

/** Keeps everything that was loaded, so that the next visit works without the server; `public/sw.js` answers from it. */
async function keepPage() {
  if (!("serviceWorker" in navigator)) return;
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  const urls = [location.href, ...loaded, ...(engine?.loaded ?? [])];
  const own = urls.filter((url) => url.startsWith(location.origin) && !new URL(url).pathname.endsWith(".litertlm"));
  await (await caches.open("smolite-page")).addAll(new Set(own));
  await navigator.serviceWorker.register("sw.js");
  await navigator.serviceWorker.ready;
}

await attempt(async () => {
  enable(true);
  const blob = await fetchModel(new URL(`model/${MODEL}`, document.baseURI).href, (share) => {
    at("progress").hidden = false;
    at("progress").value = share;
    at("status").textContent = words.loading(share);
  });
  if (blob) await open(blob, MODEL);
  else at("status").textContent = words.missing;
});
await keepPage().catch((error) => console.warn("This page was not kept for a visit without its server:", error));
document.documentElement.dataset.kept = "yes";
