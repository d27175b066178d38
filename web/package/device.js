// The WebGPU device that the engine opens, as far as wgpu's web backend cannot have it: subgroups, which it cannot ask
// for, and the news that the device is lost.
import { DopplerError } from "./errors.js";

/** Devices are opened one after the other: the way in is shared. */
let turn = Promise.resolve();

/**
 * Has `openDevice(about)` of Rust open a device; `{ device, native }`, where `native` is the browser's own. `about` is
 * what wgpu does not tell, as JSON: the adapter's name, whether it is software, whether the device has subgroups and
 * shaders products of packed integers.
 * `subgroups`: use them where the adapter has them.
 */
export async function open(openDevice, subgroups) {
  const before = turn;
  let done;
  turn = new Promise((resolve) => (done = resolve));
  await before;
  try {
    return await openNow(openDevice, subgroups);
  } finally {
    done();
  }
}

async function openNow(openDevice, subgroups) {
  const gpu = globalThis.navigator?.gpu;
  if (!gpu) throw new DopplerError("device", `there is no WebGPU here: ${whyNone()}`);
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) {
    const hint = "look at chrome://gpu or about:support, update the browser and the graphics driver";
    throw new DopplerError("device", `this browser has WebGPU but no adapter for it: ${hint}`);
  }
  const granted = subgroups && adapter.features.has("subgroups");
  const { vendor, architecture, device: model, description } = adapter.info;
  const name = description || [vendor, architecture, model].filter(Boolean).join(" ");
  const dots = gpu.wgslLanguageFeatures?.has("packed_4x8_integer_dot_product") ?? false;
  const about = JSON.stringify({ name, software: adapter.info.isFallbackAdapter ?? false, subgroups: granted, dots });
  const prototype = globalThis.GPUAdapter.prototype;
  const original = prototype.requestDevice;
  let native = null;
  prototype.requestDevice = async function (descriptor = {}) {
    if (descriptor.label !== "doppler") return await original.call(this, descriptor);
    const features = [...(descriptor.requiredFeatures ?? []), ...(granted ? ["subgroups"] : [])];
    native = await original.call(this, { ...descriptor, requiredFeatures: features });
    return native;
  };
  try {
    return { device: await openDevice(about), native };
  } finally {
    prototype.requestDevice = original;
  }
}

/**
 * Has `build` make pipelines on the `native` device, and compiles them all at once, beside each other and off this
 * thread. What `build` got are stand-ins that it must let go of: who makes the same pipelines again finds them compiled.
 */
export async function compileAhead(native, build) {
  const module = native.createShaderModule({ code: "@compute @workgroup_size(1) fn main() {}" });
  const standIn = native.createComputePipeline({ layout: "auto", compute: { module } });
  const compiling = [];
  native.createComputePipeline = (descriptor) => {
    compiling.push(native.createComputePipelineAsync(descriptor));
    return standIn;
  };
  try {
    build();
  } finally {
    delete native.createComputePipeline;
  }
  // What does not compile is told when it is made again. Browsers forget pipelines that nobody holds.
  native.compiledAhead = await Promise.allSettled(compiling);
}

function whyNone() {
  if (globalThis.isSecureContext === false) return "the page must come over https, or from localhost";
  return "use a browser that has it (Chrome or Edge 113, Safari 26, Firefox 141, or newer)";
}
