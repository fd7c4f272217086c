/** A model in a worker. It does one job after the other; `stop` ends the one that runs. */
export class Engine {
  #model;
  #worker = null;
  #finish = () => {};

  /** @param {Blob} model a .litertlm file. */
  constructor(model) {
    this.#model = model;
  }

  /** The most tokens of a conversation, and the addresses of what the worker loaded; known once it has started. */
  slots = 0;
  loaded = [];

  /** Starts the worker, unless it runs. Returns whether it was started, and so remembers nothing. */
  async start() {
    if (this.#worker) return false;
    this.#worker = new Worker(new URL("./worker.js", import.meta.url));
    const opened = await this.#run("open", { model: this.#model, wasm: new URL("wasm", document.baseURI).href });
    Object.assign(this, opened);
    return true;
  }

  /** Begins a conversation in which `messages` were said. */
  begin(messages, settings) {
    return this.#run("begin", { messages, settings });
  }

  /**
   * Says something; the answer goes to `onPiece` as it comes.
   * @returns {Promise<{tokens: number} | null>} the tokens of the whole conversation; null if it was stopped.
   */
  say(text, onPiece) {
    return this.#run("say", { text }, onPiece);
  }

  /** Ends what runs, and the worker, which can't listen while it computes. `start` starts another one. */
  stop() {
    this.#worker?.terminate();
    this.#worker = null;
    this.#finish(null);
  }

  #run(job, given, onPiece = () => {}) {
    const worker = this.#worker;
    return new Promise((resolve, reject) => {
      this.#finish = resolve;
      worker.onerror = (event) => reject(new Error(event.message || "the worker could not be started"));
      worker.onmessage = ({ data: { piece, result, error } }) => {
        if (piece !== undefined) onPiece(piece);
        else if (error) reject(new Error(error));
        else resolve(result);
      };
      worker.postMessage({ job, given });
    });
  }
}
