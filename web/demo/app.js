// The page: a chat with a model, and beside it the inspector of everything that the model computes. Nothing is asked of
// any server but the model's files.
import * as attention from "./attention.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import { $ } from "./dom.js";
import * as exporting from "./exports.js";
import * as inspector from "./inspector.js";
import * as lens from "./lens.js";
import * as lines from "./lines.js";
import * as loading from "./loading.js";
import * as logits from "./logits.js";
import * as modelPane from "./modelpane.js";
import * as panel from "./panel.js";
import * as probes from "./probes.js";
import { state } from "./state.js";
import * as tabs from "./tabs.js";
import * as theme from "./theme.js";

for (const part of [theme, loading, chat, tabs, inspector, panel, logits, attention, lens, probes, compare, lines, modelPane, exporting]) part.setUp();

const asked = new URLSearchParams(location.search);
if (asked.has("prompt")) $("ask").value = asked.get("prompt");
if (asked.get("mode") === "text") document.querySelector("input[name=mode][value=text]").click();
// The state is for whoever debugs the page itself.
globalThis.doppler = { state };
loading.load(asked.get("model") || loading.DEMO, {});
