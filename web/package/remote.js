// The engine for a program outside the browser, which started it and holds the other end of a socket: commands come as
// JSON and are answered, calls on the executor come as bytes. Only `doppler --surface browser` loads this file.
import init, * as wasm from "./doppler_web.js";
import * as devices from "./device.js";
import { plain } from "./errors.js";
import * as files from "./files.js";
import { transfer } from "./load.js";

const socket = new WebSocket(new URL("../socket", import.meta.url.replace(/^http/, "ws")));
socket.binaryType = "arraybuffer";

let opened = null;
let host = null;

const commands = {
  /** Opens the device; what it offers. */
  async open({ runtime, kernels }) {
    await init();
    const text = JSON.stringify(runtime);
    const subgroups = runtime.runtime.inference.limits !== "floor";
    const open = (about) => wasm.open_device_with(text, about, JSON.stringify(kernels));
    opened = await devices.open(open, subgroups);
    return JSON.parse(opened.device.caps());
  },
  /** Measures; the figures. */
  async bench(options, tell) {
    return JSON.parse(await opened.device.bench(JSON.stringify(options), tell));
  },
  /** Reads a model's weights; what was found in them. */
  async load({ weights, ...about }, tell) {
    const { signal } = new AbortController();
    const folder = await files.open({ url: new URL("../model/", import.meta.url) }, signal);
    const served = await Promise.all(weights.map(({ address }) => folder.weights(address)));
    const json = { ...about, weights: weights.map(({ name, size }) => ({ name, size })) };
    host = new wasm.Host(await transfer(opened, json, served, signal, ({ progress }) => progress && tell(progress)));
    return JSON.parse(host.report());
  },
};

socket.onmessage = async ({ data }) => {
  if (typeof data !== "string") return socket.send(await host.answer(new Uint8Array(data)));
  const { id, command, about } = JSON.parse(data);
  const send = (message) => socket.send(JSON.stringify({ id, ...message }));
  try {
    send({ value: (await commands[command](about, (told) => send({ told }))) ?? null });
  } catch (error) {
    send({ error: plain(error) });
  }
};
