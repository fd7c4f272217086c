// Runs LiteRT-LM. On the CPU it computes a whole answer in one call that gives no other code a turn, so it has a thread of its own,
// and its pieces leave from inside that call. The package's stream would only hand them on afterwards: hence the inner objects.
import { Backend, Engine, loadLiteRtLm, SamplerType } from "@litert-lm/core";

let engine;
let conversation;

const jobs = {
  async open({ model, wasm }) {
    await loadLiteRtLm(wasm);
    engine = await Engine.create({ model, backend: Backend.CPU });
    const loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
    return { slots: engine.settings.mainExecutorSettings.maxNumTokens, loaded };
  },

  async begin({ messages, settings }) {
    await conversation?.delete();
    const sessionConfig = { samplerParams: sampler(settings), maxOutputTokens: settings.most };
    conversation = await engine.createConversation({ sessionConfig, ...(messages.length && { preface: { messages } }) });
  },

  async say({ text }, onPiece) {
    let failure = "";
    await conversation.conversation.sendMessageAsync(JSON.stringify({ role: "user", content: text }), (chunk, _, error) => {
      failure ||= error;
      for (const part of chunk ? (JSON.parse(chunk).content ?? []) : []) if (part.type === "text") onPiece(part.text);
    });
    await conversation.engine.waitUntilDone();
    if (failure) throw new Error(failure);
    return { tokens: await conversation.getTokenCount() };
  },
};

function sampler({ temperature, topK, topP }) {
  const likeliest = { type: SamplerType.TOP_P, k: 1, p: 1, temperature: 1, seed: 0 };
  const seed = Math.floor(Math.random() * 2 ** 31);
  return temperature ? { ...likeliest, k: topK, p: topP, temperature, seed } : likeliest;
}

self.onmessage = async ({ data: { job, given } }) => {
  try {
    const result = await jobs[job](given, (piece) => self.postMessage({ piece }));
    self.postMessage({ result: result ?? {} });
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error) });
  }
};
