// The engine for a program outside the browser, which started it and holds the other end of a socket: commands come as
// JSON and are answered, calls on the executor come as bytes. Only `doppler --surface browser` loads this file.
import init, * as wasm from "./doppler_web.js";
import * as devices from "./device.js";
import { plain } from "./errors.js";

const socket = new WebSocket(new URL("../socket", import.meta.url.replace(/^http/, "ws")));
socket.binaryType = "arraybuffer";

let device = null;
let native = null;
let host = null;

const commands = {
  /** Opens the device; what it offers. */
  async open({ runtime, kernels }) {
    await init();
    const text = JSON.stringify(runtime);
    const subgroups = runtime.runtime.inference.limits !== "floor";
    const open = (about) => wasm.open_device_with(text, about, JSON.stringify(kernels));
    ({ device, native } = await devices.open(open, subgroups));
    return JSON.parse(device.caps());
  },
  /** Measures; the figures. */
  async bench(options, tell) {
    return JSON.parse(await device.bench(JSON.stringify(options), tell));
  },
  /** Reads a model's weights; what was found in them. */
  async load({ weights, ...about }, tell) {
    const files = {
      async read(file, start, end) {
        const response = await fetch(weights[file].address, { headers: { Range: `bytes=${start}-${end - 1}` }, cache: "no-store" });
        if (response.status !== 206) throw new Error(`${weights[file].name}: HTTP status ${response.status}`);
        return new Uint8Array(await response.arrayBuffer());
      },
      expect() {},
      progress: (loaded, total, tensor) => tell({ loaded, tensor }),
      records() {},
    };
    const described = { ...about, weights: weights.map(({ name, size }) => ({ name, size })) };
    const model = await wasm.Model.load(device, JSON.stringify(described), files);
    await devices.compileAhead(native, () => model.build());
    host = new wasm.Host(model);
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
