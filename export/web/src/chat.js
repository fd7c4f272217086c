/**
 * A chat over an `Engine`, which keeps the conversation in its cache.
 *
 * A conversation is begun anew, with what was said before, when the settings have changed, after a stop, and when the cache might
 * not take another turn: then the oldest turns are forgotten until what is left takes at most half of it.
 */
export class Chat {
  #engine;
  #settings = "";
  #used = 0; // tokens in the cache
  #turns = []; // { user, answer, tokens }

  constructor(engine) {
    this.#engine = engine;
  }

  /**
   * Says something. What was answered before a stop is kept.
   * @param {string} text
   * @param {{temperature: number, topK: number, topP: number, most: number}} settings `temperature` 0 takes the likeliest token.
   * @param {(piece: string) => void} onPiece gets the answer as it comes.
   */
  async send(text, settings, onPiece) {
    await this.#prepare(text, settings);
    const turn = { user: text, answer: "", tokens: 0 };
    const take = (piece) => {
      const shown = turn.answer ? piece : piece.trimStart(); // SentencePiece's leading space
      turn.answer += shown;
      if (shown) onPiece(shown);
    };
    try {
      const done = await this.#engine.say(text, take);
      if (!done) this.#settings = "";
      turn.tokens = done ? done.tokens - this.#used : estimate(turn);
      this.#used += turn.tokens;
    } catch (error) {
      this.#settings = "";
      throw error;
    }
    this.#turns.push(turn);
  }

  /** Ends the answer that is being written. */
  stop() {
    this.#engine.stop();
  }

  /** Forgets everything. */
  restart() {
    this.#turns = [];
    this.#settings = "";
  }

  async #prepare(text, settings) {
    const isNew = await this.#engine.start();
    const { slots } = this.#engine;
    const needed = estimate({ user: text, answer: "" }) + Math.min(settings.most, slots / 2);
    const wanted = JSON.stringify(settings);
    const fits = this.#used + needed <= slots;
    if (!isNew && fits && wanted === this.#settings) return;
    while (!fits && this.#turns.length && this.#total() > slots / 2 - text.length) this.#turns.shift();
    const said = ({ user, answer }) => [
      { role: "user", content: user },
      { role: "model", content: answer },
    ];
    await this.#engine.begin(this.#turns.flatMap(said), settings);
    this.#settings = wanted;
    this.#used = this.#total();
  }

  #total() {
    return this.#turns.reduce((sum, turn) => sum + turn.tokens, 0);
  }
}

/** Tokens of a turn that were not counted: no text has many more than its characters, and four are its markers. */
function estimate({ user, answer }) {
  return user.length + answer.length + 4;
}
