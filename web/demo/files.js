// Files that are dropped on the page, folders opened up.

/** Every file of a drop, in its folders' order, with the path below what was dropped as `webkitRelativePath`. */
export async function dropped(transfer) {
  // The list is only there until the handler ends.
  const entries = [...transfer.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const files = [];
  for (const entry of entries) if (entry) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (entry instanceof File) return void files.push(entry);
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    const path = entry.fullPath.replace(/^\//, "");
    if (path.includes("/")) Object.defineProperty(file, "webkitRelativePath", { value: path });
    return void files.push(file);
  }
  const reader = entry.createReader();
  for (;;) {
    // A reader gives a hundred entries at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const child of some) await collect(child, files);
  }
}

/** The outermost of the files called `name`; undefined where there is none. */
export function named(files, name) {
  const depth = (file) => (file.webkitRelativePath || file.name).split("/").length;
  return [...files].filter((file) => file.name === name).sort((a, b) => depth(a) - depth(b))[0];
}

/** What a choice of files is called. */
export function title(files) {
  const folder = [...files].map((file) => (file.webkitRelativePath ?? "").split("/")[0]).find(Boolean);
  return folder || (files.length === 1 ? files[0].name : "files");
}
