import { cp } from "node:fs/promises";
import { defineConfig } from "vite";

// LiteRT-LM fetches its WebAssembly when it starts; the page serves it itself.
const wasm = {
  name: "copy-wasm",
  async closeBundle() {
    await cp("node_modules/@litert-lm/core/wasm", "dist/wasm", { recursive: true });
  },
};

// In a worker it looks for its .wasm file beside the worker, which therefore stands in the same folder.
const worker = { format: "iife", rolldownOptions: { output: { entryFileNames: "wasm/[name]-[hash].js" } } };

export default defineConfig({ base: "./", build: { target: "esnext", modulePreload: false }, worker, plugins: [wasm] });
