// Models that this browser keeps, so that they need not come over the network again.
import { bytes, el, told } from "./dom.js";
import { Doppler } from "./doppler/index.js";

/** Whether this browser can keep models. */
export const hasKept = () => Boolean(Doppler.cache && globalThis.caches !== undefined) || Boolean(globalThis.navigator?.storage?.getDirectory);

/** Lists them in `box`; `onChoose(source)` hears which is wanted. */
export async function drawKept(box, onChoose) {
  try {
    const [models, room] = [await Doppler.cache.list(), await Doppler.cache.estimate()];
    const again = () => drawKept(box, onChoose);
    const act = (text, name, work) => el("button", { type: "button", class: "link", text, "aria-label": `${text} ${name}`, onclick: () => work().then(again, (error) => box.append(el("p", { class: "bad", text: told(error) }))) });
    const item = (model) => {
      const name = model.source ?? model.url ?? model.name ?? String(model);
      return el("li", {},
        el("button", { type: "button", class: "link", text: name, onclick: () => onChoose(name) }), model.bytes === undefined ? " " : ` ${bytes(model.bytes)} `,
        act("remove", name, () => Doppler.cache.remove(name)));
    };
    const used = room?.usage === undefined ? "" : `${bytes(room.usage)} used of ${bytes(room.quota ?? 0)} that the browser allows.`;
    box.replaceChildren(
      models.length ? el("ul", {}, ...models.map(item)) : el("p", { class: "soft", text: "Nothing yet: models of the Hub and of other addresses are kept as they are loaded." }),
      el("p", { class: "soft", text: used }),
      el("div", { class: "bar" }, models.length ? act("Remove all", "kept models", () => Doppler.cache.clear()) : "", act("Ask the browser to keep them", "", () => Doppler.cache.persist())),
    );
  } catch (error) {
    box.replaceChildren(el("p", { class: "soft", text: told(error) }));
  }
}
