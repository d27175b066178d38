// Models of a Hub (huggingface.co, or what answers like it): from an id to the place of the files, what the Hub lists of
// them, and what to do where it refuses.
import { DopplerError } from "./errors.js";
import { Broken, get, passing, retried, status } from "./http.js";

export const HUB = "https://huggingface.co";

/** `org/name[@revision][:FILE]` as its parts; null for anything else, which is an address. */
export function parsed(text) {
  const match = /^([A-Za-z0-9][\w.-]*\/[A-Za-z0-9_][\w.-]*)(?:@([^\s:]+))?(?::([^\s]+))?$/.exec(text);
  // Such a name is a file beside the page.
  if (match && !match[3] && /\.gguf$/i.test(text)) return null;
  return match && { id: match[1], revision: match[2] ?? "main", file: match[3] ?? null };
}

/**
 * Where the files of a model are, as `files.js` wants it: the address of the folder, in the commit that the revision is
 * now, and, by name, each file's length and hash. Where no Hub answers, what is in the cache may do (`offline`).
 */
export async function find({ hub, id, revision, file, token }, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const place = (commit) => ({
    base: new URL(`${hub}/${id}/resolve/${encodeURIComponent(commit)}/`),
    source: `${hub}/${id}@${revision}${file ? `:${file}` : ""}`,
    title: `${id}${revision === "main" ? "" : `@${revision}`}${file ? `:${file}` : ""}`,
    wanted: file,
    how: `${id}:FILE`,
    headers,
    listing: null,
    offline: null,
    refused: (name, response) => refusal({ hub, id, revision, token }, response, name),
  });
  const address = `${hub}/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`;
  let response;
  try {
    const ask = async () => {
      const response = await get(address, headers, signal);
      if (passing(response)) throw Object.assign(new Broken(status(response)), { offline: true });
      return response;
    };
    response = await retried(id, signal, ask, 2);
  } catch (error) {
    signal.throwIfAborted();
    if (!error.offline) throw error;
    return { ...place(revision), offline: `${hub} does not answer` };
  }
  const refused = refusal({ hub, id, revision, token }, response, null);
  if (refused) throw refused;
  const about = response.ok && isJson(response) ? await response.json().catch(() => null) : null;
  // A mirror that has the files but not the list.
  if (typeof about?.sha !== "string" || !Array.isArray(about.siblings)) return place(revision);
  const row = ({ rfilename, size, blobId, lfs }) => [rfilename, { sha256: lfs?.sha256 ?? null, git: blobId ?? null, size: lfs?.size ?? size ?? null }];
  return { ...place(about.sha), listing: new Map(about.siblings.map(row)) };
}

const isJson = (response) => /\bjson\b/.test(response.headers.get("Content-Type") ?? "");

/** Why the Hub does not give the model or, with `name`, one of its files; null where it is not the Hub that refuses. */
function refusal({ hub, id, revision, token }, response, name) {
  const code = response.headers.get("X-Error-Code");
  const error = (message) => new DopplerError("io", `${id}: ${message}`);
  const page = `${hub}/${id}`;
  const folder = `if you meant a folder beside the page, write ./${id}/`;
  if (response.status === 403 || code === "GatedRepo") {
    const next = token ? "ask for access there with the account of the `token`" : `accept its licence there, and give load a \`token\` of your account (${hub}/settings/tokens)`;
    return error(`this model is gated (${status(response)}): open ${page}, ${next}`);
  }
  if (response.status === 401) {
    const next = token ? "the `token` is not valid, or its account may not see the model" : "the name is wrong, or the model is private or gated and needs a `token`";
    return error(`${hub} does not give it (${status(response)}): ${next}. See ${page}; ${folder}`);
  }
  if (code === "RevisionNotFound") return error(`there is no revision \`${revision}\` at ${page}: look at its branches and tags`);
  if (code === "RepoNotFound" || (response.status === 404 && name === "config.json" && code !== "EntryNotFound")) {
    return error(`there is no such model at ${hub}, or no revision \`${revision}\` of it (${status(response)}): look at ${page}; ${folder}`);
  }
  return null;
}
