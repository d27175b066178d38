// Models that this browser keeps, so that they need not come over the network again.
import { bytes, el, told } from "./dom.js";
import { Doppler } from "./doppler/index.js";

/** Lists them in `box`; `onChoose(source)` hears which is wanted. */
export async function drawKept(box, onChoose) {
  const { cache } = Doppler;
  try {
    const [models, room] = await Promise.all([cache.list(), cache.estimate()]);
    const act = (text, name, work) => {
      const failed = (error) => box.append(el("p", { class: "bad", role: "alert", text: told(error) }));
      const onclick = () => work().then(() => drawKept(box, onChoose), failed);
      return el("button", { type: "button", class: "link", text, "aria-label": `${text} ${name}`.trim(), onclick });
    };
    const item = ({ model, source, used, bytes: count }) => {
      const choose = el("button", { type: "button", class: "link", text: model, title: source, onclick: () => onChoose(source) });
      return el("li", {}, choose, ` ${bytes(count)}, used ${used.toLocaleDateString()} `, act("remove", model, () => cache.remove(source)));
    };
    const none = "None yet: models of the Hub and of other addresses are kept as they are loaded.";
    const promise = room.persisted ? "The browser promised to keep them." : "The browser may throw them away when it wants room.";
    const quota = room.quota === null ? "" : `, of ${bytes(room.quota)} that it allows`;
    box.replaceChildren(
      models.length ? el("ul", {}, ...models.map(item)) : el("p", { class: "soft", text: none }),
      el("p", { class: "soft", text: `${bytes(room.bytes)} are kept${quota}. ${promise}` }),
      el("div", { class: "bar" }, models.length ? act("Remove all", "", () => cache.clear()) : null, room.persisted ? null : act("Ask the browser to keep them", "", () => cache.persist())),
    );
  } catch (error) {
    box.replaceChildren(el("p", { class: "soft", text: told(error) }));
  }
}
