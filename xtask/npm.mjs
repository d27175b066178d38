// `npm run NAME -- …`: builds the binary, then runs `doppler NAME …`. On a terminal cargo shows how far it is; elsewhere nothing
// of the build is printed on success.
import { spawn } from "node:child_process";

const release = ["--locked", "--release", "-p", "doppler-cli"];
const loud = process.stderr.isTTY ? [] : ["--quiet"];

const run = (args) =>
  new Promise((done) => {
    const child = spawn("cargo", args, { stdio: "inherit" });
    const end = () => child.kill("SIGTERM");
    // Ctrl-C reaches the child by itself, which knows what to do with it.
    const wait = () => {};
    process.on("SIGINT", wait).on("SIGTERM", end);
    const over = (code) => {
      process.off("SIGINT", wait).off("SIGTERM", end);
      done(code);
    };
    child.on("error", (error) => {
      console.error(`cargo: ${error.message} (https://rustup.rs installs it)`);
      over(127);
    });
    child.on("exit", (code, signal) => over(signal ? 130 : code));
  });

const built = await run(["build", ...loud, ...release]);
process.exitCode = built || (await run(["run", "--quiet", ...release, "--", ...process.argv.slice(2)]));
