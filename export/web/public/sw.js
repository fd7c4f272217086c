// Keeps what the page fetches, and answers from it when the server can't be reached. The model is kept by src/model.js.
const CACHE = "smolite-page";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (origin === location.origin && request.method === "GET" && !pathname.endsWith(".litertlm")) event.respondWith(fetchOrRemember(request));
});

async function fetchOrRemember(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreVary: true });
    if (kept) return kept;
    throw error;
  }
}
