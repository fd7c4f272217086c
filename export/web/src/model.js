const CACHE = "smolite-model";

/**
 * Fetches a model, from what was kept of an earlier visit where the server still has the same file or can't be reached.
 * @param {string} url
 * @param {(share: number) => void} onProgress gets the share that has come, from 0 to 1.
 * @returns {Promise<Blob | null>} null where there is no such file.
 */
export async function fetchModel(url, onProgress) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(url);
  const head = await fetch(url, { method: "HEAD" }).catch(() => null);
  if (kept && (!head?.ok || isSame(kept, head))) return kept.blob();
  if (!head?.ok) return null;
  const response = await fetch(url);
  const blob = await readAll(response, onProgress);
  await cache.put(url, new Response(blob, { headers: response.headers })).catch(() => {}); // no room: it works, but not offline
  return blob;
}

function isSame(kept, head) {
  return ["content-length", "last-modified", "etag"].every((name) => kept.headers.get(name) === head.headers.get(name));
}

async function readAll(response, onProgress) {
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let size = 0;
  for await (const part of chunks(response.body)) {
    parts.push(part);
    size += part.length;
    if (total) onProgress(Math.min(size / total, 1));
  }
  return new Blob(parts);
}

async function* chunks(body) {
  const reader = body.getReader(); // not every browser can iterate a stream
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}
