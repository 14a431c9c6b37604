// node read_spz.mjs FOLDER FILE AXES: what @spz-loader/core, installed in FOLDER, finds in FILE, as JSON.
// AXES: RUB for those of the format, RDF for right, down, front.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file, coordinateSystem] = process.argv.slice(2);
// the package is bundled for browsers, and fails in Node unless it takes it for one
process.type = 'renderer';
globalThis.window = globalThis;
const module = path.join(folder, 'node_modules/@spz-loader/core/dist/index.js');
const { loadSpz } = await import(pathToFileURL(module));
const cloud = await loadSpz(new Uint8Array(fs.readFileSync(file)), { unpackOptions: { coordinateSystem } });
const values = {};
for (const name of ['positions', 'colors', 'alphas', 'scales', 'rotations']) {
  values[name] = Array.from(cloud[name]);
}
console.log(JSON.stringify(values));
