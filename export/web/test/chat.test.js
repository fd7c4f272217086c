import assert from "node:assert/strict";
import { test } from "node:test";
import { Chat } from "../src/chat.js";

const SETTINGS = { temperature: 0, topK: 40, topP: 0.9, most: 10 };

/** An engine that answers " Re: " and what was said, and counts ten tokens a turn. */
class FakeEngine {
  slots = 64;
  begun = [];
  running = false;
  stopAfter = null;

  async start() {
    const isNew = !this.running;
    this.running = true;
    return isNew;
  }

  async begin(messages, settings) {
    this.begun.push({ said: messages.map(({ role, content }) => `${role} ${content}`), settings });
    this.tokens = 5 * messages.length;
  }

  async say(text, onPiece) {
    if (text === "break") throw new Error("full");
    onPiece(" ");
    for (const [index, piece] of ["Re:", " ", text].entries()) {
      if (index === this.stopAfter) {
        this.stop();
        return null;
      }
      onPiece(piece);
    }
    this.tokens += 10;
    return { tokens: this.tokens };
  }

  stop() {
    this.running = false;
  }
}

async function ask(chat, text, settings = SETTINGS) {
  let answer = "";
  await chat.send(text, settings, (piece) => (answer += piece));
  return answer;
}

test("an answer comes without the space before it, and a conversation goes on", async () => {
  const engine = new FakeEngine();
  const chat = new Chat(engine);
  assert.equal(await ask(chat, "a"), "Re: a");
  assert.equal(await ask(chat, "b"), "Re: b");
  assert.deepEqual(engine.begun, [{ said: [], settings: SETTINGS }]);
});

test("other settings begin a conversation anew, with what was said", async () => {
  const engine = new FakeEngine();
  const chat = new Chat(engine);
  await ask(chat, "a");
  const warm = { ...SETTINGS, temperature: 1 };
  await ask(chat, "b", warm);
  assert.deepEqual(engine.begun.at(-1), { said: ["user a", "model Re: a"], settings: warm });
});

test("a full cache forgets the oldest turns, until the rest takes half of it", async () => {
  const engine = new FakeEngine();
  const chat = new Chat(engine);
  for (const text of "abcde") await ask(chat, text); // 10 tokens each of 64; the next needs 1 + 4 + 10
  assert.equal(engine.begun.length, 1);
  await ask(chat, "f");
  assert.deepEqual(engine.begun.at(-1).said, ["c", "d", "e"].flatMap((said) => [`user ${said}`, `model Re: ${said}`]));
});

test("what was answered before a stop is kept", async () => {
  const engine = new FakeEngine();
  const chat = new Chat(engine);
  engine.stopAfter = 2;
  assert.equal(await ask(chat, "a"), "Re: ");
  engine.stopAfter = null;
  assert.equal(await ask(chat, "b"), "Re: b");
  assert.deepEqual(engine.begun.at(-1).said, ["user a", "model Re: "]);
});

test("a turn that failed is not kept, and a new chat knows nothing", async () => {
  const engine = new FakeEngine();
  const chat = new Chat(engine);
  await assert.rejects(ask(chat, "break"), /full/);
  await ask(chat, "a");
  assert.deepEqual(engine.begun.at(-1).said, []);
  chat.restart();
  await ask(chat, "b");
  assert.equal(engine.begun.length, 3);
  assert.deepEqual(engine.begun.at(-1).said, []);
});
